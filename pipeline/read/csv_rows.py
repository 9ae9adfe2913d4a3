"""Rows out of CSV and TSV: a header, then one row a record, quoted cells with line ends in them included.

A quoted cell that is broken (text behind the quote that closes it, or none that does) leaves unclear where the row ends.
Nothing is taken until reading is in step again; every line passed over is a row that cannot be used, and counted.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, NamedTuple

from pipeline.read.csv_dialect import QUOTE, Dialect, Step, dialect
from pipeline.read.json_rows import ROW_LIMIT
from pipeline.read.records import NOT_UTF8, Problem, marked, not_utf8
from schemas.config import CsvConfig
from schemas.errors import UserError
from schemas.rows import Reason

#: A header cell is longer only where the header is missing and the first row is taken for it.
_LONGEST_NAME: Final = 200
_WRITTEN: Final = "--csv-quote, --csv-escape and --csv-delimiter say how a file is written"
_BROKEN: Final = f"broken CSV ({_WRITTEN})"
_PASSED_OVER: Final = "a line passed over, for a row before it has a broken quoted cell"


class _Lines(NamedTuple):
    """Cells of a record, or what is wrong with it; the lines it was read from; the header's names."""

    cells: list[str]
    complaint: Reason | None
    text: str
    header: list[str]


class _Record(NamedTuple):
    line: int
    cells: list[str]
    complaint: Reason | None
    text: str


@dataclass(frozen=True)
class Csv:
    """The first row names the fields, every value is a string, any line end will do, empty lines are no rows.

    `delimiter` is what the extension promises; `config` what the user says.
    """

    delimiter: str
    config: CsvConfig

    def split(self, stream: io.BufferedReader, name: str) -> Iterator[tuple[int, _Lines]]:
        """First lines of records, and records. Raises `UserError` for a header that cannot be one."""
        csv.field_size_limit(ROW_LIMIT)  # a global of the module, 128 KiB unless set: less than a long document
        with io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="") as text:
            opening = _opening(text)
            style = dialect(self.config, self.delimiter, opening[-1] if opening else "")
            header: list[str] | None = None
            for record in _Reader(style, chain(opening, text)).records():
                if header is None:
                    _check_header(record, name)
                    header = record.cells
                    continue
                yield record.line, _Lines(record.cells, record.complaint, record.text, header)

    def parse(self, row: _Lines) -> dict[str, Any] | Problem:
        """Names to cells, or what is wrong with the record."""
        if row.complaint is not None:
            return Problem.of(row.text, row.complaint.kind, row.complaint.detail)
        if len(row.cells) != len(row.header):
            return Problem.of(row.text, *_other_number(row))
        fields = dict(zip(row.header, row.cells, strict=True))
        wrong = not_utf8(row.text)
        return fields if wrong is None else {name: marked(cell, wrong) for name, cell in fields.items()}


def _opening(lines: Iterator[str]) -> list[str]:
    """The first lines, up to one that is not empty."""
    taken: list[str] = []
    while not taken or not taken[-1].strip():
        line = next(lines, None)
        if line is None:
            break
        taken.append(line)
    return taken


def _other_number(row: _Lines) -> Reason:
    return Reason("another number of cells than the header", f"{len(row.cells)}, the header has {len(row.header)}")


class _Reader:
    """Records of lines, and where a record is broken, the lines passed over."""

    def __init__(self, style: Dialect, lines: Iterator[str]) -> None:
        self._style = style
        self._lines = lines
        self._number = 0
        self._taken: list[str] = []
        self._cells: int | None = None  # of the header

    def records(self) -> Iterator[_Record]:
        """All records but empty lines."""
        reader = self._style.reader(iter(self._line, None))
        while True:
            self._taken.clear()
            first = self._number + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield from self._broken(first, self._complaint(str(error)))
                continue
            text = "".join(self._taken)
            if not cells:
                continue
            self._cells = self._cells or len(cells)
            if len(cells) != self._cells and self._seems_quoted(text):
                hint = f"a cell begins with a quote: if cells are quoted, pass --csv-quote '{QUOTE}'"
                yield from self._broken(first, Reason(_BROKEN, hint))
            elif self._style.quote and self._style.unescaped(text).count(self._style.quote) % 2:
                yield _Record(first, [], Reason(_BROKEN, "a quote in this row has no partner"), text)
            else:
                yield _Record(first, cells, None, text)

    def _line(self) -> str | None:
        line = next(self._lines, None)
        if line is not None:
            self._number += 1
            self._taken.append(line)
        return line

    def _complaint(self, error: str) -> Reason:
        if error == "unexpected end of data":
            return Reason("a quote opened in this row is never closed; all that follows is inside it")
        hint = ""
        if not self._style.escape and any(f"\\{self._style.quote}" in line for line in self._taken):
            hint = r"; if backslashes escape quotes, pass --csv-escape '\'"
        return Reason(_BROKEN, f"{error}{hint}")

    def _seems_quoted(self, text: str) -> bool:
        """Whether a row that was read as unquoted may be the beginning of one that is."""
        step = Step(self._style)
        step.read(text)
        return self._style.assumed and step.inside

    def _broken(self, first: int, complaint: Reason) -> Iterator[_Record]:
        """The first line of a broken record with the complaint, and every other line up to where reading is in step."""
        step = Step(self._style)
        taken = list(self._taken)
        in_step = False
        for number, line in enumerate(taken):
            in_step = step.read(line)
            if number == 0:
                yield _Record(first, [], complaint, line)
            elif line.strip():
                yield _Record(first + number, [], Reason(_PASSED_OVER, f"line {first}"), line)
        while not in_step and (passed := self._line()) is not None:
            in_step = step.read(passed)
            if passed.strip():
                yield _Record(self._number, [], Reason(_PASSED_OVER, f"line {first}"), passed)


def _check_header(record: _Record, name: str) -> None:
    """A header has distinct, short names on one line."""
    cells = record.cells
    wrong = not_utf8("".join(cells))
    problem = str(record.complaint or "") or (f"{NOT_UTF8}: {wrong}" if wrong else None)
    repeated = [cell for cell, times in Counter(cells).items() if times > 1]
    if problem is None and repeated:
        problem = f"{repeated[0]!r} stands in it {Counter(cells)[repeated[0]]} times"
    if problem is None and any(len(cell) > _LONGEST_NAME or "\n" in cell for cell in cells):
        problem = "a cell of it is a whole text"
    if problem is None and not any(cell.strip() for cell in cells):
        problem = "its cells are empty"
    if problem is not None:
        raise UserError(
            f"{name}, line {record.line}: this cannot be the header ({problem}); the first row must name the fields."
        )
