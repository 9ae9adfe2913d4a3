"""Character spans to token spans, for a document or a whole shard at once, and the audit of what was lost.

White space is taken out of the way first: every character position becomes the number of non-space characters before
it. There, space around a token vanishes, and a unit is the half-open interval [s, e) of non-space characters. Tokens
are sorted by start and by end, so the tokens that share a character with it are those from the first with end > s to
the last with start < e. How many tokens have ended, or started, by each character is counted once; a unit then costs
two look-ups, and all of it O(characters + tokens + units). The unit's span is faithful if these tokens together spell
it: nothing missing, nothing foreign.

Truncation takes away the beginning and the end of a document. A character between two neighbouring tokens that is in
neither is one that the tokenizer drops (a zero-width space, say), and is taken for white space on its side. Where other
tokens stand between, those of a chat template, such characters are in tokens that are not their own, or in none.

A chat template may give the contents of a conversation in another order than the text has them. Tokens are therefore taken in
the order of their characters; no unit reaches from one content to another, and within a content both orders are one.

A shard is one long text: documents lie one after the other, so no interval of one reaches into another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from jaxtyping import Bool, Int8, Int32, Int64

from schemas.columns import GRANULARITIES, MISSING, SIDES, Granularity, Side
from trainer.maths.characters import code_points, is_space


class Reason(IntEnum):
    """Why a unit has a token span, or none."""

    OK = 0
    CUT = 1  # truncation took some of its characters
    INSIDE = 2  # whole, but a token that spells it reaches over its edge; or made of what the tokenizer drops


@dataclass(frozen=True)
class Ragged:
    """Spans of several documents, one document after the other."""

    spans: Int32[np.ndarray, "spans 2"]
    rows: Int64[np.ndarray, " pointers"]  # one more than documents: d has spans[rows[d] : rows[d + 1]]

    @classmethod
    def join(cls, documents: Sequence[Int32[np.ndarray, "_ 2"]]) -> "Ragged":
        """Spans of each document, in order."""
        rows = np.cumsum([0, *map(len, documents)], dtype=np.int64)
        return cls(np.concatenate([np.empty((0, 2), np.int32), *documents]), rows)

    def documents(self) -> Int64[np.ndarray, " spans"]:
        """The index of each span's document."""
        return np.repeat(np.arange(len(self.rows) - 1), np.diff(self.rows))

    def split(self) -> list[Int32[np.ndarray, "_ 2"]]:
        """Views of each document's spans."""
        return np.split(self.spans, self.rows[1:-1]) if len(self.rows) > 1 else []


@dataclass(frozen=True)
class Texts:
    """Where the characters of several documents are, white space not counted."""

    solid: Bool[np.ndarray, " characters"]  # of the whole, which are no white space
    solid_before: Int32[np.ndarray, " positions"]  # solid characters before each position of the whole
    rows: Int64[np.ndarray, " pointers"]  # one more than documents: d has characters rows[d] to rows[d + 1]

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Texts":
        """Texts without unpaired surrogates; white space is what `str.isspace` says it is."""
        solid = ~is_space(code_points("".join(texts)))
        return cls(solid, _counted(solid), np.cumsum([0, *map(len, texts)], dtype=np.int64))

    def without(self, firsts: Int64[np.ndarray, " gaps"], lasts: Int64[np.ndarray, " gaps"]) -> "Texts":
        """The same with the characters of these ranges taken for white space."""
        if not len(firsts):
            return self
        solid = self.solid.copy()
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
            solid[first:last] = False
        return Texts(solid, _counted(solid), self.rows)


def _counted(solid: Bool[np.ndarray, " characters"]) -> Int32[np.ndarray, " positions"]:
    before = np.zeros(len(solid) + 1, dtype=np.int32)
    np.cumsum(solid, out=before[1:])
    return before


@dataclass(frozen=True)
class Tokens:
    """Tokens of several documents, special ones left out, ready for any number of `spans_of` calls.

    The first three arrays end in an entry that touches no unit: what an index one too far, or -1, finds.
    """

    index: Int32[np.ndarray, " tokens"]  # place in its document, special tokens counted
    starts: Int32[np.ndarray, " tokens"]  # in solid characters of all texts
    ends: Int32[np.ndarray, " tokens"]
    ended: Int32[np.ndarray, " positions"]  # number of tokens with end <= c, for c solid characters of all texts
    started: Int32[np.ndarray, " positions"]  # number of tokens with start <= c
    gaps: Int32[
        np.ndarray, "gaps 2"
    ]  # solid characters between two tokens that are in none and were not dropped; sorted
    texts: Texts  # what these tokens leave out taken for white space

    @classmethod
    def of(cls, offsets: Ragged, texts: Texts) -> "Tokens":
        """`offsets`: character range of each token; starts and ends of those that have one never decrease in a content."""
        document = offsets.documents()
        real = np.flatnonzero(offsets.spans[:, 0] != MISSING)
        order = offsets.spans[real, 0] + texts.rows[document[real]]
        if (np.diff(order) < 0).any():
            real = real[np.argsort(order, kind="stable")]
        base = texts.rows[document[real]]
        first, last = offsets.spans[real, 0] + base, offsets.spans[real, 1] + base
        apart = (np.diff(document[real]) == 0) & (texts.solid_before[first[1:]] > texts.solid_before[last[:-1]])
        dropped = apart & (np.diff(real) == 1)
        texts = texts.without(last[:-1][dropped], first[1:][dropped])
        starts, ends = texts.solid_before[first], texts.solid_before[last]
        missing = np.flatnonzero(apart & ~dropped)
        characters = int(texts.solid_before[-1])
        return cls(
            index=np.append((real - offsets.rows[document[real]]).astype(np.int32), np.int32(MISSING)),
            starts=np.append(starts, np.int32(characters + 1)),
            ends=np.append(ends, np.int32(-1)),
            ended=np.cumsum(np.bincount(ends, minlength=characters + 1), dtype=np.int32),
            started=np.cumsum(np.bincount(starts, minlength=characters + 1), dtype=np.int32),
            gaps=np.stack([ends[missing], starts[missing + 1]], 1),
            texts=texts,
        )

    def spans_of(self, units: Ragged) -> tuple[Ragged, Int8[np.ndarray, " units"]]:
        """Token span of each unit, counted from its document's first token, and a `Reason` each.

        Without a faithful span, [-1, -1). Special tokens, white space and zero-width tokens belong to a span only where
        they stand between two of its tokens.
        """
        base = self.texts.rows[units.documents()]
        start = self.texts.solid_before[units.spans[:, 0] + base]
        end = self.texts.solid_before[units.spans[:, 1] + base]
        hollow = start == end
        first = self.ended[start]
        last = self.started[end - 1] - 1
        left, right = self.starts[first], self.ends[last]
        spelled = (left <= start) & (right >= end) & ~self._over_a_gap(start, end)
        whole = hollow | spelled
        exact = ~hollow & spelled & (left == start) & (right == end)
        spans = np.full((len(start), 2), MISSING, dtype=np.int32)
        np.copyto(spans[:, 0], self.index[first], where=exact)
        np.copyto(spans[:, 1], self.index[last] + 1, where=exact)
        reasons = np.full(len(start), Reason.CUT, dtype=np.int8)
        reasons[whole] = Reason.INSIDE
        reasons[exact] = Reason.OK
        return Ragged(spans, units.rows), reasons

    def _over_a_gap(
        self, start: Int32[np.ndarray, " units"], end: Int32[np.ndarray, " units"]
    ) -> Bool[np.ndarray, " units"]:
        begun, past = np.searchsorted(self.gaps[:, 0], end, "left"), np.searchsorted(self.gaps[:, 1], start, "right")
        return begun > past


def audit(reasons: Mapping[Side, Mapping[Granularity, Int8[np.ndarray, " _"]]]) -> dict[str, dict[str, dict[str, int]]]:
    """Units of each side and granularity counted by reason; parts of a corpus add up with `pipeline.shards.counts.added`.

    `{side: {granularity: counts}, "both": {granularity: counts}}`, where `counts` has `units`, and what they are the
    sum of: `kept`, `cut` and `inside`. In `both`, a unit is kept if it is on both sides, else cut if it is on either.
    So kept / (kept + inside) is the share aligned among the units that truncation spared.
    """
    counts: dict[str, dict[str, dict[str, int]]] = {
        side: {granularity: _by_reason(reasons[side][granularity]) for granularity in GRANULARITIES} for side in SIDES
    }
    counts["both"] = {}
    for granularity in GRANULARITIES:
        sides = np.stack([reasons[side][granularity] for side in SIDES])
        cut = (sides == Reason.CUT).any(0)
        counts["both"][granularity] = _by_reason(np.where(cut, np.int8(Reason.CUT), sides.max(0)))
    return counts


def _by_reason(reasons: Int8[np.ndarray, " units"]) -> dict[str, int]:
    kept, cut, inside = np.bincount(reasons, minlength=len(Reason)).tolist()
    return {"units": len(reasons), "kept": kept, "cut": cut, "inside": inside}
