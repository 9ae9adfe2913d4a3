"""Rows out of columns: Parquet, Arrow's file and stream forms, and `datasets.Dataset`, a few hundred rows at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.read.records import NOT_UTF8
from schemas.arrow import record_batches, told_alike
from schemas.rows import Unusable

#: Rows turned into Python objects at a time.
BATCH: Final = 256
#: Bytes of a column that are read at a time; without it pyarrow holds a row group's whole column.
_READ_AHEAD: Final = 1 << 20


def parquet_rows(path: Path) -> int:
    """Rows of a Parquet file, from its footer."""
    with told_alike(), pq.ParquetFile(path) as file:
        return int(file.metadata.num_rows)


def parquet_tables(path: Path, start: int) -> Iterator[pa.Table]:
    """All rows from `start` on; row groups before it are not read."""
    with told_alike(), pq.ParquetFile(path, buffer_size=_READ_AHEAD) as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        first = 0
        while first < len(sizes) and start >= sizes[first]:
            start -= sizes[first]
            first += 1
        groups = list(range(first, len(sizes)))
        for batch in file.iter_batches(BATCH, row_groups=groups) if groups else ():
            if start < batch.num_rows:
                yield pa.Table.from_batches([batch.slice(start)])
            start = max(0, start - batch.num_rows)


def arrow_rows(path: Path) -> int:
    """Rows of an Arrow file."""
    return sum(batch.num_rows for batch in record_batches(path))


def arrow_tables(path: Path, start: int) -> Iterator[pa.Table]:
    """All rows from `start` on, out of a memory map."""
    for batch in record_batches(path):
        for first in range(start, batch.num_rows, BATCH):
            yield pa.Table.from_batches([batch.slice(first, BATCH)])
        start = max(0, start - batch.num_rows)


def table_rows(table: pa.Table) -> list[dict[str, Any]]:
    """The rows as objects; a value that Python cannot hold (a string that is not UTF-8, a date out of range) is `Unusable`."""
    try:
        rows: list[dict[str, Any]] = table.to_pylist()
    except (ValueError, OverflowError):
        rows = [_row(table.slice(index, 1)) for index in range(table.num_rows)]
    return rows


def _row(table: pa.Table) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            row[name] = column.to_pylist()[0]
        except UnicodeDecodeError as error:
            detail = f"byte {error.start} of the string is 0x{error.object[error.start]:02x}"
            row[name] = Unusable.of(error.object, NOT_UTF8, detail)
        except (ValueError, OverflowError) as error:
            row[name] = Unusable.of(str(error), "unreadable value", str(error))
    return row
