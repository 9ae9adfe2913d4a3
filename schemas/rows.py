"""What is in a row of named values: what can be used of it, and why a row cannot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

#: Of what a reason repeats of a row, so many characters.
_DETAIL: Final = 200
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


def unpaired_surrogate(text: str) -> str | None:
    """The first unpaired surrogate in `text`, as `\\ud800`."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"\\u{ord(text[error.start]):04x}"
    return None


def require_paired(text: str, what: str, where: str = "") -> None:
    """Raises `RowError` for text with an unpaired surrogate, which UTF-8 cannot hold."""
    if (surrogate := unpaired_surrogate(text)) is not None:
        raise RowError(UNPAIRED, ", ".join(filter(None, (f"{surrogate} in {what}", where))))


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


def row_id(row: Mapping[str, Any], field: str | None = None) -> str | None:
    """The row's own id, integers as decimal strings: in a field that is named, or in `id` if what stands there can be one.

    Raises `RowError` for what cannot be one in a field that is named, and for an id that is unusable.
    """
    name = field or "id"
    value = row.get(name)
    usable = isinstance(value, str | int) and not isinstance(value, bool)
    if value is None or value == "" or (not usable and field is None):
        return None
    if isinstance(value, Unusable):
        raise value.error(f"field `{name}`")
    if not usable:
        raise RowError(f"`{name}` is {type_of(value)}, an id is a string or an integer")
    return str(value)


def is_turns(value: Any) -> bool:
    """Whether it is a list of turns."""
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) for turn in value)


def listed(names: Sequence[str], last: str = ", ") -> str:
    """`a`, `b`: for messages."""
    quoted = [f"`{name}`" for name in names]
    return last.join([", ".join(quoted[:-1]), quoted[-1]]) if len(quoted) > 1 else "".join(quoted)


def type_of(value: Any) -> str:
    """How a person would call the type of a JSON value."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, Unusable):
        return f"no text ({value.reason})"
    names = {str: "a string", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), f"a value of type {type(value).__name__}")
