"""Universal logit distillation (ULD, Boizard et al. 2025, arXiv 2402.12030), for any two tokenizers.

Of one document, p^S_i is the student's distribution of the i-th token of its response, p^T_i the teacher's of the i-th of its
own, n and m how many they have, and sort puts the likeliest first. The shorter of two vectors is padded with zeros:

    ULD_i = Σ_v | sort(p^S_i)_v − sort(p^T_i)_v |        i = 1 … min(n, m)

The term is the mean over documents of their means over i; with `reduce: token` the sum over the student's response tokens, as
DSKD's tables have it. Positions meet by their number alone, and tokens by their rank: no vocabulary is looked at. Which token
has which rank is a constant. A document of which a side has nothing to learn adds nothing.

With `k` the k likeliest of each side are compared, and what all others have together:

    Σ_{v ≤ k} | sort(p^S_i)_v − sort(p^T_i)_v | + | r^S_i − r^T_i |,    r = 1 − Σ_{v ≤ k} sort(p)_v

which is at most r^S_i + r^T_i below the whole, and never above it; `k: null` sorts everything. The teacher's distributions are
made from `final` and its output matrix. The end of a response counts on both sides, where the published code leaves out the
student's alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from trainer.batches.batch import Batch
from trainer.maths.ragged import at_least_float32, normalize_rows, pointers
from trainer.models.head import Head
from trainer.models.row_losses import Evaluate, Stream
from trainer.objectives.base import Needs, Options, RowObjective


class UniversalOptions(Options):
    """Options of `uld`."""

    k: int | None = Field(default=1024, ge=1)  # likeliest tokens of each side; None: all
    temperature: float = Field(default=1.0, gt=0)
    reduce: Literal["document", "token"] = "document"


def sorted_distance(
    student: Float[Tensor, "rows vocabulary"],
    teacher: Float[Tensor, "rows teacher_vocabulary"],
    k: int | None,
    temperature: float = 1.0,
) -> Float[Tensor, " rows"]:
    """ULD of rows of logits, differentiable in the student's."""
    size = max(student.shape[1], teacher.shape[1])
    count = size if k is None else min(k, size)
    mine, theirs = (_likeliest(logits / temperature, count) for logits in (student, teacher.detach()))
    distance = (mine - theirs).abs().sum(1)
    return distance if count == size else distance + (mine.sum(1) - theirs.sum(1)).abs()


def _likeliest(logits: Float[Tensor, "rows vocabulary"], count: int) -> Float[Tensor, "rows likeliest"]:
    """Probabilities of the likeliest tokens, falling, then zeros."""
    size = logits.shape[1]
    return F.pad(logits.softmax(1).topk(min(count, size), dim=1).values, (0, max(count - size, 0)))


@dataclass(frozen=True)
class SortedDistances:
    """Of the student's rows from the teacher's (protocol: `trainer.models.row_losses.RowWork`)."""

    head: Head  # the teacher's
    final: Float[Tensor, "rows teacher_hidden"]  # its last states
    rows: Float[Tensor, "rows hidden"]  # the student's
    weights: Float[Tensor, " rows"] | None  # None: all 1
    k: int | None
    temperature: float
    factor: float
    columns: None = None

    @property
    def factors(self) -> Sequence[float]:
        """Of the one loss."""
        return [self.factor]

    def streams(self) -> list[Stream]:
        """The student's rows, from which its output matrix learns."""
        return [Stream(self.rows)]

    def prepared(self, head: Head) -> "SortedDistances":
        """Itself: nothing depends on all rows."""
        return self

    def portion(self, part: slice) -> Evaluate:
        """The distance of each row from the teacher's logits, weighted."""
        teacher = self.head.logits(self.final[part])

        def evaluate(student: Sequence[Tensor], rows: slice, within: slice) -> Tensor:
            distances = sorted_distance(student[0], at_least_float32(teacher[within]), self.k, self.temperature)
            return (distances if self.weights is None else distances * self.weights[rows]).sum()[None]

        return evaluate


class UniversalLogits(RowObjective):
    """ULD. Needs no common tokenizer."""

    options: ClassVar[type[Options]] = UniversalOptions

    def needs(self) -> Needs:
        """Last states at the teacher's own positions, and its output matrix."""
        return Needs(teacher_final=True, output_matrix=True)

    def denominators(self, batch: Batch) -> Float[Tensor, " one"]:
        """The number of documents with a response on both sides, or of the student's response tokens."""
        document = self.config.reduce == "document"
        count = int((_lengths(batch) > 0).sum()) if document else len(batch.targets)
        return torch.tensor([count], dtype=torch.float64)

    def work(
        self, states: Mapping[int, Float[Tensor, "tokens hidden"]], batch: Batch, factor: float
    ) -> SortedDistances:
        """The distance at every position that both sides have."""
        hidden, head = states[max(states)], self.matrices.teacher_head
        assert head is not None
        assert batch.teacher is not None
        assert batch.teacher.final is not None
        lengths = _lengths(batch)
        mine, theirs = (
            _first(side.position_rows, lengths).to(hidden.device, non_blocking=True) for side in (batch, batch.teacher)
        )
        rows = hidden.index_select(0, batch.positions.index_select(0, mine))
        weights = None
        if self.config.reduce == "document":
            weights = normalize_rows(at_least_float32(hidden.new_ones(len(mine))), pointers(lengths.tolist()))
        final = batch.teacher.final.index_select(0, theirs)
        return SortedDistances(head, final, rows, weights, self.config.k, self.config.temperature, factor)


def _lengths(batch: Batch) -> Int64[Tensor, " documents"]:
    """How many positions both sides have of each document."""
    assert batch.teacher is not None
    return torch.minimum(batch.position_rows.diff(), batch.teacher.position_rows.diff())


def _first(rows: Int64[Tensor, " pointers"], counts: Int64[Tensor, " documents"]) -> Int64[Tensor, " elements"]:
    """The first so many elements of each row."""
    within = torch.arange(int(counts.sum())) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return rows[:-1].repeat_interleave(counts) + within
