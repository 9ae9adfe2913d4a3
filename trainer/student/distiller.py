"""The student with the terms of its loss: what DeepSpeed trains."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from schemas.training import DEFAULT_DATA
from trainer.batches.batch import Batch
from trainer.models.head import Head
from trainer.models.row_losses import RowWork
from trainer.objectives.base import (
    Aside,
    Embed,
    LogitObjective,
    Matrices,
    Objective,
    Rider,
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
        self._on_head = any(map(_is_on_head, objectives.values()))
        self._several = len({name for term in objectives.values() for name in term.datasets}) > 1
        self.set_teacher(teacher_head, {} if teacher_embeddings is None else {DEFAULT_DATA: teacher_embeddings})

    def set_teacher(
        self, head: Head | None, embeddings: Mapping[str, Embed] = MappingProxyType({}), rows: TeacherRows | None = None
    ) -> None:
        """The teacher's matrices, on the student's device; `embeddings`: of each dataset's tokens, by its name; `rows`: of its
        output matrix, of `head` if that is not given."""
        self.teacher_head = head
        if rows is None and head is not None:
            rows = head.of
        names = {name for term in self.terms.values() for name in term.datasets}
        self._matrices = {
            name: Matrices(self._embed, self._output_product, self._sums, head, embeddings.get(name), rows)
            for name in names
        }
        for term in self.terms.values():
            term.matrices = self._matrices[term.datasets[0]]

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
        """Of every term on its dataset, of this micro-batch alone; float64 on the CPU."""
        return {name: term.denominators(batch) for name, term in self._terms_on(batch).items()}

    def forward(
        self, batch: Batch, denominators: Mapping[str, Float[Tensor, " parts"]], weights: Mapping[str, float]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " terms"]]:
        """This micro-batch's share of the step's loss, and of the value of each term (not weighted, no gradient).

        `denominators`: of the whole step. Shares of all its micro-batches add up to the loss and its terms.
        """
        terms = self._terms_on(batch)
        states, attention = self.student.attending(batch, self._layers, self._attention)
        batch = replace(batch, attention=attention)
        # a part without elements has a numerator of 0 as well
        inverse = {name: torch.where(each > 0, 1 / each, 0.0) for name, each in denominators.items()}
        for name, term in terms.items():
            term.divided_by = denominators[name]
        values: dict[str, Tensor] = {}
        shares: list[Tensor] = []
        for name, term in terms.items():
            if isinstance(term, StateObjective):
                parts = term(states, batch)
                value = term.combined(parts * inverse[name].to(parts))
                values[name] = value.detach()
                shares.append(weights[name] * value)
        on_logits = {name: term for name, term in terms.items() if isinstance(term, LogitObjective)}
        on_rows = {name: term for name, term in terms.items() if isinstance(term, RowObjective)}
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
            riders: dict[str, Rider] = {}
            others: dict[str, RowWork] = {}
            for name, row_term in on_rows.items():
                factor = weights[name] * scales[name]
                if not on_logits:
                    others[name] = row_term.work(states, batch, factor)
                    continue
                rider, rest = row_term.work_beside(states, batch, factor)
                riders |= {} if rider is None else {name: rider}
                others |= {} if rest is None else {name: rest}
            work = LogitWork.of(
                batch,
                states,
                tuple(on_logits.values()),
                tuple(weights[name] * scales[name] for name in on_logits),
                self.teacher_head,
                asides,
                self.student.final_norm,
                tuple(riders.values()),
            )
            share, sums = self.student.head(states[self.student.depth][batch.positions], work, tuple(others.values()))
            shares.append(share)
            for name, each in zip((*on_logits, *riders, *others), sums.unbind(), strict=True):
                values[name] = values.get(name, 0) + each * scales[name]
        if self._several:
            shares += self._untouched(terms, states)
        nothing = states[self.student.depth].new_zeros(())
        loss = torch.stack(shares).sum()
        return loss, torch.stack([values.get(name, nothing).float() for name in self.terms])

    def _terms_on(self, batch: Batch) -> dict[str, Objective]:
        """Those that look at a batch's dataset, with what they may use of the teacher there."""
        terms = {name: term for name, term in self.terms.items() if batch.data in term.datasets}
        for term in terms.values():
            term.matrices = self._matrices[batch.data]
        return terms

    def _untouched(
        self, terms: Mapping[str, Objective], states: Mapping[int, Float[Tensor, "tokens hidden"]]
    ) -> Iterator[Float[Tensor, ""]]:
        """Zeros with a gradient, of nothing, to what terms on other datasets reach: DeepSpeed's sums over a step's micro-batches
        begin anew, or are put where the optimizer reads them, only for what a backward pass reaches."""
        last = [self.student.depth] if self._on_head else []
        for layer in (*self._layers, *last):
            yield states[layer][:0].sum()
        if self._on_head and not any(map(_is_on_head, terms.values())):
            yield self.student.head(states[self.student.depth][:0]).sum()
        for name, term in self.terms.items():
            if name not in terms:
                yield from term.idle()

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


def _is_on_head(term: Objective) -> bool:
    """Whether it looks at logits, which the output head gives."""
    return isinstance(term, LogitObjective | RowObjective)
