"""Flat upper triangles: how the relations of every pair of a document's units lie, in memory and on disk.

A document of K units has K(K-1)/2 pairs i < j, row by row: (0,1), (0,2), …, (0,K-1), (1,2), … Triangles of a batch
are concatenated. Relations are symmetric and a unit's relation to itself says nothing, so this is all there is: a sum
over i ≠ j is twice the sum over a triangle.
"""

from typing import Final

import torch
from jaxtyping import Bool, Float, Float32, Int16, Int64, Shaped
from torch import Tensor

from trainer.maths.ragged import check_pointers, pointers, spread

#: A cosine of 1 in fixed point.
ONE: Final = 32767


def pair_rows(rows: Int64[Tensor, " pointers"]) -> Int64[Tensor, " pointers"]:
    """Row pointers of the pairs, from those of the units."""
    units = rows.diff()
    return pointers(units * (units - 1) // 2)


def unit_pairs(
    rows: Int64[Tensor, " pointers"], device: torch.device | str = "cpu"
) -> tuple[Int64[Tensor, " pairs"], Int64[Tensor, " pairs"]]:
    """The two units of every pair, as places among all units of the batch, on `device`.

    `rows`: unit pointers, on the CPU. Sums of anything over the pairs of a document are
    `sum_rows(…, pair_rows(rows))`; the weight of a pair is `weights[left] * weights[right]`.
    """
    check_pointers(rows)
    total = int(pair_rows(rows)[-1])
    unit = torch.arange(int(rows[-1]), device=device)
    partners = spread(rows[1:].to(device, non_blocking=True), rows) - 1 - unit
    left = unit.repeat_interleave(partners, output_size=total)
    begun = partners.cumsum(0) - partners
    return left, torch.arange(total, device=device) - begun[left] + left + 1


def select_pairs(kept: Int64[Tensor, " kept"], rows: Int64[Tensor, " pointers"]) -> Int64[Tensor, " kept_pairs"]:
    """Where the pairs of some of the units stand among the pairs of all of them.

    `kept`: strictly rising places among the units of the batch, as `select` gives them; `rows`: pointers of all units;
    both on the CPU. `triangle[select_pairs(kept, rows)]` is the triangle that the kept units alone would have.
    """
    check_pointers(rows)
    units = int(rows[-1])
    if len(kept) and (int(kept[0]) < 0 or int(kept[-1]) >= units or bool((kept.diff() <= 0).any())):
        raise ValueError(f"units to keep must be strictly rising places from 0 to {units - 1}")
    keep: Bool[Tensor, " units"] = torch.zeros(units, dtype=torch.bool)
    keep[kept] = True
    left, right = (kept[unit] for unit in unit_pairs(pointers(keep.to(torch.int64))[rows]))
    count, first, base = (spread(each, rows)[left] for each in (rows.diff(), rows[:-1], pair_rows(rows)[:-1]))
    i, j = left - first, right - first
    place: Tensor = base + i * count - i * (i + 1) // 2 + j - i - 1
    return place


def square(triangle: Shaped[Tensor, " pairs"], units: int) -> Shaped[Tensor, "units units"]:
    """The symmetric [K, K] matrix of one document's triangle, ones on the diagonal. Differentiable."""
    if len(triangle) != units * (units - 1) // 2:
        raise ValueError(f"{units} units have {units * (units - 1) // 2} pairs, got {len(triangle)}")
    left, right = torch.triu_indices(units, units, offset=1, device=triangle.device)
    matrix = torch.eye(units, dtype=triangle.dtype, device=triangle.device)
    matrix = matrix.index_put((left, right), triangle)
    return matrix.index_put((right, left), triangle)


def to_fixed_point(cosines: Float[Tensor, " pairs"]) -> Int16[Tensor, " pairs"]:
    """round(cosine · 32767), ties to even; from -32767 to 32767.

    -1, 0 and 1 survive exactly; any other cosine comes back within 0.5/32767 + 2^-25 < 1.53e-5 (half a step, and the
    rounding of the result to float32). Raises ValueError for NaN and beyond [-1, 1].
    """
    # in float64 the product is exact for a float32, so the bound is the rounding's alone
    scaled = cosines.to(torch.float64) * ONE
    if not bool((scaled.abs() <= ONE).all()):
        raise ValueError("cosines to be stored must lie within [-1, 1]; some do not, or are NaN")
    return scaled.round().to(torch.int16)


def from_fixed_point(stored: Int16[Tensor, " pairs"]) -> Float32[Tensor, " pairs"]:
    """The float32 nearest to stored / 32767. Whatever `to_fixed_point` wrote comes back to the same integer."""
    return (stored.to(torch.float64) / ONE).to(torch.float32)


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
