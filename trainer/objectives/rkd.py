"""Distances and angles among units, the relations of RKD (Park et al. 2019, arXiv 1904.05068), under DSA's weights."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trainer.maths.ragged import BUDGET, groups

#: Units nearer to each other than a millionth of their length are equal: below it, float32 inputs say nothing.
EQUAL: Final = 1e-12  # of squared lengths


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
