"""The student with the terms of its loss: what DeepSpeed trains."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from trainer.batches.batch import Batch
from trainer.models.head import Head
from trainer.models.row_losses import RowWork
from trainer.objectives.base import (
    Aside,
    Embed,
    LogitObjective,
    Matrices,
    Objective,
    RowObjective,
    StateObjective,
    TeacherRows,
)
from trainer.student.model import Student
from trainer.student.output_head import LogitWork


class Distiller(nn.Module):
    """One forward pass of the student, and every term from it. Projectors are part of it, the teacher is not."""

    def __init__(
        self,
        student: Student,
        objectives: Mapping[str, Objective],
        teacher_head: Head | None,
        teacher_embeddings: Embed | None = None,
    ) -> None:
        """`teacher_head`, `teacher_embeddings`: the teacher's output matrix and input embeddings, for terms on them; on the
        student's device."""
        super().__init__()
        self.student = student
        self.objectives = nn.ModuleDict(objectives)
        self.terms = dict(objectives)
        self._layers = sorted({layer for term in objectives.values() for layer in term.student_layers()})
        self._attention = sorted({layer for term in objectives.values() for layer in term.attention_layers()})
        self.set_teacher(teacher_head, teacher_embeddings)

    def set_teacher(self, head: Head | None, embeddings: Embed | None = None, rows: TeacherRows | None = None) -> None:
        """The teacher's matrices, on the student's device; `rows`: of its output matrix, of `head` if that is not given."""
        self.teacher_head = head
        if rows is None and head is not None:
            rows = head.of
        matrices = Matrices(self._embed, self._output_product, self._sums, head, embeddings, rows)
        for term in self.terms.values():
            term.matrices = matrices

    def begin_step(self, step: int, progress: float) -> None:
        """Tell the terms which optimizer step, from 0, comes next, and what part of all is done."""
        for term in self.terms.values():
            term.step, term.progress = step, progress

    def begin_validation(self) -> None:
        """Tell the terms that they are as they will be when all is done."""
        for term in self.terms.values():
            term.progress = 1.0

    @property
    def counts_by_model(self) -> bool:
        """Whether denominators depend on weights, too."""
        return any(term.counts_by_model for term in self.terms.values())

    def denominators(self, batch: Batch) -> dict[str, Float[Tensor, " parts"]]:
        """Of every term, of this micro-batch alone; float64 on the CPU."""
        return {name: term.denominators(batch) for name, term in self.terms.items()}

    def forward(
        self, batch: Batch, denominators: Mapping[str, Float[Tensor, " parts"]], weights: Mapping[str, float]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " terms"]]:
        """This micro-batch's share of the step's loss, and of the value of each term (not weighted, no gradient).

        `denominators`: of the whole step. Shares of all its micro-batches add up to the loss and its terms.
        """
        states, attention = self.student.attending(batch, self._layers, self._attention)
        batch = replace(batch, attention=attention)
        # a part without elements has a numerator of 0 as well
        inverse = {name: torch.where(each > 0, 1 / each, 0.0) for name, each in denominators.items()}
        for name, term in self.terms.items():
            term.divided_by = denominators[name]
        values: dict[str, Tensor] = {}
        shares: list[Tensor] = []
        for name, term in self.terms.items():
            if isinstance(term, StateObjective):
                parts = term(states, batch)
                value = term.combined(parts * inverse[name].to(parts))
                values[name] = value.detach()
                shares.append(weights[name] * value)
        on_logits = {name: term for name, term in self.terms.items() if isinstance(term, LogitObjective)}
        on_rows = {name: term for name, term in self.terms.items() if isinstance(term, RowObjective)}
        if on_logits or on_rows:
            scales = {name: float(inverse[name][0]) for name in (*on_logits, *on_rows)}
            asides: dict[LogitObjective, Aside] = {}
            for name, term in on_logits.items():
                aside = term.aside(states, batch)
                if aside is None:
                    continue
                asides[term] = aside
                if aside.numerator is not None:
                    value = aside.numerator * scales[name]
                    values[name] = value.detach()
                    shares.append(weights[name] * value)
            work = LogitWork.of(
                batch,
                states,
                tuple(on_logits.values()),
                tuple(weights[name] * scales[name] for name in on_logits),
                self.teacher_head,
                asides,
            )
            others = [term.work(states, batch, weights[name] * scales[name]) for name, term in on_rows.items()]
            share, sums = self.student.head(states[self.student.depth][batch.positions], work, others)
            shares.append(share)
            for name, each in zip(scales, sums.unbind(), strict=True):
                values[name] = values.get(name, 0) + each * scales[name]
        return torch.stack(shares).sum(), torch.stack([values[name].float() for name in self.terms])

    def _embed(self, ids: Int64[Tensor, " tokens"]) -> Float[Tensor, "tokens embedding"]:
        """The student's input embeddings, through their module, as partitioned weights need it."""
        vectors: Tensor = self.student.model.get_input_embeddings()(ids)
        return vectors

    def _output_product(
        self, columns: Int64[Tensor, " tokens"], values: Float[Tensor, "tokens columns"]
    ) -> Float[Tensor, "hidden columns"]:
        return self.student.head.product(columns, values)

    @torch.no_grad()
    def _sums(self, work: RowWork) -> Float[Tensor, " losses"]:
        _, sums = self.student.head(work.streams()[0].rows, None, [work])
        values: Tensor = sums
        return values
