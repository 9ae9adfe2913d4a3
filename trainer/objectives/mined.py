"""MinED: the teacher's distributions where both sides have the same tokens (FuseLLM, Wan et al. 2024, arXiv 2401.10491).

Both sides' input tokens were aligned by edit distance when the dataset was made (`pipeline.align.edit_distance`). A student's
position i is aligned where it has one teacher's position j alone as its partner, and the student's token there stands for the
teacher's: in `vocabulary: exact` the token of the same bytes, in `nearest` where there is none the one of least edit distance.
With `prefix: exact` both sides must also have read the same text up to there. Z^T are the teacher's logits, τ `temperature`:

    p_i(s) ∝ exp(Z^T_j(t(s)) / τ)     of the student's tokens s that stand for a token t(s) of the teacher's, 0 of all others
    p_i    = 1 at y_i                 elsewhere: the student's own next token

    mined = Σ_i D(p_i ‖ q_i(τ)) / response tokens,    q_i the student's over its whole vocabulary, D `divergence`

Of several tokens of the teacher's for which one student's stands, t(s) is that of the same bytes, else the first. The published
code takes the first in any case; and, where nothing is aligned, the input token for y_i, which is left out here.

Of the teacher's output matrix only rows of tokens t(s) are computed with.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from schemas.config import Mined
from schemas.errors import UsageError
from trainer.batches.batch import Batch
from trainer.maths.divergence import LOG_ZERO, Rule
from trainer.maths.ragged import at_least_float32
from trainer.models.head import Head
from trainer.models.row_losses import Evaluate, Stream
from trainer.objectives.base import Beginning, Logits, MinedNeed, Needs, Options, Prefix, RowObjective, Setting
from trainer.objectives.cross_space import DivergenceOptions, SharedRows, SharedTokens, diverging, shared_ids
from trainer.objectives.position_spans import PositionSpans


class MinedOptions(DivergenceOptions):
    """Options of `mined`."""

    #: from a distribution with zeros the others are not finite, or merely huge
    divergence: Literal["fkl", "sfkl", "srkl", "js", "tvd"] = "fkl"
    vocabulary: Mined = "exact"
    prefix: Prefix = "any"


def teachers_own(setting: Setting, student_vocabulary: int, teacher_vocabulary: int, vocabulary: Mined) -> Tensor:
    """t(s): the student's id and the teacher's of every token of the student's that stands for one; [tokens, 2]."""
    exact = shared_ids(setting, student_vocabulary, teacher_vocabulary)
    if vocabulary == "exact" or setting.same_tokens:
        return exact
    assert setting.nearest is not None
    nearest = setting.nearest[:teacher_vocabulary]
    theirs = ((nearest >= 0) & (nearest < student_vocabulary)).nonzero().squeeze(1)
    own = torch.full((student_vocabulary,), teacher_vocabulary)
    own.scatter_reduce_(0, nearest[theirs], theirs, "amin")
    own[exact[:, 0]] = exact[:, 1]
    ours = (own < teacher_vocabulary).nonzero().squeeze(1)
    return torch.stack([ours, own[ours]], 1)


@dataclass(frozen=True)
class MinedTargets:
    """What is learnt at some rows: the teacher's distributions, or what comes next."""

    following: Int64[Tensor, " rows"]  # what comes next
    teacher: SharedRows  # the student's tokens that stand for one of the teacher's
    aligned: PositionSpans  # rows
    final: Float[Tensor, "aligned teacher_hidden"]  # the teacher's last states for them
    temperature: float
    rule: Rule

    def compare(self, part: slice) -> Callable[[Tensor, slice], Tensor]:
        """With the teacher's logits for rows in this part: of the student's logits, and which rows of all, the sum."""
        portion, columns = self.aligned.among(part), self.teacher.columns
        teacher = self.teacher.teacher.logits(self.final[portion])

        def loss(student: Tensor, rows: slice) -> Tensor:
            logits = torch.full_like(student, LOG_ZERO, requires_grad=False)
            logits.scatter_(1, self.following[rows, None], 0.0)
            some = self.aligned.among(rows)
            if some.stop > some.start:
                own = at_least_float32(teacher[some.start - portion.start : some.stop - portion.start])
                whole = logits.new_full((len(own), logits.shape[1]), LOG_ZERO)
                whole.scatter_(1, columns.expand(len(own), -1), own)  # in half the time of `index_copy_`
                logits.index_copy_(0, self._places[some] - rows.start, whole)
            return diverging(student, logits, self.temperature, self.rule).sum()

        return loss

    @cached_property
    def _places(self) -> Int64[Tensor, " aligned"]:
        return self.aligned.spans[:, 0].to(self.following.device, non_blocking=True)


@dataclass(frozen=True)
class MinedDivergences:
    """Of the student's rows from their targets (protocol: `trainer.models.row_losses.RowWork`)."""

    rows: Float[Tensor, "rows hidden"]  # the student's
    targets: MinedTargets
    factor: float
    columns: None = None
    bounds: None = None

    @property
    def factors(self) -> Sequence[float]:
        """Of the one loss."""
        return [self.factor]

    def streams(self) -> list[Stream]:
        """The student's rows, from which its output matrix learns."""
        return [Stream(self.rows)]

    def prepared(self, head: Head) -> "MinedDivergences":
        """Itself: nothing depends on all rows."""
        return self

    def portion(self, part: slice) -> Evaluate:
        """The divergence of each row."""
        compare = self.targets.compare(part)
        return lambda student, rows, within: compare(student[0], rows)[None]


@dataclass(frozen=True)
class MinedOfPositions:
    """The same by logits that other terms have at the batch's positions (protocol: `trainer.objectives.base.Rider`)."""

    targets: MinedTargets
    factor: float
    bounds: None = None

    def portion(self, part: slice) -> Callable[[Logits, slice, slice], Float[Tensor, ""]]:
        """The divergence at each position."""
        compare = self.targets.compare(part)
        return lambda logits, rows, within: compare(logits.student, rows)


class MinimumEditDistance(RowObjective):
    """MinED. Needs no common tokenizer."""

    options: ClassVar[type[Options]] = MinedOptions

    def needs(self) -> Needs:
        """Last states at the teacher's own positions, rows of its output matrix, and the alignment."""
        return Needs(
            teacher_final=True,
            output_rows=True,
            shared=not self.setting.same_tokens,
            mined=MinedNeed(self.config.vocabulary, self.config.prefix),
        )

    def begin(self, beginning: Beginning) -> None:
        """Raises UsageError where the vocabularies do not share two tokens."""
        assert beginning.teacher_head is not None
        sizes = len(beginning.student_head.weight), len(beginning.teacher_head.weight)
        ids = teachers_own(self.setting, *sizes, self.config.vocabulary)
        if len(ids) < 2:
            count = "1 token" if len(ids) else "no token"
            raise UsageError(
                f"`mined`: the two vocabularies have {count} in common, so there are no distributions of the teacher's to "
                "learn from; leave it out."
            )
        self._tokens = SharedTokens(ids)

    def denominators(self, batch: Batch) -> Float[Tensor, " one"]:
        """The number of the student's response tokens."""
        return torch.tensor([len(batch.targets)], dtype=torch.float64)

    def work(
        self, states: Mapping[int, Float[Tensor, "tokens hidden"]], batch: Batch, factor: float
    ) -> MinedDivergences:
        """The divergence at every position of the student's."""
        rows = states[max(states)].index_select(0, batch.positions)
        return MinedDivergences(rows, self._targets(batch), factor)

    def work_beside(
        self, states: Mapping[int, Float[Tensor, "tokens hidden"]], batch: Batch, factor: float
    ) -> tuple[MinedOfPositions, None]:
        """The same by the logits there, which other terms have."""
        return MinedOfPositions(self._targets(batch), factor), None

    def _targets(self, batch: Batch) -> MinedTargets:
        assert batch.mined is not None
        assert batch.teacher is not None
        assert batch.teacher.final is not None
        aligned, theirs = batch.mined.unbind(1)
        final = batch.teacher.final
        return MinedTargets(
            following=batch.targets,
            teacher=self._tokens.rows(self.matrices),
            aligned=PositionSpans.single(aligned),
            final=final.index_select(0, theirs.to(final.device, non_blocking=True)),
            temperature=self.config.temperature,
            rule=self.config.rule,
        )
