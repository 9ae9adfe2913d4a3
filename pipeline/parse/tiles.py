"""8-bit products for CPUs with AVX2, and what stands around them: compiled, so import this only where it is used.

Activations are bytes `a + 64` with `a` in [-63, 63], weights signed bytes. Where there is no instruction for whole dot
products (VNNI), AVX2 multiplies 32 pairs of bytes and adds neighbours into 16 bits that saturate; two such vectors are
added before they are widened to 32 bits, three multiplications for 64 products where float32 takes eight. Weights are
scaled so that no such sum of four products leaves 16 bits (`pipeline.parse.int8`): every sum is exact, so whatever else
computes it exactly gives the same.
"""

import inspect
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from jaxtyping import Int8
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import njit, types
from numba.core import cgutils, config
from numba.extending import intrinsic

#: Largest absolute value of an activation, and what is added to it to make it a byte without sign.
STEPS: Final = 63
SHIFT: Final = 64
#: Columns of a panel of weights: two vectors of eight sums.
VECTORS: Final = 2
PANEL: Final = 8 * VECTORS
#: Inputs that a step of the inner loop takes: four are in one vector, and two such are added in 16 bits.
DEPTH: Final = 8
#: Rows computed together, so that 6 sums, 6 lanes, 2 weights, an activation and ones fill the 16 registers of AVX2.
ROWS: Final = 3
#: Rows quantised at a time: they stay in the cache while every panel of weights passes.
BLOCK: Final = 96
#: Of `round_rows`: what is done to its input before.
PLAIN, RELU, GELU = 0, 1, 2

_I16, _I32, _I64, _F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_BYTES, _LANES = ir.VectorType(ir.IntType(8), 32), ir.VectorType(_I16, 16)
_SUMS, _FLOATS = ir.VectorType(_I32, 8), ir.VectorType(_F32, 8)


class _Writer:
    """LLVM instructions of one tile."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder
        module = builder.module
        # bytes without sign times signed bytes, neighbours added and saturated; 16-bit products, neighbours added
        pairs, widen = ir.FunctionType(_LANES, [_BYTES, _BYTES]), ir.FunctionType(_SUMS, [_LANES, _LANES])
        self._pairs = cgutils.get_or_insert_function(module, pairs, "llvm.x86.avx2.pmadd.ub.sw")
        self._widen = cgutils.get_or_insert_function(module, widen, "llvm.x86.avx2.pmadd.wd")

    def after(self, address: Any, *offsets: Any) -> Any:
        """An address so many bytes on."""
        for offset in offsets:
            address = self.builder.add(address, _I64(offset) if isinstance(offset, int) else offset)
        return address

    def load(self, address: Any, kind: Any) -> Any:
        """A value, wherever it lies."""
        return self.builder.load(self.builder.inttoptr(address, kind.as_pointer()), align=1)

    def store(self, value: Any, address: Any) -> None:
        """A value, wherever it is to lie."""
        self.builder.store(value, self.builder.inttoptr(address, value.type.as_pointer()), align=1)

    def spread(self, value: Any) -> Any:
        """Eight times a value of 32 bits."""
        blank = ir.Constant(ir.VectorType(value.type, 8), ir.Undefined)
        one = self.builder.insert_element(blank, value, _I32(0))
        return self.builder.shuffle_vector(one, blank, ir.Constant(_SUMS, None))

    def lanes(self, activations: Any, weights: Any, before: Any | None) -> Any:
        """32 products in 16 sums, added to those before."""
        sums = self.builder.call(self._pairs, [activations, weights])
        return sums if before is None else self.builder.add(before, sums)

    def widened(self, lanes: Any) -> Any:
        """16 sums of 16 bits in 8 of 32."""
        return self.builder.call(self._widen, [lanes, ir.Constant(_LANES, [_I16(1)] * 16)])


def _write_tile(builder: Any, rows: int, args: Any) -> None:
    """`rows` x `PANEL` outputs: products over all inputs, then `(sums - correction) · (row's scale · column's) + bias`."""
    a, stride, weights, steps, out, out_stride, row_scales, scales, corrections, bias = args
    w, vectors = _Writer(builder), range(VECTORS)
    sums = [[cgutils.alloca_once_value(builder, ir.Constant(_SUMS, None)) for _ in vectors] for _ in range(rows)]
    starts = [w.after(a, builder.mul(stride, _I64(row))) for row in range(rows)]
    with cgutils.for_range(builder, steps) as loop:
        at, panel = builder.mul(loop.index, _I64(DEPTH)), builder.mul(loop.index, _I64(DEPTH * PANEL))
        lanes: list[list[Any]] = [[None] * VECTORS for _ in range(rows)]
        for four in range(DEPTH // 4):
            four_weights = [w.load(w.after(weights, panel, 32 * (four * VECTORS + v)), _BYTES) for v in vectors]
            for row in range(rows):
                spread = builder.bitcast(w.spread(w.load(w.after(starts[row], at, 4 * four), _I32)), _BYTES)
                lanes[row] = [w.lanes(spread, four_weights[v], lanes[row][v]) for v in vectors]
        for row in range(rows):
            for v in vectors:
                builder.store(builder.add(builder.load(sums[row][v]), w.widened(lanes[row][v])), sums[row][v])
    for v in vectors:
        scale, shift = w.load(w.after(scales, 32 * v), _FLOATS), w.load(w.after(bias, 32 * v), _FLOATS)
        correction = w.load(w.after(corrections, 32 * v), _SUMS)
        for row in range(rows):
            exact = builder.sitofp(builder.sub(builder.load(sums[row][v]), correction), _FLOATS)
            step = builder.fmul(w.spread(w.load(w.after(row_scales, 4 * row), _F32)), scale)
            place = w.after(out, builder.mul(out_stride, _I64(row)), 32 * v)
            w.store(builder.fadd(builder.fmul(exact, step), shift), place)


def _tile(rows: int) -> Callable[..., None]:
    """A function of ten addresses and strides, in bytes, that computes a tile of so many rows."""

    def tile(typing, a, stride, weights, steps, out, out_stride, row_scales, scales, corrections, bias):  # type: ignore[no-untyped-def]
        def write(context: Any, builder: Any, signature: Any, args: Any) -> None:
            _write_tile(builder, rows, args)

        return types.void(*(types.uint64,) * 10), write

    return intrinsic(inspect.unwrap(tile))  # type: ignore[no-any-return]


_whole_tile, _single_row = _tile(ROWS), _tile(1)


def _gelu(x):  # type: ignore[no-untyped-def]
    """`x Φ(x)`, the normal distribution by a quotient of polynomials: off by 1.5e-6 at most for |x| < 12."""
    z = min(max(x, np.float32(-5.6)), np.float32(5.6))
    s = z * z
    top = np.float32(2.174919693e-08) * s + np.float32(6.523385333e-06)
    top = (top * s + np.float32(1.862305779e-04)) * s + np.float32(4.782145942e-03)
    top = (top * s + np.float32(3.550404534e-02)) * s + np.float32(3.989420214e-01)
    low = np.float32(1.181160529e-06) * s + np.float32(7.952322437e-05)
    low = (low * s + np.float32(1.981924064e-03)) * s + np.float32(2.960123654e-02)
    low = (low * s + np.float32(2.556592084e-01)) * s + np.float32(1.0)
    return x * (np.float32(0.5) + z * (top / low))


def _round_rows(x, before, values, scales):  # type: ignore[no-untyped-def]
    inner = np.empty(x.shape[1], np.float32)
    for row in range(x.shape[0]):
        if before == 2:
            for column in range(x.shape[1]):
                inner[column] = gelu(x[row, column])
        elif before == 1:
            for column in range(x.shape[1]):
                inner[column] = max(x[row, column], np.float32(0.0))
        else:
            for column in range(x.shape[1]):
                inner[column] = x[row, column]
        largest = np.float32(1e-12)
        for column in range(x.shape[1]):
            largest = max(largest, abs(inner[column]))
        scales[row] = largest / np.float32(STEPS)
        inverse = np.float32(STEPS) / largest
        for column in range(x.shape[1]):
            # rounded to the nearest: what is cut off after a half was added, since all is positive
            values[row, column] = np.uint8(np.int32(inner[column] * inverse + np.float32(SHIFT + 0.5)))


def _norm_rows(projected, left, right, shift, gain, offset, smallest, values, scales):  # type: ignore[no-untyped-def]
    inputs = projected.shape[1]
    inner = np.empty(inputs, np.float32)
    for row in range(len(left)):
        total = np.float32(0.0)
        for column in range(inputs):
            inner[column] = projected[right[row], column] - projected[left[row], column] + shift[column]
            total += inner[column]
        mean = total / np.float32(inputs)
        total = np.float32(0.0)
        for column in range(inputs):
            inner[column] -= mean
            total += inner[column] * inner[column]
        factor = np.float32(1.0) / np.sqrt(total / np.float32(inputs) + smallest)
        largest = np.float32(1e-12)
        for column in range(inputs):
            inner[column] = max(inner[column] * factor * gain[column] + offset[column], np.float32(0.0))
            largest = max(largest, inner[column])
        scales[row] = largest / np.float32(STEPS)
        inverse = np.float32(STEPS) / largest
        for column in range(inputs):
            values[row, column] = np.uint8(np.int32(inner[column] * inverse + np.float32(SHIFT + 0.5)))


def _tiles_of(values, row_scales, rows, weights, scales, corrections, bias, out):  # type: ignore[no-untyped-def]
    inputs, outputs = weights.shape[1] * DEPTH, out.shape[1]
    own, own_scales = np.uint64(values.ctypes.data), np.uint64(row_scales.ctypes.data)
    first_out, stride, out_stride = np.uint64(out.ctypes.data), np.uint64(inputs), np.uint64(4 * outputs)
    steps = np.uint64(weights.shape[1])
    for panel in range(outputs // PANEL):
        part = np.uint64(weights.ctypes.data) + np.uint64(panel * PANEL) * stride
        columns = np.uint64(4 * PANEL * panel)
        own_columns = np.uint64(scales.ctypes.data) + columns
        correction, shift = np.uint64(corrections.ctypes.data) + columns, np.uint64(bias.ctypes.data) + columns
        row = 0
        while row < rows:
            a, place = own + np.uint64(row) * stride, first_out + np.uint64(row) * out_stride + columns
            scale = own_scales + np.uint64(4 * row)
            if row + ROWS <= rows:
                _whole_tile(a, stride, part, steps, place, out_stride, scale, own_columns, correction, shift)
                row += ROWS
            else:
                _single_row(a, stride, part, steps, place, out_stride, scale, own_columns, correction, shift)
                row += 1


def _product(x, before, weights, scales, corrections, bias, out):  # type: ignore[no-untyped-def]
    values = np.full((BLOCK, weights.shape[1] * DEPTH), SHIFT, np.uint8)
    row_scales = np.empty(BLOCK, np.float32)
    for first in range(0, x.shape[0], BLOCK):
        last = min(first + BLOCK, x.shape[0])
        round_rows(x[first:last], before, values, row_scales)
        tiles_of(values, row_scales, last - first, weights, scales, corrections, bias, out[first:last])


def _span_scores(projected, left, right, norm, smallest, weights, scales, corrections, bias, out):  # type: ignore[no-untyped-def]
    values = np.full((BLOCK, weights.shape[1] * DEPTH), SHIFT, np.uint8)
    row_scales = np.empty(BLOCK, np.float32)
    for first in range(0, len(left), BLOCK):
        last = min(first + BLOCK, len(left))
        own = left[first:last], right[first:last]
        norm_rows(projected, own[0], own[1], norm[0], norm[1], norm[2], smallest, values, row_scales)
        tiles_of(values, row_scales, last - first, weights, scales, corrections, bias, out[first:last])


def _scale_sums(sums, row_scales, scales, bias, out):  # type: ignore[no-untyped-def]
    for row in range(sums.shape[0]):
        for column in range(sums.shape[1]):
            step = row_scales[row] * scales[column]
            out[row, column] = np.float32(sums[row, column]) * step + bias[column]


def _compiled(function: Callable[..., Any], **options: Any) -> Any:
    # unwrapped, since run-time shape checks wrap every function and cannot be compiled
    # of numpy: a division by zero would be asked about at every step, which no loop in vectors can
    return njit(cache=True, nogil=True, error_model="numpy", **options)(inspect.unwrap(function))


#: Without these two flags the largest of a row is not searched in vectors; what is computed is the same for all numbers.
_VECTORS: Final = {"nnan", "nsz"}
gelu = _compiled(_gelu, fastmath=_VECTORS)
#: (x [rows, inputs], one of `PLAIN`, `RELU`, `GELU`, values, scales): bytes `a + SHIFT` with `x ≈ a · scale` of each row.
round_rows = _compiled(_round_rows, fastmath=_VECTORS)
#: (projected [posts, inputs], left, right, shift, gain, offset, smallest, values, scales): the same of
#: `relu(norm(projected[right] - projected[left] + shift))`, sums in any order.
norm_rows = _compiled(_norm_rows, fastmath=True)
tiles_of = _compiled(_tiles_of)
#: (x, before, packed weights, their scales, corrections, bias, out): all of it, for processors with AVX2.
product = _compiled(_product)
#: (projected, left, right, [shift, gain, offset], smallest, packed weights, …, out): that of `norm_rows`, and `product`.
span_scores = _compiled(_span_scores)
#: (sums, row scales, scales, bias, out): the last step alone, for sums that were computed elsewhere.
scale_sums = _compiled(_scale_sums)


def can_run() -> bool:
    """Whether `product` can be compiled for this processor."""
    chosen = config.CPU_FEATURES  # by the environment, in place of the processor's own
    return "+avx2" in (get_host_cpu_features().flatten() if chosen is None else chosen).split(",")


def packed(weights: Int8[np.ndarray, "outputs inputs"]) -> Int8[np.ndarray, "panels steps bytes"]:
    """Weights as `product` reads them: of `PANEL` outputs, four inputs of each of them after the other."""
    outputs, inputs = weights.shape
    vectors = weights.reshape(outputs // PANEL, VECTORS, 8, inputs // 4, 4).transpose(0, 3, 1, 2, 4)
    return np.ascontiguousarray(vectors).reshape(outputs // PANEL, inputs // DEPTH, DEPTH * PANEL)
