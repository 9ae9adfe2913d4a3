"""A side whose rows are conversations: token ids just as its chat template and tokenizer give them, and where contents are.

The whole conversation is rendered and tokenized as one text, as transformers does it. Where each content stands in that
text is known (`trainer.models.chat_template.Layout`), so a token's characters there are characters of the row's own text,
or a template's. A token that spells visible characters of both belongs to neither, and units at that edge have no span.

A turn is learnt from its first token behind the generation prompt to the special token that ends it: the eos, where that
follows (also one that the template writes in front of the next message), else the first one behind what was said. Where a
template ends the last turn without any, the eos is put there. A row over `max_length` loses its end.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Int32, Int64

from pipeline.read.contents import learnt_turns
from pipeline.read.offsets import TokenRanges
from pipeline.read.tokenizers import UNTRACED, Encoding, OffsetTokenizer, Piece
from pipeline.text import Rendered
from schemas import embedded
from schemas.columns import MISSING, Side
from schemas.config import Learn, ParseConfig, SideConfig
from schemas.conversations import Conversation
from schemas.errors import UserError
from schemas.rows import UNPAIRED, Reason, RowError, unpaired_surrogate
from trainer.maths.characters import code_points, is_space
from trainer.models.chat_ending import ending_of
from trainer.models.chat_refusal import explained
from trainer.models.chat_template import ChatTemplate, Layout
from trainer.models.tokenizer import load_tokenizer

#: What the end of a conversation is, in a manifest.
END_RULE: Final = "after a last turn that its template ends without a special token"


def open_tokenizer(side: Side, settings: SideConfig, config: ParseConfig) -> OffsetTokenizer:
    """A side's tokenizer as `settings` say, for a dataset of this config, which is resolved."""
    settings = embedded.side(settings)
    if not config.of_conversations:
        return OffsetTokenizer(side, settings, config.overflow)
    return ChatTokenizer(side, settings, config.overflow, config.conversations.learn, config.conversations.date)


class ChatTokenizer(OffsetTokenizer):
    """One side's tokenizer with its chat template; `learn`: which turns are."""

    def __init__(
        self, side: Side, config: SideConfig, overflow: Literal["truncate", "drop"], learn: Learn, date: str
    ) -> None:
        """`config.template` names the template. Raises as `OffsetTokenizer`, and `UserError` for a template that cannot be
        used."""
        super().__init__(side, config, overflow)
        assert config.template is not None
        subject = f"The {side} tokenizer {config.tokenizer!r}"
        #: The tokenizer of transformers, which renders.
        self.library = load_tokenizer(config.tokenizer, config.revision, subject)
        self.template = ChatTemplate(config.template, self.library, subject, date)
        self._learn = learn
        ends = ending_of(self.template, self.library).special
        #: What a turn ends in, if it is one and the same.
        self._turn_end = list(self._suffix if not ends or set(self._suffix) & set(ends) else ends[:1])

    def identity(self) -> dict[str, Any]:
        """As of a plain side, and the template."""
        return super().identity() | {
            "template": self.template.identity(),
            "learn": self._learn,
            "prefix": [],
            "prefix_rule": "the template's",
            "suffix": [self.backend.id_to_token(index) for index in self._turn_end],
            "suffix_rule": END_RULE,
        }

    def end(self) -> list[int]:
        """As of a plain side: what ends a turn of the template."""
        return self._turn_end[-1:]

    def audit(self, rows: Sequence[Rendered]) -> None:
        """As of a plain side; rows that the template refuses do not count. Raises `UserError` where it refuses all."""
        layouts = [layout for layout in map(self._layout, rows) if isinstance(layout, Layout)]
        if rows and not layouts:
            raise UserError(
                f"The {self.side} template {self.config.template!r} takes none of {len(rows)} conversations. "
                f"Of the first: {self._layout(rows[0])}."
            )
        pieces = self.pieces(self.backend, [layout.text for layout in layouts], Counter())
        self._require_traceable([Reason(UNTRACED) if piece is None else piece for piece in pieces])

    def encode(self, rows: Sequence[Rendered]) -> list[Encoding | Reason]:
        """Each row's encoding, or the reason to leave it out."""
        layouts = [self._layout(row) for row in rows]
        pieces = self.pieces(
            self.backend, [layout.text if isinstance(layout, Layout) else "" for layout in layouts], self.offset_counts
        )
        encodings: list[Encoding | Reason] = []
        for row, layout, piece in zip(rows, layouts, pieces, strict=True):
            if isinstance(layout, Reason):
                encodings.append(layout)
            elif piece is None:
                encodings.append(Reason(f"{self.side}: {UNTRACED}"))
            else:
                encodings.append(self._placed(row, layout, piece))
        self.offset_counts["rows"] += len(rows)
        self.offset_counts["rows_refused"] += sum(isinstance(encoding, Reason) for encoding in encodings)
        return encodings

    def _layout(self, row: Rendered) -> Layout | Reason:
        assert row.conversation is not None
        try:
            layout = self.template.layout(row.conversation)
        except RowError as error:
            reason = explained(error, row.conversation, self.template.layout, "mta-prep parse")
            return Reason(f"{self.side}: {reason.kind}", reason.detail)
        whole = unpaired_surrogate(layout.text) is None
        return layout if whole else Reason(f"{self.side}: the template makes an {UNPAIRED}")

    def _placed(self, row: Rendered, layout: Layout, piece: Piece) -> Encoding | Reason:
        assert row.conversation is not None
        offsets = _offsets(row, layout, piece.ranges)
        responses, closing = self._responses(row.conversation, layout, piece)
        ids = np.concatenate([piece.ids, np.array(closing, dtype=np.int32)])
        offsets = np.concatenate([offsets, np.full((len(closing), 2), MISSING, dtype=np.int32)])
        if not len(responses):
            return Reason(f"{self.side}: no turn of it is learnt")
        limit = self.config.max_length
        if limit is None or len(ids) <= limit:
            return Encoding(ids, offsets, responses, truncated=False)
        if self.overflow == "drop":
            return Reason(f"{self.side}: row longer than max_length")
        last = limit - int(np.argmax(piece.separable[limit::-1])) if limit < len(piece) else limit
        responses = np.minimum(responses[responses[:, 0] < last], last)
        if not len(responses):
            return Reason(f"{self.side}: max_length cuts every response away")
        return Encoding(ids[:last], offsets[:last], responses, truncated=True)

    def _responses(
        self, conversation: Conversation, layout: Layout, piece: Piece
    ) -> tuple[Int32[np.ndarray, "turns 2"], list[int]]:
        """Tokens of the learnt turns, and what closes the last one where its template does not."""
        reach, ends = piece.ranges.reach, piece.ranges.ends
        special = np.isin(piece.ids, np.array(self.special, dtype=np.int64))
        starts = starts_of_learning(conversation, layout, self._learn)
        closing: list[int] = []
        responses = []
        for turn, start in enumerate(starts.tolist()):
            if start < 0:
                continue
            end = int(layout.turns[turn, 1])
            first = int(np.searchsorted(ends, start, side="right"))
            behind, beyond = (int(np.searchsorted(reach, at)) for at in (layout.endings[turn], end))
            endings = behind + np.flatnonzero(special[behind:beyond])
            if len(endings):
                eos = endings[np.isin(piece.ids[endings], self._suffix)]
                last = int(eos[0] if len(eos) else endings[0]) + 1
            elif end == len(layout.text):
                closing = self._suffix
                last = len(piece) + len(closing)
            elif beyond < len(piece) and piece.ids[beyond] in self._suffix and end not in layout.places:
                last = beyond + 1  # the eos, which the template writes with the next message
            else:
                last = beyond
                while last > behind and piece.is_blank(last - 1):
                    last -= 1
            if first < last:
                responses.append((first, last))
        return np.array(responses, dtype=np.int32).reshape(-1, 2), closing


def starts_of_learning(conversation: Conversation, layout: Layout, learn: Learn) -> Int64[np.ndarray, " turns"]:
    """Of every turn, the character of the rendered text from which it is learnt; -1 for turns that are not."""
    learnt = np.isin(conversation.turns(), learnt_turns(conversation, learn))
    starts: Int64[np.ndarray, " turns"] = np.where(learnt, layout.turns[:, 0], -1).astype(np.int64)
    if learn != "no-reasoning":
        return starts
    for number, message in enumerate(conversation.turns()):
        shown = [content for content in conversation.contents_of(message) if layout.places[content] >= 0]
        thought = [content for content in shown if conversation.contents[content].role == "reasoning"]
        answer = [content for content in shown if content not in thought]
        if not learnt[number] or not thought:
            continue
        if answer:
            starts[number] = layout.places[answer[0]]
        else:
            starts[number] = max(layout.places[content] + np.ptp(layout.shown[content]) for content in thought)
    return starts


def _offsets(row: Rendered, layout: Layout, ranges: TokenRanges) -> Int32[np.ndarray, "tokens 2"]:
    """Characters of the row's text that each token spells; [-1, -1) where it spells any of the template, or none at all."""
    offsets = np.full((len(ranges.starts), 2), MISSING, dtype=np.int32)
    there = np.flatnonzero(layout.places >= 0)
    if not len(there) or not len(offsets):
        return offsets
    there = there[np.argsort(layout.places[there], kind="stable")]
    begins = layout.places[there].astype(np.int64)
    lengths = np.diff(layout.shown[there].astype(np.int64)).squeeze(1)
    shift = np.array([row.messages[content].start for content in there]) + layout.shown[there, 0] - begins
    solid = np.append(0, np.cumsum(~is_space(code_points(layout.text))))
    content = np.minimum(np.searchsorted(begins + lengths, ranges.reach, side="right"), len(there) - 1)
    first, last = begins[content], begins[content] + lengths[content]
    start, end = np.clip(ranges.starts, first, last), np.clip(ranges.ends, first, last)
    # of what lies outside of the content nothing may be visible
    foreign = (
        solid[np.maximum(ranges.ends, ranges.reach)] - solid[ranges.reach] > solid[end] - solid[np.minimum(start, end)]
    )
    own = (ranges.ends > first) & (ranges.reach < last) & ~foreign
    offsets[own, 0], offsets[own, 1] = (start + shift[content])[own], (end + shift[content])[own]
    return offsets
