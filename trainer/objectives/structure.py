"""Dynamic structural alignment (DSA, MTA arXiv 2605.01374): units relate to each other as they do in the teacher.

One part a pair of layers. U_k are pooled units, ω_k the teacher's weights of them, S student and T teacher; sums are over
distinct units of one document, of all documents. A part is numerator / denominator (`reduce: mean`):

    cosine     Σ_{i≠j} ω_i ω_j (cos(U^S_i, U^S_j) − cos(U^T_i, U^T_j))²        / Σ_{i≠j} ω_i ω_j
    distance   Σ_{i≠j} ω_i ω_j (|U^S_i − U^S_j| / μ^S − |U^T_i − U^T_j| / μ^T)²  / Σ_{i≠j} ω_i ω_j
    angle      Σ_{i≠j≠k≠i} ω_i ω_j ω_k (cos∠^S_ijk − cos∠^T_ijk)²              / Σ_{i≠j≠k≠i} ω_i ω_j ω_k
    row_kl     Σ_i ω_i KL(softmax_{j≠i} cos^T_ij / τ ‖ softmax_{j≠i} cos^S_ij / τ)  / Σ_i ω_i

Of a document with more than 2w units (that the teacher has a span of), w being `window`, pairs count whose places differ
by less than w, and all of the above is over these: sums and their denominators alike, μ, the softmax of a row, the units
of it that have a partner at all, and angles whose three sides all count. ω stay as they are, so a part is the mean of
the same quantity under the same weights, ω_i ω_j / Σ_counted ω_i ω_j, and for documents of up to 2w units nothing differs.
`distance` and `angle` are the relations of RKD (Park et al. 2019, arXiv 1904.05068) under DSA's weighted square in place
of its Huber loss: μ is the plain mean of the distances of a document's pairs, ∠_ijk the angle at unit j. A document with
fewer units than a relation takes (angle: 3, others: 2) adds nothing to numerator or denominator. With `reduce: sum` a
document's sum is taken as it is, as the paper prints it, and the denominator is the number of documents with enough units
(for a relation that counts):
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

from schemas.signals import WINDOW
from trainer.batches.batch import Batch, LayerTargets
from trainer.maths.geometry import relations, student_units
from trainer.maths.ragged import spread, sum_rows
from trainer.maths.triangle import later_units, partners, unit_pairs, whole_documents
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
    window: int | None = Field(default=WINDOW, ge=2)  # of long documents' pairs; None: all pairs count

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
        layers = {pair.teacher: frozenset({self.relation.needs}) for pair in self.pairs}
        return Needs(layers, windows=frozenset({self.config.window}))

    def denominators(self, batch: Batch) -> Float[Tensor, " parts"]:
        """Σ of the products of weights, or with `reduce: sum` the number of documents with enough units."""
        targets = [batch.layers[pair.teacher] for pair in self.pairs]
        relation = self.relation
        if self.config.reduce == "sum":
            counts = [enough_units(each.rows, counted(each), relation.least) for each in targets]
            return torch.tensor(counts, dtype=torch.float64)
        return torch.stack(
            [
                product_total(each.weights, each.rows, counted(each), relation.weighted, relation.least)
                for each in targets
            ]
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
        later = counted(targets)
        if self.relation.needs == "units":
            assert targets.units is not None
            numerator = distance_numerator if self.config.metric == "distance" else angle_numerator
            return numerator(units, targets.units, targets.weights, targets.rows, later).to(units.dtype)
        assert targets.relations is not None
        cosines = (relations(units, targets.rows, later), targets.relations)
        if self.config.metric == "cosine":
            return cosine_numerator(*cosines, targets.weights, later)
        return row_kl_numerator(*cosines, targets.weights, later, self.config.temperature).to(units.dtype)


def counted(targets: LayerTargets) -> Int64[Tensor, " units"]:
    """Which pairs of its units count (`trainer.maths.triangle`)."""
    return later_units(targets.rows) if targets.later is None else targets.later


def enough_units(rows: Int64[Tensor, " pointers"], later: Int64[Tensor, " units"], least: int) -> int:
    """Documents in which `least` units or more all make pairs with each other."""
    begins = (later >= least - 1).to(torch.float32)
    return int((sum_rows(begins, rows) > 0).sum())


def product_total(
    weights: Float[Tensor, " units"],
    rows: Int64[Tensor, " pointers"],
    later: Int64[Tensor, " units"],
    factors: int,
    least: int,
) -> Float[Tensor, ""]:
    """Σ ω_i ω_j … over every ordered choice of `factors` distinct units of one document all of whose pairs count; float64,
    on the CPU.

    Of one factor: of the units that make some pair. Documents with fewer than `least` units are left out. Sums and products
    of what is not negative alone, and nothing quadratic: a total over pairs by (Σω)² − Σω² would lose small ones.
    """
    lengths = rows.diff()
    whole = whole_documents(rows, later)
    real = torch.arange(int(lengths.max()) if len(lengths) else 0) < lengths[:, None]
    each = torch.zeros(real.shape, dtype=torch.float64)
    each[real] = weights.to("cpu", torch.float64)
    each[(lengths < least) | ~whole] = 0
    total = each
    for _ in range(factors - 1):
        total = each * _sums_behind(total)
    of_whole = total.sum() * math.factorial(factors)
    if bool(whole.all()):
        return of_whole
    banded = spread(~whole, rows)
    return of_whole + _banded_total(weights.to("cpu", torch.float64)[banded], later[banded], factors)


def _banded_total(weights: Float[Tensor, " units"], later: Int64[Tensor, " units"], factors: int) -> Float[Tensor, ""]:
    """The same of documents that are cut to bands."""
    if factors == 1:
        begins = later > 0
        # a unit's nearest partner before it, if it has one, is the unit before it
        return weights[begins | F.pad(begins, (1, 0))[:-1]].sum()
    # a line of each unit: those behind it that it makes pairs with, which all make pairs with each other
    inside = torch.arange(max(int(later.max()), 1)) < later[:, None]
    lines = torch.zeros(inside.shape, dtype=torch.float64)
    lines[inside] = weights[unit_pairs(later)[1]]
    total = lines
    for _ in range(factors - 2):
        total = lines * _sums_behind(total)
    return (weights * total.sum(1)).sum() * math.factorial(factors)


def _sums_behind(lines: Float[Tensor, "lines width"]) -> Float[Tensor, "lines width"]:
    """Of every element, the sum of those behind it in its line."""
    return F.pad(lines.flip(1).cumsum(1).flip(1), (0, 1))[:, 1:]


def cosine_numerator(
    student: Float[Tensor, " pairs"],
    teacher: Float[Tensor, " pairs"],
    weights: Float[Tensor, " units"],
    later: Int64[Tensor, " units"],
) -> Float[Tensor, ""]:
    """Σ_{i≠j} ω_i ω_j (cos^S_ij − cos^T_ij)², of cosines as flat triangles (`trainer.maths.triangle`)."""
    left, right = unit_pairs(later, student.device)
    return 2 * (weights[left] * weights[right] * (student - teacher).square()).sum()


def row_kl_numerator(
    student: Float[Tensor, " pairs"],
    teacher: Float[Tensor, " pairs"],
    weights: Float[Tensor, " units"],
    later: Int64[Tensor, " units"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Σ_i ω_i Σ_{j≠i} p_ij log(p_ij / q_ij), p and q the softmax over j ≠ i of cos^T_ij / τ and cos^S_ij / τ.

    Of cosines as flat triangles. float64: the KL of rows that hardly differ is what remains when larger terms cancel.
    """
    place, partner_rows = partners(later)
    place = place.to(student.device, non_blocking=True)
    p, q = (_log_softmax(each.to(torch.float64)[place] / temperature, partner_rows) for each in (teacher, student))
    return (weights * sum_rows(p.exp() * (p - q), partner_rows)).sum()


def _log_softmax(values: Float[Tensor, " elements"], rows: Int64[Tensor, " pointers"]) -> Float[Tensor, " elements"]:
    """Over each row, of values no larger than some hundreds in float64, so that `exp` neither overflows nor vanishes."""
    return values - spread(sum_rows(values.exp(), rows), rows).log()
