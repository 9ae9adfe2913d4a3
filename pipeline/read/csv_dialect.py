"""How a CSV file is written: what separates its cells, what stands around them, what escapes.

What a user does not say is taken from the file's name and header. `.csv` is RFC 4180: commas, quoted where need be. `.tsv`
is tabs and no quoting, so that a quote is text, unless every name in the header is quoted. A header that is one cell so,
and several with a semicolon, a tab, a bar or a comma, is separated by that. Nothing tells that backslashes escape quotes.
"""

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from schemas.config import CsvConfig

QUOTE: Final = '"'
_DELIMITERS: Final = (",", ";", "\t", "|")
_LINE_ENDS: Final = "\r\n"


@dataclass(frozen=True)
class Dialect:
    """What one file is read by."""

    delimiter: str
    quote: str  # empty: a quote is text
    escape: str | None
    assumed: bool = False  # nobody said that there are no quotes around cells

    def reader(self, lines: Iterable[str]) -> Any:
        """The standard library's reader of `lines`, which complains instead of guessing."""
        return csv.reader(
            lines,
            delimiter=self.delimiter,
            quotechar=self.quote or None,
            quoting=csv.QUOTE_MINIMAL if self.quote else csv.QUOTE_NONE,
            escapechar=self.escape,
            strict=True,
        )

    def unescaped(self, text: str) -> str:
        """`text` without escaped characters, so that every quote in it is one that opens, closes or is doubled."""
        return re.sub(re.escape(self.escape) + ".", "", text, flags=re.DOTALL) if self.escape else text


def dialect(config: CsvConfig, expected: str, header: str) -> Dialect:
    """The dialect of a file of whose kind the delimiter `expected` is, and whose first line is `header`."""
    delimiter = config.delimiter or _recognised(header, expected, config)
    quote = config.quote
    if quote is None:
        names = header.rstrip(_LINE_ENDS).split("\t")
        unquoted = delimiter == expected == "\t" and not all(map(_quoted, names))
        quote = "" if unquoted else QUOTE
    return Dialect(delimiter, quote, config.escape, assumed=config.quote is None and not quote)


def _quoted(cell: str) -> bool:
    return len(cell) > 1 and cell[0] == cell[-1] == QUOTE


def _recognised(header: str, expected: str, config: CsvConfig) -> str:
    def cells(delimiter: str) -> int:
        quote = QUOTE if config.quote is None else config.quote
        reader = csv.reader([header], delimiter=delimiter, quotechar=quote or None, escapechar=config.escape)
        return sum(map(len, reader))

    if cells(expected) > 1:
        return expected
    free = [mark for mark in _DELIMITERS if mark not in (config.quote, config.escape)]
    best = max(free, key=cells)
    return best if cells(best) > 1 else expected


class Step:
    """Whether reading is in step: outside of a quoted cell at the end of a line, though a quoted cell was broken before.

    Nothing says what the writer of a broken cell meant, so several readings must agree: quotes come in pairs; a quote closes
    a cell only before a delimiter or the line's end, and is text elsewhere; a backslash escapes. A row may be passed over
    that could have been used, so that none is made of the inside of a cell.
    """

    def __init__(self, style: Dialect) -> None:
        escapes = (style.escape,) if style.escape else (None, "\\")
        self._readings = [_Reading(replace(style, quote=style.quote or QUOTE, escape=escape)) for escape in escapes]

    def read(self, line: str) -> bool:
        """Take in the next line of the broken row or behind it; whether reading is in step at its end."""
        ended = [reading.ended(line) for reading in self._readings]
        return all(ended)

    @property
    def inside(self) -> bool:
        """Whether a quoted cell is open, as far as can be told from what stands beside the quotes."""
        return self._readings[0].inside


class _Reading:
    """Follows quotes from the beginning of a row, by pairs and by what stands beside them."""

    def __init__(self, style: Dialect) -> None:
        self._style = style
        self._quotes = 0
        self._closes = False  # whether the last quote stands before a delimiter or the line's end
        self.inside = False

    def ended(self, line: str) -> bool:
        """Take in a line; whether no quoted cell is open at its end."""
        text = self._style.unescaped(line)
        self._quotes += text.count(self._style.quote)
        for at in self._bare(text):
            after = text[at + 1 : at + 2]
            self._closes = not after or after in _LINE_ENDS or after == self._style.delimiter
            self.inside = not self._closes if self.inside else at == 0 or text[at - 1] == self._style.delimiter
        return self._quotes % 2 == 0 and self._closes and not self.inside

    def _bare(self, text: str) -> Iterator[int]:
        """Where quotes stand, but for doubled ones inside a quoted cell."""
        quote = self._style.quote
        at = text.find(quote)
        while at >= 0:
            doubled = self.inside and text.startswith(quote, at + 1)
            if not doubled:
                yield at
            at = text.find(quote, at + 1 + doubled)
