"""8-bit products for CPUs with AVX2, and what stands around them: compiled, so import this only where it is used.

Activations are bytes `a + 64` with `a` in [-63, 63], weights signed bytes. Where there are instructions for dot products
of bytes (VNNI), one of AVX-512 takes 64 products, where float32 takes four. AVX2 multiplies 32 pairs of bytes and adds
neighbours into 16 bits that saturate; two such vectors are added before they are widened to 32 bits, three
multiplications for 64 products where float32 takes eight. Weights are scaled so that no such sum of four products leaves
16 bits (`pipeline.parse.int8`): every sum is exact, so whatever else computes it exactly gives the same.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from jaxtyping import Int8
from llvmlite import ir
from numba.core import cgutils

from pipeline.parse.vectors import F32, I32, I64, Writer, compiled, features, inlined, instructions

#: Largest absolute value of an activation, and what is added to it to make it a byte without sign.
STEPS: Final = 63
SHIFT: Final = 64
#: Columns of a panel of weights: one or two vectors of sums.
PANEL: Final = 16
#: Inputs that a step of the inner loop takes: four are in one vector, and two such are added in 16 bits.
DEPTH: Final = 8
#: Rows quantised at a time: they stay in the cache while every panel of weights passes.
BLOCK: Final = 96
#: Of `round_rows`: what is done to its input before.
PLAIN, RELU, GELU = 0, 1, 2

#: Rows computed together by each way to multiply, so that sums and what else a step needs fill its registers: 6 sums, 6
#: lanes, 2 weights, an activation and ones the 16 of AVX2; 12 sums, 2 weights and an activation those of AVX-VNNI; AVX-512
#: has 32, of which 12 sums, a weight and an activation are enough to keep two multipliers busy.
ROWS: Final = {"avx2": 3, "avxvnni": 6, "avx512vnni": 12}

_I16, _BYTE = ir.IntType(16), ir.IntType(8)
_LANES = ir.VectorType(_I16, 16)


def ways() -> list[str]:
    """Those of `ROWS` that this processor has the instructions for, the best first."""
    here = features()
    needed = {"avx512vnni": {"avx512vnni", "avx512f"}, "avxvnni": {"avxvnni"}, "avx2": {"avx2"}}
    return [way for way, names in needed.items() if names <= here]


def _added(w: Writer, way: str, before: Any, activations: Any, weights: Any) -> Any:
    """Products of two fours of bytes, added to sums."""
    if way == "avx2":
        # bytes without sign times signed bytes, neighbours added and saturated; 16-bit products, neighbours added
        pairs = zip(activations, weights, strict=True)
        one, other = (w.call("llvm.x86.avx2.pmadd.ub.sw", *pair, kind=_LANES) for pair in pairs)
        ones = ir.Constant(_LANES, [_I16(1)] * 16)
        return w.builder.add(
            before, w.call("llvm.x86.avx2.pmadd.wd", w.builder.add(one, other), ones, kind=before.type)
        )
    for pair in zip(activations, weights, strict=True):  # dot products of four bytes, in one instruction
        fours = (w.builder.bitcast(part, before.type) for part in pair)
        before = w.call(f"llvm.x86.avx512.vpdpbusd.{32 * before.type.count}", before, *fours)
    return before


def _write_tile(way: str, rows: int) -> Callable[[Any, Any], None]:
    """`rows` x `PANEL` outputs: products over all inputs, then `(sums - correction) · (row's scale · column's) + bias`."""

    def write(builder: Any, args: Any) -> None:
        a, stride, weights, steps, out, out_stride, row_scales, scales, corrections, bias = args
        w, width = Writer(builder), 16 if way == "avx512vnni" else 8
        vectors = range(PANEL // width)
        bytes_, whole = ir.VectorType(_BYTE, 4 * width), ir.VectorType(I32, width)
        floats = ir.VectorType(F32, width)
        sums = [[cgutils.alloca_once_value(builder, ir.Constant(whole, None)) for _ in vectors] for _ in range(rows)]
        starts = [w.after(a, builder.mul(stride, I64(row))) for row in range(rows)]
        with cgutils.for_range(builder, steps) as loop:
            at, panel = builder.mul(loop.index, I64(DEPTH)), builder.mul(loop.index, I64(DEPTH * PANEL))
            places = [w.after(weights, panel, 4 * four * PANEL) for four in range(DEPTH // 4)]
            columns = [[w.load(w.after(place, 4 * width * v), bytes_) for place in places] for v in vectors]
            for start, row_sums in zip(starts, sums, strict=True):
                fours = [w.load(w.after(start, at, 4 * four), I32) for four in range(DEPTH // 4)]
                spread = [builder.bitcast(w.spread(four, width), bytes_) for four in fours]
                for total, column in zip(row_sums, columns, strict=True):
                    builder.store(_added(w, way, builder.load(total), spread, column), total)
        for v in vectors:
            aside = 4 * width * v
            scale, shift = w.load(w.after(scales, aside), floats), w.load(w.after(bias, aside), floats)
            correction = w.load(w.after(corrections, aside), whole)
            for row, row_sums in enumerate(sums):
                exact = builder.sitofp(builder.sub(builder.load(row_sums[v]), correction), floats)
                step = builder.fmul(w.spread(w.load(w.after(row_scales, 4 * row), F32), width), scale)
                place = w.after(out, builder.mul(out_stride, I64(row)), aside)
                w.store(builder.fadd(builder.fmul(exact, step), shift), place)

    return write


def _tile(way: str, rows: int) -> Any:
    """A function of ten addresses and strides, in bytes, that computes a tile of so many rows."""

    def tile(typing, a, stride, weights, steps, out, out_stride, row_scales, scales, corrections, bias):  # type: ignore[no-untyped-def]
        return instructions(_write_tile(way, rows), 10)

    return inlined(tile)


_HERE: Final = next(iter(ways()), None)
_TOGETHER: Final = ROWS[_HERE] if _HERE else 1
_whole_tile, _single_row = (_tile(str(_HERE), rows) for rows in (_TOGETHER, 1))


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
        together = np.int64(_TOGETHER if rows >= _TOGETHER else 1)
        done = np.int64(0)
        while done < rows:
            row = min(done, rows - together)  # of the last rows some are computed again
            a, place = own + np.uint64(row) * stride, first_out + np.uint64(row) * out_stride + columns
            scale = own_scales + np.uint64(4 * row)
            if together > 1:
                _whole_tile(a, stride, part, steps, place, out_stride, scale, own_columns, correction, shift)
            else:
                _single_row(a, stride, part, steps, place, out_stride, scale, own_columns, correction, shift)
            done += together


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


#: Without these two flags the largest of a row is not searched in vectors; what is computed is the same for all numbers.
_VECTORS: Final = {"nnan", "nsz"}
gelu = compiled(_gelu, fastmath=_VECTORS)
#: (x [rows, inputs], one of `PLAIN`, `RELU`, `GELU`, values, scales): bytes `a + SHIFT` with `x ≈ a · scale` of each row.
round_rows = compiled(_round_rows, fastmath=_VECTORS)
#: (projected [posts, inputs], left, right, shift, gain, offset, smallest, values, scales): the same of
#: `relu(norm(projected[right] - projected[left] + shift))`, sums in any order.
norm_rows = compiled(_norm_rows, fastmath=True)
tiles_of = compiled(_tiles_of)
#: (x, before, packed weights, their scales, corrections, bias, out): all of it, for processors with AVX2.
product = compiled(_product)
#: (projected, left, right, [shift, gain, offset], smallest, packed weights, …, out): that of `norm_rows`, and `product`.
span_scores = compiled(_span_scores)
#: (sums, row scales, scales, bias, out): the last step alone, for sums that were computed elsewhere.
scale_sums = compiled(_scale_sums)


def can_run() -> bool:
    """Whether `product` can be compiled for this processor."""
    return _HERE is not None


def packed(weights: Int8[np.ndarray, "outputs inputs"]) -> Int8[np.ndarray, "panels steps bytes"]:
    """Weights as `product` reads them: of `PANEL` outputs, four inputs of each of them after the other."""
    outputs, inputs = weights.shape
    vectors = weights.reshape(outputs // PANEL, PANEL, inputs // 4, 4).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(vectors).reshape(outputs // PANEL, inputs // DEPTH, DEPTH * PANEL)
