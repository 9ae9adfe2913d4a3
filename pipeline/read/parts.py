"""The parts of one row, read for itself: under which of its names it has each, what was used and what was left.

Nothing that a row says is left out in silence. A field that would change what is asked or answered, and has no place in the
text (`system`, `history`, `tools`, `images` …), rejects the row; any other that holds something and was not used is counted.
"""

from collections.abc import Collection
from typing import Any

from pipeline.read.records import Record
from schemas.alpaca import question
from schemas.chat_rows import conversation_of
from schemas.config import FieldsConfig
from schemas.conversations import Conversation
from schemas.part_names import UNPLACED, first_among, names_of
from schemas.rows import RowError, Unusable, holds_something, listed, row_id, type_of, unusable_in


class Parts:
    """One row's parts, and which of its fields they were read from."""

    def __init__(self, record: Record, fields: FieldsConfig) -> None:
        """`fields` are resolved ones."""
        self._row = record.fields
        self._fields = fields
        self._names = names_of(fields)
        self._used: set[str] = set()
        self._unused: set[str] = set()

    def text(self, part: str) -> str:
        """A part that a row may lack; empty where it does."""
        name = self._name(part, (str,))
        return "" if name is None else self._text(name, self._row[name])

    def required(self, part: str) -> str:
        """A part that a row needs. Raises `RowError` where it is missing, empty or of another type."""
        return self._needed(part, (str,))

    def response(self) -> str:
        """The response; of a list of them the first."""
        return self._needed("response", (str, list))

    def conversation(self) -> Conversation:
        """The turns, in whichever form the row has them. Raises `RowError` for what is no conversation."""
        conversation, used, unused = conversation_of(self._row, self._fields, taken=self._used)
        self._used |= used
        self._unused |= unused
        return conversation

    def id(self) -> str | None:
        """The row's own id: in the field that the user names, or in `id` if what stands there can be one."""
        own = row_id(self._row, self._fields.id)
        if own is not None:
            self._used.add(self._fields.id or "id")
        return own

    def instruction(self) -> tuple[str, str]:
        """Instruction and input; a question that stands in the input alone is the instruction."""
        asked, context = question(self.text("instruction"), self.text("input"))
        if not asked.strip():
            raise self._missing("instruction")
        return asked, context

    def made_of(self, *parts: str) -> None:
        """Another part that was read is made of these."""
        names = (name for part in parts for name in self._names.get(part, ()))
        self._used.update(name for name in names if name in self._row)

    def take(self, names: Collection[str] | None) -> None:
        """Fields that the template takes as they are; None: all of them. Raises `RowError` for one that is unusable."""
        for name in self._row if names is None else [name for name in self._row if name in names]:
            self._used.add(name)
            if (found := unusable_in(self._row[name])) is not None:
                raise found.error(f"field `{name}`")

    def used(self) -> tuple[str, ...]:
        """The fields that were read and hold something."""
        return tuple(sorted(name for name in self._used if holds_something(self._row[name])))

    def left_out(self) -> tuple[str, ...]:
        """What was not used, once all parts are read.

        `name[1:]` stands for further entries of a list, `name[].key` for a key of turns. Raises `RowError` for a field that
        the text has no place for.
        """
        left = [name for name, value in self._row.items() if name not in self._used and holds_something(value)]
        unplaced = first_among(left, UNPLACED)
        if unplaced is not None and self._fields.form != "text":
            raise RowError(f"the template has no place for `{unplaced}` (a Jinja file has, with `row.{unplaced}`)")
        return tuple(sorted(self._unused.union(left)))

    def _name(self, part: str, kinds: tuple[type, ...]) -> str | None:
        """Under which name the row has a part: one with something of the right type, else with anything but null."""
        names = [name for name in self._names.get(part, ()) if self._row.get(name) is not None]
        fitting = (n for n in names if isinstance(self._row[n], kinds) and holds_something(self._row[n]))
        return next(fitting, names[0] if names else None)

    def _needed(self, part: str, kinds: tuple[type, ...]) -> str:
        name = self._name(part, kinds)
        if name is None:
            raise self._missing(part)
        value = self._row[name]
        if list in kinds and isinstance(value, list):
            if any(map(holds_something, value[1:])):
                self._unused.add(f"{name}[1:]")
            value = value[0] if value else ""
        text = self._text(name, value)
        if not text.strip():
            raise RowError(f"`{name}` is empty")
        return text

    def _text(self, name: str, value: Any) -> str:
        if isinstance(value, Unusable):
            raise value.error(f"field `{name}`")
        if value is None:
            value = ""
        if not isinstance(value, str):
            raise RowError(f"`{name}` is {type_of(value)}, text is wanted")
        self._used.add(name)
        return value

    def _missing(self, part: str) -> RowError:
        names = self._names.get(part, (part,))
        for name in names:
            if name in self._row:
                return RowError(f"`{name}` is empty")
        return RowError(f"the row has no {listed(names, ' or ')}", f"its fields are {listed(list(self._row)[:10])}")
