"""Ragged arrays to Arrow columns and back, without a Python object a span."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
from jaxtyping import Int32, Int64

from schemas.columns import MESSAGES, SPAN, SPANS, Placed


def lengths_to_pointers(lengths: Sequence[int]) -> Int32[np.ndarray, " rows_and_one"]:
    """[2, 0, 3] -> [0, 2, 2, 5]."""
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))]).astype(np.int32)


def span_column(rows: Sequence[Int32[np.ndarray, "_ 2"]]) -> pa.Array:
    """One list of [start, end) pairs a row."""
    flat = np.concatenate([np.zeros((0, 2), dtype=np.int32), *rows]).astype(np.int32)
    pairs = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), type=SPAN)
    return pa.ListArray.from_arrays(pa.array(lengths_to_pointers([len(row) for row in rows])), pairs, type=SPANS)


def message_column(rows: Sequence[Sequence[Placed]]) -> pa.Array:
    """One list of contents with their roles a row."""
    return pa.array([[message._asdict() for message in row] for row in rows], MESSAGES)


def messages_of(column: pa.Array | pa.ChunkedArray) -> list[tuple[Placed, ...]]:
    """Inverse of `message_column`."""
    return [tuple(Placed(**message) for message in row) for row in column.to_pylist()]


def int_list_column(rows: Sequence[Int32[np.ndarray, " _"]]) -> pa.Array:
    """One list of int32 a row."""
    flat = np.concatenate([np.zeros(0, dtype=np.int32), *rows]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(lengths_to_pointers([len(row) for row in rows])), pa.array(flat))


def spans_of(column: pa.Array | pa.ChunkedArray) -> list[Int32[np.ndarray, "_ 2"]]:
    """Inverse of `span_column`."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    pairs = array.values.flatten().to_numpy(zero_copy_only=False).astype(np.int32, copy=False).reshape(-1, 2)
    return _rows(pairs, array.offsets.to_numpy())


def int_lists_of(column: pa.Array | pa.ChunkedArray) -> list[Int32[np.ndarray, " _"]]:
    """Inverse of `int_list_column`."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return _rows(array.values.to_numpy(zero_copy_only=False).astype(np.int32, copy=False), array.offsets.to_numpy())


def _rows(flat: np.ndarray, pointers: np.ndarray) -> list[np.ndarray]:
    return [flat[a:b] for a, b in pairwise(pointers)]


def ragged(
    column: pa.Array | pa.ChunkedArray,
) -> tuple[Int32[np.ndarray, "elements ..."], Int64[np.ndarray, " pointers"]]:
    """Lists of int32, or of spans, one after the other, in memory of their own; and row pointers."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    flat = array.flatten()
    spans = pa.types.is_fixed_size_list(flat.type)
    values = np.array((flat.flatten() if spans else flat).to_numpy(zero_copy_only=False), dtype=np.int32)
    lengths = array.value_lengths().to_numpy(zero_copy_only=False)
    pointers = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])
    return values.reshape(-1, 2) if spans else values, pointers
