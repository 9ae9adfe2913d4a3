"""Ragged arrays to Arrow columns and back, without a Python object a span."""

from collections.abc import Sequence, Sized
from itertools import pairwise

import numpy as np
import pyarrow as pa
from jaxtyping import Int32, Int64

from schemas.arrow import numbers
from schemas.columns import MESSAGES, SPAN, SPANS, Placed


def lengths_to_pointers(lengths: Sequence[int]) -> Int32[np.ndarray, " rows_and_one"]:
    """[2, 0, 3] -> [0, 2, 2, 5]."""
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))]).astype(np.int32)


def int_column(values: Sequence[int] | Int32[np.ndarray, " _"]) -> pa.Array:
    """One int32 a row. Of a buffer, as `string_column`: `pa.array` imports pandas, in half a second, to see that it is none."""
    numbers = np.asarray(values, dtype=np.int32)
    return pa.Array.from_buffers(pa.int32(), len(numbers), [None, pa.py_buffer(numbers)])


def string_column(texts: Sequence[str], kind: pa.DataType) -> pa.Array:
    """One string a row; `kind` is `pa.string()` or `pa.large_string()`."""
    encoded = [text.encode() for text in texts]
    pointers = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    if kind == pa.string():
        pointers = pointers.astype(np.int32)
    return pa.Array.from_buffers(kind, len(encoded), [None, pa.py_buffer(pointers), pa.py_buffer(b"".join(encoded))])


def string_list_column(rows: Sequence[Sequence[str]]) -> pa.Array:
    """One list of strings a row."""
    flat = string_column([text for row in rows for text in row], pa.string())
    return pa.ListArray.from_arrays(_pointers(rows), flat)


def _pointers(rows: Sequence[Sized]) -> pa.Array:
    return int_column(lengths_to_pointers([len(row) for row in rows]))


def span_column(rows: Sequence[Int32[np.ndarray, "_ 2"]]) -> pa.Array:
    """One list of [start, end) pairs a row."""
    flat = np.concatenate([np.zeros((0, 2), dtype=np.int32), *rows]).astype(np.int32)
    pairs = pa.FixedSizeListArray.from_arrays(int_column(flat.reshape(-1)), type=SPAN)
    return pa.ListArray.from_arrays(_pointers(rows), pairs, type=SPANS)


def message_column(rows: Sequence[Sequence[Placed]]) -> pa.Array:
    """One list of contents with their roles a row."""
    contents = [message for row in rows for message in row]
    columns = [
        string_column([message.role for message in contents], pa.string()),
        int_column([message.start for message in contents]),
        int_column([message.end for message in contents]),
    ]
    structs = pa.StructArray.from_arrays(columns, fields=list(MESSAGES.value_type))
    return pa.ListArray.from_arrays(_pointers(rows), structs, type=MESSAGES)


def messages_of(column: pa.Array | pa.ChunkedArray) -> list[tuple[Placed, ...]]:
    """Inverse of `message_column`."""
    return [tuple(Placed(**message) for message in row) for row in column.to_pylist()]


def int_list_column(rows: Sequence[Int32[np.ndarray, " _"]]) -> pa.Array:
    """One list of int32 a row."""
    flat = np.concatenate([np.zeros(0, dtype=np.int32), *rows]).astype(np.int32)
    return pa.ListArray.from_arrays(_pointers(rows), int_column(flat))


def spans_of(column: pa.Array | pa.ChunkedArray) -> list[Int32[np.ndarray, "_ 2"]]:
    """Inverse of `span_column`."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    pairs = numbers(array.values.flatten()).reshape(-1, 2)
    return _rows(pairs, numbers(array.offsets))


def int_lists_of(column: pa.Array | pa.ChunkedArray) -> list[Int32[np.ndarray, " _"]]:
    """Inverse of `int_list_column`."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return _rows(numbers(array.values), numbers(array.offsets))


def _rows(flat: np.ndarray, pointers: np.ndarray) -> list[np.ndarray]:
    return [flat[a:b] for a, b in pairwise(pointers)]


def ragged(
    column: pa.Array | pa.ChunkedArray,
) -> tuple[Int32[np.ndarray, "elements ..."], Int64[np.ndarray, " pointers"]]:
    """Lists of int32, or of spans, one after the other, in memory of their own; and row pointers."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    flat = array.flatten()
    spans = pa.types.is_fixed_size_list(flat.type)
    values = np.array(numbers(flat.flatten() if spans else flat), dtype=np.int32)
    lengths = numbers(array.value_lengths())
    pointers = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])
    return values.reshape(-1, 2) if spans else values, pointers
