"""From a row to the text of a document: prompt, then response, and where the response begins.

A template renders the prompt; the response follows it as it stands. Built in:

- `alpaca`: instruction and, where it is not empty, input under the headings that Stanford Alpaca introduced;
- `plain`: a ready-made prompt as it stands, or a text with no prompt at all;
- `chat`: every turn under a heading with its role. It is text, not a tokenizer's own chat template, because teacher and
  student must read the same characters.

Anything else is a Jinja file, rendered in a sandbox. It may use `instruction`, `input`, `prompt`, `messages` (the turns
before the response, each with `role` and `content`) and `row` (all fields).
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipeline.read.fields import response_field
from pipeline.read.jinja import PromptTemplate
from pipeline.read.records import Record, RowError, unpaired_surrogate
from schemas.alpaca import ALPACA, ALPACA_WITH_INPUT
from schemas.config import FieldsConfig
from schemas.errors import UsageError, nearest

_PLACES: Final = {"instruction": "{{ instruction }}", "input": "{{ input }}"}
_ALPACA: Final = (
    f"{{% if input %}}{ALPACA_WITH_INPUT.format(**_PLACES)}{{% else %}}{ALPACA.format(**_PLACES)}{{% endif %}}"
)
_CHAT: Final = (
    "{% for turn in messages %}### {{ turn.role | capitalize }}:\n{{ turn.content }}\n\n{% endfor %}### Assistant:\n"
)
BUILT_IN: Final = {"alpaca": _ALPACA, "plain": "{{ prompt }}", "chat": _CHAT}
_NEEDS: Final = {"alpaca": "instruction", "plain": "prompt", "chat": "messages"}

#: Names under which chat data sets keep their turns, and what they call the speakers.
_ROLE_KEYS: Final = ("role", "from")
_CONTENT_KEYS: Final = ("content", "value")
_ROLES: Final = {"human": "user", "gpt": "assistant", "model": "assistant"}


@dataclass(frozen=True)
class Rendered:
    """A document. `response_start` counts characters, and is 0 for a text without a prompt."""

    id: str
    text: str
    response_start: int


def resolve_template(name: str, fields: FieldsConfig) -> str:
    """`auto` -> the template that fits the fields; other names as they are.

    `chat` for messages, `plain` for a ready-made prompt or a text, else `alpaca`. Raises `UsageError` for a name that
    is neither built in nor a file.
    """
    if name == "auto":
        if fields.messages:
            return "chat"
        return "plain" if fields.prompt or fields.text else "alpaca"
    if name not in BUILT_IN and not Path(name).is_file():
        near = nearest(name, BUILT_IN)
        hint = f"Did you mean {near}?" if near else f"Built in: auto, {', '.join(BUILT_IN)}."
        raise UsageError(f"Template {name!r} is neither built in nor a file. {hint}")
    return name


class Renderer:
    """Renders rows whose fields are known by a template; `fields` and `template` are resolved ones."""

    def __init__(self, fields: FieldsConfig, template: str) -> None:
        """Raises `UsageError`, with file and line, for a template that is broken or asks for what no field gives."""
        if fields.text and template != "plain":
            raise UsageError(f"Template {template!r} renders prompts, and a row of --text-field has none; use plain.")
        available = _available(fields)
        if template in BUILT_IN and _NEEDS[template] not in available:
            raise UsageError(
                f"Template {template!r} needs a field for `{_NEEDS[template]}`; name it with --{_NEEDS[template]}-field, or "
                f"let `auto` choose the template."
            )
        self._fields = fields
        self._response = response_field(fields)
        self._name = template if template in BUILT_IN else Path(template).name
        self._source = BUILT_IN.get(template) or _read(Path(template))
        self._template = PromptTemplate(self._source, template, available)

    def identity(self) -> dict[str, Any]:
        """All that decides the text of a row: the template's name and hash, and the fields."""
        return {
            "template": self._name,
            "sha256": hashlib.sha256(self._source.encode()).hexdigest(),
            "fields": self._fields.model_dump(exclude_none=True),
        }

    def render(self, record: Record) -> Rendered:
        """The document of one row.

        Its id is the row's own where it has one, integers as decimal strings; else the first 16 hexadecimal digits of
        the SHA-256 of `response_start`, a line feed and the text. Raises `RowError` for a row that cannot be used.
        """
        row = record.fields
        if self._fields.text:
            prompt, response = "", _required(row, self._fields.text)
        else:
            values, response = self._values(row)
            prompt = self._template.render(values)
        text = prompt + response
        if found := unpaired_surrogate(text):
            raise RowError(f"unpaired surrogate {found} in the text")
        return Rendered(_own_id(row, self._fields.id) or _content_id(text, len(prompt)), text, len(prompt))

    def _values(self, row: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """What the template is given, and the response. Fields that the template does not use are not looked at."""
        fields, uses = self._fields, self._template.uses
        values: dict[str, Any] = {"row": row}
        if fields.messages:
            values["messages"], response = _turns(row, fields.messages)
            return values, response
        assert self._response is not None
        response = _required(row, self._response, first=True)
        as_chat = "messages" in uses
        if fields.prompt and ("prompt" in uses or (as_chat and not fields.instruction)):
            values["prompt"] = _required(row, fields.prompt)
        if fields.instruction and uses & {"instruction", "input", "messages"}:
            values["instruction"] = _required(row, fields.instruction)
            values["input"] = _text(row, fields.input) if fields.input else ""
        if as_chat:
            asked = [values["instruction"], values["input"]] if fields.instruction else [values["prompt"]]
            values["messages"] = [{"role": "user", "content": "\n\n".join(filter(None, asked))}]
        return values, response


def _available(fields: FieldsConfig) -> set[str]:
    """The names that a template may use with these fields."""
    names = {"row", "messages"}
    if fields.instruction:
        names |= {"instruction", "input"}
    if fields.prompt or fields.text:
        names.add("prompt")
    return names


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Template {path} cannot be read ({error}).") from None


def _turns(row: dict[str, Any], field: str) -> tuple[list[dict[str, str]], str]:
    """The turns before the last one of the assistant, and that one's content."""
    value = row.get(field)
    if value is not None and not isinstance(value, list):
        raise RowError(f"`{field}` is {_kind(value)}, a list of turns is wanted")
    turns = [_turn(turn, f"turn {number} of `{field}`") for number, turn in enumerate(value or [], 1)]
    last = max((place for place, turn in enumerate(turns) if turn["role"] == "assistant"), default=None)
    if last is None:
        raise RowError(f"`{field}` has no turn of the assistant" if turns else f"`{field}` is empty")
    response = turns[last]["content"]
    if not response.strip():
        raise RowError(f"`{field}`: the assistant's last turn is empty")
    return turns[:last], response


def _turn(turn: Any, where: str) -> dict[str, str]:
    if not isinstance(turn, dict):
        raise RowError(f"{where} is {_kind(turn)}, an object with role and content is wanted")
    role, content = (
        next((turn[key] for key in keys if turn.get(key) is not None), "") for keys in (_ROLE_KEYS, _CONTENT_KEYS)
    )
    for key, value in (("role", role), ("content", content)):
        if not isinstance(value, str):
            raise RowError(f"the {key} of {where} is {_kind(value)}, text is wanted")
    if not role:
        raise RowError(f"{where} has no role")
    return {"role": _ROLES.get(role.lower(), role.lower()), "content": content}


def _text(row: dict[str, Any], field: str, first: bool = False) -> str:
    """The text in a field, empty for null and for a field that the row lacks; of a list its `first` entry."""
    value = row.get(field)
    if first and isinstance(value, list):
        value = value[0] if value else None
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowError(f"`{field}` is {_kind(value)}, text is wanted")
    return value


def _required(row: dict[str, Any], field: str, first: bool = False) -> str:
    text = _text(row, field, first)
    if not text.strip():
        raise RowError(f"`{field}` is empty" if field in row else f"the row has no `{field}`")
    return text


def _own_id(row: dict[str, Any], field: str | None) -> str | None:
    value = row.get(field) if field else None
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RowError(f"`{field}` is {_kind(value)}, an id is a string or an integer")
    if found := unpaired_surrogate(value):
        raise RowError(f"unpaired surrogate {found} in `{field}`")
    return str(value)


def _content_id(text: str, response_start: int) -> str:
    return hashlib.sha256(f"{response_start}\n{text}".encode()).hexdigest()[:16]


def _kind(value: Any) -> str:
    """How a person would call the type of a JSON value."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    names = {str: "a string", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), f"a value of type {type(value).__name__}")
