"""Distributions of chunks of text: a chunk's tokens made into one distribution on each side, and compared (TRL's GOLD).

A chunk is what stands between two common boundaries of both tokenizations (`trainer.maths.alignment`), in UTF-8 bytes; ends
of turns are in none. Of one side let y_k … y_l be its tokens, and p(· | y_<i) the distribution of the i-th:

    bayesian   P(v) = p(v | y_<l) · Π_{k ≤ i < l} p(y_i | y_<i)
    observed   P(v) = p(v | y_<k) · Π_{k < i ≤ l} p(y_i | y_<i)

The first is the chain rule: P(v) is the probability of the chunk's tokens up to the last and then v, so what P leaves of 1 is
the probability of every other beginning. The second gives all tokens of the first position the factors of the rest of what
was written. So of each chunk one whole distribution is needed, of its other positions the log-probabilities s of what is
written there alone: log P(v) = log p(v) + s.

The student's s has a gradient, which needs the derivative of the loss by s. Rows of whole distributions come first, and note
it; rows of other positions follow, and take it as their weight. Values of s are known before, from a pass of those rows.
Beside other terms on logits at the same positions, such as cross-entropy, a chunk's positions are in memory together, with
their distributions, and cost no product of their own (`ChunksOfPositions`); long ones go the first way there, too.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from trainer.batches.batch import Batch, Chunks, TeacherTokens
from trainer.maths.ragged import at_least_float32, normalize_rows, pointers, spread, sum_rows
from trainer.models.head import Head
from trainer.models.row_losses import Evaluate, Stream, next_logprobs, picked
from trainer.objectives.base import Logits, Rider, RowObjective
from trainer.objectives.position_spans import PositionSpans
from trainer.objectives.span_positions import MOST_TOGETHER

Merge = Literal["bayesian", "observed"]

#: Of some chunks: the student's log p, log-scales s, which chunks of all, which of the portion -> losses.
Compare = Callable[[Tensor, Tensor, slice, slice], Tensor]


@dataclass(frozen=True)
class Merged:
    """Of one side, which position gives each chunk its distribution, and which others are in it."""

    chosen: Int64[Tensor, " chunks"]  # places among the side's positions
    others: Int64[Tensor, " others"]  # chunk by chunk
    chunks: Int64[Tensor, " others"]  # which chunk each is in
    rows: Int64[Tensor, " pointers"]  # others of each chunk; CPU

    @classmethod
    def of(cls, spans: Int64[Tensor, "chunks 2"], merge: Merge) -> "Merged":
        """`spans`: [start, end) among positions, on the CPU."""
        first, end = spans.unbind(1)
        counts = end - first - 1
        rows = pointers(counts)
        from_first = first + 1 if merge == "observed" else first
        others = torch.arange(int(rows[-1])) + spread(from_first - rows[:-1], rows)
        chosen = first if merge == "observed" else end - 1
        return cls(chosen, others, spread(torch.arange(len(spans)), rows), rows)

    def to(self, device: torch.device) -> "Merged":
        """The same on a device, for which nothing waits."""
        chosen, others, chunks = (
            each.to(device, non_blocking=True) for each in (self.chosen, self.others, self.chunks)
        )
        return Merged(chosen, others, chunks, self.rows)

    def scales(self, logprobs: Float[Tensor, " others"]) -> Float[Tensor, " chunks"]:
        """s of every chunk."""
        return sum_rows(logprobs, self.rows)


@dataclass(frozen=True)
class ChunkBatch:
    """Some of a batch's chunks."""

    spans: Int64[Tensor, "chunks 2"]  # the student's, among positions; on the CPU
    student: Merged
    teacher: Merged
    weights: Float[Tensor, " chunks"]  # of each in its document's mean

    @classmethod
    def of(cls, chunks: Chunks, merge: Merge, order: Int64[Tensor, " some"], like: Tensor) -> "ChunkBatch":
        """`order`: which, on the CPU. Where `like` is, and at least in its type."""
        spans, others = chunks.student[order], chunks.teacher[order]
        student, teacher = (Merged.of(side, merge).to(like.device) for side in (spans, others))
        weights = normalize_rows(at_least_float32(like.new_ones(len(chunks.student))), chunks.rows)
        return cls(spans, student, teacher, weights[order.to(like.device, non_blocking=True)])


def positions_alone(
    student: Int64[Tensor, " positions"], teacher: Int64[Tensor, " positions"], rows: Int64[Tensor, " pointers"]
) -> Chunks:
    """Every position as a chunk of its own; `rows`: how many each document has."""
    ours, theirs = (side[:, None] + torch.tensor([0, 1]) for side in (student, teacher))
    return Chunks(ours, theirs, rows)


def documents_with(chunks: Chunks) -> Float[Tensor, " one"]:
    """How many documents have any."""
    return torch.tensor([int((chunks.rows.diff() > 0).sum())], dtype=torch.float64)


def teacher_scales(teacher: TeacherTokens, merged: Merged, head: Head | None) -> Float[Tensor, " chunks"]:
    """The teacher's s: of log-probabilities that were kept, else of its last states; 0 where every chunk is one position."""
    if not len(merged.others):
        return torch.zeros(len(merged.chosen), device=merged.chosen.device)
    if teacher.logprob is not None:
        return merged.scales(teacher.logprob.index_select(0, merged.others))
    assert head is not None
    assert teacher.final is not None
    final, tokens = (values.index_select(0, merged.others) for values in (teacher.final, teacher.targets))
    return merged.scales(next_logprobs(head, final, tokens))


@runtime_checkable
class Comparison(Protocol):
    """What is compared with the teacher's chunks, and how."""

    def compare(self, part: slice) -> Compare:
        """What gives the losses of some of these chunks, differentiable in log p and s."""


@dataclass(frozen=True)
class ChunkDistances:
    """Of the student's chunks from the teacher's (protocol: `trainer.models.row_losses.RowWork`)."""

    rows: Float[Tensor, "chunks_and_others hidden"]  # the student's: chosen positions, then others
    tokens: Int64[Tensor, " others"]  # what is written at those
    merged: Merged  # of the student
    several: int  # no chunk has others but so many first ones
    comparison: Comparison
    weights: Float[Tensor, " chunks"] | None  # None: all 1
    factor: float
    scales: Float[Tensor, " chunks"] | None = None  # s; known once `prepared`
    slopes: Float[Tensor, " chunks"] = field(default_factory=lambda: torch.zeros(0))  # derivatives by s; then noted
    columns: None = None
    bounds: None = None

    @property
    def factors(self) -> Sequence[float]:
        """Of the one loss."""
        return [self.factor]

    def streams(self) -> list[Stream]:
        """The student's rows, from which its output matrix learns."""
        return [Stream(self.rows)]

    def prepared(self, head: Head) -> "ChunkDistances":
        """With s of every chunk."""
        scales = self.merged.scales(next_logprobs(head, self.rows[len(self.merged.chosen) :], self.tokens))
        return replace(self, scales=scales, slopes=torch.zeros_like(scales))

    def portion(self, part: slice) -> Evaluate:
        """The distance of each chunk, weighted; of other positions the gradient alone."""
        count = len(self.merged.chosen)
        compare = self.comparison.compare(slice(part.start, min(part.stop, count))) if part.start < count else None

        def evaluate(student: Sequence[Tensor], rows: slice, within: slice) -> Tensor:
            (logits,) = student
            chunks = min(max(count - rows.start, 0), len(logits))
            sums = []
            if chunks and compare is not None:
                places = slice(within.start, within.start + chunks)
                sums.append(self._of_chunks(compare, logits[:chunks].log_softmax(1), rows.start, places))
            if chunks < len(logits):
                sums.append(self._of_others(logits[chunks:], rows.start + chunks - count))
            return torch.stack(sums).sum()[None]

        return evaluate

    def _of_chunks(self, compare: Compare, log_p: Tensor, first: int, within: slice) -> Float[Tensor, ""]:
        assert self.scales is not None
        rows = slice(first, first + len(log_p))
        scales = self.scales[rows].detach()
        slopes_wanted = torch.is_grad_enabled() and first < self.several
        losses = compare(log_p, scales.requires_grad_(slopes_wanted), rows, within)
        total = (losses if self.weights is None else losses * self.weights[rows]).sum()
        if slopes_wanted:
            self.slopes[rows] = torch.autograd.grad(total, scales, retain_graph=True)[0]
        return total

    def _of_others(self, logits: Tensor, first: int) -> Float[Tensor, ""]:
        """0, with the gradient that is due to s."""
        rows = slice(first, first + len(logits))
        logprobs = picked(logits, self.tokens[rows])
        return (self.slopes.index_select(0, self.merged.chunks[rows]) * (logprobs - logprobs.detach())).sum()


@dataclass(frozen=True)
class ChunksOfPositions:
    """The same by distributions that other terms have at the batch's positions (protocol: `trainer.objectives.base.Rider`)."""

    spans: PositionSpans  # the student's
    positions: int
    merged: Merged  # of the student, among positions
    comparison: Comparison
    weights: Float[Tensor, " chunks"] | None  # None: all 1
    factor: float

    @property
    def bounds(self) -> Sequence[int] | None:
        """Edges at which no chunk is cut."""
        return self.spans.edges(self.positions) if len(self.merged.others) else None

    def portion(self, part: slice) -> Callable[[Logits, slice, slice], Float[Tensor, ""]]:
        """The distance of each chunk, weighted."""
        portion = self.spans.among(part)
        compare = self.comparison.compare(portion)

        def loss(logits: Logits, rows: slice, within: slice) -> Tensor:
            some, logprobs = self.spans.among(rows), logits.student_logprobs
            if some.start == some.stop:
                return logprobs.new_zeros(())
            among = slice(some.start - portion.start, some.stop - portion.start)
            losses = compare(self._chosen(logprobs, some, rows), self._scales(logits, some, rows), some, among)
            return (losses if self.weights is None else losses * self.weights[some]).sum()

        return loss

    def _chosen(self, logprobs: Float[Tensor, "rows vocabulary"], some: slice, rows: slice) -> Tensor:
        if some.stop - some.start == len(logprobs):  # each is one
            return logprobs
        return logprobs.index_select(0, self.merged.chosen[some] - rows.start)

    def _scales(self, logits: Logits, some: slice, rows: slice) -> Float[Tensor, " chunks"]:
        """s of some chunks."""
        of_others = self.merged.rows[some.start : some.stop + 1]
        first, end = int(of_others[0]), int(of_others[-1])
        if first == end:
            return logits.student_logprobs.new_zeros(some.stop - some.start)
        places = self.merged.others[first:end] - rows.start
        written = logits.student_logprobs[places, logits.targets[places]]
        return sum_rows(written, of_others - first)


class ChunkObjective(RowObjective):
    """A term on merged distributions of chunks."""

    merge: Merge = "bayesian"

    @abstractmethod
    def chunks(self, batch: Batch) -> Chunks:
        """What is compared."""

    @abstractmethod
    def comparison(self, batch: Batch, chunks: ChunkBatch, device: torch.device) -> Comparison:
        """With the teacher's of some of them."""

    def weights(self, chunks: ChunkBatch) -> Float[Tensor, " chunks"] | None:
        """What each counts; None: 1."""
        return chunks.weights

    def work(self, states: Mapping[int, Float[Tensor, "tokens hidden"]], batch: Batch, factor: float) -> ChunkDistances:
        """The distances of all chunks."""
        several = self.chunks(batch).student.diff(dim=1).squeeze(1) > 1
        order = torch.argsort(several.to(torch.int8), descending=True, stable=True)
        return self._of_own_rows(order, states, batch, factor)

    def work_beside(
        self, states: Mapping[int, Float[Tensor, "tokens hidden"]], batch: Batch, factor: float
    ) -> tuple[Rider, ChunkDistances | None]:
        """Of short chunks by what is predicted for other terms, of long ones by rows of their own."""
        hidden, chunks = states[max(states)], self.chunks(batch)
        long = chunks.student.diff(dim=1).squeeze(1) > MOST_TOGETHER
        short = (~long).nonzero().squeeze(1)
        # a chat template may have the texts of a turn in another order
        some = ChunkBatch.of(chunks, self.merge, short[chunks.student[short, 0].argsort()], hidden)
        riding = ChunksOfPositions(
            spans=PositionSpans(some.spans),
            positions=len(batch.positions),
            merged=some.student,
            comparison=self.comparison(batch, some, hidden.device),
            weights=self.weights(some),
            factor=factor,
        )
        rest = self._of_own_rows(long.nonzero().squeeze(1), states, batch, factor) if bool(long.any()) else None
        return riding, rest

    def _of_own_rows(
        self, order: Int64[Tensor, " some"], states: Mapping[int, Tensor], batch: Batch, factor: float
    ) -> ChunkDistances:
        """Of some chunks, those of several tokens first."""
        hidden = states[max(states)]
        some = ChunkBatch.of(self.chunks(batch), self.merge, order, hidden)
        places = torch.cat([some.student.chosen, some.student.others])
        return ChunkDistances(
            rows=hidden.index_select(0, batch.positions.index_select(0, places)),
            tokens=batch.targets.index_select(0, some.student.others),
            merged=some.student,
            several=int((some.spans.diff(dim=1) > 1).sum()),
            comparison=self.comparison(batch, some, hidden.device),
            weights=self.weights(some),
            factor=factor,
        )
