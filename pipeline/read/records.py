"""What reading gives: a row that can be used as it is, a row that cannot, and what is recorded of a file."""

from dataclasses import dataclass
from typing import Any, Final

#: Of a rejected row, this many characters are kept.
RAW_LIMIT: Final = 2_000


@dataclass(frozen=True)
class Record:
    """One row: an object of named values, every string of which can be written as UTF-8."""

    number: int  # from 0: within its source as `Source.read` gives it, over all inputs as `read_rows` does
    file: str
    line: int  # from 1: the line on which the row begins in text formats, the row's place in the file in others
    fields: dict[str, Any]


@dataclass(frozen=True)
class Rejected:
    """One row that cannot be used, with the cause in words; numbered together with the records."""

    number: int
    file: str
    line: int
    reason: str
    raw: str  # the row as it stands, at most RAW_LIMIT characters, bytes outside UTF-8 as \\xNN


class RowError(Exception):
    """A record cannot be made a document of; the message is the reason, and names the field."""


@dataclass(frozen=True)
class Problem:
    """Why a row cannot be used, before it is known where it stands."""

    reason: str
    raw: str

    @classmethod
    def of(cls, reason: str, raw: str | bytes) -> "Problem":
        """Cut to RAW_LIMIT characters; what is not UTF-8 (bytes, or surrogates standing for them) becomes \\xNN."""
        start = raw[: 4 * RAW_LIMIT]
        encoded = start if isinstance(start, bytes) else start.encode("utf-8", "surrogateescape")
        return cls(reason, encoded.decode("utf-8", "backslashreplace")[:RAW_LIMIT])


def not_utf8(raw: str | bytes) -> str | None:
    """The reason if `raw` is not UTF-8: which byte of the row, from 0. In a `str`, surrogates stand for such bytes."""
    try:
        (raw if isinstance(raw, bytes) else raw.encode("utf-8", "surrogateescape")).decode("utf-8")
    except UnicodeDecodeError as error:
        return f"not UTF-8: byte {error.start} of the row is 0x{error.object[error.start]:02x}"
    return None


def unpaired_surrogate(value: object) -> str | None:
    """The first unpaired surrogate in any string of `value`, keys included, as `\\ud800`."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            return f"\\u{ord(value[error.start]):04x}"
        return None
    inner: list[object] = []
    if isinstance(value, dict):
        inner = [*value.keys(), *value.values()]
    elif isinstance(value, list):
        inner = value
    return next((found for item in inner if (found := unpaired_surrogate(item))), None)
