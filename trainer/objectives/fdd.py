"""Feature dynamics distillation (FDD): what inner layers would predict, and how that changes from layer to layer.

Hidden states of chosen layers go through the output head, the teacher's through its own. At each position, with p_l and
q_l the distributions of teacher and student at the l-th of n pairs of layers, lowest first:

    1/n Σ_l KL(p_l ‖ q_l)                                              at `temperature`
    + `trajectory` · 1/(n−1) Σ_l (1 − cos(Δ log q_l, Δ log p_l))       Δ x_l = x_{l+1} − x_l, at temperature 1

with the cosine over the vocabulary; one pair alone has no second part. As in `divergence`, no temperature is squared, and
vocabularies of different sizes are cut to the smaller one. Inner states meet the output head as they are; with `norm: true`
as the last layer's do, behind the final norm of their model, the student's as it is at that step and with gradient. States
of a last layer have been through it. The base loss beside it is a term of its own.
"""

from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from trainer.maths.divergence import divergence, forward_kl
from trainer.objectives.base import LayerNeed, LogitObjective, Logits, Needs, NormedLayers, Options, Setting
from trainer.objectives.divergence import common_events
from trainer.objectives.layers import LayerOptions, LayerTerm


class FeatureDynamicsOptions(LayerOptions):
    """Options of `fdd`."""

    temperature: float = Field(default=2.0, gt=0)
    trajectory: float = Field(default=1.0, ge=0)  # weight of the second part
    norm: bool = False  # the final norm before the output head


class FeatureDynamics(LayerTerm, LogitObjective):
    """Inner layers as distributions of the next token."""

    options: ClassVar[type[Options]] = FeatureDynamicsOptions

    def __init__(self, options: FeatureDynamicsOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        self.pairs = tuple(sorted(self.pairs, key=lambda pair: (pair.student, pair.teacher)))
        if options.norm:
            last = (setting.student_last, setting.teacher_last)
            student, teacher = (None if each is None else each[0] for each in last)
            self.normed = NormedLayers(
                frozenset(pair.student for pair in self.pairs if pair.student != student),
                frozenset(pair.teacher for pair in self.pairs if pair.teacher != teacher),
            )

    def needs(self) -> Needs:
        """States of its layers, `final` for the output matrix that comes with it, and the final norm where it is asked for."""
        layers: dict[int, frozenset[LayerNeed]] = {pair.teacher: frozenset({"position_states"}) for pair in self.pairs}
        return Needs(layers, final=True, norm=bool(self.normed.teacher))

    def per_token(self, logits: Logits) -> Float[Tensor, " positions"]:
        """Both parts at each position."""
        student = {**logits.inner, **{layer: logits.normed[layer] for layer in self.normed.student}}
        teacher = {**logits.teacher_inner, **{layer: logits.teacher_normed[layer] for layer in self.normed.teacher}}
        layers = [(student[pair.student], teacher[pair.teacher]) for pair in self.pairs]
        events = (common_events(*states, self.config.temperature) for states in layers)
        loss = _mean([divergence(log_q, log_p, forward_kl) for log_q, log_p in events])
        if len(layers) > 1 and self.config.trajectory > 0:
            plain = [common_events(*states) for states in layers]
            turns = [
                1 - F.cosine_similarity(log_q - log_q_before, log_p - log_p_before, dim=1)
                for (log_q_before, log_p_before), (log_q, log_p) in pairwise(plain)
            ]
            loss = loss + self.config.trajectory * _mean(turns)
        return loss


def _mean(values: list[Float[Tensor, " positions"]]) -> Float[Tensor, " positions"]:
    return torch.stack(values).mean(0)
