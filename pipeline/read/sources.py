"""Inputs as streams of numbered rows: text files, columnar files, datasets.

Every source is read front to back with memory that does not grow with it, skips cheaply to a row, gives the same rows
under the same numbers each time, and can be pickled for a worker process. Bad rows come as `Rejected` and stop nothing;
what leaves the rest of a file unreadable raises `UserError`.
"""

import hashlib
import io
import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import pyarrow as pa

from pipeline.read.arrow_rows import BATCH, arrow_rows, arrow_tables, parquet_rows, parquet_tables, table_rows
from pipeline.read.csv_rows import Csv
from pipeline.read.json_rows import JsonArray, JsonLines
from pipeline.read.records import Problem, Record, Rejected
from pipeline.read.streams import COMPRESSIONS, HashedFile, text_stream
from schemas.arrow import require_structure
from schemas.config import CsvConfig
from schemas.errors import UserError, one_line
from schemas.manifest import InputFile

if TYPE_CHECKING:
    import datasets


@runtime_checkable  # the tests' type checker looks at instances
class Source(Protocol):
    """One input."""

    @property
    def name(self) -> str:
        """As it was given."""
        ...

    def describe(self) -> InputFile:
        """Bytes, hash and number of rows, in one pass that keeps no row. Raises `UserError` where there is no row."""
        ...

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Record | Rejected]:
        """Rows [start, stop), numbered from the source's first row, which is 0."""
        ...


@runtime_checkable
class TextFormat(Protocol):
    """How text falls into rows, and a row into fields; apart, because to skip and to count need only the first."""

    def split(self, stream: io.BufferedReader, name: str) -> Iterator[tuple[int, Any]]:
        """The line, from 1, on which each row begins, and the row in a form of the format's own."""
        ...

    def parse(self, row: Any) -> dict[str, Any] | Problem:
        """The fields, or why there are none."""
        ...


TEXT_FORMATS: Final[dict[str, TextFormat]] = {
    ".jsonl": JsonLines(),
    ".ndjson": JsonLines(),
    ".json": JsonArray(),
    ".csv": Csv(",", CsvConfig()),
    ".tsv": Csv("\t", CsvConfig()),
}
#: Extension -> (number of rows, tables from a row on).
COLUMN_FORMATS: Final = {
    ".parquet": (parquet_rows, parquet_tables),
    ".arrow": (arrow_rows, arrow_tables),
}
KNOWN: Final = f"{', '.join(TEXT_FORMATS)} (each also with {' or '.join(COMPRESSIONS)}), {' and '.join(COLUMN_FORMATS)}"


def extensions(path: Path) -> tuple[str, str | None]:
    """`data/x.en.JSONL.gz` -> `.jsonl`, `.gz`; None where nothing is compressed."""
    last = path.suffix.lower()
    if last in COMPRESSIONS:
        return path.with_suffix("").suffix.lower(), last
    return last, None


def is_data_file(path: Path) -> bool:
    """Whether the name's extension is one that can be read."""
    kind, compression = extensions(path)
    return kind in TEXT_FORMATS or (kind in COLUMN_FORMATS and compression is None)


def file_source(path: Path, name: str, csv: CsvConfig) -> Source:
    """The source for one file, by its extension. Raises `UserError` for an unknown one."""
    kind, compression = extensions(path)
    if kind in TEXT_FORMATS:
        form = TEXT_FORMATS[kind]
        return TextFile(name, path, replace(form, config=csv) if isinstance(form, Csv) else form, compression)
    if kind in COLUMN_FORMATS and compression is None:
        return ColumnFile(name, path, kind)
    given = f"{kind}{compression or ''}" or "no extension"
    raise UserError(f"{name}: cannot tell its format from {given}. Known: {KNOWN}.")


@dataclass(frozen=True)
class TextFile:
    """JSON lines, JSON, CSV or TSV in UTF-8, plain or compressed."""

    name: str
    path: Path
    form: TextFormat
    compression: str | None

    def describe(self) -> InputFile:
        """One pass over the file; JSON lines are counted without being parsed."""
        with _opened(self.path, self.name) as file:
            hashed = HashedFile(file)
            rows = sum(1 for _ in self._split(hashed))  # every format reads to the end of the file
        return _described(self.name, hashed.bytes, hashed.sha256, rows)

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Record | Rejected]:
        """Rows [start, stop); those before are split off and not parsed."""
        with _opened(self.path, self.name) as file, closing(self._split(file)) as rows:
            for number, (line, row) in islice(enumerate(rows), start, stop):
                yield _row(number, self.name, line, self.form.parse(row))

    def _split(self, file: io.RawIOBase) -> Generator[tuple[int, Any], None, None]:
        line = 0
        codec = COMPRESSIONS[self.compression] if self.compression else None
        try:
            with text_stream(file, codec, self.name) as stream:
                for line, row in self.form.split(stream, self.name):
                    yield line, row
        except OSError as error:
            what = f"the {codec} data is damaged or cut short" if codec else "it cannot be read further"
            where = f"after the row on line {line}" if line else "before any row was read"
            raise UserError(f"{self.name}: {what} {where} ({one_line(error)}). Fetch or write the file anew.") from None


@dataclass(frozen=True)
class ColumnFile:
    """Parquet or Arrow; `line` of a record is its row's place in the file, from 1."""

    name: str
    path: Path
    kind: str

    def describe(self) -> InputFile:
        """Hashes the file; the number of rows comes from its metadata."""
        with _opened(self.path, self.name) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
        if not size:
            raise UserError(f"{self.name} is empty.")
        try:
            rows = COLUMN_FORMATS[self.kind][0](self.path)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(error) from None
        return _described(self.name, size, digest, rows)

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Record | Rejected]:
        """Rows [start, stop); what lies before is skipped by row group or batch."""
        try:
            yield from _numbered(COLUMN_FORMATS[self.kind][1](self.path, start), self.name, start, stop)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> UserError:
        return UserError(
            f"{self.name}: not a whole {self.kind[1:]} file ({one_line(error)}). Fetch or write the file anew."
        )


@dataclass(frozen=True)
class LoadedDataset:
    """A `datasets.Dataset`, memory-mapped, from a `save_to_disk` folder or from the hub.

    Bytes and hash are those of its rows as JSON lines, so that they do not depend on how and where it is cached.
    """

    name: str
    dataset: "datasets.Dataset"

    def describe(self) -> InputFile:
        """One pass over the rows."""
        digest, size, rows = hashlib.sha256(), 0, 0
        for table in self._tables(0):
            for row in table_rows(table):
                line = json.dumps(row, default=repr).encode() + b"\n"
                digest.update(line)
                size += len(line)
                rows += 1
        return _described(self.name, size, digest.hexdigest(), rows)

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Record | Rejected]:
        """Rows [start, stop), by random access."""
        yield from _numbered(self._tables(start), self.name, start, stop)

    def _tables(self, start: int) -> Iterator[pa.Table]:
        arrow = self.dataset.with_format("arrow")
        for first in range(start, len(arrow), BATCH):
            try:
                table = arrow[first : first + BATCH]
                for batch in table.to_batches():
                    require_structure(batch)
            except (pa.ArrowException, TypeError) as error:  # the latter where its columns are not of their types
                raise UserError(
                    f"{self.name}: its Arrow files are damaged ({one_line(error)}). Save or fetch it anew."
                ) from None
            yield table


def read_rows(
    sources: Sequence[Source], counts: Sequence[int], start: int = 0, stop: int | None = None
) -> Iterator[Record | Rejected]:
    """Rows [start, stop) of all sources one after the other, numbered over all.

    `counts` holds the rows of each source, as `describe` found them; sources that lie wholly outside are not opened.
    """
    first = 0
    for source, rows in zip(sources, counts, strict=True):
        last = first + rows if stop is None else min(first + rows, stop)
        if max(start, first) < last:
            for row in source.read(max(start - first, 0), last - first):
                yield replace(row, number=first + row.number)
        first += rows


def _numbered(tables: Iterator[pa.Table], name: str, start: int, stop: int | None) -> Iterator[Record | Rejected]:
    """The rows of tables of which the first begins with row `start`."""
    for table in tables:
        if stop is not None:
            table = table.slice(0, max(0, stop - start))
        for offset, row in enumerate(table_rows(table)):
            yield _row(start + offset, name, start + offset + 1, row)
        start += table.num_rows
        if stop is not None and start >= stop:
            return


def _row(number: int, name: str, line: int, row: dict[str, Any] | Problem) -> Record | Rejected:
    if isinstance(row, Problem):
        return Rejected(number, name, line, row.reason, row.raw)
    return Record(number, name, line, row)


def _described(name: str, size: int, digest: str, rows: int) -> InputFile:
    if not rows:
        raise UserError(f"{name} is empty." if not size else f"{name} holds no rows.")
    return InputFile(name=name, bytes=size, sha256=digest, rows=rows)


@contextmanager
def _opened(path: Path, name: str) -> Iterator[io.FileIO]:
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise UserError(f"{name} cannot be opened: {error.strerror}.") from None
    with file:
        yield file
