"""How far two sequences of vectors are from each other when one may run faster than the other (as in DWA-KD, arXiv 2602.21669).

    C^XY_ij = 1 − cos(X_i, Y_j)
    nDTW(X, Y) = sdtw(C^XY) − ½ sdtw(C^XX) − ½ sdtw(C^YY)         soft-DTW of `trainer.maths.soft_dtw`

0 where X = Y, but not for two constant sequences of unlike lengths, since a softmin counts paths. It grows with the lengths.
C^XY may be raised outside of a band around the line that an attention A [n, m] of X to Y draws:

    centre_i = mix Σ_j j A_ij + (1 − mix) i m/n,   half-width_i = width + entropy H(A_i)          j, i from 0; H in nats
    C^XY_ij + penalty   where |j − centre_i| > half-width_i
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from schemas.config import Strict
from trainer.maths.geometry import NORM_EPSILON
from trainer.maths.ragged import at_least_float32, check_pointers, pointers, spread, sum_rows
from trainer.maths.soft_dtw import soft_dtw


def table_sizes(x_rows: Int64[Tensor, " pointers"], y_rows: Int64[Tensor, " pointers"]) -> Int64[Tensor, "documents 2"]:
    """Lines and columns of each document's table."""
    check_pointers(x_rows)
    check_pointers(y_rows)
    return torch.stack([x_rows.diff(), y_rows.diff()], 1)


class Band(Strict):
    """Where a path may go without penalty."""

    width: float = Field(default=5.0, ge=0)  # columns to either side of the centre
    entropy: float = Field(default=2.0, ge=0)  # columns more for each nat of the attention's entropy
    mix: float = Field(default=0.7, ge=0, le=1)  # the attention's share of the centre; the straight line has the rest
    penalty: float = Field(default=1.0, ge=0)

    def lines(
        self, attention: Float[Tensor, " cells"], sizes: Int64[Tensor, "tables 2"]
    ) -> tuple[Float[Tensor, " lines"], Float[Tensor, " lines"]]:
        """Centre and half-width of every line of flat tables; `attention` adds up to 1 in each."""
        line_rows, cells = _lines(sizes)
        check_pointers(cells, len(attention))
        attention = at_least_float32(attention)
        expected = sum_rows(attention * _columns(cells, attention.device), cells)
        entropy = -sum_rows(torch.xlogy(attention, attention), cells)
        line = torch.arange(int(line_rows[-1])) - spread(line_rows[:-1], line_rows)
        lines, columns = (spread(side, line_rows).to(torch.float64) for side in sizes.unbind(1))
        straight = (line * columns / lines).to(attention.device, attention.dtype, non_blocking=True)
        return self.mix * expected + (1 - self.mix) * straight, self.width + self.entropy * entropy

    @torch.no_grad()
    def penalties(
        self, attention: Float[Tensor, " cells"], sizes: Int64[Tensor, "tables 2"]
    ) -> Float[Tensor, " cells"]:
        """What is added to each cell of flat tables. Without gradient."""
        _, cells = _lines(sizes)
        centre, half_width = (spread(each, cells) for each in self.lines(attention, sizes))
        distance = (_columns(cells, attention.device) - centre).abs()
        return (distance > half_width) * distance.new_full((), self.penalty)


def _lines(sizes: Tensor) -> tuple[Int64[Tensor, " pointers"], Int64[Tensor, " _"]]:
    """Pointers of the lines of each table, and of the cells of each line."""
    line_rows = pointers(sizes[:, 0])
    return line_rows, pointers(spread(sizes[:, 1], line_rows))


def _columns(cells: Int64[Tensor, " pointers"], device: torch.device) -> Int64[Tensor, " cells"]:
    """The column of every cell, given the pointers of each line's cells."""
    begun = spread(cells[:-1].to(device, non_blocking=True), cells)
    return torch.arange(int(cells[-1]), device=device) - begun


def warping(
    spaces: Sequence[tuple[Float[Tensor, "x_elements _features"], Float[Tensor, "y_elements _features"]]],
    x_rows: Int64[Tensor, " pointers"],
    y_rows: Int64[Tensor, " pointers"],
    gamma: float,
    penalties: Float[Tensor, " cells"] | None = None,
    normalised: bool = True,
) -> Float[Tensor, "spaces documents"]:
    """nDTW of each document's X and Y in each space, or without `normalised` sdtw(C^XY). Differentiable in X and Y.

    `penalties` (`Band.penalties`) are added to C^XY in every space. A document of which one side is empty has 0. Everything
    is one call of `soft_dtw`; needs the tables of all documents at once, at least in float32.
    """
    sizes = [table_sizes(x_rows, y_rows)]
    if normalised:
        sizes += [table_sizes(rows, rows) for rows in (x_rows, y_rows)]
    tables = []
    for x, y in spaces:
        check_pointers(x_rows, len(x))
        check_pointers(y_rows, len(y))
        x, y = (F.normalize(at_least_float32(side), dim=1, eps=NORM_EPSILON) for side in (x, y))
        across = _distances(x, x_rows, y, y_rows)
        tables.append(across if penalties is None else across + penalties)
        if normalised:
            tables += [_distances(side, rows, side, rows) for side, rows in ((x, x_rows), (y, y_rows))]
    values = soft_dtw(torch.cat(tables), torch.cat(sizes * len(spaces)), gamma)
    values = values.view(len(spaces), len(sizes), -1)
    both = sizes[0].amin(1).to(values.device, non_blocking=True) > 0
    return torch.where(both, values[:, 0] - values[:, 1:].sum(1) / 2, 0)


def _distances(x: Tensor, x_rows: Tensor, y: Tensor, y_rows: Tensor) -> Float[Tensor, " cells"]:
    """1 − cos of every pair of a document's unit vectors, as flat tables; a zero vector has cosine 0 with everything."""
    sides = (torch.split(side, rows.diff().tolist()) for side, rows in ((x, x_rows), (y, y_rows)))
    with torch.autocast(x.device.type, enabled=False):
        cosines = [(lines @ columns.T).flatten() for lines, columns in zip(*sides, strict=True)]
    none = (x[:0] @ y[:0].T).flatten()  # connected to both, also where there are no documents
    return 1 - torch.cat([none, *cosines])
