"""Distances and angles among units, the relations of RKD (Park et al. 2019, arXiv 1904.05068), under DSA's weights."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trainer.maths.geometry import pair_products
from trainer.maths.ragged import BUDGET, groups, pointers, select, spread, sum_rows
from trainer.maths.triangle import unit_pairs, whole_documents

#: Units nearer to each other than a millionth of their length are equal: below it, float32 inputs say nothing.
EQUAL: Final = 1e-12  # of squared lengths


def distance_numerator(
    student: Float[Tensor, "units student_hidden"],
    teacher: Float[Tensor, "units teacher_hidden"],
    weights: Float[Tensor, " units"],
    rows: Int64[Tensor, " pointers"],
    later: Int64[Tensor, " units"],
) -> Float[Tensor, ""]:
    """Σ_{i≠j} ω_i ω_j (D^S_ij − D^T_ij)², D_ij = |U_i − U_j| over the mean of the document's pairs; float64.

    Of the pairs that count, by `later` (`trainer.maths.triangle`). No gradient comes from the distance of equal units;
    where all are equal, D is 0.
    """
    total = student[:0].sum(dtype=torch.float64)  # keeps a batch without units connected
    whole = whole_documents(rows, later)
    for block in _blocks(student, teacher, weights, rows, whole):
        difference = _over_mean(block.student, block.real) - _over_mean(block.teacher, block.real)
        total = total + (block.pair_weights * difference.square()).sum()
    if bool(whole.all()):
        return total
    units, unit_rows = select(spread(~whole, rows), rows)
    later, place = later[units], units.to(student.device, non_blocking=True)
    pairs = pointers(later)[unit_rows]
    left, right = unit_pairs(later, student.device)
    ours, theirs = (
        _pair_distances(values[place].to(torch.float64), unit_rows, later, left, right) for values in (student, teacher)
    )
    omega = weights[place].to(torch.float64)
    difference = _over_row_mean(ours, pairs) - _over_row_mean(theirs, pairs)
    return total + 2 * (omega[left] * omega[right] * difference.square()).sum()


def angle_numerator(
    student: Float[Tensor, "units student_hidden"],
    teacher: Float[Tensor, "units teacher_hidden"],
    weights: Float[Tensor, " units"],
    rows: Int64[Tensor, " pointers"],
    later: Int64[Tensor, " units"],
    budget: int = BUDGET,
) -> Float[Tensor, ""]:
    """Σ_{i≠j≠k≠i} ω_i ω_j ω_k (cos∠^S_ijk − cos∠^T_ijk)²; float64.

        cos∠_ijk = (U_i − U_j)·(U_k − U_j) / (|U_i − U_j| |U_k − U_j|), of inner products alone; 0 where a side is 0

    Of three units whose pairs all count, by `later` (`trainer.maths.triangle`). Cubic in a document's units, in time, or
    in the window of one that is cut to a band; no tensor holds more than `budget` elements, or one document's pairs.
    """
    total = student[:0].sum(dtype=torch.float64)
    whole = whole_documents(rows, later)
    blocks = _blocks(student, teacher, weights, rows, whole, budget)
    for block in chain(blocks, _band_blocks(student, teacher, weights, rows, later, whole)):
        student_inverse, teacher_inverse = (_inverse(_distances(gram)) for gram in (block.student, block.teacher))
        step = max(1, budget // block.student.numel())
        first, last = block.vertices or (0, block.student.shape[1])
        for start in range(first, last, step):
            at = slice(start, min(start + step, last))
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
                    block.near,
                    at,
                ),
                use_reentrant=False,
                preserve_rng_state=False,
            )
    return total


@dataclass(frozen=True)
class _Block:
    """Documents of similar length, padded, or a part of one; float64, since distances of units are small beside their
    lengths."""

    student: Float[Tensor, "documents width width"]  # inner products
    teacher: Float[Tensor, "documents width width"]
    weights: Float[Tensor, "documents width"]  # 0 at padding
    real: Bool[Tensor, "documents width"]
    near: Bool[Tensor, "documents width width"] | None = None  # of units, whether they make a pair; None: all do
    vertices: tuple[int, int] | None = None  # units that are this block's to be vertices of; None: all

    @property
    def pair_weights(self) -> Float[Tensor, "documents width width"]:
        """ω_i ω_j, 0 on the diagonal, at padding and where no pair is."""
        products = self.weights[:, :, None] * self.weights[:, None, :]
        if self.near is not None:
            return products * self.near
        return products - products.diagonal(dim1=1, dim2=2).diag_embed()


def _blocks(
    student: Float[Tensor, "units student_hidden"],
    teacher: Float[Tensor, "units teacher_hidden"],
    weights: Float[Tensor, " units"],
    rows: Int64[Tensor, " pointers"],
    whole: Bool[Tensor, " documents"],
    budget: int = BUDGET,
) -> Iterator[_Block]:
    """Documents all of whose pairs count, in groups."""
    for group in groups(rows, max(student.shape[1], teacher.shape[1]), budget, whole):
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


def _band_blocks(
    student: Float[Tensor, "units student_hidden"],
    teacher: Float[Tensor, "units teacher_hidden"],
    weights: Float[Tensor, " units"],
    rows: Int64[Tensor, " pointers"],
    later: Int64[Tensor, " units"],
    whole: Bool[Tensor, " documents"],
) -> Iterator[_Block]:
    """Documents that are cut to bands, some vertices at a time with all that may be near them."""
    for document in (~whole).nonzero().flatten().tolist():
        first, last = rows[document : document + 2].tolist()
        reach = int(later[first:last].max())
        step = reach // 4 + 1
        for start in range(first, last, step):
            stop = min(start + step, last)
            part = slice(max(start - reach, first), min(stop + reach, last))
            ours, theirs = (values[part].to(torch.float64) for values in (student, teacher))
            omega = weights[part].to(torch.float64)
            unit = torch.arange(part.stop - part.start)
            behind = unit > unit[:, None]
            near = behind & (unit - unit[:, None] <= later[part, None])
            yield _Block(
                (ours @ ours.T)[None],
                (theirs @ theirs.T)[None],
                omega[None],
                torch.ones_like(omega, dtype=torch.bool)[None],
                (near | near.T)[None].to(student.device, non_blocking=True),
                (start - part.start, stop - part.start),
            )


def _pair_distances(
    units: Float[Tensor, "units hidden"],
    rows: Int64[Tensor, " pointers"],
    later: Int64[Tensor, " units"],
    left: Int64[Tensor, " pairs"],
    right: Int64[Tensor, " pairs"],
) -> Float[Tensor, " pairs"]:
    """|U_i − U_j| of the pairs that count."""
    length = units.square().sum(1)
    return _roots(length[left] + length[right], pair_products(units, rows, later))


def _over_row_mean(values: Float[Tensor, " pairs"], rows: Int64[Tensor, " pointers"]) -> Float[Tensor, " pairs"]:
    """Over the mean of each row; 0 where all are 0."""
    mean = sum_rows(values, rows) / rows.diff().clamp_min(1).to(values.device, non_blocking=True)
    return values / spread(mean.masked_fill(mean == 0, 1), rows)


def _distances(gram: Float[Tensor, "documents width width"]) -> Float[Tensor, "documents width width"]:
    """|U_i − U_j| of inner products; 0 without a gradient for equal units."""
    length = gram.diagonal(dim1=1, dim2=2)
    return _roots(length[:, :, None] + length[:, None, :], gram)


def _roots(both: Float[Tensor, "*shape"], products: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """sqrt(U_i·U_i + U_j·U_j − 2 U_i·U_j), `both` being the first two; 0 without a gradient for equal units."""
    squared = both - 2 * products
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
    near: Bool[Tensor, "documents width width"] | None,
    at: slice,
) -> Float[Tensor, ""]:
    """The sum of `angle_numerator` for some vertices j. A vertex is no end of a side: 0 away, its angles are 0."""
    difference = _angles(student, student_inverse, at) - _angles(teacher, teacher_inverse, at)
    products = weights[:, at, None, None] * pair_weights[:, None]
    if near is not None:
        products = products * (near[:, at, :, None] & near[:, at, None, :])
    return (products * difference.square()).sum()


def _angles(
    gram: Float[Tensor, "documents width width"], inverse: Float[Tensor, "documents width width"], at: slice
) -> Float[Tensor, "documents vertices width width"]:
    """cos∠_ijk as [document, j, i, k]."""
    vertex = gram.diagonal(dim1=1, dim2=2)[:, at, None, None]
    products = gram[:, None] - gram[:, at, :, None] - gram[:, at, None, :] + vertex
    return products * inverse[:, at, :, None] * inverse[:, at, None, :]
