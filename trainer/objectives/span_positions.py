"""Spans of the batch's positions, compared by the logits there, which other terms have computed (for `span_kl`).

A position is a token that a learnt one follows. What an output matrix makes of a mean of states is the same mean of what it
makes of them,

    C_k Wᵀ + b = Σ_{t∈k} w_t (H_t Wᵀ + b),   Σ_{t∈k} w_t = 1

so beside cross-entropy such a span costs no product of its own, forward or backward. A scale behind the matrix changes nothing
of that; where there is a soft cap, it holds of spans of one token alone, as most are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from trainer.maths.divergence import forward_kl
from trainer.maths.geometry import pool
from trainer.maths.ragged import at_least_float32, pointers
from trainer.maths.spans import LearntSpans
from trainer.models.head import Head
from trainer.models.row_losses import columns_of
from trainer.objectives.base import Logits
from trainer.objectives.cross_space import diverging
from trainer.objectives.position_spans import PositionSpans

#: Tokens of a span whose logits must then be in memory together. Longer ones are rare, and go their own way.
MOST_TOGETHER: Final = 8


@dataclass(frozen=True)
class AmongPositions:
    """Which of a batch's spans are of its positions alone; all on the CPU."""

    index: Int64[Tensor, " spans"]  # those
    others: Int64[Tensor, " others"]  # the rest
    spans: Int64[Tensor, "spans 2"]  # those, [start, end) in `Batch.positions`
    tokens: Int64[Tensor, " tokens"]  # learnt tokens that are positions
    places: Int64[Tensor, " tokens"]  # which positions these are

    @classmethod
    def of(cls, learnt: LearntSpans, token_rows: Int64[Tensor, " pointers"], most: int) -> "AmongPositions":
        """`token_rows`: tokens of each document; `most`: of a span."""
        followed = learnt.tokens[~torch.isin(learnt.tokens, token_rows[:-1])]  # a document's first token follows none
        positions = followed - 1
        here = torch.isin(learnt.tokens, positions)
        places = torch.searchsorted(positions, learnt.tokens)
        count = pointers(here.to(torch.int64))
        starts, ends = learnt.spans.unbind(1)
        whole = (count[ends] - count[starts] == ends - starts) & (ends - starts <= most)
        first = places[starts[whole]]
        return cls(
            index=whole.nonzero().squeeze(1),
            others=(~whole).nonzero().squeeze(1),
            spans=torch.stack([first, first + (ends - starts)[whole]], 1),
            tokens=here.nonzero().squeeze(1),
            places=places[here],
        )

    def at_positions(self, weights: Float[Tensor, " learnt_tokens"], positions: int) -> Float[Tensor, " positions"]:
        """Weights of learnt tokens as those of positions, of which the others have none."""
        tokens, places = (each.to(weights.device, non_blocking=True) for each in (self.tokens, self.places))
        return weights.new_zeros(positions).index_copy(0, places, weights[tokens])


@dataclass(frozen=True)
class SpansOfPositions:
    """Divergences of spans from the teacher's (protocol: `trainer.objectives.base.Rider`)."""

    spans: PositionSpans
    token_weights: Float[Tensor, " positions"]
    head: Head  # the teacher's, of `columns`
    vectors: Float[Tensor, "spans teacher_hidden"]  # the teacher's
    columns: Int64[Tensor, " columns"]  # the student's ids of the tokens that are compared
    weights: Float[Tensor, " spans"] | None  # None: all 1
    temperature: float
    factor: float

    @cached_property
    def bounds(self) -> list[int]:
        """Edges at which no span is cut."""
        return self.spans.edges(len(self.token_weights))

    def portion(self, part: slice) -> Callable[[Logits, slice, slice], Float[Tensor, ""]]:
        """The sum over spans in a part, which ends at `bounds`."""
        portion = self.spans.among(part)
        teacher = self.head.logits(self.vectors[portion])

        def loss(logits: Logits, rows: slice, within: slice) -> Tensor:
            some = self.spans.among(rows)
            theirs = at_least_float32(teacher[some.start - portion.start : some.stop - portion.start])
            own = self._means(columns_of(logits.student, self.columns), some, rows)
            losses = diverging(own, theirs, self.temperature, forward_kl)
            return (losses if self.weights is None else losses * self.weights[some]).sum()

        return loss

    def _means(self, logits: Float[Tensor, "rows columns"], some: slice, rows: slice) -> Float[Tensor, "spans columns"]:
        spans = self.spans.spans[some] - rows.start
        if not bool((spans.diff(dim=1) > 1).any()):
            if len(spans) == len(logits):
                return logits
            return logits.index_select(0, spans[:, 0].to(logits.device, non_blocking=True))
        return pool(logits, self.token_weights[rows], spans)
