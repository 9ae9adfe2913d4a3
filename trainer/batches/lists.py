"""Columns of lists, in memory-mapped Arrow files: the lists of some rows, copied out of them."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int32, Int64
from torch import Tensor

from schemas.arrow import numbers
from trainer.maths.ragged import pointers

Rows = Int64[np.ndarray, " documents"]


class Lists:
    """A column of lists, of numbers or of spans: views of the mapped files."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._first = np.cumsum([0, *(len(chunk) for chunk in column.chunks)])
        self._offsets = [numbers(chunk.offsets) for chunk in column.chunks]
        # the values of a list are those of its whole file, which the offsets count from
        self._values = [list_values(chunk.values) for chunk in column.chunks]

    @cached_property
    def lengths(self) -> Int64[np.ndarray, " rows"]:
        found = [np.zeros(0, dtype=np.int64), *(np.diff(each) for each in self._offsets)]
        return np.concatenate(found, dtype=np.int64)

    def parts(
        self, per_row: Int64[np.ndarray, " rows"]
    ) -> Iterator[tuple[Int32[np.ndarray, "elements ..."], Int64[np.ndarray, " _"], Int64[np.ndarray, " _"]]]:
        """Of each file: its elements, how many each row has, and what `per_row` says of those rows."""
        for first, offsets, values in zip(self._first[:-1].tolist(), self._offsets, self._values, strict=True):
            counts = np.diff(offsets).astype(np.int64)
            yield values[offsets[0] : offsets[-1]], counts, per_row[first : first + len(counts)]

    def pointers(self, rows: Rows) -> Int64[Tensor, " pointers"]:
        """Row pointers of the lists of some rows."""
        return pointers(torch.from_numpy(self.lengths[rows]))

    def take(self, rows: Rows) -> tuple[Int32[np.ndarray, "elements ..."], Int64[Tensor, " pointers"]]:
        """The lists of some rows, one after the other, in memory of their own, and row pointers."""
        chunks = (np.searchsorted(self._first, rows, side="right") - 1).tolist()
        parts = []
        for row, chunk in zip(rows.tolist(), chunks, strict=True):
            offsets = self._offsets[chunk]
            place = row - self._first[chunk]
            parts.append(self._values[chunk][offsets[place] : offsets[place + 1]])
        return np.concatenate(parts), pointers([len(part) for part in parts])


def list_values(values: Any) -> Int32[np.ndarray, "elements ..."]:
    """Numbers, or [start, end) pairs, without a copy."""
    pairs = pa.types.is_fixed_size_list(values.type)
    flat = numbers(values.flatten() if pairs else values)
    return flat.reshape(-1, 2) if pairs else flat


def index_of(rising: Int64[np.ndarray, " _"], values: Int64[np.ndarray, " values"]) -> Int64[np.ndarray, " values"]:
    """Where each value is in `rising`; -1 where it is not."""
    at = np.searchsorted(rising, values)
    index: Int64[np.ndarray, " values"] = np.where(np.append(rising, -2)[at] == values, at, -1)
    return index
