"""What reading gives: a row of named values, or a row that cannot be used, and where it stands."""

import json
from dataclasses import dataclass
from typing import Any, Final

from schemas.rows import UNPAIRED, Reason, Unusable, unpaired_surrogate

#: Of a rejected row, this many characters are kept.
RAW_LIMIT: Final = 2_000
NOT_UTF8: Final = "not UTF-8"


@dataclass(frozen=True)
class Record:
    """One row: an object of named values, every string of which can be written as UTF-8; others are `Unusable`."""

    number: int  # from 0: within its source as `Source.read` gives it, over all inputs as `read_rows` does
    file: str
    line: int  # from 1: the line on which the row begins in text formats, the row's place in the file in others
    fields: dict[str, Any]

    def left_out(self, reason: Reason, own_id: str | None) -> "Rejected":
        """The row, which could be read, as one that is not used."""
        raw = json.dumps(self.fields, ensure_ascii=True, default=str)[:RAW_LIMIT]
        return Rejected(self.number, self.file, self.line, reason, raw, own_id)


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
