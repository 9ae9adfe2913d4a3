"""Dynamic structural alignment (DSA, MTA arXiv 2605.01374): units relate to each other as they do in the teacher.

One part a pair of layers. U_k are pooled units, ω_k the teacher's weights of them, S student and T teacher; sums are over
distinct units of one document, of all documents. A part is numerator / denominator (`pairs: mean`):

    cosine     Σ_{i≠j} ω_i ω_j (cos(U^S_i, U^S_j) − cos(U^T_i, U^T_j))²        / Σ_{i≠j} ω_i ω_j
    distance   Σ_{i≠j} ω_i ω_j (|U^S_i − U^S_j| / μ^S − |U^T_i − U^T_j| / μ^T)²  / Σ_{i≠j} ω_i ω_j
    angle      Σ_{i≠j≠k≠i} ω_i ω_j ω_k (cos∠^S_ijk − cos∠^T_ijk)²              / Σ_{i≠j≠k≠i} ω_i ω_j ω_k
    row_kl     Σ_i ω_i KL(softmax_{j≠i} cos^T_ij / τ ‖ softmax_{j≠i} cos^S_ij / τ)  / Σ_i ω_i

`distance` and `angle` are the relations of RKD (Park et al. 2019, arXiv 1904.05068) under DSA's weighted square in place
of its Huber loss: μ is the plain mean of the distances of a document's pairs, ∠_ijk the angle at unit j. A document with
fewer units than a relation takes (angle: 3, others: 2) adds nothing to numerator or denominator. With `pairs: sum` a
document's sum is taken as it is, as the paper prints it, and the denominator is the number of documents with enough units:
a plain sum over a step would depend on how many documents a step has.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from pydantic import Field, model_validator
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from schemas.signals import Weights
from schemas.training import PairConfig
from trainer.batch import Batch, LayerTargets
from trainer.geometry import centrality_weights, pool, relations, uniform_weights
from trainer.objectives.base import LayerNeed, Needs, Options, Setting, StateObjective
from trainer.ragged import BUDGET, groups, pointers, spread, sum_rows
from trainer.triangle import pair_rows, pairs

Metric = Literal["cosine", "distance", "angle", "row_kl"]

#: Units nearer to each other than a millionth of their length are equal: below it, float32 inputs say nothing.
EQUAL: Final = 1e-12  # of squared lengths


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


class StructureOptions(Options):
    """Options of `dsa`."""

    metric: Metric = "cosine"
    pairs: Literal["mean", "sum"] = "mean"
    temperature: float = Field(default=1.0, ge=0.01)  # τ of `row_kl`
    layers: tuple[PairConfig, ...] | None = Field(default=None, min_length=1)  # None: the run's

    @model_validator(mode="after")
    def _temperature_is_used(self) -> "StructureOptions":
        if self.temperature != 1 and self.metric != "row_kl":
            raise ValueError(f"`temperature` belongs to `metric: row_kl`, not to `{self.metric}`")
        return self


class StructuralAlignment(StateObjective):
    """DSA. Needs no projector, no common tokenizer and no equal sizes."""

    options: ClassVar[type[Options]] = StructureOptions

    def __init__(self, options: StructureOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        self.pairs = setting.pairs if options.layers is None else options.layers
        self.relation = RELATIONS[options.metric]

    def needs(self) -> Needs:
        """Relations for `cosine` and `row_kl`, units for `distance` and `angle`."""
        return Needs({pair.teacher: frozenset({self.relation.needs}) for pair in self.pairs})

    def student_layers(self) -> tuple[int, ...]:
        """Those of its pairs."""
        return tuple(sorted({pair.student for pair in self.pairs}))

    def denominators(self, batch: Batch) -> Float[Tensor, " parts"]:
        """Σ of the products of weights, or with `pairs: sum` the number of documents with enough units."""
        targets = [batch.layers[pair.teacher] for pair in self.pairs]
        if self.config.pairs == "sum":
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


def student_units(
    hidden: Float[Tensor, "tokens hidden"],
    rows: Int64[Tensor, " pointers"],
    spans: Int64[Tensor, "units 2"],
    weights: Weights,
) -> Float[Tensor, "units hidden"]:
    """The student's pooled units, each by the student's own token weights, through which no gradient flows.

    `rows`: tokens of each document; `spans`: [start, end) in the tokens of the batch. At least float32.
    """
    token = uniform_weights(rows, hidden.device) if weights == "uniform" else centrality_weights(hidden, rows)
    return pool(hidden, token, spans)


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
    """Σ_{i≠j} ω_i ω_j (cos^S_ij − cos^T_ij)², of cosines as flat triangles (`trainer.triangle`)."""
    left, right = pairs(rows, student.device)
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


def distance_numerator(
    student: Float[Tensor, "units student_hidden"],
    teacher: Float[Tensor, "units teacher_hidden"],
    weights: Float[Tensor, " units"],
    rows: Int64[Tensor, " pointers"],
) -> Float[Tensor, ""]:
    """Σ_{i≠j} ω_i ω_j (D^S_ij − D^T_ij)², D_ij = |U_i − U_j| over the mean of the document's pairs; float64.

    No gradient comes from the distance of equal units; where all are equal, D is 0.
    """
    total = student[:0].sum(dtype=torch.float64)  # keeps a batch without units connected
    for block in _blocks(student, teacher, weights, rows):
        difference = _over_mean(block.student, block.real) - _over_mean(block.teacher, block.real)
        total = total + (block.pair_weights * difference.square()).sum()
    return total


def angle_numerator(
    student: Float[Tensor, "units student_hidden"],
    teacher: Float[Tensor, "units teacher_hidden"],
    weights: Float[Tensor, " units"],
    rows: Int64[Tensor, " pointers"],
    budget: int = BUDGET,
) -> Float[Tensor, ""]:
    """Σ_{i≠j≠k≠i} ω_i ω_j ω_k (cos∠^S_ijk − cos∠^T_ijk)²; float64.

        cos∠_ijk = (U_i − U_j)·(U_k − U_j) / (|U_i − U_j| |U_k − U_j|), of inner products alone; 0 where a side is 0

    Cubic in a document's units, in time; no tensor holds more than `budget` elements, or one document's pairs.
    """
    total = student[:0].sum(dtype=torch.float64)
    for block in _blocks(student, teacher, weights, rows, budget):
        student_inverse, teacher_inverse = (_inverse(_distances(gram)) for gram in (block.student, block.teacher))
        vertices = max(1, budget // block.student.numel())
        for start in range(0, block.student.shape[1], vertices):
            at = slice(start, start + vertices)
            # computed anew in the backward pass: what it would keep is cubic
            total = total + checkpoint(
                _angles_apart,
                *(
                    block.student,
                    student_inverse,
                    block.teacher,
                    teacher_inverse,
                    block.weights,
                    block.pair_weights,
                    at,
                ),
                use_reentrant=False,
                preserve_rng_state=False,
            )
    return total


def partners(rows: Int64[Tensor, " pointers"]) -> tuple[Int64[Tensor, " ordered_pairs"], Int64[Tensor, " _"]]:
    """For every unit of the batch, where its pairs with the others of its document stand among the flat triangles.

    In the others' order, one unit after the other, with the pointers of each unit's; `rows`: units of each document.
    """
    count, first, base = (spread(each, rows) for each in (rows.diff(), rows[:-1], pair_rows(rows)[:-1]))
    partner_rows = pointers(count - 1)
    unit = spread(torch.arange(len(count)), partner_rows)
    own = unit - first[unit]
    other = torch.arange(len(unit)) - partner_rows[unit]
    other += other >= own
    low, high = torch.minimum(own, other), torch.maximum(own, other)
    return base[unit] + low * count[unit] - low * (low + 1) // 2 + high - low - 1, partner_rows


def _log_softmax(values: Float[Tensor, " elements"], rows: Int64[Tensor, " pointers"]) -> Float[Tensor, " elements"]:
    """Over each row, of values no larger than some hundreds in float64, so that `exp` neither overflows nor vanishes."""
    return values - spread(sum_rows(values.exp(), rows), rows).log()


@dataclass(frozen=True)
class _Block:
    """Documents of similar length, padded; float64, since distances of units are small beside their lengths."""

    student: Float[Tensor, "documents width width"]  # inner products
    teacher: Float[Tensor, "documents width width"]
    weights: Float[Tensor, "documents width"]  # 0 at padding
    real: Bool[Tensor, "documents width"]

    @property
    def pair_weights(self) -> Float[Tensor, "documents width width"]:
        """ω_i ω_j, 0 on the diagonal and at padding."""
        products = self.weights[:, :, None] * self.weights[:, None, :]
        return products - products.diagonal(dim1=1, dim2=2).diag_embed()


def _blocks(
    student: Float[Tensor, "units student_hidden"],
    teacher: Float[Tensor, "units teacher_hidden"],
    weights: Float[Tensor, " units"],
    rows: Int64[Tensor, " pointers"],
    budget: int = BUDGET,
) -> Iterator[_Block]:
    for group in groups(rows, max(student.shape[1], teacher.shape[1]), budget):
        ours, theirs, omega = (
            group.padded(values).to(torch.float64) for values in (student, teacher, weights[:, None])
        )
        lengths = group.lengths.to(student.device, non_blocking=True)
        real = torch.arange(group.width, device=student.device) < lengths[:, None]
        yield _Block(
            torch.bmm(ours, ours.transpose(1, 2)),
            torch.bmm(theirs, theirs.transpose(1, 2)),
            omega.squeeze(2) * real,
            real,
        )


def _distances(gram: Float[Tensor, "documents width width"]) -> Float[Tensor, "documents width width"]:
    """|U_i − U_j| = sqrt(U_i·U_i + U_j·U_j − 2 U_i·U_j); 0 without a gradient for equal units."""
    length = gram.diagonal(dim1=1, dim2=2)
    both = length[:, :, None] + length[:, None, :]
    squared = both - 2 * gram
    equal = squared <= EQUAL * both
    # filled before the root, whose gradient at 0 is infinite
    return squared.masked_fill(equal, 1).sqrt().masked_fill(equal, 0)


def _over_mean(
    gram: Float[Tensor, "documents width width"], real: Bool[Tensor, "documents width"]
) -> Float[Tensor, "documents width width"]:
    """Distances over the mean distance of each document's pairs; 0 at padding, and where all units are equal."""
    distances = _distances(gram) * (real[:, :, None] & real[:, None, :])
    count = real.sum(1)
    mean = distances.sum((1, 2)) / (count * (count - 1)).clamp_min(1)
    return distances / mean.masked_fill(mean == 0, 1)[:, None, None]


def _inverse(distances: Float[Tensor, "documents width width"]) -> Float[Tensor, "documents width width"]:
    """1 / distance, 0 for 0."""
    zero = distances == 0
    return distances.masked_fill(zero, 1).reciprocal().masked_fill(zero, 0)


def _angles_apart(
    student: Float[Tensor, "documents width width"],
    student_inverse: Float[Tensor, "documents width width"],
    teacher: Float[Tensor, "documents width width"],
    teacher_inverse: Float[Tensor, "documents width width"],
    weights: Float[Tensor, "documents width"],
    pair_weights: Float[Tensor, "documents width width"],
    at: slice,
) -> Float[Tensor, ""]:
    """The sum of `angle_numerator` for some vertices j. A vertex is no end of a side: 0 away, its angles are 0."""
    difference = _angles(student, student_inverse, at) - _angles(teacher, teacher_inverse, at)
    return (weights[:, at, None, None] * pair_weights[:, None] * difference.square()).sum()


def _angles(
    gram: Float[Tensor, "documents width width"], inverse: Float[Tensor, "documents width width"], at: slice
) -> Float[Tensor, "documents vertices width width"]:
    """cos∠_ijk as [document, j, i, k]."""
    vertex = gram.diagonal(dim1=1, dim2=2)[:, at, None, None]
    products = gram[:, None] - gram[:, at, :, None] - gram[:, at, None, :] + vertex
    return products * inverse[:, at, :, None] * inverse[:, at, None, :]
