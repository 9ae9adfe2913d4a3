"""Dynamic structural alignment (DSA, MTA arXiv 2605.01374): units relate to each other as they do in the teacher.

One part a pair of layers. U_k are pooled units, ω_k the teacher's weights of them, S student and T teacher; sums are over
distinct units of one document, of all documents. A part is numerator / denominator (`reduce: mean`):

    cosine     Σ_{i≠j} ω_i ω_j (cos(U^S_i, U^S_j) − cos(U^T_i, U^T_j))²        / Σ_{i≠j} ω_i ω_j
    distance   Σ_{i≠j} ω_i ω_j (|U^S_i − U^S_j| / μ^S − |U^T_i − U^T_j| / μ^T)²  / Σ_{i≠j} ω_i ω_j
    angle      Σ_{i≠j≠k≠i} ω_i ω_j ω_k (cos∠^S_ijk − cos∠^T_ijk)²              / Σ_{i≠j≠k≠i} ω_i ω_j ω_k
    row_kl     Σ_i ω_i KL(softmax_{j≠i} cos^T_ij / τ ‖ softmax_{j≠i} cos^S_ij / τ)  / Σ_i ω_i

`distance` and `angle` are the relations of RKD (Park et al. 2019, arXiv 1904.05068) under DSA's weighted square in place
of its Huber loss: μ is the plain mean of the distances of a document's pairs, ∠_ijk the angle at unit j. A document with
fewer units than a relation takes (angle: 3, others: 2) adds nothing to numerator or denominator. With `reduce: sum` a
document's sum is taken as it is, as the paper prints it, and the denominator is the number of documents with enough units:
a plain sum over a step would depend on how many documents a step has.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field, model_validator
from torch import Tensor

from trainer.batches.batch import Batch, LayerTargets
from trainer.maths.geometry import relations, student_units
from trainer.maths.ragged import spread, sum_rows
from trainer.maths.triangle import partners, unit_pairs
from trainer.objectives.base import LayerNeed, Needs, Options, Setting, StateObjective
from trainer.objectives.layers import LayerOptions, LayerTerm
from trainer.objectives.rkd import angle_numerator, distance_numerator

Metric = Literal["cosine", "distance", "angle", "row_kl"]


@dataclass(frozen=True)
class Relation:
    """What a metric relates."""

    needs: LayerNeed
    weighted: int  # units in each product of weights
    least: int  # units that a document needs


RELATIONS: Final[dict[Metric, Relation]] = {
    "cosine": Relation("relations", weighted=2, least=2),
    "distance": Relation("units", weighted=2, least=2),
    "angle": Relation("units", weighted=3, least=3),
    "row_kl": Relation("relations", weighted=1, least=2),
}


class StructureOptions(LayerOptions):
    """Options of `dsa`."""

    metric: Metric = "cosine"
    reduce: Literal["mean", "sum"] = "mean"
    temperature: float = Field(default=1.0, ge=0.01)  # τ of `row_kl`

    @model_validator(mode="after")
    def _temperature_is_used(self) -> "StructureOptions":
        if self.temperature != 1 and self.metric != "row_kl":
            raise ValueError(f"`temperature` belongs to `metric: row_kl`, not to `{self.metric}`")
        return self


class StructuralAlignment(LayerTerm, StateObjective):
    """DSA. Needs no projector, no common tokenizer and no equal sizes."""

    options: ClassVar[type[Options]] = StructureOptions

    def __init__(self, options: StructureOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        self.relation = RELATIONS[options.metric]

    def needs(self) -> Needs:
        """Relations for `cosine` and `row_kl`, units for `distance` and `angle`."""
        return Needs({pair.teacher: frozenset({self.relation.needs}) for pair in self.pairs})

    def denominators(self, batch: Batch) -> Float[Tensor, " parts"]:
        """Σ of the products of weights, or with `reduce: sum` the number of documents with enough units."""
        targets = [batch.layers[pair.teacher] for pair in self.pairs]
        if self.config.reduce == "sum":
            counts = [int((each.rows.diff() >= self.relation.least).sum()) for each in targets]
            return torch.tensor(counts, dtype=torch.float64)
        return torch.stack(
            [product_total(each.weights, each.rows, self.relation.weighted, self.relation.least) for each in targets]
        )

    def forward(self, states: Mapping[int, Float[Tensor, "tokens _"]], batch: Batch) -> Float[Tensor, " parts"]:
        """Numerators, a layer each."""
        return torch.stack(
            [self._numerator(states[pair.student], batch.rows, batch.layers[pair.teacher]) for pair in self.pairs]
        )

    def _numerator(
        self, hidden: Float[Tensor, "tokens hidden"], rows: Int64[Tensor, " pointers"], targets: LayerTargets
    ) -> Float[Tensor, ""]:
        units = student_units(hidden, rows, targets.spans, self.setting.student_weights)
        if self.relation.needs == "units":
            assert targets.units is not None
            numerator = distance_numerator if self.config.metric == "distance" else angle_numerator
            return numerator(units, targets.units, targets.weights, targets.rows).to(units.dtype)
        assert targets.relations is not None
        cosines = (relations(units, targets.rows), targets.relations)
        if self.config.metric == "cosine":
            return cosine_numerator(*cosines, targets.weights, targets.rows)
        return row_kl_numerator(*cosines, targets.weights, targets.rows, self.config.temperature).to(units.dtype)


def product_total(
    weights: Float[Tensor, " units"], rows: Int64[Tensor, " pointers"], factors: int, least: int
) -> Float[Tensor, ""]:
    """Σ ω_i ω_j … over every ordered choice of `factors` distinct units of one document; float64, on the CPU.

    Documents with fewer than `least` units are left out. Sums and products of what is not negative alone, and
    nothing quadratic: a total over pairs by (Σω)² − Σω² would lose small ones.
    """
    lengths = rows.diff()
    real = torch.arange(int(lengths.max()) if len(lengths) else 0) < lengths[:, None]
    each = torch.zeros(real.shape, dtype=torch.float64)
    each[real] = weights.to("cpu", torch.float64)
    each[lengths < least] = 0
    total = each
    for _ in range(factors - 1):
        following = total.flip(1).cumsum(1).flip(1)[:, 1:]
        total = each * F.pad(following, (0, 1))
    return total.sum() * math.factorial(factors)


def cosine_numerator(
    student: Float[Tensor, " pairs"],
    teacher: Float[Tensor, " pairs"],
    weights: Float[Tensor, " units"],
    rows: Int64[Tensor, " pointers"],
) -> Float[Tensor, ""]:
    """Σ_{i≠j} ω_i ω_j (cos^S_ij − cos^T_ij)², of cosines as flat triangles (`trainer.maths.triangle`)."""
    left, right = unit_pairs(rows, student.device)
    return 2 * (weights[left] * weights[right] * (student - teacher).square()).sum()


def row_kl_numerator(
    student: Float[Tensor, " pairs"],
    teacher: Float[Tensor, " pairs"],
    weights: Float[Tensor, " units"],
    rows: Int64[Tensor, " pointers"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Σ_i ω_i Σ_{j≠i} p_ij log(p_ij / q_ij), p and q the softmax over j ≠ i of cos^T_ij / τ and cos^S_ij / τ.

    Of cosines as flat triangles. float64: the KL of rows that hardly differ is what remains when larger terms cancel.
    """
    place, partner_rows = partners(rows)
    place = place.to(student.device, non_blocking=True)
    p, q = (_log_softmax(each.to(torch.float64)[place] / temperature, partner_rows) for each in (teacher, student))
    return (weights * sum_rows(p.exp() * (p - q), partner_rows)).sum()


def _log_softmax(values: Float[Tensor, " elements"], rows: Int64[Tensor, " pointers"]) -> Float[Tensor, " elements"]:
    """Over each row, of values no larger than some hundreds in float64, so that `exp` neither overflows nor vanishes."""
    return values - spread(sum_rows(values.exp(), rows), rows).log()
