"""Universal logit distillation (ULD, Boizard et al. 2025, arXiv 2402.12030), for any two tokenizers.

Of one document, p^S_i is the student's distribution of the i-th token of its response, p^T_i the teacher's of the i-th of its
own, n and m how many they have, and sort puts the likeliest first. The shorter of two vectors is padded with zeros:

    ULD_i = Σ_v | sort(p^S_i)_v − sort(p^T_i)_v |        i = 1 … min(n, m)

The term is the mean over documents of their means over i; with `reduce: token` the sum over the student's response tokens, as
DSKD's tables have it. Positions meet by their number alone, and tokens by their rank: no vocabulary is looked at. Which token
has which rank is a constant. A document of which a side has nothing to learn adds nothing.

With `alignment: chunks` it is not position i that meets position i, but chunk c of text chunk c, each side's tokens in it
merged into one distribution P_c (`trainer.objectives.chunks`), whose last token is followed by the same text on both sides.

With `k` the k likeliest of each side are compared, and what all others have together (`trainer.maths.ranked`); `k: null` sorts
everything. The teacher's distributions are made from `final` and its output matrix, or are the signal `sorted`
(`source: sorted`), for which no output matrix is needed. The end of a response counts on both sides, where the published code
leaves out the student's alone; chunks are without it.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field, model_validator
from torch import Tensor

from trainer.batches.batch import Batch, Chunks
from trainer.maths.ragged import at_least_float32, pointers
from trainer.maths.ranked import Ranked
from trainer.models.head import Head
from trainer.objectives.base import Needs, Options
from trainer.objectives.chunks import (
    ChunkBatch,
    ChunkObjective,
    Compare,
    documents_with,
    positions_alone,
    teacher_scales,
)


class UniversalOptions(Options):
    """Options of `uld`."""

    alignment: Literal["position", "chunks"] = "position"
    source: Literal["final", "sorted"] = "final"
    k: int | None = Field(default=1024, ge=1)  # likeliest tokens of each side; None: all
    temperature: float = Field(default=1.0, gt=0)
    reduce: Literal["document", "token"] = "document"

    @model_validator(mode="after")
    def _known(self) -> "UniversalOptions":
        if self.source == "sorted" and self.temperature != 1:
            raise ValueError("`source: sorted` has probabilities at `temperature` 1 only; take `source: final`")
        if self.source == "sorted" and self.k is None:
            raise ValueError("`source: sorted` has the likeliest tokens alone; set `k`, or take `source: final`")
        if self.alignment == "chunks" and self.temperature != 1:
            raise ValueError("`alignment: chunks` merges probabilities at `temperature` 1; leave it out")
        return self


@dataclass(frozen=True)
class ByRank:
    """Comparison of sorted distributions; the teacher's are of its states, or sorted before."""

    head: Head | None  # the teacher's, for `final`
    final: Float[Tensor, "chunks teacher_hidden"] | None
    falling: Float[Tensor, "chunks most"] | None  # its likeliest tokens' probabilities
    scales: Float[Tensor, " chunks"]  # the teacher's
    k: int | None
    temperature: float

    def compare(self, part: slice) -> Compare:
        """With the teacher's probabilities of these chunks."""
        teacher = None
        if self.falling is None:
            assert self.head is not None
            assert self.final is not None
            teacher = self.head.logits(self.final[part])

        def losses(log_p: Tensor, scales: Tensor, rows: slice, within: slice) -> Tensor:
            if teacher is None:
                assert self.falling is not None
                theirs = Ranked.stored(self.falling[rows, : self.k].to(log_p))
            else:
                theirs = self._ranked(at_least_float32(teacher[within]).log_softmax(1))
            theirs = theirs.scaled(self.scales[rows].to(log_p).exp())
            return self._ranked(log_p).scaled(scales.exp()).distance(theirs)

        return losses

    def _ranked(self, log_p: Float[Tensor, "chunks vocabulary"]) -> Ranked:
        """At the temperature, which those of 1 have everything for."""
        return Ranked.of(log_p if self.temperature == 1 else (log_p / self.temperature).log_softmax(1), self.k)


class UniversalLogits(ChunkObjective):
    """ULD. Needs no common tokenizer."""

    options: ClassVar[type[Options]] = UniversalOptions

    def needs(self) -> Needs:
        """Distributions at the teacher's own positions: by last states and its output matrix, or sorted; with chunks, these
        and log-probabilities of its own tokens."""
        chunks = self.config.alignment == "chunks"
        if self.config.source == "sorted":
            return Needs(sorted=self.config.k, chunks=chunks, logprob=chunks)
        return Needs(teacher_final=True, output_matrix=True, chunks=chunks, logprob=chunks)

    def denominators(self, batch: Batch) -> Float[Tensor, " one"]:
        """The number of documents with something to compare, or of the student's response tokens."""
        if self.config.reduce == "document":
            return documents_with(self.chunks(batch))
        return torch.tensor([len(batch.targets)], dtype=torch.float64)

    def weights(self, chunks: ChunkBatch) -> Float[Tensor, " chunks"] | None:
        """In a sum over tokens, each counts alike."""
        return chunks.weights if self.config.reduce == "document" else None

    def comparison(self, batch: Batch, chunks: ChunkBatch, device: torch.device) -> ByRank:
        """With the teacher's states or sorted distributions."""
        head, teacher, stored = self.matrices.teacher_head, batch.teacher, self.config.source == "sorted"
        assert teacher is not None
        values = teacher.sorted if stored else teacher.final
        assert values is not None
        values = values.index_select(0, chunks.teacher.chosen)
        return ByRank(
            head=head,
            final=None if stored else values,
            falling=values if stored else None,
            scales=teacher_scales(teacher, chunks.teacher, head),
            k=self.config.k,
            temperature=self.config.temperature,
        )

    def chunks(self, batch: Batch) -> Chunks:
        """What is compared: chunks, or single positions."""
        if self.config.alignment == "chunks":
            assert batch.chunks is not None
            return batch.chunks
        assert batch.teacher is not None
        sides = batch.position_rows, batch.teacher.position_rows
        lengths = torch.minimum(*(rows.diff() for rows in sides))
        ours, theirs = (_first(rows, lengths) for rows in sides)
        return positions_alone(ours, theirs, pointers(lengths))


def _first(rows: Int64[Tensor, " pointers"], counts: Int64[Tensor, " documents"]) -> Int64[Tensor, " elements"]:
    """The first so many elements of each row."""
    within = torch.arange(int(counts.sum())) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return rows[:-1].repeat_interleave(counts) + within
