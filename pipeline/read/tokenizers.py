"""Tokenizers whose offsets tell the truth: a row's token ids on one side, and the characters each token spells.

A row is encoded as prompt and response apart, so that a token boundary falls exactly where the response begins; the
response is encoded as text that goes on (no dummy prefix). Every token's range is found and checked by `locating`, not
taken from the tokenizer library; a row whose tokens cannot be traced to its text is refused.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Bool, Int32
from tokenizers import Encoding as BackendEncoding
from tokenizers import Tokenizer

from pipeline.read.loading import load_fast_tokenizer
from pipeline.read.locating import Locator
from pipeline.read.normalization import NormalizationMap
from pipeline.read.offsets import TokenRanges, next_visible, without_leading_space
from pipeline.read.spelling import continuation, read_spelling, settle, text_normalizer
from pipeline.text import Rendered
from schemas.columns import MISSING, Side
from schemas.config import SideConfig
from schemas.errors import UserError
from schemas.rows import UNPAIRED, Reason, unpaired_surrogate
from trainer.maths.characters import code_points, is_space

#: Words whose tokens the library keeps; fewer than its default cost no measurable time and bound memory.
CACHED_WORDS: Final = 1_000
#: A tokenizer that defeats verification on more than this share of an audit's rows is refused.
MAX_REFUSED: Final = 0.01
#: Why a row is left out whose tokens do not spell its text.
UNTRACED: Final = "offsets could not be verified"
#: Special tokens named where the one that was asked for is missing.
LISTED: Final = 20


@dataclass(frozen=True)
class Encoding:
    """One row on one side."""

    input_ids: Int32[np.ndarray, " tokens"]
    offsets: Int32[
        np.ndarray, "tokens 2"
    ]  # characters of the row's text; [-1, -1) for tokens that stand for none of it
    responses: Int32[np.ndarray, "turns 2"]  # tokens that are learnt, rising; what was cut away altogether is missing
    truncated: bool  # something of the row was left out, be it the closing special tokens alone


@dataclass(frozen=True)
class Piece:
    """A prompt or a response: its token ids and where they stand in it."""

    ids: Int32[np.ndarray, " tokens"]
    ranges: TokenRanges
    separable: Bool[np.ndarray, " gaps"]  # where it may be cut
    text: str

    def __len__(self) -> int:
        return len(self.ids)

    def is_blank(self, token: int) -> bool:
        """Whether a token stands for white space, or for nothing."""
        return not self.text[self.ranges.starts[token] : self.ranges.ends[token]].strip()

    def begins_with(self, ids: list[int], first: int) -> bool:
        """Whether these are its tokens from `first` on, white space before them aside."""
        while first < len(self) and self.is_blank(first):
            first += 1
        return list(self.ids[first : first + len(ids)]) == ids

    def ends_with(self, ids: list[int]) -> bool:
        """Whether these are its last tokens, white space behind them aside."""
        last = len(self)
        while last and self.is_blank(last - 1):
            last -= 1
        return list(self.ids[max(0, last - len(ids)) : last]) == ids


class OffsetTokenizer:
    """One side's tokenizer, special-token policy and limits.

    Rows are `prefix + prompt + response + suffix`, where prefix and suffix are what the tokenizer's post-processor adds
    ([CLS], BOS, [SEP]). The suffix is the config's eos if it names one; else, if the post-processor adds none, the
    tokenizer's own. A row that begins with the prefix already gets none, and neither does a response that was cut, or
    that ends in the suffix; white space around the row does not matter. What is encoded for a row depends on that row
    alone.
    """

    def __init__(self, side: Side, config: SideConfig, overflow: Literal["truncate", "drop"]) -> None:
        """Load and probe. Raises `UserError` (unusable tokenizer) or `ResourceError` (not reachable, not cached)."""
        self.side = side
        self.config = config
        self.overflow = overflow
        #: Running counts over everything encoded: `rows`, `rows_refused`, `tokens`, `exact` (the library's own offset
        #: was right, leading space aside), `repaired` (it was not), `shared_character` (that hold part of a character).
        self.offset_counts: Counter[str] = Counter()
        loaded = load_fast_tokenizer(side, config)
        #: The library's tokenizer, for a text's beginning.
        self.backend = loaded.backend
        try:
            definition = settle(self.backend)
        except Exception as error:  # what the library raises for parts written in Python
            raise UserError(
                f"The {side} tokenizer {config.tokenizer!r} has parts that cannot be written down ({error}). Choose "
                "one that its tokenizer.json describes wholly."
            ) from error
        self._digest = hashlib.sha256(json.dumps(definition, sort_keys=True).encode("utf-8")).hexdigest()
        continued = continuation(definition)
        self._continuing = self.backend if continued == definition else Tokenizer.from_str(json.dumps(continued))
        for backend in (self.backend, self._continuing):
            if hasattr(backend.model, "_resize_cache"):
                # 10,000 words by default, which are whole texts where nothing splits them (Llama-2): 100 MB and more
                backend.model._resize_cache(CACHED_WORDS)
        self.spelling = read_spelling(definition, self.backend)
        #: Ids of special tokens, rising.
        self.special = sorted(
            index for index, token in self.backend.get_added_tokens_decoder().items() if token.special
        )
        self.unknown = self.spelling.unknown
        self.normalization = NormalizationMap(text_normalizer(definition), self.spelling.marker)
        self._locator = Locator(self.spelling, self.normalization)
        self._prefix = loaded.before
        self._suffix, self._suffix_source = self._end(loaded.after, loaded.eos)

    def _end(self, after: list[int], eos: int | None) -> tuple[list[int], str | None]:
        """What ends a response, and where it comes from; `after`: what the post-processor puts behind a text."""
        if self.config.eos is not None:
            return [self._named_eos(self.config.eos)], "config"
        if after:
            return after, "post-processor"
        return ([], None) if eos is None else ([eos], "eos")

    def _named_eos(self, token: str) -> int:
        index: int | None = self.backend.token_to_id(token)
        if index is None:
            special = [entry.content for entry in self.backend.get_added_tokens_decoder().values() if entry.special]
            known = f"Its special tokens: {', '.join(special[:LISTED])}." if special else "It has no special tokens."
            raise UserError(f"The {self.side} tokenizer {self.config.tokenizer!r} has no token {token!r}. {known}")
        return index

    def end(self) -> list[int]:
        """The id that usually ends what is learnt; none where none is known."""
        return self._suffix[-1:]

    def note(self) -> str | None:
        """What a person should know before rows are encoded."""
        if self._suffix:
            return None
        return (
            f"The {self.side} tokenizer {self.config.tokenizer!r} names no end-of-sequence token, so responses end in none "
            f"and a model never learns to stop. --{self.side}-eos TOKEN names one."
        )

    def identity(self) -> dict[str, Any]:
        """All that decides the encodings, as JSON values; no absolute path."""
        path = Path(self.config.tokenizer).expanduser()
        local = path.resolve().parent if path.is_file() else path.resolve()
        return {
            "name": local.name if path.exists() else self.config.tokenizer,
            "revision": self.config.revision,
            "sha256": self._digest,
            "vocabulary": len(self.spelling.spelled),
            "prefix": [self.backend.id_to_token(index) for index in self._prefix],
            "suffix": [self.backend.id_to_token(index) for index in self._suffix],
            "suffix_source": self._suffix_source,
            "prefix_rule": "before a text that does not begin with it, white space aside",
            "suffix_rule": "after a whole response that does not end in it, white space aside",
            "response_without_dummy_prefix": self._continuing is not self.backend,
            "max_length": self.config.max_length,
            "max_prompt_length": self.config.max_prompt_length,
            "overflow": self.overflow,
        }

    def audit(self, rows: Sequence[Rendered]) -> None:
        """Verify every token of these rows, without limits.

        Raises `UserError` naming the tokenizer if more than `MAX_REFUSED` of the rows, and more than one, cannot be
        verified.
        """
        self._require_traceable(self._encode_rows(rows, Counter()))

    def _require_traceable(self, rows: Sequence[Any]) -> None:
        """`rows`: what their tokens are, or a `Reason`."""
        refused = [i for i, row in enumerate(rows) if isinstance(row, Reason)]
        if len(refused) > max(1, MAX_REFUSED * len(rows)):
            raise UserError(
                f"The {self.side} tokenizer {self.config.tokenizer!r} is refused: in {len(refused)} of {len(rows)} "
                f"audited rows its tokens could not be traced to the text (first: row {refused[0]}). Choose "
                "another tokenizer."
            )

    def encode(self, rows: Sequence[Rendered]) -> list[Encoding | Reason]:
        """Each row's encoding, or the reason to drop it."""
        pieces = self._encode_rows(rows, self.offset_counts)
        return [
            piece if isinstance(piece, Reason) else self._assemble(*piece, row.response_start)
            for piece, row in zip(pieces, rows, strict=True)
        ]

    def _encode_rows(self, rows: Sequence[Rendered], counts: Counter[str]) -> list[tuple[Piece, Piece] | Reason]:
        """Prompt and response of each row, or why the row is refused."""
        texts, response_starts = [row.text for row in rows], [row.response_start for row in rows]
        whole = [unpaired_surrogate(text) is None for text in texts]
        safe = [text if good else "" for text, good in zip(texts, whole, strict=True)]
        cut = list(zip(safe, response_starts, strict=True))
        opening = self.pieces(self.backend, [text[:start] if start else text for text, start in cut], counts)
        continuing = self.pieces(self._continuing, [text[start:] if start else "" for text, start in cut], counts)
        pieces: list[tuple[Piece, Piece] | Reason] = []
        for good, start, first, second in zip(whole, response_starts, opening, continuing, strict=True):
            if not good:
                pieces.append(Reason(f"{self.side}: text holds an {UNPAIRED}"))
            elif first is None or second is None:
                pieces.append(Reason(f"{self.side}: {UNTRACED}"))
            else:
                pieces.append((first, second) if start else (second, first))
        counts["rows"] += len(pieces)
        counts["rows_refused"] += sum(isinstance(piece, Reason) for piece in pieces)
        return pieces

    def pieces(self, backend: Tokenizer, texts: list[str], counts: Counter[str]) -> list[Piece | None]:
        """Tokens and verified ranges of each text; None where the check fails."""
        encodings: list[BackendEncoding] = backend.encode_batch(texts, add_special_tokens=False)
        ranges = self._locator.locate(texts, encodings)
        pieces = [
            None if found is None else Piece(np.array(encoding.ids, dtype=np.int32), found, found.separable(), text)
            for encoding, found, text in zip(encodings, ranges, texts, strict=True)
        ]
        self._count(texts, encodings, pieces, counts)
        return pieces

    def _count(
        self,
        texts: list[str],
        encodings: list[BackendEncoding],
        pieces: list[Piece | None],
        counts: Counter[str],
    ) -> None:
        """Compare the library's offsets, leading space aside, with the verified ones."""
        good = [i for i, piece in enumerate(pieces) if piece is not None and len(piece)]
        kept = [piece for i in good if (piece := pieces[i]) is not None]
        if not kept:
            return
        sizes = np.array([len(piece) for piece in kept], dtype=np.int64)
        base = np.repeat(np.append(0, np.cumsum([len(texts[i]) for i in good])[:-1]), sizes)
        reported = (
            np.fromiter(
                chain.from_iterable(chain.from_iterable(encodings[i].offsets for i in good)),
                dtype=np.int64,
                count=2 * int(sizes.sum()),
            ).reshape(-1, 2)
            + base[:, None]
        )
        starts = np.concatenate([piece.ranges.starts for piece in kept]) + base
        ends = np.concatenate([piece.ranges.ends for piece in kept]) + base
        visible = next_visible(is_space(code_points("".join(texts[i] for i in good))))
        exact = (without_leading_space(reported[:, 0], reported[:, 1], visible) == starts) & (reported[:, 1] == ends)
        counts["tokens"] += len(exact)
        counts["exact"] += int(exact.sum())
        counts["repaired"] += int((~exact).sum())
        counts["shared_character"] += sum(int((~piece.separable[:-1] | ~piece.separable[1:]).sum()) for piece in kept)

    def _assemble(self, prompt: Piece, response: Piece, response_start: int) -> Encoding | Reason:
        """Prefix, prompt, response and suffix within the limits, or the reason to drop the row."""
        if not len(response):
            return Reason(f"{self.side}: response has no tokens")
        closing = [] if response.ends_with(self._suffix) else self._suffix
        cut = self._cut(prompt, response, len(closing))
        if isinstance(cut, Reason):
            return cut
        first, last, closed = cut
        prefix = [] if self._begins_with_prefix(prompt, first, response) else self._prefix
        suffix = closing if closed else []
        truncated = first > 0 or not closed
        before = len(prefix) + len(prompt) - first
        ids = [prefix, prompt.ids[first:], response.ids[:last], suffix]
        offsets = np.full((before + last + len(suffix), 2), MISSING, dtype=np.int32)
        prompt_rows, response_rows = slice(len(prefix), before), slice(before, before + last)
        offsets[prompt_rows, 0], offsets[prompt_rows, 1] = prompt.ranges.starts[first:], prompt.ranges.ends[first:]
        offsets[response_rows, 0] = response.ranges.starts[:last] + response_start
        offsets[response_rows, 1] = response.ranges.ends[:last] + response_start
        responses = np.array([[before, len(offsets)]], dtype=np.int32)
        return Encoding(
            np.concatenate([np.asarray(part, dtype=np.int32) for part in ids]), offsets, responses, truncated
        )

    def _cut(self, prompt: Piece, response: Piece, closing: int) -> tuple[int, int, bool] | Reason:
        """Where the prompt begins, where the response ends, whether `closing` tokens follow; or why the row is dropped.

        A prompt over its own limit loses its beginning. Of a row over `max_length` the response loses its end and the prompt
        its beginning, neither while it takes less than half of the room; where the prompt has a limit of its own that leaves
        room, it keeps what that allows. At least one character of the response is kept.
        """
        limit, prompt_limit = self.config.max_length, self.config.max_prompt_length
        kept = len(prompt) if prompt_limit is None else min(len(prompt), prompt_limit)
        if kept < len(prompt) and self.overflow == "drop":
            return Reason(f"{self.side}: prompt longer than max_prompt_length")
        last, room = len(response), None if limit is None else limit - len(self._prefix)
        own = len(self._prefix) if kept == len(prompt) and self._begins_with_prefix(prompt, 0, response) else 0
        if room is not None and kept + last + closing > room + own:  # a prefix of the text's own is counted with it
            if self.overflow == "drop":
                return Reason(f"{self.side}: row longer than max_length")
            least = 1 + int(np.argmax(response.separable[1:]))  # tokens of the first characters that can stand alone
            if least > room:
                return Reason(f"{self.side}: max_length leaves no room for the response")
            share = prompt_limit if prompt_limit is not None and prompt_limit < room else room // 2
            kept = min(kept, max(share, room - last - closing), room - least)
        first = len(prompt) - kept
        first += int(np.argmax(prompt.separable[first:]))
        if room is None or len(prompt) - first + last + closing <= room + (0 if first else own):
            return first, last, True
        last = min(last, room - len(prompt) + first)
        return first, last - int(np.argmax(response.separable[last::-1])), False

    def _begins_with_prefix(self, prompt: Piece, first: int, response: Piece) -> bool:
        """Whether a row, its prompt's first tokens cut away, brings the prefix along."""
        blank = all(prompt.is_blank(token) for token in range(first, len(prompt)))
        return response.begins_with(self._prefix, 0) if blank else prompt.begins_with(self._prefix, first)
