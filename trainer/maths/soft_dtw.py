"""Soft dynamic time warping (Cuturi & Blondel 2017, arXiv 1703.01541) of many tables of costs at once.

A table C [n, m] of what it costs to match elements of two sequences; a path goes from its first cell to its last by steps
down, right or both, and γ > 0 is the temperature of a minimum over all paths:

    R_00 = 0, R_i0 = R_0j = ∞
    R_ij = C_ij + softmin(R_{i−1,j−1}, R_{i−1,j}, R_{i,j−1}),   softmin(a) = −γ log Σ exp(−a/γ);   sdtw(C) = R_nm
    E_nm = 1,  E_ij = Σ over successors s of E_s exp((R_s − R_ij − C_s)/γ);                       ∂sdtw/∂C_ij = E_ij

E_ij is the share of the paths, weighted by exp(−cost/γ), that pass the cell. exp((R_s − R_ij − C_s)/γ) is what R_ij has in
the softmin of its successor: no more than three exponentials a cell, all found on the way to R_nm, give value and gradient.

Tables are ragged: flat, one after the other, each row by row, so none is padded in memory. On a CPU every table goes through
a compiled loop in float64, as many at a time as torch has threads. Elsewhere all tables step from one anti-diagonal to the
next together, in the precision of the costs, 6 (n + m) small operations in all.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from trainer.maths.loops import Loops
from trainer.maths.ragged import at_least_float32, check_pointers, groups, pointers, spread

#: Cells of tables that step along their anti-diagonals together: eight numbers each, so 1 GiB in float32.
DIAGONAL_BUDGET: Final = 2**25


def soft_dtw(
    costs: Float[Tensor, " cells"], sizes: Int64[Tensor, "tables 2"], gamma: float
) -> Float[Tensor, " tables"]:
    """The soft-DTW of every table of costs, at least in float32; once differentiable in the costs, which are finite.

    `sizes`: lines and columns of each table, on the CPU; a table without cells gives 0. Raises ValueError for sizes that
    do not add up to the cells, and for γ ≤ 0.
    """
    if not 0 < gamma < math.inf:
        raise ValueError(f"soft-DTW needs a positive temperature, got {gamma}")
    check_pointers(cell_rows(sizes), len(costs))
    values: Tensor = _SoftDtw.apply(at_least_float32(costs), sizes, gamma)  # type: ignore[no-untyped-call]
    return values


def cell_rows(sizes: Int64[Tensor, "tables 2"]) -> Int64[Tensor, " pointers"]:
    """Row pointers of the cells of tables of these sizes."""
    return pointers(sizes.prod(1))


class _SoftDtw(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, costs: Tensor, sizes: Tensor, gamma: float) -> Tensor:
        compute = by_table if costs.device.type == "cpu" else by_diagonal
        values, gradient = compute(costs, sizes, gamma)
        ctx.save_for_backward(gradient)
        ctx.rows = cell_rows(sizes)
        return values

    @staticmethod
    def backward(ctx: Any, by_value: Tensor) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError("soft-DTW can be differentiated only once: no `create_graph`")
        (gradient,) = ctx.saved_tensors
        return gradient * spread(by_value, ctx.rows), None, None


def _table(costs, rate, value, gradient):  # type: ignore[no-untyped-def]
    # `rate` is 1/γ. Along anti-diagonals, whose cells do not wait for each other: 0.7 times as long as line by line
    n, m = costs.shape
    states = np.full((n + 1, m + 1), -np.inf)  # −R/γ
    states[0, 0] = 0.0
    shares = np.empty((n, m, 3))  # of the predecessors in a cell's softmin
    for k in range(n + m - 1):
        for i in range(max(0, k - m + 1), min(n, k + 1)):
            j = k - i
            both = states[i, j]
            down = states[i, j + 1]
            right = states[i + 1, j]
            most = max(both, down, right)
            both = math.exp(both - most)
            down = math.exp(down - most)
            right = math.exp(right - most)
            total = both + down + right
            states[i + 1, j + 1] = most + math.log(total) - costs[i, j] * rate
            total = 1 / total
            shares[i, j, 0] = both * total
            shares[i, j, 1] = down * total
            shares[i, j, 2] = right * total
    value[0] = -states[n, m] / rate
    passing = states  # E from here on
    passing[:] = 0.0
    passing[n, m] = 1.0
    for i in range(n - 1, -1, -1):
        for j in range(m - 1, -1, -1):
            own = passing[i + 1, j + 1]
            gradient[i, j] = own
            passing[i, j] += own * shares[i, j, 0]
            passing[i, j + 1] += own * shares[i, j, 1]
            passing[i + 1, j] += own * shares[i, j, 2]


#: Never interpreted: batches are never so small that it would pay.
_LOOPS: Final = Loops(_table, patience=0)


def by_table(
    costs: Float[Tensor, " cells"], sizes: Int64[Tensor, "tables 2"], gamma: float
) -> tuple[Float[Tensor, " tables"], Float[Tensor, " cells"]]:
    """Values, and their gradients by the costs; on a CPU."""
    (warp,) = _LOOPS.compiled
    values, gradient = costs.new_zeros(len(sizes)), torch.empty_like(costs)
    flat_costs, flat_values, flat_gradient = costs.detach().numpy(), values.numpy(), gradient.numpy()
    rows, shapes = cell_rows(sizes).tolist(), sizes.tolist()

    def run(table: int) -> None:
        cells = slice(rows[table], rows[table + 1])
        shape = shapes[table]
        warp(
            flat_costs[cells].reshape(shape),
            1 / gamma,
            flat_values[table : table + 1],
            flat_gradient[cells].reshape(shape),
        )

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        list(threads.map(run, sizes.prod(1).nonzero().flatten().tolist()))
    return values, gradient


def by_diagonal(
    costs: Float[Tensor, " cells"], sizes: Int64[Tensor, "tables 2"], gamma: float, budget: int = DIAGONAL_BUDGET
) -> tuple[Float[Tensor, " tables"], Float[Tensor, " cells"]]:
    """Values, and their gradients by the costs; on any device, which nothing waits for.

    Of tables that would need more than `budget` cells when padded, those of similar size go together.
    """
    values, gradient = costs.new_zeros(len(sizes)), costs.new_zeros(len(costs) + 1)
    padded = F.pad(costs, (0, 1), value=torch.inf)
    longest = sizes.amax(1).where(sizes.amin(1) > 0, 0)
    starts = cell_rows(sizes)[:-1]
    for group in groups(pointers(longest), 2, budget // 2):
        shapes = sizes[group.members]
        places = _diagonals(starts[group.members], shapes, costs.device, outside=len(costs))
        totals, passing = _sweep(padded[places], shapes, 1 / gamma)
        values[group.members.to(costs.device, non_blocking=True)] = totals
        gradient[places] = passing
    return values, gradient[:-1]


def _diagonals(
    starts: Int64[Tensor, " tables"], sizes: Int64[Tensor, "tables 2"], device: torch.device, outside: int
) -> Int64[Tensor, "diagonals tables lines"]:
    """Where the cell of each line is among the flat cells, for every anti-diagonal, or `outside` of the table."""
    lines, columns = (side[:, None] for side in sizes.to(device, non_blocking=True).unbind(1))
    most_lines, most_columns = sizes.amax(0).tolist()
    line = torch.arange(most_lines, device=device)
    column = torch.arange(most_lines + most_columns - 1, device=device)[:, None, None] - line
    inside = (line < lines) & (column >= 0) & (column < columns)
    return torch.where(inside, starts.to(device, non_blocking=True)[:, None] + line * columns + column, outside)


def _sweep(
    costs: Float[Tensor, "diagonals tables lines"], sizes: Int64[Tensor, "tables 2"], rate: float
) -> tuple[Float[Tensor, " tables"], Float[Tensor, "diagonals tables lines"]]:
    """Values and E of tables that lie by anti-diagonals, infinite outside; `rate` is 1/γ."""
    count, tables, lines = costs.shape
    # −R/γ, two diagonals and a line in front, so that predecessors are slices: down and right are one diagonal back
    states = costs.new_full((count + 2, tables, lines + 1), -torch.inf)
    states[0, :, 0] = 0
    softmin = torch.empty_like(costs)
    for k in range(count):
        torch.logaddexp(states[k + 1, :, :-1], states[k + 1, :, 1:], out=softmin[k])
        torch.logaddexp(softmin[k], states[k, :, :-1], out=softmin[k])
        torch.add(softmin[k], costs[k], alpha=-rate, out=states[k + 2, :, 1:])
    last = (sizes.sum(1), torch.arange(tables), sizes[:, 0])
    end = tuple(each.to(costs.device, non_blocking=True) for each in last)
    totals = states[end] / -rate
    outside = costs.isinf()
    both, down, right = (
        (states[first : first + count, :, side] - softmin).exp_().masked_fill_(outside, 0)
        for first, side in ((0, slice(0, -1)), (1, slice(0, -1)), (1, slice(1, None)))
    )
    passing = states.zero_()
    passing[end] = 1
    for k in reversed(range(count)):
        own = passing[k + 2, :, 1:]
        passing[k, :, :-1].addcmul_(own, both[k])
        passing[k + 1, :, :-1].addcmul_(own, down[k])
        passing[k + 1, :, 1:].addcmul_(own, right[k])
    return totals, passing[2:, :, 1:]
