"""Which fields of a row play which part: the form of all rows, told by the first, and the names that a part goes by.

A run reads one form, the first of these that a row of the sample has:

1. `conversation`: a list of turns, in `messages`, `conversations`, or for the prompt or the answer. What turns a row has, and
   in which form, is then told row by row (`schemas.chat_rows`), and single prompts with their answers may stand between;
2. `ready-made`: a `prompt` beside `instruction` and `output`, as MiniLLM writes: the prompt is made of the instruction;
3. `instruction`: an `instruction`, an `input` or `context` where there is one, and a response; or a question that stands in
   `input` alone;
4. `prompt`: a `prompt` and a response;
5. `text`.

A response is `output`, `response`, `completion` or `chosen`. The form is settled once; under which of its names a row has a
part, and whether it has one that may be missing, is looked at row by row (`pipeline.read.parts`). A part that the user
names is looked for under that name alone.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from pipeline.read.records import Record
from schemas.config import FieldsConfig, Form
from schemas.errors import UsageError, UserError, nearest
from schemas.part_names import AFTER_INSTRUCTION, AFTER_PROMPT, MESSAGES, USUAL_NAMES
from schemas.rows import is_turns, listed, type_of

#: Parts that any row may lack.
_OPTIONAL: Final = frozenset({"input", "id"})
_FLAGS: Final = (
    "--prompt-field and --response-field, --instruction-field, --input-field and --output-field, --messages-field, "
    "or --text-field"
)


def resolve_fields(config: FieldsConfig, sample: Sequence[Record]) -> FieldsConfig:
    """The config with its form; to resolve the result again changes nothing.

    Raises `UserError` when a named field that every row needs is in no row of the sample, or when no form is found;
    `UsageError` when the named fields contradict each other.
    """
    names = list(dict.fromkeys(name for record in sample for name in record.fields))
    if not names:
        raise UserError("None of the first rows has a field, so nothing tells what they are.")
    require_named(config, sample)
    if config.form is not None:
        return config
    found = _Sample(sample)
    form = _named_form(config, found, names) or _detected(found)
    if form is None:
        raise _no_form(found, names)
    return config.model_copy(update={"form": form})


def require_named(config: FieldsConfig, sample: Sequence[Record]) -> None:
    """Raises `UserError` when a named field that every row needs is in no row of the sample, `UsageError` when named fields
    contradict each other."""
    _check(config)
    names = list(dict.fromkeys(name for record in sample for name in record.fields))
    for part, name in config.model_dump(exclude={"form"}, exclude_none=True).items():
        near = nearest(name, names)
        if name not in names and (part not in _OPTIONAL or near):  # an input may come later, if it is no misspelt one
            hint = f"; did you mean `{near}`?" if near else "."
            raise UserError(f"No row has the field `{name}` (--{part}-field); the fields are {listed(names)}{hint}")


class _Sample:
    """Asks the first rows which fields they have, and of what type."""

    def __init__(self, sample: Sequence[Record]) -> None:
        self._sample = sample

    def any(self, names: Sequence[str], wanted: Callable[[Any], bool]) -> bool:
        """Whether a row has such a value under one of the names."""
        return any(wanted(record.fields.get(name)) for name in names for record in self._sample)

    def text(self, *names: str) -> bool:
        return self.any(names, _is_text)

    def response(self) -> bool:
        return self.any(AFTER_INSTRUCTION, _is_response)

    def other_type(self, names: Sequence[str], wanted: Callable[[Any], bool]) -> str | None:
        """Where the first of the names has a value, and never one that is wanted: which, of what type, in which row."""
        for name in names:
            first = next((record for record in self._sample if record.fields.get(name) is not None), None)
            if first is not None and not self.any((name,), wanted):
                return f"`{name}` is {type_of(first.fields[name])} in {first.file}, line {first.line}"
        return None


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_response(value: Any) -> bool:
    return isinstance(value, str | list)


def _check(config: FieldsConfig) -> None:
    """One form only, and one response."""
    named = list(config.model_dump(exclude={"form", "id"}, exclude_none=True))
    for alone in ("messages", "text"):
        if alone in named and len(named) > 1:
            other = next(part for part in named if part != alone)
            raise UsageError(
                f"--{alone}-field and --{other}-field exclude each other: `{alone}` holds the whole row's text."
            )
    if config.form is not None:
        foreign = [part for part in named if part.replace("output", "response") not in USUAL_NAMES[config.form]]
        if foreign:
            raise UsageError(f"--{foreign[0]}-field names a part that rows of the form `{config.form}` do not have.")
    if config.response and config.output:
        raise UsageError("--response-field and --output-field both name the response; give one.")
    if config.prompt and config.input and not config.instruction:
        raise UsageError(
            "--input-field belongs to an instruction, and --prompt-field names a ready-made prompt; give one."
        )


def _named_form(config: FieldsConfig, found: _Sample, names: Sequence[str]) -> Form | None:
    """The form that the named fields are of, the other half (prompt or response) detected; None if none is named."""
    if not config.model_dump(exclude={"form", "id"}, exclude_none=True):
        return None
    if config.messages:
        return "conversation"
    if config.text:
        return "text"
    if not (config.response or config.output or found.response()):
        raise UserError(f"Nothing names the response; add --response-field. The fields are {listed(names)}.")
    if config.prompt:
        return "ready-made" if config.instruction else "prompt"
    prompt = found.text("prompt")
    if config.instruction or found.text("instruction") or (config.input and not prompt):
        return "instruction"
    if prompt and not config.input:
        return "prompt"
    raise UserError(
        f"Nothing names the prompt; add --prompt-field or --instruction-field. The fields are {listed(names)}."
    )


def _detected(found: _Sample) -> Form | None:
    if found.any((*MESSAGES, "prompt", *AFTER_PROMPT), is_turns):
        return "conversation"
    if found.response():
        if found.text("instruction"):
            ready = found.text("prompt") and found.any(("output",), _is_response)
            return "ready-made" if ready else "instruction"
        if found.text("prompt"):
            return "prompt"
        if found.text("input"):
            return "instruction"
    return "text" if found.text("text") else None


def _no_form(found: _Sample, names: Sequence[str]) -> UserError:
    """What the fields lack for a known form: the right type, the other half, or any known name."""
    wanted = (
        (MESSAGES, is_turns, "a list of turns is wanted"),
        (("instruction", "prompt", "input"), _is_text, "text is wanted"),
        (AFTER_INSTRUCTION, _is_response, "text is wanted"),
        (("text",), _is_text, "text is wanted"),
    )
    nested = [name for name in names if found.any((name,), lambda value: isinstance(value, list | dict))]
    hint = f" {listed(nested)} holds nested values: flatten them into fields of their own first." if nested else ""
    for candidates, fits, what in wanted:
        if other := found.other_type(candidates, fits):
            return UserError(f"{other}, {what}. Name other fields with {_FLAGS}.{hint}")
    asking = [name for name in ("instruction", "prompt", "input") if found.text(name)]
    if asking:
        return UserError(
            f"The rows have {listed(asking)}, and no response to it; name its field with --response-field. "
            f"The fields are {listed(names)}.{hint}"
        )
    return UserError(f"The fields {listed(names)} are of no known form; name them with {_FLAGS}.{hint}")
