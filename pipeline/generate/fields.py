"""Fields of prompts that a user names: a row as it would be if they had their usual names.

As `mta-prep parse` has it, a part that is named is looked for under that name alone; and where parts of one form are named
(turns, or a single prompt), those of the other are not looked for.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pipeline.read.fields import require_named
from pipeline.read.records import Record
from schemas.config import FieldsConfig, PromptFieldsConfig
from schemas.part_names import INPUTS, MESSAGES
from schemas.rows import holds_something

#: Parts of what is asked, and their usual names, the first of them preferred.
_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "id": ("id",),
    "prompt": ("prompt",),
    "instruction": ("instruction",),
    "input": INPUTS,
    "messages": MESSAGES,
}
_SINGLE: Final = ("prompt", "instruction", "input")


@dataclass(frozen=True)
class Naming:
    """Which field plays which part; none that is named plays what it does by its usual name."""

    named: Mapping[str, str] = field(default_factory=dict)  # part to field

    @classmethod
    def of(cls, config: PromptFieldsConfig) -> "Naming":
        """That of a config."""
        return cls(config.model_dump(exclude_none=True))

    def require_there(self, sample: Sequence[Record]) -> None:
        """Raises `UserError` for a field that no row of the sample has, `UsageError` for fields that contradict each other."""
        if self.named and sample:
            require_named(FieldsConfig.model_validate(self.named), sample)

    def read(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """A row's fields by their usual names."""
        hidden = set(self._hidden())
        usual = {name: value for name, value in fields.items() if name not in hidden}
        return usual | {_NAMES[part][0]: fields[name] for part, name in self.named.items() if name in fields}

    def unread(self, fields: Mapping[str, Any], used: Mapping[str, Any]) -> tuple[str, ...]:
        """Those of a row that hold something and are not among the usual names `used`."""
        taken = {name for part, name in self.named.items() if _NAMES[part][0] in used}
        taken |= set(used) - set(self._hidden())
        return tuple(name for name, value in fields.items() if holds_something(value) and name not in taken)

    def _hidden(self) -> Iterator[str]:
        """Fields that are not looked at by their own names."""
        parts = set(self.named)
        if "messages" in parts:
            parts.update(_SINGLE)
        elif parts.intersection(_SINGLE):
            parts.add("messages")
        for part in parts:
            yield from _NAMES[part]
        yield from self.named.values()


USUAL: Final = Naming()
