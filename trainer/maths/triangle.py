"""Which pairs of a document's units count, and how what is told of every such pair lies, in memory and on disk.

A document of K units has K(K-1)/2 pairs i < j, row by row: (0,1), (0,2), …, (0,K-1), (1,2), …: a flat upper triangle.
Those of a batch are concatenated. Relations are symmetric and a unit's relation to itself says nothing, so this is all
there is: a sum over i ≠ j is twice the sum over a triangle.

Under a window w, documents of more than 2w units have pairs j - i < w alone, still row by row: a triangle cut to a
band. So what a unit has is bounded: fewer than 2w pairs i < j, on average of its document fewer than w, in whole
triangles and in bands alike. Places i and j are counted among the units that the teacher has a span of. Which pairs
count is said by `later`: of every unit, with how many of those next behind it it makes a pair.
"""

import torch
from jaxtyping import Bool, Float, Float32, Int16, Int64
from torch import Tensor

from trainer.maths.pairs import ONE, pair_count
from trainer.maths.ragged import check_pointers, pointers, spread


def in_band(rows: Int64[Tensor, " pointers"], window: int | None) -> Bool[Tensor, " documents"]:
    """Of each document, whether it is so long that only pairs within the window count; `window` None: none is."""
    units = rows.diff()
    return torch.zeros_like(units, dtype=torch.bool) if window is None else units > 2 * window


def within(window: int | None, other: int | None) -> bool:
    """Whether all pairs that count under a window do so under another as well."""
    return other is None or (window is not None and window <= other)


def pair_rows(rows: Int64[Tensor, " pointers"], window: int | None = None) -> Int64[Tensor, " pointers"]:
    """Row pointers of the pairs, from those of the units."""
    return pointers(pair_count(rows.diff(), window))


def later_units(rows: Int64[Tensor, " pointers"], window: int | None = None) -> Int64[Tensor, " units"]:
    """Of every unit of the batch, with how many of those behind it it makes a pair; on the CPU, as `rows` are."""
    check_pointers(rows)
    unit = torch.arange(int(rows[-1]))
    end = spread(rows[1:], rows)
    if window is not None:
        end = torch.where(spread(in_band(rows, window), rows), torch.minimum(end, unit + window), end)
    return end - unit - 1


def whole_documents(rows: Int64[Tensor, " pointers"], later: Int64[Tensor, " units"]) -> Bool[Tensor, " documents"]:
    """Of each document, whether all of its pairs count; on the CPU."""
    check_pointers(rows, len(later))
    units = rows.diff()
    whole: Tensor = pointers(later)[rows].diff() == units * (units - 1) // 2
    return whole


def later_of(kept: Int64[Tensor, " kept"], later: Int64[Tensor, " units"]) -> Int64[Tensor, " kept"]:
    """`later` of some of the units alone: of those that each made a pair with, how many are kept.

    `kept`: strictly rising places among the units of the batch, as `select` gives them; all on the CPU.
    """
    if len(kept) and (int(kept[0]) < 0 or int(kept[-1]) >= len(later) or bool((kept.diff() <= 0).any())):
        raise ValueError(f"units to keep must be strictly rising places from 0 to {len(later) - 1}")
    return torch.searchsorted(kept, kept + later[kept], right=True) - torch.arange(len(kept)) - 1


def unit_pairs(
    later: Int64[Tensor, " units"], device: torch.device | str = "cpu"
) -> tuple[Int64[Tensor, " pairs"], Int64[Tensor, " pairs"]]:
    """The two units of every pair, as places among all units of the batch, on `device`.

    `later`: on the CPU. Sums of anything over the pairs of a document are `sum_rows(…, pair_rows(…))`; the weight of a
    pair is `weights[left] * weights[right]`.
    """
    total = int(later.sum())
    counts = later.to(device, non_blocking=True)
    left = torch.arange(len(later), device=device).repeat_interleave(counts, output_size=total)
    begun = counts.cumsum(0) - counts
    return left, torch.arange(total, device=device) - begun[left] + left + 1


def select_pairs(
    kept: Int64[Tensor, " kept"], later: Int64[Tensor, " units"], wanted: Int64[Tensor, " kept"]
) -> Int64[Tensor, " wanted_pairs"]:
    """Where pairs of some of the units stand among the pairs of all of them.

    `kept`: as of `later_of`; `later`: of all units; `wanted`: of the kept ones, which of the pairs among them are looked
    for: those of `later_of(kept, later)`, or fewer; all on the CPU. `triangle[select_pairs(…)]` is what the kept units
    alone would have. Raises ValueError if a wanted pair is not there.
    """
    if bool((wanted > later_of(kept, later)).any()):
        raise ValueError("pairs are wanted that are further apart than those that are there")
    left, right = (kept[unit] for unit in unit_pairs(wanted))
    begun = later.cumsum(0) - later
    return begun[left] + right - left - 1


def square(triangle: Float[Tensor, " pairs"], units: int, window: int | None = None) -> Float[Tensor, "units units"]:
    """The symmetric [K, K] matrix of one document's pairs, ones on the diagonal, NaN where no pair is. Differentiable."""
    rows = pointers([units])
    pairs = int(pair_rows(rows, window)[-1])
    if len(triangle) != pairs:
        raise ValueError(f"{units} units have {pairs} pairs, got {len(triangle)}")
    left, right = unit_pairs(later_units(rows, window), triangle.device)
    matrix = torch.full((units, units), torch.nan, dtype=triangle.dtype, device=triangle.device)
    matrix.fill_diagonal_(1)
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


def partners(later: Int64[Tensor, " units"]) -> tuple[Int64[Tensor, " ordered_pairs"], Int64[Tensor, " _"]]:
    """For every unit of the batch, where its pairs stand among all pairs, those with units before it and behind it.

    In the others' order, one unit after the other, with the pointers of each unit's; `later`: on the CPU.
    """
    left, right = unit_pairs(later)
    # pairs lie in the order of their first unit, so a stable sort by the second one leaves the first ones in order
    before = torch.bincount(right, minlength=len(later))
    order = torch.argsort(torch.cat([right, left]), stable=True)
    place = torch.arange(len(left))
    return torch.cat([place, place])[order], pointers(before + later)
