"""Rows out of CSV and TSV: a header, then one row a record, quoted cells with line ends in them included."""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.read.json_rows import ROW_LIMIT
from pipeline.read.records import Problem, not_utf8
from schemas.errors import UserError

#: A header cell is longer only where the header is missing and the first row is taken for it.
_LONGEST_NAME = 200


@dataclass(frozen=True)
class _Lines:
    """Cells of a record, or what the reader objects to; the lines it was read from; the header's names."""

    cells: list[str]
    complaint: str | None
    text: str
    header: list[str]


@dataclass(frozen=True)
class Csv:
    """RFC 4180 with any line end: the first row names the fields, every value is a string, empty lines are no rows."""

    delimiter: str

    def split(self, stream: io.BufferedReader, name: str) -> Iterator[tuple[int, _Lines]]:
        """First lines of records, and records. Raises `UserError` for a header that cannot be one."""
        csv.field_size_limit(ROW_LIMIT)  # a global of the module, 128 KiB unless set: less than a long document
        with io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="") as text:
            header: list[str] | None = None
            for line, cells, complaint, lines in self._records(text):
                if header is None:
                    _check_header(cells, complaint, f"{name}, line {line}")
                    header = cells
                else:
                    yield line, _Lines(cells, complaint, lines, header)

    def _records(self, text: Iterator[str]) -> Iterator[tuple[int, list[str], str | None, str]]:
        """First line, cells, complaint and text of each record that is not an empty line."""
        taken: list[str] = []
        reader = csv.reader(_noting(text, taken), delimiter=self.delimiter, strict=True)
        while True:
            taken.clear()
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield line, [], str(error), "".join(taken)
                continue
            if cells:
                yield line, cells, None, "".join(taken)

    def parse(self, row: _Lines) -> dict[str, Any] | Problem:
        """Names to cells, or what is wrong with the record."""
        if reason := not_utf8(row.text):
            return Problem.of(reason, row.text)
        if row.complaint == "unexpected end of data":
            return Problem.of("a quote opened in this row is never closed; all that follows is inside it", row.text)
        if row.complaint is not None:
            return Problem.of(f"broken CSV: {row.complaint}", row.text)
        if len(row.cells) != len(row.header):
            return Problem.of(f"the header has {len(row.header)} cells, this row {len(row.cells)}", row.text)
        return dict(zip(row.header, row.cells, strict=True))


def _noting(lines: Iterator[str], taken: list[str]) -> Iterator[str]:
    for line in lines:
        taken.append(line)
        yield line


def _check_header(cells: list[str], complaint: str | None, where: str) -> None:
    """A header has distinct, short names on one line."""
    problem = complaint or not_utf8("".join(cells))
    repeated = [cell for cell, times in Counter(cells).items() if times > 1]
    if problem is None and repeated:
        problem = f"{repeated[0]!r} stands in it {Counter(cells)[repeated[0]]} times"
    if problem is None and any(len(cell) > _LONGEST_NAME or "\n" in cell for cell in cells):
        problem = "a cell of it is a whole text"
    if problem is None and not any(cell.strip() for cell in cells):
        problem = "its cells are empty"
    if problem is not None:
        raise UserError(f"{where}: this cannot be the header ({problem}); the first row must name the fields.")
