"""Ragged batches: flat values and row pointers.

Row r of a batch holds elements rows[r] to rows[r + 1] of a flat tensor. A row is a document, and its elements are
tokens, units or pairs; or a row is a unit, and its elements are tokens. Pointers, masks and spans are structure: small,
needed by Python to size things, and kept on the CPU wherever the values are, so nothing here waits for an accelerator.

What is quadratic within a row (scores of token pairs, cosines of unit pairs) is computed on groups of rows of similar
length, padded to the longest of the group; nothing is ever quadratic in the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Int, Int64, Shaped
from torch import Tensor

#: Elements of the largest tensor that a group may need: 32 MiB in float32.
BUDGET: Final = 2**23
#: Padding may cost a third of the real work, or this many multiplications if that is more: about what one more group
#: costs in calls (0.2 ms on two cores).
FREE_PADDING: Final = 2**23


def pointers(lengths: Sequence[int] | Int[Tensor, " rows"]) -> Int64[Tensor, " pointers"]:
    """Row pointers of rows of these lengths: 0, then the running total."""
    counts = torch.as_tensor(lengths, dtype=torch.int64, device="cpu")
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def check_pointers(rows: Int64[Tensor, " pointers"], elements: int | None = None) -> None:
    """Raises ValueError unless `rows` are pointers on the CPU: from 0, never falling, to `elements` if that is given."""
    if rows.device.type != "cpu":
        raise ValueError(f"row pointers belong on the CPU, these are on {rows.device}")
    if len(rows) == 0:
        raise ValueError("row pointers need one entry more than there are rows, got none at all")
    last = int(rows[-1])
    if int(rows[0]) != 0 or bool((rows.diff() < 0).any()):
        raise ValueError(f"row pointers must begin at 0 and never fall, got {rows.tolist()[:20]}…")
    if elements is not None and last != elements:
        raise ValueError(f"row pointers end at {last}, but there are {elements} elements")


def at_least_float32(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """float64 as it is, everything else as float32: what sums and products are computed in."""
    return values if values.dtype == torch.float64 else values.to(torch.float32)


def spread(per_row: Shaped[Tensor, " row_count"], rows: Int64[Tensor, " pointers"]) -> Shaped[Tensor, " elements"]:
    """Each row's value, repeated for each of its elements."""
    counts = rows.diff().to(per_row.device, non_blocking=True)
    return per_row.repeat_interleave(counts, output_size=int(rows[-1]))


def sum_rows(values: Float[Tensor, "elements ..."], rows: Int64[Tensor, " pointers"]) -> Float[Tensor, "row_count ..."]:
    """Sum over each row, in order, so the same whenever it is repeated; 0 for an empty row. Differentiable."""
    check_pointers(rows, len(values))
    offsets = rows.to(values.device, non_blocking=True)
    # checked above; the function's own check would wait for the device
    total: Tensor = torch.segment_reduce(at_least_float32(values), "sum", offsets=offsets, initial=0, unsafe=True)
    return total


def normalize_rows(values: Float[Tensor, " elements"], rows: Int64[Tensor, " pointers"]) -> Float[Tensor, " elements"]:
    """Non-negative values divided by their row's sum, so that every row adds up to 1. Differentiable.

    A row that adds up to nothing (below the smallest normal number, as when a softmax underflows) is shared out
    equally. For weights of some of a document's units, this renormalises them.
    """
    values = at_least_float32(values)
    total = sum_rows(values, rows)
    empty = spread(total < torch.finfo(values.dtype).tiny, rows)
    count = spread(rows.diff().to(values.device, values.dtype), rows)
    return torch.where(empty, 1 / count, values / spread(total, rows).masked_fill(empty, 1))


def select(
    keep: Bool[Tensor, " elements"], rows: Int64[Tensor, " pointers"]
) -> tuple[Int64[Tensor, " kept"], Int64[Tensor, " pointers"]]:
    """The elements to keep, in order, and the row pointers of what remains; a row may become empty."""
    check_pointers(rows, len(keep))
    before = pointers(keep.to(torch.int64))
    return keep.nonzero().squeeze(1), before[rows]


def flat_index(
    mask: Bool[Tensor, "batch length"] | Int[Tensor, "batch length"],
) -> tuple[Int64[Tensor, " tokens"], Int64[Tensor, " pointers"]]:
    """Where the real tokens of a padded batch are, and their row pointers.

    `mask`: an attention mask, nonzero at real tokens, padding on either side; on the CPU. A place is
    `document * length + position`. Spans count real tokens, so the mask must hide padding and nothing else.
    """
    real = mask != 0
    return real.flatten().nonzero().squeeze(1), pointers(real.sum(1))


def flatten(
    hidden: Shaped[Tensor, "batch length hidden"], index: Int64[Tensor, " tokens"]
) -> Shaped[Tensor, "tokens hidden"]:
    """The real tokens of a padded batch, `index` from `flat_index`; gradients flow back to them and padding gets none.

    A view, not a copy, where nothing is padded.
    """
    flat = hidden.flatten(0, 1)
    return flat if len(index) == len(flat) else flat.index_select(0, index.to(hidden.device, non_blocking=True))


@dataclass(frozen=True)
class Group:
    """Rows of similar length, to be padded to `width`; all on the CPU."""

    members: Int64[Tensor, " group"]  # which rows, longest first
    starts: Int64[Tensor, " group"]  # the first element of each
    lengths: Int64[Tensor, " group"]  # at least 1
    width: int

    def padded(self, values: Shaped[Tensor, "elements features"]) -> Shaped[Tensor, "group width features"]:
        """The group's values; a row's padding repeats its own last element, so nothing of another row gets in."""
        device = values.device
        starts, lengths = self.starts.to(device, non_blocking=True), self.lengths.to(device, non_blocking=True)
        place = torch.arange(self.width, device=device).minimum(lengths[:, None] - 1) + starts[:, None]
        return values.index_select(0, place.flatten()).view(*place.shape, -1)


def groups(
    rows: Int64[Tensor, " pointers"],
    features: int,
    budget: int = BUDGET,
    chosen: Bool[Tensor, " row_count"] | None = None,
    free_padding: int | None = None,
) -> list[Group]:
    """Rows sorted into groups for work that is quadratic in a row's length; empty rows are left out.

    `chosen`: of each row, whether it is wanted; None: all are.

    Neither [group, width, features] nor [group, width, width] holds more than `budget` elements, save where one row
    alone does. A group also ends where padding would cost too much: more than a third of the real work, and than
    `free_padding` multiplications (None: `FREE_PADDING`). A function of its arguments only, so the same batch is always
    computed in the same way.
    """
    free = FREE_PADDING if free_padding is None else free_padding
    every = rows.diff() if chosen is None else rows.diff() * chosen
    lengths, order = every.sort(descending=True, stable=True)
    present = int(every.count_nonzero())
    found = []
    first = 0
    while first < present:
        width = int(lengths[first])
        room = max(1, budget // (width * max(width, features)))
        candidates = lengths[first : min(first + room, present)]
        real = candidates.square().cumsum(0) * features
        padding = torch.arange(1, len(candidates) + 1) * width**2 * features - real
        # padding grows faster than real work as rows get shorter, so this is true up to some row and false after it
        count = int((padding <= (real // 3).clamp_min(free)).sum())
        members = order[first : first + count]
        found.append(Group(members, rows[members], every[members], width))
        first += count
    return found
