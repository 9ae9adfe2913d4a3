"""What a row's tokens say by the tokenizer's own decoder, held against what its offsets and token spans claim.

Offsets are computed from what tokens spell, and token spans from offsets; whatever is wrong in the one or the other is
wrong again when it is computed again. Here nothing is computed again. The library decodes the ids, and normalises the
stretch of text that each claims to stand for; both must show the same characters, white space aside. A unit is looked up
among the tokens by their edges, and has a token span just where what lies between its edges and theirs is nothing.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Int32
from tokenizers import Tokenizer

from pipeline.read.characters import CLUSTER
from pipeline.read.tokenizers import Encoding, OffsetTokenizer
from pipeline.text import Rendered
from schemas.columns import MISSING, Granularity, Placed

Spans = Int32[np.ndarray, "_ 2"]

#: Stands before what is decoded.
_BEFORE: Final = "a"


def in_a_text(backend: Tokenizer) -> Callable[[Sequence[int]], str]:
    """Decodes tokens as they stand in the middle of a text: decoders treat the first one in their own ways."""
    before = backend.encode(_BEFORE, add_special_tokens=False).ids
    lead = len(backend.decode(before, skip_special_tokens=False))
    return lambda ids: str(backend.decode([*before, *ids], skip_special_tokens=False)[lead:])


class _Group(NamedTuple):
    """Tokens that share characters, and the characters [start, end) that they claim together."""

    ids: tuple[int, ...]
    start: int
    end: int


class Decoder:
    """Reads tokens and texts the way one tokenizer's library does."""

    def __init__(self, tokenizer: OffsetTokenizer) -> None:
        self._backend = tokenizer.backend
        self._normalization = tokenizer.normalization
        self._unknown = tokenizer.unknown
        self._cut_behind = tokenizer.config.max_length is not None
        self._cut_before = self._cut_behind or tokenizer.config.max_prompt_length is not None
        self._decoded = in_a_text(self._backend)
        self.said = lru_cache(maxsize=1 << 16)(self._said)  # of tokens that come again and again

    def refusal(self) -> str | None:
        """Why this tokenizer's tokens cannot be decoded one by one, if they cannot."""
        return None if self._backend.decoder is not None else "the tokenizer has no decoder"

    def _said(self, ids: tuple[int, ...]) -> str:
        """What these tokens say in the middle of a text, without white space."""
        return self._visible(self._decoded(ids))

    def _visible(self, text: str) -> str:
        return self._normalization.visible(text)

    def shows(self, text: str) -> str:
        """What the tokenizer sees of a stretch of text, without white space."""
        return "" if not text or text.isspace() else self._normalization.visible_alone(text)

    def problem(
        self, row: Rendered, encoding: Encoding, units: Mapping[Granularity, tuple[Spans, Spans]]
    ) -> str | None:
        """The first thing that is wrong with a row's offsets or, if they are right, with its token spans.

        `units`: of each granularity, the units' characters and the tokens that they claim. A conversation is looked at
        content by content.
        """
        if row.conversation is None:
            return self._problem(row.text, encoding, units)
        for content in row.messages:
            first, tokens, own = _part(content, encoding, units)
            edges = self._edges(encoding, first, first + len(tokens.input_ids))
            text = row.text[content.start : content.end]
            if edges is not None and (wrong := self._problem(text, tokens, own, edges)):
                return f"{wrong}, in the content at {content.start}"
        return None

    def _edges(self, encoding: Encoding, first: int, last: int) -> tuple[str, str] | None:
        """What the template's tokens beside those of a content say: they may hold its first and last characters as well."""
        if first == last:
            return None
        beside = [at for at in (first - 1, last) if 0 <= at < len(encoding.input_ids) and encoding.offsets[at, 0] < 0]
        said = {at: self.said((int(encoding.input_ids[at]),)) for at in beside}
        return said.get(first - 1, ""), said.get(last, "")

    def _problem(
        self,
        text: str,
        encoding: Encoding,
        units: Mapping[Granularity, tuple[Spans, Spans]],
        edges: tuple[str, str] = ("", ""),
    ) -> str | None:
        wrong = self._offset_problem(text, encoding, *edges)
        if wrong is not None:
            return f"offsets {wrong}"
        wrongs = ((name, self._unit_problem(text, encoding, *spans)) for name, spans in units.items())
        return next((f"spans of {name} {wrong}" for name, wrong in wrongs if wrong is not None), None)

    def _offset_problem(self, text: str, encoding: Encoding, before: str, behind: str) -> str | None:
        """The first token whose range is not the characters that it says, or the first characters that none says.

        `before` and `behind` are what is said on either side, in which the first and the last characters may be.
        """
        reached = 0
        for ids, start, end in _groups(encoding):
            held = text[start:end]
            missing = self.shows(text[reached:start])
            if missing and not (not reached and (self._cut_before or before.endswith(missing))):
                return f"leave out {text[reached:start].strip()!r} at {reached}"
            reached = end
            if self._unknown in ids:
                continue
            if not self._alike(self.said(ids), held):
                return f"say that {held!r} at {start} is what the tokenizer decodes as {self.said(ids)!r}"
            if not self._tight(held):
                return f"say that a token reaches over all of {held!r} at {start}, of which it spells less"
        missing = self.shows(text[reached:])
        if missing and not (self._cut_behind or behind.startswith(missing)):
            return f"leave out {text[reached:].strip()!r} at {reached}"
        return None

    def _alike(self, said: str, held: str) -> bool:
        return said == held or self.shows(held) in (said, self.shows(said))

    def _tight(self, held: str) -> bool:
        """Whether a range begins and, white space aside, ends with something that the tokenizer sees, if it holds any.

        What is dropped of a cluster of characters, such as an accent, may end it.
        """
        if (held.isascii() and held.isalnum()) or not self.shows(held):
            return True
        *_, last = CLUSTER.finditer(held.rstrip())
        return bool(self.shows(held[0]) and self.shows(last[0]))

    def _unit_problem(self, text: str, encoding: Encoding, units: Spans, spans: Spans) -> str | None:
        """The first unit with a token span that is not its characters, or without one though some tokens are just that.

        Offsets are believed. A unit may lack its span where it begins or ends with something that the tokenizer does not
        see, or that lies before the first token or behind the last: such characters may be cut, dropped, or in a token.
        """
        if len(units) != len(spans):
            return f"are {len(spans)}, of {len(units)} units"
        real = np.flatnonzero(encoding.offsets[:, 0] >= 0)
        starts, ends = encoding.offsets[real].T.tolist()
        for (start, end), claimed in zip(units.tolist(), spans.tolist(), strict=True):
            if not self.shows(text[start:end]):
                continue  # no token says it
            first, last = bisect_right(ends, start), bisect_left(starts, end) - 1
            fits = (
                first <= last
                and self._nothing_between(text, start, starts[first])
                and self._nothing_between(text, end, ends[last])
            )
            wanted = [int(real[first]), int(real[last]) + 1] if fits else [-1, -1]
            sure = starts[0] <= start and end <= ends[-1] and self._tight(text[start:end])
            if claimed != wanted and (sure or claimed != [-1, -1]):
                return f"say {claimed} for {text[start:end]!r} at {start}, whose tokens are {wanted}"
        return None

    def _nothing_between(self, text: str, one: int, other: int) -> bool:
        return not self.shows(text[min(one, other) : max(one, other)])


def _part(
    content: Placed, encoding: Encoding, units: Mapping[Granularity, tuple[Spans, Spans]]
) -> tuple[int, Encoding, dict[Granularity, tuple[Spans, Spans]]]:
    """The first token of one content, and its tokens and units, counted from there and from its first character."""
    starts = encoding.offsets[:, 0]
    tokens = np.flatnonzero((starts >= content.start) & (starts <= content.end))
    tokens = tokens[encoding.offsets[tokens, 1] <= content.end]
    first = int(tokens[0]) if len(tokens) else 0
    offsets = encoding.offsets[tokens] - np.int32(content.start)
    own: dict[Granularity, tuple[Spans, Spans]] = {}
    for name, (characters, spans) in units.items():
        inside = (characters[:, 0] >= content.start) & (characters[:, 1] <= content.end)
        shifted = np.where(spans[inside] == MISSING, MISSING, spans[inside] - first).astype(np.int32)
        own[name] = characters[inside] - np.int32(content.start), shifted
    return first, Encoding(encoding.input_ids[tokens], offsets, encoding.responses[:0], truncated=False), own


def _groups(encoding: Encoding) -> Iterator[_Group]:
    """The row's own tokens in order, those that share characters together."""
    group: _Group | None = None
    for token, (start, end) in zip(encoding.input_ids.tolist(), encoding.offsets.tolist(), strict=True):
        if start < 0:
            continue
        if group is not None and start < group.end:
            group = _Group((*group.ids, token), group.start, max(end, group.end))
            continue
        if group is not None:
            yield group
        group = _Group((token,), start, end)
    if group is not None:
        yield group
