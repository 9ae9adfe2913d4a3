"""Rows out of JSON: what every row must satisfy, JSON lines, and arrays of objects too large to hold.

An array is read value by value with the C scanner of the standard library on a window of the text that grows only
until one value fits. So rows have true line numbers and bad rows keep their text; `ijson`'s yajl has neither, turns an
unpaired surrogate into `?` and refuses integers over 64 bits. What makes the text *around* the rows unreadable (a
missing comma, an array never closed) ends the file: nothing after it can be told apart.
"""

import codecs
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from pipeline.read.records import NOT_UTF8, Problem, marked, not_utf8
from schemas.errors import UserError
from schemas.rows import Unusable

#: No row is longer; bytes in JSON lines, characters in arrays.
ROW_LIMIT: Final = 1 << 26
_WINDOW: Final = 1 << 16
#: A value cut by the window's end fails at most this far before it, unless it is cut inside a string.
_CUT_MARGIN: Final = 16
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_SURROGATE_ESCAPE: Final = re.compile(r"\\u[dD][89a-fA-F]")


def _constant(name: str) -> Unusable:
    return Unusable.of(name, f"{name} is not JSON", "write null, or leave the field out")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of a key that stands in it twice, neither value is taken for the one that was meant."""
    values = dict(pairs)
    if len(values) < len(pairs):
        for key, times in Counter(key for key, _ in pairs).items():
            if times > 1:
                inner = json.dumps([value for name, value in pairs if name == key], default=str)
                values[key] = Unusable.of(inner, "a field stands twice in its object", json.dumps(key))
    return values


_DECODER: Final = json.JSONDecoder(parse_constant=_constant, object_pairs_hook=_once)


def _object(value: Any, text: str, not_utf8: str | None = None) -> dict[str, Any] | Problem:
    """The row `value`, read from `text`, if it is one; what is not UTF-8 of it `not_utf8` tells."""
    if not isinstance(value, dict):
        kind = _KINDS.get(type(value), "a number")  # NaN and its like
        return Problem.of(text, f"not an object but {kind}", _HINT if isinstance(value, list) else "")
    if not_utf8 is None and not _SURROGATE_ESCAPE.search(text):
        return value
    try:
        row: dict[str, Any] = marked(value, not_utf8)
    except RecursionError:  # to look into a value takes more of the stack than to parse it
        return Problem.of(text, _TOO_DEEP)
    return row


_TOO_DEEP: Final = "nested too deeply"
#: A line by which a document over several lines begins, or goes on.
_OPENING: Final = ("[", "{", "[{")
_HINT: Final = "if the file is one JSON array or object, let its name end in .json"
_KINDS: Final[dict[type, str]] = {
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


@dataclass(frozen=True)
class JsonLines:
    """One object a line; lines of white space are no rows."""

    def split(self, stream: io.BufferedReader, name: str) -> Iterator[tuple[int, bytes]]:
        """Line numbers and lines. Of a line longer than ROW_LIMIT comes its start, one byte more than the limit."""
        number = 0
        while line := stream.readline(ROW_LIMIT + 1):
            number += 1
            if len(line) > ROW_LIMIT:
                rest = line
                while rest and not rest.endswith(b"\n"):
                    rest = stream.readline(ROW_LIMIT)
            if not line.isspace():
                yield number, line

    def parse(self, row: bytes) -> dict[str, Any] | Problem:
        """The object on a line, or what is wrong with it."""
        if len(row) > ROW_LIMIT:
            return Problem.of(row, f"longer than {ROW_LIMIT >> 20} MiB", _HINT)
        text = row.decode("utf-8", "surrogateescape")
        wrong = not_utf8(row)
        try:
            return _object(_DECODER.decode(text), text, wrong)
        except json.JSONDecodeError as error:
            if wrong:
                return Problem.of(row, NOT_UTF8, wrong)
            hint = f"; {_HINT}" if text.strip() in _OPENING else ""
            return Problem.of(text, "broken JSON", f"{_lower(error.msg)}, character {error.pos + 1} of the row{hint}")
        except RecursionError:
            return Problem.of(text, _TOO_DEEP)
        except ValueError as error:  # an integer of more digits than Python converts
            return Problem.of(text, "unreadable value", str(error))


def _lower(message: str) -> str:
    return (message[:1].lower() + message[1:]).removesuffix(" at").removesuffix(" starting")


@dataclass(frozen=True)
class JsonArray:
    """An array of objects, or an object in which one key holds an array of objects (`{"data": [...]}`)."""

    window: int = _WINDOW

    def split(self, stream: io.BufferedReader, name: str) -> Iterator[tuple[int, tuple[Any, str]]]:
        """Line numbers, and rows as values with the text they were read from.

        Raises `UserError` with the line where the text is no array of objects, or stops being one.
        """
        text = _Window(stream, name, self.window)
        opening = text.peek()
        if opening == "[":
            yield from text.array()
        elif opening == "{":
            yield from text.array_in_object()
        elif opening:
            raise text.error("expected an array of objects")
        if text.peek():
            raise text.error("more follows after the end; if this holds one object a line, name it .jsonl")

    def parse(self, row: tuple[Any, str]) -> dict[str, Any] | Problem:
        """The object, or what is wrong with it."""
        value, text = row
        return _object(value, text, not_utf8(text))


class _Window:
    """A cursor over JSON text that holds little more than the value under it."""

    def __init__(self, stream: io.BufferedReader, name: str, size: int) -> None:
        self._stream, self._name, self._size = stream, name, size
        self._utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._text, self._at, self._line, self._ended = "", 0, 1, False

    def error(self, what: str, at: int | None = None) -> UserError:
        """A `UserError` that names the file, and the line and character of `at` (default: the cursor)."""
        at = self._at if at is None else at
        line = self._line + self._text.count("\n", self._at, at)
        place = json.dumps(self._text[at : at + 20]) if at < len(self._text) else "the end of the file"
        return UserError(f"{self._name}, line {line}: {what} (at {place}).")

    def peek(self) -> str:
        """Moves to the next character that is not white space and gives it; empty at the end."""
        while True:
            end = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]  # matches the empty string
            self._advance(end)
            if end < len(self._text) or not self._grow():
                return self._text[end : end + 1]

    def array(self) -> Iterator[tuple[int, tuple[Any, str]]]:
        """The values of the array at the cursor, which moves behind it."""
        self._take("[", "expected an array")
        if self.peek() == "]":
            self._advance(self._at + 1)
            return
        while True:
            self.peek()
            yield self._line, self._value()
            if self.peek() == "]":
                self._advance(self._at + 1)
                return
            self._take(",", "expected a comma or the end of the array")

    def array_in_object(self) -> Iterator[tuple[int, tuple[Any, str]]]:
        """The values of the one array of objects that the object at the cursor holds."""
        self._take("{", "expected an object")
        found: str | None = None
        first = True
        while self.peek() != "}":
            if not first:
                self._take(",", "expected a comma or the end of the object")
                self.peek()
            first = False
            key = self._value()[0]
            if not isinstance(key, str):
                raise self.error("a key is not a string")
            self.peek()
            self._take(":", "expected a colon")
            if self.peek() != "[":
                self._value()
                continue
            if not self._opens_objects():
                for _ in self.array():
                    pass
                continue
            if found is not None:
                raise self.error(f"both `{found}` and `{key}` hold rows; keep one array of objects in a file")
            found = key
            yield from self.array()
        self._advance(self._at + 1)
        if found is None:
            raise self.error(
                "one object that holds no array of objects; put the rows into an array, "
                "or name the file .jsonl if it holds one object a line"
            )

    def _opens_objects(self) -> bool:
        """Whether the array at the cursor begins with an object."""
        while True:
            end = _SPACE.match(self._text, self._at + 1).end()  # type: ignore[union-attr]  # matches the empty string
            if end < len(self._text) or not self._grow():
                return self._text[end : end + 1] == "{"

    def _take(self, expected: str, complaint: str) -> None:
        if self._text[self._at : self._at + 1] != expected:
            raise self.error(complaint)
        self._advance(self._at + 1)

    def _value(self) -> tuple[Any, str]:
        """The value at the cursor and its text; the cursor moves behind it."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                if end < len(self._text) or self._ended:  # else a number may go on
                    break
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _CUT_MARGIN
                if self._ended or not cut:
                    raise self.error(f"broken JSON: {_lower(error.msg)}", error.pos) from None
            except (RecursionError, ValueError) as error:
                raise self.error(f"unreadable value: {error}") from None
            if len(self._text) - self._at > ROW_LIMIT:
                raise self.error(f"a value of more than {ROW_LIMIT >> 20} Mi characters, or one that is never closed")
            self._grow()
        text = self._text[self._at : end]
        self._advance(end)
        return value, text

    def _advance(self, at: int) -> None:
        self._line += self._text.count("\n", self._at, at)
        self._at = at

    def _grow(self) -> bool:
        """Drops what lies behind the cursor and doubles what is left; False at the end of the stream."""
        if self._ended:
            return False
        rest = self._text[self._at :]
        block = self._stream.read(max(self._size, len(rest)))
        self._ended = not block
        self._text, self._at = rest + self._utf8.decode(block, final=self._ended), 0
        return True
