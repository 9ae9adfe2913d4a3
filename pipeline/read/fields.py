"""Which field of a row plays which part: named by the user, or detected from the first rows.

Forms are tried in this order, and the first that a row of the sample has is taken:

1. `messages` (a list of {role, content}), or `conversations` (a list of {from, value});
2. `prompt` beside `instruction` and `output`, as MiniLLM writes: the prompt is ready-made and `output` is the response;
3. `instruction` with `output`, `response`, `completion` or `chosen`, and `input` or `context` where there is one;
4. `prompt` with `response`, `completion`, `output` or `chosen`;
5. `text`.

A field that the user names is taken as it is named, and only the other half (prompt or response) is detected for it.
"""

from collections.abc import Sequence
from typing import Any, Final

from pipeline.read.records import Record
from schemas.config import FieldsConfig
from schemas.errors import UsageError, UserError, nearest

MESSAGES: Final = ("messages", "conversations")
INPUTS: Final = ("input", "context")
AFTER_INSTRUCTION: Final = ("output", "response", "completion", "chosen")
AFTER_PROMPT: Final = ("response", "completion", "output", "chosen")

_FLAGS: Final = (
    "--prompt-field and --response-field, --instruction-field, --input-field and --output-field, --messages-field, "
    "or --text-field"
)


def resolve_fields(config: FieldsConfig, sample: Sequence[Record]) -> FieldsConfig:
    """The config with every part that is needed named; to resolve the result again changes nothing.

    Raises `UserError` when a named field is in no row of the sample, or when no form is found; `UsageError` when the
    named fields contradict each other.
    """
    names = list(dict.fromkeys(name for record in sample for name in record.fields))
    if not names:
        raise UserError("None of the first rows can be read, so nothing tells their fields; see the reasons given.")
    named = config.model_dump(exclude_none=True)
    for part, name in named.items():
        if name not in names:
            near = nearest(name, names)
            hint = f"; did you mean `{near}`?" if near else "."
            raise UserError(f"No row has the field `{name}` (--{part}-field); the fields are {_listed(names)}{hint}")
    _check(config)
    found = _Sample(sample)
    id_field = config.id or ("id" if found.has_ids("id") else None)
    return FieldsConfig.model_validate({**_parts(config, found, names), "id": id_field})


def response_field(fields: FieldsConfig) -> str | None:
    """The field with the response: `response` and `output` are two names of one part."""
    return fields.response or fields.output


class _Sample:
    """Asks the first rows which fields they have, and of what type."""

    def __init__(self, sample: Sequence[Record]) -> None:
        self._rows = [record.fields for record in sample]

    def first(self, names: Sequence[str], *kinds: type) -> str | None:
        """The first name that a row has with a value of one of `kinds`."""
        return next((n for n in names if any(isinstance(row.get(n), kinds) for row in self._rows)), None)

    def messages(self) -> str | None:
        return next((n for n in MESSAGES if any(_is_turns(row.get(n)) for row in self._rows)), None)

    def has_ids(self, name: str) -> bool:
        """Whether a row has the field and no row has anything in it but a string or an integer."""
        values = [row[name] for row in self._rows if row.get(name) is not None]
        return bool(values) and all(isinstance(v, str | int) and not isinstance(v, bool) for v in values)


def _is_turns(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) for turn in value)


def _check(config: FieldsConfig) -> None:
    """One form only, and one response."""
    named = [part for part in config.model_dump(exclude_none=True) if part != "id"]
    for alone in ("messages", "text"):
        if alone in named and len(named) > 1:
            other = next(part for part in named if part != alone)
            raise UsageError(
                f"--{alone}-field and --{other}-field exclude each other: `{alone}` holds the whole row's text."
            )
    if config.response and config.output:
        raise UsageError("--response-field and --output-field both name the response; give one.")


def _parts(config: FieldsConfig, found: _Sample, names: Sequence[str]) -> dict[str, str | None]:
    """The parts but for the id."""
    named = {part: name for part, name in config.model_dump(exclude_none=True).items() if part != "id"}
    if config.messages or config.text:
        return named
    if not named:
        return _detected(found, names)
    parts: dict[str, str | None] = dict(named)
    if not (config.prompt or config.instruction):
        parts["instruction"] = found.first(("instruction",), str)
        if parts["instruction"] is None and not config.input:
            parts["prompt"] = found.first(("prompt",), str)
        if parts["instruction"] and not config.input:
            parts["input"] = found.first(INPUTS, str)
        if not (parts["instruction"] or parts.get("prompt")):
            raise UserError(
                f"Nothing names the prompt; add --prompt-field or --instruction-field. The fields are {_listed(names)}."
            )
    if not response_field(config):
        part, candidates = ("output", AFTER_INSTRUCTION) if parts.get("instruction") else ("response", AFTER_PROMPT)
        parts[part] = found.first(candidates, str, list)
        if parts[part] is None:
            raise UserError(f"Nothing names the response; add --response-field. The fields are {_listed(names)}.")
    return parts


def _detected(found: _Sample, names: Sequence[str]) -> dict[str, str | None]:
    if messages := found.messages():
        return {"messages": messages}
    instruction, prompt = found.first(("instruction",), str), found.first(("prompt",), str)
    if instruction and (output := found.first(AFTER_INSTRUCTION, str, list)):
        ready = prompt if output == "output" else None
        return {"prompt": ready, "instruction": instruction, "input": found.first(INPUTS, str), "output": output}
    if prompt and (response := found.first(AFTER_PROMPT, str, list)):
        return {"prompt": prompt, "response": response}
    if text := found.first(("text",), str):
        return {"text": text}
    nested = [name for name in names if found.first((name,), list, dict)]
    hint = f" {_listed(nested)} holds nested values: flatten them into fields of their own first." if nested else ""
    raise UserError(f"The fields {_listed(names)} are of no known form; name them with {_FLAGS}.{hint}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
