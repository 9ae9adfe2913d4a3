"""Hidden representation alignment (MTA arXiv 2605.01374): the student's states, mapped linearly, point as the teacher's.

One part a pair of layers, each with its own learnable map W (and bias, unless left out) from the student's hidden size
to the teacher's. Sums are over elements of all documents:

    token   Σ_t w_t (1 − cos(W H^S_t, H^T_t)) / Σ_t w_t     tokens covered by the layer's units; needs common tokens
    unit    Σ_k ω_k (1 − cos(W U^S_k, U^T_k)) / Σ_k ω_k     pooled units; also across tokenizers (as SRA's L_cos)

w and ω are the teacher's weights of tokens and units. The term is the mean over layers, or with `reduce: sum` their sum.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from trainer.batches.batch import Batch, LayerTargets
from trainer.maths.geometry import student_units
from trainer.maths.ragged import at_least_float32
from trainer.objectives.base import LayerNeed, Needs, Options, Setting, StateObjective
from trainer.objectives.layers import LayerOptions, LayerTerm


class HiddenOptions(LayerOptions):
    """Options of `hidden`."""

    level: Literal["token", "unit"] = "token"
    bias: bool = True  # of the projectors
    reduce: Literal["mean", "sum"] = "mean"  # over layers


class HiddenAlignment(LayerTerm, StateObjective):
    """Alignment of states through projectors, which are in `projectors`, in the order of the pairs."""

    options: ClassVar[type[Options]] = HiddenOptions

    def __init__(self, options: HiddenOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        self.projectors = nn.ModuleList(nn.Linear(*setting.sizes(pair), bias=options.bias) for pair in self.pairs)

    def needs(self) -> Needs:
        """States at token level, units at unit level."""
        token = self.config.level == "token"
        need: LayerNeed = "states" if token else "units"
        return Needs(
            {pair.teacher: frozenset({need}) for pair in self.pairs}, instead="`level: unit`" if token else None
        )

    def combined(self, parts: Float[Tensor, " parts"]) -> Float[Tensor, ""]:
        """Mean or sum over layers."""
        return parts.sum() if self.config.reduce == "sum" else parts.mean()

    def denominators(self, batch: Batch) -> Float[Tensor, " parts"]:
        """Σ of the teacher's weights."""
        weights = (self._teacher(batch.layers[pair.teacher])[1] for pair in self.pairs)
        return torch.stack([each.sum(dtype=torch.float64).cpu() for each in weights])

    def forward(self, states: Mapping[int, Float[Tensor, "tokens _"]], batch: Batch) -> Float[Tensor, " parts"]:
        """Numerators, a layer each."""
        parts = []
        for pair, projector in zip(self.pairs, self.projectors, strict=True):
            targets = batch.layers[pair.teacher]
            student = self._student(states[pair.student], batch.rows, targets)
            # called also for nothing at all: ZeRO expects a gradient of every parameter
            projected = projector(student.to(next(projector.parameters()).dtype))
            parts.append(misalignment(projected, *self._teacher(targets)))
        return torch.stack(parts)

    def _student(
        self, hidden: Float[Tensor, "tokens hidden"], rows: Int64[Tensor, " pointers"], targets: LayerTargets
    ) -> Float[Tensor, "elements hidden"]:
        if self.config.level == "unit":
            return student_units(hidden, rows, targets.spans, self.setting.student_weights)
        assert targets.state_index is not None
        return hidden.index_select(0, targets.state_index.to(hidden.device, non_blocking=True))

    def _teacher(self, targets: LayerTargets) -> tuple[Tensor, Tensor]:
        """Vectors to point along, and their weights."""
        if self.config.level == "unit":
            assert targets.units is not None
            return targets.units, targets.weights
        assert targets.states is not None
        assert targets.state_weights is not None
        return targets.states, targets.state_weights


def misalignment(
    projected: Float[Tensor, "elements teacher_hidden"],
    teacher: Float[Tensor, "elements teacher_hidden"],
    weights: Float[Tensor, " elements"],
) -> Float[Tensor, ""]:
    """Σ w (1 − cos(projected, teacher)), at least in float32; a zero vector has cosine 0 with everything."""
    cosines = F.cosine_similarity(at_least_float32(projected), at_least_float32(teacher), dim=1)
    return (weights * (1 - cosines)).sum()
