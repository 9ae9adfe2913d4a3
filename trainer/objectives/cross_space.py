"""Distributions of two models compared row by row: what the terms of the DSKD family, and SRA's `span_kl`, are made of.

Dual-space distillation compares distributions in two spaces. In the student's, the teacher's states are projected to the
student's size and go through the student's output matrix, which is a constant to them (`Aside.projected`). In the
teacher's, it is the other way round, and everything is a constant but the projected states: `teacher_space`. Without any
projection, distributions are compared over the tokens that both vocabularies have: `shared_ids`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from pydantic import Field, model_validator
from torch import Tensor

from trainer.maths.divergence import SKEWS, Name, Rule, divergence, rule_of
from trainer.maths.ragged import at_least_float32
from trainer.models.head import Head
from trainer.models.row_losses import Evaluate, Gradients, Stream, accumulate, exact
from trainer.objectives.base import Matrices, Options, Setting, TeacherRows


class DivergenceOptions(Options):
    """Options of every term of the family."""

    divergence: Name = "fkl"  # in the student's space
    skew: float | None = Field(default=None, gt=0, lt=1)  # λ of `sfkl` and `srkl`, None: 0.1; of `js`, None: 0.5
    temperature: float = Field(default=2.0, gt=0)  # of the divergences, on both sides

    @model_validator(mode="after")
    def _skew_is_used(self) -> "DivergenceOptions":
        if self.skew is not None and self.divergence not in SKEWS:
            raise ValueError(f"`skew` belongs to `divergence: sfkl`, `srkl` and `js`, not to `{self.divergence}`")
        return self

    @property
    def rule(self) -> Rule:
        """The divergence of the student's space."""
        return rule_of(self.divergence, self.skew)


class CrossSpaceOptions(DivergenceOptions):
    """Options of terms in both spaces."""

    teacher_space: bool = True  # else the student's space alone


def agrees(logits: Float[Tensor, "rows vocabulary"], labels: Int64[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """1 where the label is the likeliest token, else 0."""
    return (logits.detach().argmax(1) == labels).to(logits)


def diverging(
    student: Float[Tensor, "rows vocabulary"], teacher: Float[Tensor, "rows vocabulary"], temperature: float, rule: Rule
) -> Float[Tensor, " rows"]:
    """The divergence of two rows of logits at a temperature, differentiable in the student's."""
    log_q, log_p = ((each / temperature).log_softmax(1) for each in (student, teacher.detach()))
    return divergence(log_q, log_p, rule)


def shared_ids(setting: Setting, student_vocabulary: int, teacher_vocabulary: int) -> Int64[Tensor, "shared 2"]:
    """The student's id and the teacher's of every token that both have, as far as their output matrices have rows for it."""
    if setting.same_tokens:
        return torch.arange(min(student_vocabulary, teacher_vocabulary))[:, None].repeat(1, 2)
    assert setting.shared is not None
    there = (setting.shared[:, 0] < student_vocabulary) & (setting.shared[:, 1] < teacher_vocabulary)
    return setting.shared[there]


@dataclass(frozen=True)
class SharedRows:
    """Tokens that both vocabularies have, where the models are."""

    columns: Int64[Tensor, " shared"]  # the student's ids
    teacher: Head  # of these tokens alone, in the same order


class SharedTokens:
    """Tokens that both vocabularies have; their rows of the teacher's output matrix are got once, as they are constants."""

    def __init__(self, ids: Int64[Tensor, "shared 2"]) -> None:
        """`ids`: the student's and the teacher's of each."""
        self._ids = ids
        self._shared: tuple[TeacherRows, SharedRows] | None = None  # and what they were got by

    def rows(self, matrices: Matrices) -> SharedRows:
        """Where the models are."""
        rows = matrices.teacher_rows
        assert rows is not None
        if self._shared is None or self._shared[0] is not rows:
            columns, ids = self._ids.unbind(1)
            teacher = rows(ids)
            self._shared = (rows, SharedRows(columns.to(teacher.weight.device), teacher))
        return self._shared[1]


@dataclass(frozen=True)
class Divergences:
    """Of rows from the teacher's own distributions (protocol: `trainer.models.row_losses.RowWork`)."""

    head: Head  # the teacher's
    final: Float[Tensor, "rows teacher_hidden"]  # its last states
    rows: Float[Tensor, "rows features"]  # that go through the output matrix at hand, and are differentiated
    weights: Float[Tensor, " rows"] | None  # of rows; None: all 1
    temperature: float
    rule: Rule
    own: bool = False  # whether the matrix learns from them
    bias: bool = False  # whether they get its bias
    columns: Int64[Tensor, " columns"] | None = None  # of it; those of `head`, one by one
    factor: float = 1.0
    bounds: None = None

    @property
    def factors(self) -> Sequence[float]:
        """Of the one loss."""
        return [self.factor]

    def streams(self) -> list[Stream]:
        """What is differentiated alone."""
        return [Stream(self.rows, own=self.own, bias=self.bias)]

    def prepared(self, head: Head) -> "Divergences":
        """Itself: nothing depends on all rows."""
        return self

    def portion(self, part: slice) -> Evaluate:
        """The divergence of each row from the teacher's logits, weighted."""
        teacher = self.head.logits(self.final[part])

        def evaluate(student: Sequence[Tensor], rows: slice, within: slice) -> Tensor:
            events = self.events(student[0], at_least_float32(teacher[within]), rows)
            losses = diverging(*events, self.temperature, self.rule)
            return (losses if self.weights is None else losses * self.weights[rows]).sum()[None]

        return evaluate

    def events(
        self,
        student: Float[Tensor, "some vocabulary"],
        teacher: Float[Tensor, "some vocabulary"],
        rows: slice,
    ) -> tuple[Float[Tensor, "some events"], Float[Tensor, "some events"]]:
        """Logits of what is compared, the student's and the teacher's, of some rows: every token."""
        return student, teacher


@dataclass(frozen=True, kw_only=True)
class LikeliestTokens(Divergences):
    """The same on the k likeliest tokens of each row and all others as one event; `head` is of the tokens that are among them.

    What the others have is told of the teacher alone. It is taken as given on both sides: of the student it would take the
    whole output matrix.
    """

    places: Int64[Tensor, "rows k"]  # of the likeliest among the head's tokens
    logprobs: Float[Tensor, "rows k"]  # the teacher's

    def events(
        self,
        student: Float[Tensor, "some tokens"],
        teacher: Float[Tensor, "some tokens"],
        rows: slice,
    ) -> tuple[Float[Tensor, "some events"], Float[Tensor, "some events"]]:
        """Logits of the likeliest tokens, and the teacher's of all others."""
        own = teacher.gather(1, self.places[rows])
        together = self.logprobs[rows].to(own).logsumexp(1, keepdim=True)
        # what the others leave of 1, as far as that can be told: at least its rounding error
        left = -torch.expm1(together.clamp_max(0))
        others = left.clamp_min(torch.finfo(left.dtype).eps).log() + own.logsumexp(1, keepdim=True) - together
        return torch.cat([student.gather(1, self.places[rows]), others], 1), torch.cat([own, others], 1)


def teacher_space(work: Divergences) -> Float[Tensor, ""]:
    """The sum of divergences of what the student's states become in the teacher's space, differentiable once in `rows`."""
    total: Tensor = _TeacherSpace.apply(work, torch.is_grad_enabled(), work.rows)  # type: ignore[no-untyped-call]
    return total


class _TeacherSpace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, work: Divergences, training: bool, projected: Tensor) -> Tensor:
        kind = exact(work.head.weight.dtype)
        wanted = training and ctx.needs_input_grad[2]
        gradient = torch.zeros_like(projected, dtype=kind) if wanted else None
        ctx.gradient, ctx.dtype = gradient, projected.dtype
        with torch.autocast(projected.device.type, enabled=False):
            factor = torch.ones(1, dtype=kind, device=projected.device)
            return accumulate(work, work.head, factor, Gradients(None, None, [gradient]))[0]

    @staticmethod
    def backward(ctx: Any, by_total: Tensor) -> tuple[None, None, Tensor | None]:
        if torch.is_grad_enabled():
            raise RuntimeError("losses on logits can be differentiated only once: no `create_graph`")
        gradient, ctx.gradient = ctx.gradient, None
        return None, None, None if gradient is None else gradient.mul_(by_total).to(ctx.dtype)
