"""What reading gives: a row of named values, a row that cannot be used, and why."""

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

#: Of a rejected row, this many characters are kept.
RAW_LIMIT: Final = 2_000
#: And of what its reason repeats of it, so many.
_DETAIL: Final = 200
NOT_UTF8: Final = "not UTF-8"
UNPAIRED: Final = "unpaired surrogate"


class Reason(NamedTuple):
    """Why a row is left out: a kind, by which such rows are counted, and what is of this row alone."""

    kind: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


class RowError(Exception):
    """A record cannot be made a document of; the kind of reason names the field."""

    def __init__(self, kind: str, detail: str = "") -> None:
        self.reason = Reason(kind, detail[:_DETAIL])
        super().__init__(str(self.reason))


@dataclass(frozen=True)
class Unusable:
    """Stands in a row for a value that no text can be made of. The row is rejected only where that value is used."""

    reason: Reason
    text: str  # the value as it stands, what is not UTF-8 of it as \\xNN or \\uNNNN

    @classmethod
    def of(cls, value: str | bytes, kind: str, detail: str = "") -> "Unusable":
        """Of a string that is not UTF-8 (surrogates stand for the bytes), or of other text."""
        encoded = value if isinstance(value, bytes) else value.encode("utf-8", "backslashreplace")
        return cls(Reason(kind, detail), encoded.decode("utf-8", "backslashreplace"))

    def error(self, where: str) -> RowError:
        """What is wrong with a row that uses the value."""
        return RowError(self.reason.kind, ", ".join(filter(None, (where, self.reason.detail))))

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Record:
    """One row: an object of named values, every string of which can be written as UTF-8; others are `Unusable`."""

    number: int  # from 0: within its source as `Source.read` gives it, over all inputs as `read_rows` does
    file: str
    line: int  # from 1: the line on which the row begins in text formats, the row's place in the file in others
    fields: dict[str, Any]


@dataclass(frozen=True)
class Rejected:
    """One row that is left out, with the cause; numbered together with the records."""

    number: int
    file: str
    line: int
    reason: Reason
    raw: str  # the row as it stands, at most RAW_LIMIT characters, bytes outside UTF-8 as \\xNN
    id: str | None = None  # where the row could be read that far

    def entry(self) -> dict[str, Any]:
        """The row as it goes to `rejected.jsonl`."""
        return {"file": self.file, "line": self.line, "id": self.id, "reason": str(self.reason), "raw": self.raw}


@dataclass(frozen=True)
class Problem:
    """Why a row cannot be used, before it is known where it stands."""

    reason: Reason
    raw: str

    @classmethod
    def of(cls, raw: str | bytes, kind: str, detail: str = "") -> "Problem":
        """`raw` is cut to RAW_LIMIT characters; what is not UTF-8 (bytes, or surrogates standing for them) becomes \\xNN."""
        start = raw[: 4 * RAW_LIMIT]
        encoded = start if isinstance(start, bytes) else start.encode("utf-8", "surrogateescape")
        return cls(Reason(kind, detail), encoded.decode("utf-8", "backslashreplace")[:RAW_LIMIT])


def not_utf8(raw: str | bytes) -> str | None:
    """What is not UTF-8 of `raw`, if anything: which byte, from 0. In a `str`, surrogates stand for such bytes."""
    try:
        (raw if isinstance(raw, bytes) else raw.encode("utf-8", "surrogateescape")).decode("utf-8")
    except UnicodeDecodeError as error:
        return f"byte {error.start} of the row is 0x{error.object[error.start]:02x}"
    return None


def unpaired_surrogate(text: str) -> str | None:
    """The first unpaired surrogate in `text`, as `\\ud800`."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"\\u{ord(text[error.start]):04x}"
    return None


def marked(value: Any, not_utf8: str | None) -> Any:
    """`value` with every string that UTF-8 cannot hold as `Unusable`, and keys that it cannot hold written with escapes.

    `not_utf8` tells that surrogates stand for bytes, and for which; without it they were escaped as such. Raises
    `RecursionError` for what is nested too deeply.
    """
    if isinstance(value, str):
        found = unpaired_surrogate(value)
        if found is None:
            return value
        if not_utf8 is None:
            return Unusable.of(value, UNPAIRED, found)
        return Unusable.of(value.encode("utf-8", "surrogateescape"), NOT_UTF8, not_utf8)
    if isinstance(value, dict):
        return {str(marked(key, not_utf8)): marked(inner, not_utf8) for key, inner in value.items()}
    if isinstance(value, list):
        return [marked(inner, not_utf8) for inner in value]
    return value


def unusable_in(value: Any) -> Unusable | None:
    """The first value in `value`, itself included, that is unusable."""
    if isinstance(value, Unusable):
        return value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((found for item in inner if (found := unusable_in(item)) is not None), None)


def holds_something(value: Any) -> bool:
    """Whether leaving `value` out would lose anything."""
    return not (
        value is None or value is False or value == [] or value == {} or (isinstance(value, str) and not value.strip())
    )
