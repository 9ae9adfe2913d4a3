"""The student with the terms of its loss: what DeepSpeed trains."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trainer.batches.batch import Batch
from trainer.models.head import Head
from trainer.objectives.base import LogitObjective, Objective, StateObjective
from trainer.student.model import Student
from trainer.student.output_head import LogitWork


class Distiller(nn.Module):
    """One forward pass of the student, and every term from it. Projectors are part of it, the teacher is not."""

    def __init__(self, student: Student, objectives: Mapping[str, Objective], teacher_head: Head | None) -> None:
        """`teacher_head`: the teacher's output matrix, for terms on its logits; on the student's device."""
        super().__init__()
        self.student = student
        self.objectives = nn.ModuleDict(objectives)
        self.terms = dict(objectives)
        self.teacher_head = teacher_head
        self._layers = sorted({layer for each in objectives.values() for layer in each.student_layers()})

    def denominators(self, batch: Batch) -> dict[str, Float[Tensor, " parts"]]:
        """Of every term, of this micro-batch alone; float64 on the CPU."""
        return {name: term.denominators(batch) for name, term in self.terms.items()}

    def forward(
        self, batch: Batch, denominators: Mapping[str, Float[Tensor, " parts"]], weights: Mapping[str, float]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " terms"]]:
        """This micro-batch's share of the step's loss, and of the value of each term (not weighted, no gradient).

        `denominators`: of the whole step. Shares of all its micro-batches add up to the loss and its terms.
        """
        states = self.student(batch, self._layers)
        # a part without elements has a numerator of 0 as well
        inverse = {name: torch.where(each > 0, 1 / each, 0.0) for name, each in denominators.items()}
        values: dict[str, Tensor] = {}
        shares: list[Tensor] = []
        for name, term in self.terms.items():
            if isinstance(term, StateObjective):
                parts = term(states, batch)
                value = term.combined(parts * inverse[name].to(parts))
                values[name] = value.detach()
                shares.append(weights[name] * value)
        on_logits = {name: term for name, term in self.terms.items() if isinstance(term, LogitObjective)}
        if on_logits:
            scales = [float(inverse[name]) for name in on_logits]
            work = LogitWork.of(
                batch,
                states,
                tuple(on_logits.values()),
                tuple(weights[name] * scale for name, scale in zip(on_logits, scales, strict=True)),
                self.teacher_head,
            )
            share, sums = self.student.head(states[self.student.depth][batch.positions], work)
            shares.append(share)
            values |= {name: each * scale for name, each, scale in zip(on_logits, sums.unbind(), scales, strict=True)}
        return torch.stack(shares).sum(), torch.stack([values[name].float() for name in self.terms])
