"""GOLD (general on-policy logit distillation, as TRL has it), on responses that are given, for any two tokenizers.

P^S_c and P^T_c are the distributions of a document's chunks c = 1 … G, its tokens in them merged as `merge` says
(`trainer.objectives.chunks`). O are the tokens that both vocabularies have, β `beta`:

    matched     Σ_c D_β(P^T_c ‖ P^S_c) / G                     over the tokens in O, and all else as one event
    unmatched   Σ_c Σ_v |sort(P^S_c)_v − sort(P^T_c)_v| / G     over the tokens outside of O
    D_0 = KL(P^T ‖ P^S),  D_1 = KL(P^S ‖ P^T),  else β KL(P^T ‖ m) + (1 − β) KL(P^S ‖ m),  m = βP^T + (1 − β)P^S

and the term is the mean over documents of `matched` times the first and `unmatched` times the second. "All else" is what the
tokens in O leave of 1: tokens outside of O and, in a chunk of several tokens, other beginnings. With it D is a divergence,
at least 0, and 0 where the two agree; `rest: none` leaves it out and takes each probability as at least 1e-8, as TRL does.
That is least where the student has everything on O, whatever the teacher has elsewhere. `k` is as for `uld`.

TRL's default, `observed`, compares positions that are one too late; here it is of the right ones. Ends of responses are left
out where they are there, not whatever token is last; what follows the last common boundary is left out, not compared.
Gradients go to the student, at all positions of every chunk; the teacher, and which token has which rank, are constants.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Final, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field, model_validator
from torch import Tensor

from schemas.errors import UsageError
from trainer.batches.batch import Batch, Chunks
from trainer.maths.divergence import Rule, divergence, forward_kl, jensen_shannon, reverse_kl
from trainer.maths.ragged import at_least_float32
from trainer.maths.ranked import Ranked
from trainer.models.head import Head
from trainer.models.row_losses import columns_of
from trainer.objectives.base import Beginning, Needs, Options
from trainer.objectives.chunks import ChunkBatch, ChunkObjective, Compare, Merge, documents_with, teacher_scales
from trainer.objectives.cross_space import shared_ids

#: What a probability counts as at least, with `rest: none`.
LEAST: Final = 1e-8


class GoldOptions(Options):
    """Options of `gold`."""

    merge: Merge = "bayesian"
    beta: float = Field(default=0.0, ge=0, le=1)
    matched: float = Field(default=1.0, ge=0)  # weight of the tokens that both vocabularies have
    unmatched: float = Field(default=1.0, ge=0)  # of the others
    rest: Literal["event", "none"] = "event"  # what the first leave of 1: one event, or left out
    k: int | None = Field(default=1024, ge=1)  # likeliest tokens outside of O, of each side; None: all

    @model_validator(mode="after")
    def _something_is_compared(self) -> "GoldOptions":
        if self.matched == self.unmatched == 0:
            raise ValueError("`matched` and `unmatched` are both 0, so nothing would be compared")
        return self

    @property
    def rule(self) -> Rule:
        """D_β."""
        if self.beta in (0, 1):
            return reverse_kl if self.beta else forward_kl
        return partial(jensen_shannon, skew=self.beta)


@dataclass(frozen=True)
class Columns:
    """A side's tokens: those in O, in the order that both sides have them, and all others."""

    matched: Int64[Tensor, " matched"]
    unmatched: Int64[Tensor, " unmatched"]

    @classmethod
    def of(cls, matched: Int64[Tensor, " matched"], vocabulary: int) -> "Columns":
        """Of a vocabulary of this size."""
        others = torch.ones(vocabulary, dtype=torch.bool)
        others[matched] = False
        return cls(matched, others.nonzero().squeeze(1))

    def to(self, device: torch.device) -> "Columns":
        """The same on a device."""
        return Columns(self.matched.to(device), self.unmatched.to(device))


@dataclass(frozen=True)
class Events:
    """What is compared of one side's chunks."""

    matched: Float[Tensor, "chunks events"]  # log P of the tokens in O, and of all else
    unmatched: Ranked

    @classmethod
    def of(
        cls,
        log_p: Float[Tensor, "chunks vocabulary"],
        scales: Float[Tensor, " chunks"],
        columns: Columns,
        options: GoldOptions,
    ) -> "Events":
        """Of the chosen positions' log p, and s."""
        matched = columns_of(log_p, columns.matched) + scales[:, None]
        others = columns_of(log_p, columns.unmatched)
        together = others.exp().sum(1)
        if options.rest == "none":
            matched = matched.clamp_min(math.log(LEAST))
        else:
            else_ = scales.exp() * together - torch.expm1(scales)
            tiny = torch.finfo(else_.dtype).tiny  # of a vocabulary all of whose tokens are in O
            matched = torch.cat([matched, else_.clamp_min(tiny).log()[:, None]], 1)
        return cls(matched, Ranked.of(others, options.k, together).scaled(scales.exp()))


@dataclass(frozen=True)
class BothParts:
    """Comparison of tokens in O, and of all others; weighted."""

    head: Head  # the teacher's
    final: Float[Tensor, "chunks teacher_hidden"]  # its last states at its chosen positions
    scales: Float[Tensor, " chunks"]  # the teacher's
    sides: tuple[Columns, Columns]  # the student's, the teacher's
    options: GoldOptions

    def compare(self, part: slice) -> Compare:
        """With the teacher's logits of these chunks."""
        teacher = self.head.logits(self.final[part])

        def losses(log_p: Tensor, scales: Tensor, rows: slice, within: slice) -> Tensor:
            columns, theirs = self.sides
            other = at_least_float32(teacher[within]).log_softmax(1)
            target = Events.of(other, self.scales[rows].to(scales), theirs, self.options)
            student = Events.of(log_p, scales, columns, self.options)
            matched = divergence(student.matched, target.matched, self.options.rule)
            unmatched = student.unmatched.distance(target.unmatched)
            return self.options.matched * matched + self.options.unmatched * unmatched

        return losses


class Gold(ChunkObjective):
    """GOLD. Needs tokens in common, but no common tokenizer."""

    options: ClassVar[type[Options]] = GoldOptions

    def needs(self) -> Needs:
        """Last states at the teacher's own positions, its output matrix, chunks, and which tokens both vocabularies have."""
        return Needs(
            teacher_final=True,
            output_matrix=True,
            logprob=True,
            chunks=True,
            shared=not self.setting.same_tokens,
        )

    def begin(self, beginning: Beginning) -> None:
        """Raises UsageError where the vocabularies share no token."""
        assert beginning.teacher_head is not None
        sizes = [len(head.weight) for head in (beginning.student_head, beginning.teacher_head)]
        shared = shared_ids(self.setting, *sizes)
        if not len(shared):
            raise UsageError(
                "`gold`: the two vocabularies have no token in common. The term `uld` with `alignment: chunks` needs none; "
                f"for its cache: `{beginning.cache_command('uld')}`."
            )
        self._columns = tuple(Columns.of(ids, size) for ids, size in zip(shared.unbind(1), sizes, strict=True))

    @property
    def merge(self) -> Merge:  # type: ignore[override]  # of the config
        """How tokens become one distribution."""
        merge: Merge = self.config.merge
        return merge

    def denominators(self, batch: Batch) -> Float[Tensor, " one"]:
        """The number of documents that have chunks."""
        return documents_with(self.chunks(batch))

    def chunks(self, batch: Batch) -> Chunks:
        """Those of both tokenizations."""
        assert batch.chunks is not None
        return batch.chunks

    def comparison(self, batch: Batch, chunks: ChunkBatch, device: torch.device) -> BothParts:
        """With the teacher's states."""
        head, teacher = self.matrices.teacher_head, batch.teacher
        assert head is not None
        assert teacher is not None
        assert teacher.final is not None
        student, other = (columns.to(device) for columns in self._columns)
        self._columns = (student, other)  # brought there once
        return BothParts(
            head=head,
            final=teacher.final.index_select(0, chunks.teacher.chosen),
            scales=teacher_scales(teacher, chunks.teacher, head),
            sides=(student, other),
            options=self.config,
        )
