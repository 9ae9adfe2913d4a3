"""Dual-space distillation by exact token alignment (DSKDv2 with ETA, Zhang et al. 2025, arXiv 2504.11426).

P are pairs (i, j) of a student's and a teacher's position whose next tokens are the same text, of those whose likeliest
token of the teacher, ŷ'_j, is also a token of the student, ŷ_i: by its bytes. W are output matrices, O the tokens that both
vocabularies have, sg a constant, D the divergence, τ `temperature`:

    P_ts [D, d] = W_t[O]ᵀ pinv(W_s[O]ᵀ)          at the start, then learned
    P_st [d, D] = sg(W_s[O])ᵀ pinv(W_t[O]ᵀ)      from the student's matrix as it is, anew every `refresh` steps

    Z^{ts}_i = H^t_j P_ts sg(W_s)ᵀ               Z^{st}_j = H^s_i P_st W_tᵀ + the teacher's output bias

    L_ce  = Σ_P CE(Z^{ts}_i, ŷ_i)
    L_stu = Σ_P 1[argmax Z^{ts}_i = ŷ_i] · D(p(sg Z^{ts}_i / τ) ‖ p(Z^s_i / τ))
    L_tea = Σ_P D(p(Z^t_j / τ) ‖ p(Z^{st}_j / τ))

and the term is their sum over |P|, also for L_stu, so that no count depends on the model. `count: kept` divides L_stu by the
pairs that its gate lets through instead, as published, but over the whole step: a pass of the projected states through the
student's output matrix counts them before it. L_ce trains P_ts alone, L_stu and L_tea the student. P_st is computed once
where the student's output matrix does not learn.

The published code takes a likeliest token that the student lacks for the unknown one, which is the end of the text for
GPT-2; here such pairs are left out. Its other fault, comparing tokens by how they are written and not by their bytes, is
left out as well. What ŷ' is comes from the signal `argmax`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn

from schemas.console import counted
from schemas.errors import UsageError
from trainer.batches.batch import Batch
from trainer.maths.ragged import at_least_float32
from trainer.models.head import Head
from trainer.models.row_losses import Evaluate, Stream
from trainer.objectives.base import Aside, Beginning, LogitObjective, Logits, Needs, Options, Setting
from trainer.objectives.cross_space import CrossSpaceOptions, Divergences, agrees, diverging, shared_ids, teacher_space


class AlignedOptions(CrossSpaceOptions):
    """Options of `dskd_eta`."""

    gate: Literal["correct", "none"] = "correct"
    count: Literal["pairs", "kept"] = (
        "pairs"  # what L_stu is divided by: all pairs, or those that its gate lets through
    )
    refresh: int = Field(default=1, ge=1)  # steps between computations of P_st
    #: of P_ts and, with `xavier`, of P_st too, which is then learned: for vocabularies that share too little
    init: Literal["logits", "xavier"] = "logits"

    @model_validator(mode="after")
    def _count_is_used(self) -> "AlignedOptions":
        if self.count == "kept" and self.gate == "none":
            raise ValueError("`count: kept` counts what the gate lets through, and `gate: none` lets all pairs through")
        return self


@dataclass(frozen=True)
class Agreement:
    """How many rows have a given token as their likeliest, by the student's output matrix alone (protocol: `RowWork`)."""

    rows: Float[Tensor, "rows hidden"]
    labels: Int64[Tensor, " rows"]
    columns: None = None
    bounds: None = None

    @property
    def factors(self) -> Sequence[float]:
        """One number, as it is."""
        return [1.0]

    def streams(self) -> list[Stream]:
        """Rows of other origin."""
        return [Stream(self.rows, own=False, bias=False)]

    def prepared(self, head: Head) -> "Agreement":
        """Itself: nothing depends on all rows."""
        return self

    def portion(self, part: slice) -> Evaluate:
        """Their number."""

        def evaluate(student: Sequence[Tensor], rows: slice, within: slice) -> Tensor:
            return agrees(student[0], self.labels[rows]).sum()[None]

        return evaluate


@dataclass(frozen=True)
class _Paired:
    """P, in the order of the student's positions."""

    mine: Int64[Tensor, " pairs"]  # places among the student's positions
    theirs: Int64[Tensor, " pairs"]  # among the teacher's
    labels: Int64[Tensor, " pairs"]  # ŷ_i

    def to(self, device: torch.device) -> "_Paired":
        """The same on a device, for which nothing waits."""
        mine, theirs, labels = (
            places.to(device, non_blocking=True) for places in (self.mine, self.theirs, self.labels)
        )
        return _Paired(mine, theirs, labels)


class AlignedDualSpace(LogitObjective):
    """DSKDv2 on exactly aligned tokens."""

    options: ClassVar[type[Options]] = AlignedOptions
    to_teacher: Tensor

    def __init__(self, options: AlignedOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        student, teacher = setting.last_sizes
        self.to_student = nn.Linear(teacher, student, bias=False)  # P_ts, as its transpose
        self.learned = nn.Linear(student, teacher, bias=False) if self._learns_both else None  # P_st
        # P_st of the last refresh, which a run that goes on finds in its checkpoint
        self.register_buffer("to_teacher", torch.zeros(student, teacher, dtype=torch.float32))
        self._refreshed: int | None = None

    @property
    def _learns_both(self) -> bool:
        return bool(self.config.init == "xavier" and self.config.teacher_space)

    def needs(self) -> Needs:
        """Last states and likeliest tokens at the teacher's own positions, and which of these go with the student's."""
        return Needs(
            teacher_final=True,
            argmax=True,
            pairs=True,
            shared=not self.setting.same_tokens,
            output_matrix=self.config.teacher_space,
        )

    def begin(self, beginning: Beginning) -> None:
        """P_ts of both output matrices. Raises UsageError where the vocabularies share too few tokens for it."""
        assert beginning.teacher_head is not None
        self._matrix_learns = beginning.student_head.weight.requires_grad
        columns = shared_ids(self.setting, len(beginning.student_head.weight), len(beginning.teacher_head.weight))
        if not len(columns):
            raise UsageError(
                "`dskd_eta`: the two vocabularies have no token in common. The term `dskd` needs none; for its cache: "
                f"`{beginning.cache_command('dskd')}`."
            )
        self._columns = columns
        self._labels = torch.full((len(beginning.teacher_head.weight),), -1)
        self._labels[columns[:, 1]] = columns[:, 0]
        if self.config.init == "xavier":
            for module in (self.to_student, *([] if self.learned is None else [self.learned])):
                nn.init.xavier_uniform_(module.weight)
            return
        student, teacher = (
            at_least_float32(head.weight.detach()[ids].cpu())
            for head, ids in zip((beginning.student_head, beginning.teacher_head), columns.unbind(1), strict=True)
        )
        for name, matrix in (("student", student), ("teacher", teacher)):
            if len(matrix) < matrix.shape[1]:
                raise UsageError(
                    f"`dskd_eta` solves for a map of {matrix.shape[1]} features of the {name} from the "
                    f"{counted(len(matrix), 'token')} that both vocabularies have, which is too few; set "
                    "`init: xavier` to learn the maps from the start."
                )
        with torch.no_grad():
            # W_tᵀ pinv(W_sᵀ) is the X of least error in W_s Xᵀ = W_t
            solved = torch.linalg.pinv(student.double()) @ teacher.double()
            self.to_student.weight.copy_(solved)
        self._teacher_rows = teacher
        self._gram_inverse = torch.linalg.pinv(teacher.double().t() @ teacher.double(), hermitian=True)

    @property
    def counts_by_model(self) -> bool:
        """With `count: kept`."""
        return bool(self.config.count == "kept")

    def denominators(self, batch: Batch) -> Float[Tensor, " parts"]:
        """|P|; with `count: kept` also how many of them the gate of L_stu lets through."""
        paired = self._paired(batch)
        counts = [len(paired.labels)]
        if self.counts_by_model:
            counts.append(self._kept(batch, paired))
        return torch.tensor(counts, dtype=torch.float64)

    @torch.no_grad()
    def _kept(self, batch: Batch, paired: "_Paired") -> int:
        """How many pairs the gate lets through; waits for the device."""
        device = self.to_student.weight.device
        paired = paired.to(device)
        return int(self.matrices.sums(Agreement(self._projected(batch, paired, device), paired.labels)))

    def _paired(self, batch: Batch) -> "_Paired":
        """P; on the CPU."""
        assert batch.pairs is not None
        assert batch.teacher is not None
        assert batch.teacher.argmax is not None
        labels = self._labels[batch.teacher.argmax[batch.pairs[:, 1]]]
        known = labels >= 0
        mine, theirs = batch.pairs[known].unbind(1)
        return _Paired(mine, theirs, labels[known])

    def _projected(self, batch: Batch, paired: "_Paired", device: torch.device) -> Float[Tensor, "pairs hidden"]:
        """H^t P_ts."""
        assert batch.teacher is not None
        assert batch.teacher.final is not None
        final = batch.teacher.final[paired.theirs.to(batch.teacher.final.device)]
        rows: Tensor = self.to_student(final.to(device, self.to_student.weight.dtype))
        return rows

    def aside(self, states: Mapping[int, Float[Tensor, "tokens hidden"]], batch: Batch) -> Aside:
        """The teacher's states at their partners' positions, and L_tea."""
        assert batch.teacher is not None
        assert batch.teacher.final is not None
        hidden = states[max(states)].index_select(0, batch.positions)
        paired = self._paired(batch).to(hidden.device)
        rows = self._projected(batch, paired, hidden.device)
        projected = rows.new_zeros(len(batch.positions), rows.shape[1]).index_copy(0, paired.mine, rows)
        of_positions = torch.full_like(batch.targets, -1).index_copy(0, paired.mine, paired.labels)
        numerator = None
        if self.config.teacher_space:
            head = self.matrices.teacher_head
            assert head is not None
            back = self._back(hidden[paired.mine])
            temperature, rule = self.config.temperature, self.config.rule
            final = batch.teacher.final[paired.theirs]
            numerator = teacher_space(Divergences(head, final, back, None, temperature, rule, bias=True))
        return Aside(projected, numerator, {"labels": of_positions})

    def per_token(self, logits: Logits) -> Float[Tensor, " positions"]:
        """L_ce and L_stu at each position that is in a pair, 0 at the others."""
        projected, labels = logits.projected[self], logits.at_positions[self]["labels"]
        paired = labels >= 0
        losses = diverging(logits.student, projected, self.config.temperature, self.config.rule)
        if self.config.gate == "correct":
            losses = losses * agrees(projected, labels)
        if self.counts_by_model:
            pairs, kept = self.divided_by.tolist()
            losses = losses * (pairs / max(kept, 1))
        learned = F.cross_entropy(projected, labels.clamp_min(0), reduction="none")
        return torch.where(paired, losses + learned, 0.0)

    def _back(self, hidden: Float[Tensor, "pairs hidden"]) -> Float[Tensor, "pairs teacher_hidden"]:
        """H^s P_st."""
        if self.learned is not None:
            states: Tensor = self.learned(hidden.to(self.learned.weight.dtype))
            return states
        due = self.step - self.step % self.config.refresh if self._matrix_learns else 0
        if self._refreshed is None and due < self.step and bool(self.to_teacher.any()):
            self._refreshed = due  # of the checkpoint
        if self._refreshed != due:
            ids = self._columns[:, 0].to(hidden.device)
            product = self.matrices.output_product(ids, self._teacher_rows.to(hidden.device))
            self.to_teacher = (product.double() @ self._gram_inverse.to(hidden.device)).to(self.to_teacher)
            self._refreshed = due
        return at_least_float32(hidden) @ self.to_teacher.to(at_least_float32(hidden))
