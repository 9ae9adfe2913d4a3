"""Self-attention of short sentences on one core: compiled, so import it only where it is used.

What torch has is made for long sequences: of 25 tokens and heads of 32 it takes some five times as long as the products
do. Here a head of a sentence stays in the nearest cache from its products to its softmax, all of it in vectors. Sums are
added in one order on every processor with fused multiply-adds, and a sentence's does not depend on the others: the same
bits in any batch.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int64
from llvmlite import ir
from numba.core import cgutils

from pipeline.parse.vectors import F32, I32, I64, Writer, compiled, features, inlined, instructions

#: Numbers of a vector: two of AVX2's registers, one of AVX-512's.
LANES: Final = 16
#: Queries computed together, so that 12 sums, two vectors of the other side and one number fill the 16 registers of AVX2.
ROWS: Final = 6
#: Rows and columns that are turned together, one register each.
CORNER: Final = 8

_FLOATS, _WHOLE = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)


def _floats(value: float) -> Any:
    return ir.Constant(_FLOATS, [F32(value)] * LANES)


def _fused(w: Writer, one: Any, other: Any, more: Any) -> Any:
    """`one · other + more`, rounded once."""
    return w.call(f"llvm.fma.v{LANES}f32", one, other, more)


def _write_product(rows: int) -> Callable[[Any, Any], None]:
    """`rows` x `LANES` numbers of a product: `out[r, :] = Σ_k a[r, k] b[k, :]`, in the order of k."""

    def write(builder: Any, args: Any) -> None:
        a, a_stride, b, b_stride, depth, out, out_stride = args
        w = Writer(builder)
        sums = [cgutils.alloca_once_value(builder, ir.Constant(_FLOATS, None)) for _ in range(rows)]
        starts = [w.after(a, builder.mul(a_stride, I64(row))) for row in range(rows)]
        with cgutils.for_range(builder, depth) as loop:
            others = w.load(w.after(b, builder.mul(loop.index, b_stride)), _FLOATS)
            at = builder.mul(loop.index, I64(4))
            for start, total in zip(starts, sums, strict=True):
                own = w.spread(w.load(w.after(start, at), F32), LANES)
                builder.store(_fused(w, own, others, builder.load(total)), total)
        for row, total in enumerate(sums):
            w.store(builder.load(total), w.after(out, builder.mul(out_stride, I64(row))))

    return write


def _write_exp(w: Writer, x: Any) -> Any:
    """`exp(x)` for x <= 0, to 2 units in the last place; below -87 some 1e-38, of no number none.

    By powers of two and a polynomial of the rest (figures: Moshier's Cephes, `expf`).
    """
    builder = w.builder
    x = w.call(f"llvm.maximum.v{LANES}f32", x, _floats(-87.0))
    whole = w.call(f"llvm.rint.v{LANES}f32", builder.fmul(x, _floats(1 / math.log(2))))
    # ln 2 in two parts, the first of few digits, so that its multiples are exact
    rest = _fused(w, whole, _floats(-0.693359375), x)
    rest = _fused(w, whole, _floats(2.12194440e-4), rest)
    total = _floats(1.9875691500e-4)
    for factor in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        total = _fused(w, total, rest, _floats(factor))
    total = _fused(w, builder.fmul(rest, rest), total, builder.fadd(rest, _floats(1.0)))
    exponent = builder.shl(
        builder.add(builder.fptosi(whole, _WHOLE), ir.Constant(_WHOLE, [I32(127)] * LANES)),
        ir.Constant(_WHOLE, [I32(23)] * LANES),
    )
    return builder.fmul(total, builder.bitcast(exponent, _FLOATS))


def _folded(w: Writer, value: Any, join: Callable[[Any, Any], Any]) -> Any:
    """All lanes of a vector joined, in every lane."""
    step = LANES // 2
    while step:
        turned = ir.Constant(_WHOLE, [I32((lane + step) % LANES) for lane in range(LANES)])
        value = join(value, w.builder.shuffle_vector(value, value, turned))
        step //= 2
    return value


def _write_softmax(rows: int) -> Callable[[Any, Any], None]:
    """The softmax of so many rows times a factor, in their place; of their last vectors only `last` numbers count."""

    def write(builder: Any, args: Any) -> None:
        first, stride, vectors, last, factor_at = args
        w = Writer(builder)
        # the rows go along together, since each step of one waits for the step before
        starts = [w.after(first, builder.mul(stride, I64(row))) for row in range(rows)]
        factor = w.spread(w.load(factor_at, F32), LANES)
        largest = [cgutils.alloca_once_value(builder, _floats(-math.inf)) for _ in range(rows)]
        totals = [cgutils.alloca_once_value(builder, _floats(0.0)) for _ in range(rows)]
        end = builder.mul(builder.sub(vectors, I64(1)), I64(4 * LANES))
        places = ir.Constant(_WHOLE, [I32(lane) for lane in range(LANES)])
        counts = builder.icmp_signed("<", places, w.spread(builder.trunc(last, I32), LANES))

        def bigger(one: Any, other: Any) -> Any:
            return w.call(f"llvm.maximum.v{LANES}f32", one, other)

        def each(change: Callable[[int, Any], Any]) -> None:
            with cgutils.for_range(builder, vectors) as loop:
                at = builder.mul(loop.index, I64(4 * LANES))
                for row, start in enumerate(starts):
                    w.store(change(row, w.load(w.after(start, at), _FLOATS)), w.after(start, at))

        def scaled(row: int, x: Any) -> Any:
            x = builder.fmul(x, factor)
            builder.store(bigger(builder.load(largest[row]), x), largest[row])
            return x

        def raised(row: int, x: Any) -> Any:
            x = _write_exp(w, builder.fsub(x, tops[row]))
            builder.store(builder.fadd(builder.load(totals[row]), x), totals[row])
            return x

        for start in starts:
            tail = w.after(start, end)
            w.store(builder.select(counts, w.load(tail, _FLOATS), _floats(-math.inf)), tail)
        each(scaled)
        tops = [_folded(w, builder.load(one), bigger) for one in largest]
        each(raised)
        shares = [builder.fdiv(_floats(1.0), _folded(w, builder.load(total), builder.fadd)) for total in totals]
        each(lambda row, x: builder.fmul(x, shares[row]))

    return write


def _write_transposed(builder: Any, args: Any) -> None:
    """`CORNER` x `CORNER` numbers, columns in place of rows; behind the row `last`, that one stands for the others."""
    at, stride, last, out, out_stride = args
    w, kind = Writer(builder), ir.VectorType(F32, CORNER)
    rows = []
    for row in range(CORNER):
        taken = builder.select(builder.icmp_unsigned("<", I64(row), last), I64(row), last)
        rows.append(w.load(w.after(at, builder.mul(stride, taken)), kind))
    # as often as halves can be halved, each of the first half is laced with its fellow of the second
    lacings = [
        ir.Constant(ir.VectorType(I32, CORNER), [I32(lane // 2 + CORNER * (lane % 2) + half) for lane in range(CORNER)])
        for half in (0, CORNER // 2)
    ]
    for _ in range(CORNER.bit_length() - 1):
        pairs = list(zip(rows[: CORNER // 2], rows[CORNER // 2 :], strict=True))
        rows = [builder.shuffle_vector(one, other, lacing) for one, other in pairs for lacing in lacings]
    for column, row in enumerate(rows):
        w.store(row, w.after(out, builder.mul(out_stride, I64(column))))


def _product_of(rows: int) -> Any:
    def rows_product(typing, a, a_stride, b, b_stride, depth, out, out_stride):  # type: ignore[no-untyped-def]
        return instructions(_write_product(rows), 7)

    return inlined(rows_product)


def _softmax_of(rows: int) -> Any:
    def softmax(typing, first, stride, vectors, last, factor_at):  # type: ignore[no-untyped-def]
        return instructions(_write_softmax(rows), 5)

    return inlined(softmax)


@inlined
def _transposed(typing, at, stride, last, out, out_stride):  # type: ignore[no-untyped-def]
    return instructions(_write_transposed, 5)


_rows_product, _row_product = _product_of(ROWS), _product_of(1)
_rows_softmax, _row_softmax = _softmax_of(ROWS), _softmax_of(1)


def _product(a, a_stride, rows, b, b_stride, depth, columns, out, out_stride):  # type: ignore[no-untyped-def]
    """`out = a b` for at least one row and whole vectors of columns; addresses, and strides in bytes."""
    for vector in range(columns // LANES):
        at = np.uint64(4 * LANES * vector)
        if rows == ROWS:
            _rows_product(a, a_stride, b + at, b_stride, depth, out + at, out_stride)
        else:
            for row in range(rows):
                own, place = np.uint64(row) * a_stride, np.uint64(row) * out_stride + at
                _row_product(a + own, a_stride, b + at, b_stride, depth, out + place, out_stride)


product = compiled(_product)


def _attend(q, k, v, runs, factor, keys, weights, out):  # type: ignore[no-untyped-def]
    heads, d = q.shape[1], q.shape[2]
    stride = np.uint64(weights.strides[0])
    own, others, factor_at = np.uint64(weights.ctypes.data), np.uint64(keys.ctypes.data), np.uint64(factor.ctypes.data)
    token, to = np.uint64(q.strides[0]), np.uint64(out.strides[0])
    for run in range(len(runs)):
        n = runs[run, 2]
        vectors = (n + LANES - 1) // LANES
        last = np.uint64(n - (vectors - 1) * LANES)
        for first in range(runs[run, 0], runs[run, 1], n):
            for head in range(heads):
                start = np.uint64(k.ctypes.data) + np.uint64(first * k.strides[0] + head * k.strides[1])
                for place in range(0, n, CORNER):
                    for feature in range(0, d, CORNER):
                        corner = start + np.uint64(place * k.strides[0] + 4 * feature)
                        to_corner = others + np.uint64(feature * keys.strides[0] + 4 * place)
                        left = np.uint64(min(CORNER, n - place) - 1)
                        _transposed(corner, np.uint64(k.strides[0]), left, to_corner, stride)
                values = np.uint64(v.ctypes.data) + np.uint64(first * v.strides[0] + head * v.strides[1])
                rows = ROWS if n >= ROWS else n
                done = 0
                while done < n:
                    # of the last queries some are computed again
                    query = first + min(done, n - rows)
                    asked = np.uint64(q.ctypes.data) + np.uint64(query * q.strides[0] + head * q.strides[1])
                    to_query = np.uint64(out.ctypes.data) + np.uint64(query * out.strides[0] + head * out.strides[1])
                    product(asked, token, rows, others, stride, np.uint64(d), vectors * LANES, own, stride)
                    if rows == ROWS:
                        _rows_softmax(own, stride, np.uint64(vectors), last, factor_at)
                    else:
                        for row in range(rows):
                            _row_softmax(own + np.uint64(row) * stride, stride, np.uint64(vectors), last, factor_at)
                    product(own, stride, rows, values, np.uint64(v.strides[0]), np.uint64(n), d, to_query, to)
                    done += rows


#: See `attend`. All that it works in are arguments: of an array of its own numba would let go after the last line that
#: names it, while addresses in it are still in use.
_attention = compiled(_attend)


def attend(
    q: Float[np.ndarray, "tokens heads d"],
    k: Float[np.ndarray, "tokens heads d"],
    v: Float[np.ndarray, "tokens heads d"],
    runs: Int64[np.ndarray, "runs 3"],
    scale: float,
    out: Float[np.ndarray, "tokens heads d"],
) -> None:
    """`pipeline.parse.attention.attention` of float32, for widths of whole vectors whose numbers are neighbours; `scale` > 0."""
    columns = -(-int(runs[:, 2].max(initial=1)) // LANES) * LANES
    keys = np.zeros((q.shape[2], columns), np.float32)  # a head's, features first
    weights = np.zeros((ROWS, columns), np.float32)
    _attention(q, k, v, runs, np.full(1, scale, np.float32), keys, weights, out)


@cache
def can_run() -> bool:
    """Whether `attend` can be compiled for this processor."""
    return {"avx2", "fma"} <= features()
