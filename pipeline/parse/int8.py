"""Linear layers on 8-bit integers, the same to the last bit whatever instructions a processor has for them.

Weights have one scale an output row, activations one a token, found as they pass, both symmetric, so
`x W' + b ≈ s_x s_w (X W') + b` with an exact sum in the middle (Jacob et al. 2018, without zero points). A token's result
does not depend on the other tokens of its batch. Activations take 7 bits and weights 8, those of a row scaled down where
four neighbours would sum up to more than `LARGEST`: then AVX2 can add four products in 16 bits and loses none
(`pipeline.parse.tiles`). Instructions for whole dot products of bytes, and oneDNN, are as exact.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, Int64, UInt8
from torch import Tensor

from pipeline.parse.threads import torch_threads
from schemas.errors import UsageError

#: Weights of one sign among four that are added in 16 bits: times the largest activation, 127, that is just below 2^15.
LARGEST: Final = 258
#: Activations that a layer computes itself where they come before it.
INSIDE: Final = ("relu", "gelu")
#: Rows, inputs and outputs of the products that are timed against each other, how often, and seconds after which no more.
PROBED: Final = (96, 384, 768)
RUNS: Final = 7
ENOUGH_S: Final = 0.05


def rounded(weight: Float[Tensor, "out in"]) -> tuple[Int8[np.ndarray, "out in"], Float[np.ndarray, " out"]]:
    """8-bit weights and a scale for each row, as large as can be without four neighbours passing `LARGEST`."""
    rows = weight.float().numpy()
    scales = np.maximum(np.abs(rows).max(1, initial=0), np.float32(1e-12)) / np.float32(127)
    values = np.rint(rows / scales[:, None])
    while (over := _largest_sums(values) / LARGEST).max(initial=0) > 1:
        # a little more than is needed, since what was rounded down may be rounded up
        scales *= np.where(over > 1, np.float32(1.002) * over, 1).astype(np.float32)
        values = np.rint(rows / scales[:, None])
    return values.astype(np.int8), scales


def _largest_sums(values: Float[np.ndarray, "out in"]) -> Float[np.ndarray, " out"]:
    """Of each row the largest sum of weights of one sign whose products meet in a 16-bit lane."""
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % 8)))
    # of eight inputs, the first two of both fours meet, and the last two
    lanes = padded.reshape(len(values), -1, 2, 2, 2).transpose(0, 1, 3, 2, 4).reshape(len(values), -1, 4)
    sums = np.maximum(np.maximum(lanes, 0).sum(-1), np.maximum(-lanes, 0).sum(-1))
    return np.asarray(sums.max(1, initial=0))


class Int8Linear:
    """`before(x) W' + b` in 8-bit integers; `before`: `relu`, `gelu` or nothing.

    `kernel`: `tiles` or `onednn`, by default the faster one here. Their results are equal.
    """

    def __init__(
        self,
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, " out"] | None,
        before: str | None = None,
        kernel: str | None = None,
    ) -> None:
        from pipeline.parse import tiles

        self.kernel = kernel or speeds().kernel
        self.outputs = len(weight)
        self._before = {None: tiles.PLAIN, "relu": tiles.RELU, "gelu": tiles.GELU}[before]
        values, scales = rounded(weight)
        lines = -self.outputs % tiles.PANEL
        values = np.pad(values, ((0, lines), (0, -values.shape[1] % tiles.DEPTH)))
        self.scales = np.pad(scales, (0, lines))
        own = np.zeros(self.outputs, np.float32) if bias is None else bias.float().numpy()
        self.bias = np.pad(own, (0, lines))
        self.corrections = tiles.SHIFT * values.sum(1, dtype=np.int32)
        self.weights: Any = tiles.packed(values) if self.kernel == "tiles" else torch.from_numpy(values.T.copy())

    def __call__(self, x: Float[Tensor, "rows in"]) -> Float[Tensor, "rows out"]:
        """One product; float32 in and out."""
        rows = x.contiguous().numpy()
        out = np.empty((len(rows), len(self.bias)), np.float32)
        (self._by_tiles if self.kernel == "tiles" else self._by_torch)(rows, out)
        return torch.from_numpy(out)[:, : self.outputs].contiguous()

    def _by_tiles(self, x: Float[np.ndarray, "rows in"], out: Float[np.ndarray, "rows padded"]) -> None:
        from pipeline.parse import tiles

        tiles.product(x, self._before, self.weights, self.scales, self.corrections, self.bias, out)

    def _by_torch(self, x: Float[np.ndarray, "rows in"], out: Float[np.ndarray, "rows padded"]) -> None:
        from pipeline.parse import tiles

        values = np.full((len(x), len(self.weights)), tiles.SHIFT, np.uint8)
        row_scales = np.empty(len(x), np.float32)
        tiles.round_rows(x, self._before, values, row_scales)
        self.of_rounded(values, row_scales, out)

    def of_rounded(
        self,
        values: UInt8[np.ndarray, "rows in"],
        row_scales: Float[np.ndarray, " rows"],
        out: Float[np.ndarray, "rows padded"],
    ) -> None:
        """The product of what is rounded already, by torch."""
        from pipeline.parse import tiles

        sums = torch._int_mm(torch.from_numpy(values.view(np.int8) - np.int8(tiles.SHIFT)), self.weights)
        tiles.scale_sums(sums.numpy(), row_scales, self.scales, self.bias, out)


class Int8Head:
    """benepar's label head, `last(relu(norm(first(right) - first(left) + shift)))`, both layers in 8-bit integers."""

    def __init__(self, head: Any, kernel: str | None = None) -> None:
        first, norm, _, last = head
        self.first_layer = Int8Linear(first.weight.detach(), None, kernel=kernel)
        self._last = Int8Linear(last.weight.detach(), last.bias.detach(), kernel=kernel)
        self._norm = np.stack([part.detach().numpy() for part in (first.bias, norm.weight, norm.bias)])
        self._smallest = np.float32(norm.eps)

    def label_scores(
        self, projected: Float[Tensor, "posts d_label"], left: Int64[Tensor, " spans"], right: Int64[Tensor, " spans"]
    ) -> Float[Tensor, "spans labels_but_empty"]:
        """See `network.label_scores`; `projected` is what `first_layer` gives."""
        out = np.empty((len(left), len(self._last.bias)), np.float32)
        (self._by_tiles if self._last.kernel == "tiles" else self._by_torch)(
            projected.numpy(), left.numpy(), right.numpy(), out
        )
        return torch.from_numpy(out)[:, : self._last.outputs]

    def _by_tiles(
        self,
        projected: Float[np.ndarray, "posts d_label"],
        left: Int64[np.ndarray, " spans"],
        right: Int64[np.ndarray, " spans"],
        out: Float[np.ndarray, "spans padded"],
    ) -> None:
        from pipeline.parse import tiles

        last = self._last
        weights = last.weights, last.scales, last.corrections, last.bias
        tiles.span_scores(projected, left, right, self._norm, self._smallest, *weights, out)

    def _by_torch(
        self,
        projected: Float[np.ndarray, "posts d_label"],
        left: Int64[np.ndarray, " spans"],
        right: Int64[np.ndarray, " spans"],
        out: Float[np.ndarray, "spans padded"],
    ) -> None:
        from pipeline.parse import tiles

        values = np.full((len(left), len(self._last.weights)), tiles.SHIFT, np.uint8)
        row_scales = np.empty(len(left), np.float32)
        tiles.norm_rows(projected, left, right, *self._norm, self._smallest, values, row_scales)
        self._last.of_rounded(values, row_scales, out)


@dataclass(frozen=True)
class Speeds:
    """Seconds that a layer takes on one core of this machine: in float32, and by each kernel of 8 bits."""

    float32: float
    kernels: Mapping[str, float]

    @property
    def kernel(self) -> str:
        """The faster one."""
        return min(self.kernels, key=lambda name: self.kernels[name])

    @cached_property
    def slowdown(self) -> float:
        """How many times as long as in float32 a layer takes in 8-bit integers."""
        return self.kernels[self.kernel] / self.float32


@cache
def speeds() -> Speeds:
    """Measured on the first call, in a tenth of a second once the kernels are compiled."""
    from pipeline.parse import tiles

    rows, inputs, outputs = PROBED
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(count, inputs, generator=generator) for count in (rows, outputs))
    bias = torch.zeros(outputs)
    with torch_threads(1):
        names = ["tiles", "onednn"] if tiles.can_run() else ["onednn"]
        seconds = {name: _least_seconds(Int8Linear(weight, bias, kernel=name), x) for name in names}
        return Speeds(_least_seconds(lambda x: F.linear(x, weight, bias), x), seconds)


def _least_seconds(layer: Callable[[Tensor], Any], x: Tensor) -> float:
    """Of a few runs, since other processes can only add to it; the first, which may compile, is not counted."""
    layer(x)
    seconds: list[float] = []
    while len(seconds) < RUNS and (not seconds or sum(seconds) < ENOUGH_S):
        began = time.perf_counter()
        layer(x)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def slowdown() -> float:
    """`Speeds.slowdown` of this machine."""
    return speeds().slowdown


def refuse_where_slow(precision: str, device: str) -> None:
    """Raises `UsageError` for 8-bit layers on a processor where they would take longer than those in float32."""
    if precision == "int8" and device == "cpu" and slowdown() > 1:
        raise UsageError(
            "Parser precision int8 would be slower than float32 here: it needs AVX2 or instructions for dot products of bytes "
            "(VNNI), which this processor lacks or NUMBA_ variables switch off, and its layers take "
            f"{slowdown():.1f} times as long. "
            "Use float32, the default."
        )
