"""Linear layers on 8-bit integers for CPUs with integer dot products (VNNI and its kin).

Weights have one scale an output row, activations one a token, found as they pass; both symmetric, so
`x W' + b ≈ s_x s_w (X W') + b` with an exact 32-bit sum in the middle (Jacob et al. 2018, without zero points).
A token's result does not depend on the other tokens of its batch.
"""

import time
from collections.abc import Callable
from functools import cache
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.parse.model import quantise
from schemas.errors import UsageError
from trainer.maths.loops import Loops

#: Rows, inputs and outputs of the products that are timed against each other.
PROBED = (32, 384, 384)
#: An 8-bit product that takes more than so many times as long as one in float32 is refused. With integer dot products it
#: takes less time, without them at least ten times as long: between lies nothing but noise.
SLOWEST = 2.0


def _to_int8(x, values, scales):  # type: ignore[no-untyped-def]
    for row in range(x.shape[0]):
        largest = np.float32(1e-12)
        for column in range(x.shape[1]):
            largest = max(largest, abs(x[row, column]))
        scales[row] = largest / np.float32(127)
        inverse = np.float32(127) / largest
        for column in range(x.shape[1]):
            value = x[row, column] * inverse
            values[row, column] = np.int8(value + np.copysign(np.float32(0.5), value))


def _from_int32(sums, scales, row_scales, bias, out):  # type: ignore[no-untyped-def]
    for row in range(sums.shape[0]):
        for column in range(sums.shape[1]):
            out[row, column] = np.float32(sums[row, column]) * scales[row] * row_scales[column] + bias[column]


# torch has no fused form of these two, and unfused they cost more than the product
_LOOPS: Final = Loops(_to_int8, _from_int32, patience=0, fastmath=True)


class Int8Linear:
    """`x W' + b` in 8-bit integers."""

    def __init__(self, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None) -> None:
        values, scales = quantise(weight)
        self.weight = values.T.contiguous()
        self.scales = scales.numpy()
        self.bias = np.zeros(len(scales), dtype=np.float32) if bias is None else bias.float().numpy()

    def __call__(self, x: Float[Tensor, "rows in"]) -> Float[Tensor, "rows out"]:
        """One product; float32 in and out."""
        values, scales = torch.empty(x.shape, dtype=torch.int8), np.empty(len(x), dtype=np.float32)
        quantise_rows, dequantise_rows = _LOOPS.compiled
        quantise_rows(x.contiguous().numpy(), values.numpy(), scales)
        sums = torch._int_mm(values, self.weight)
        out = torch.empty(sums.shape)
        dequantise_rows(sums.numpy(), scales, self.scales, self.bias, out.numpy())
        return out


@cache
def slowdown() -> float:
    """How many times as long a product takes on this machine in 8-bit integers as in float32; known in 0.1 s."""
    rows, inputs, outputs = PROBED
    x, weight = torch.ones(rows, inputs), torch.ones(inputs, outputs)
    x8, weight8 = x.to(torch.int8), weight.to(torch.int8)
    return _least_seconds(lambda: torch._int_mm(x8, weight8)) / _least_seconds(lambda: x @ weight)


def _least_seconds(product: Callable[[], Tensor]) -> float:
    """Of a few runs, since other processes can only add to it."""
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def refuse_where_slow(precision: str, device: str) -> None:
    """Raises `UsageError` for 8-bit layers on a processor that has no integer dot products."""
    if precision == "int8" and device == "cpu" and slowdown() > SLOWEST:
        raise UsageError(
            f"Parser precision int8 would be slower than float32 here: this processor has no integer dot products (VNNI), "
            f"and its 8-bit products take {slowdown():.0f} times as long. Use float32, the default."
        )
