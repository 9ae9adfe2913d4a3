"""From a row to the text of a document: prompt, then response, and where the response begins.

A template renders the prompt; the response follows it as it stands, of a file's rendering also without a line feed. Built in:

- `alpaca`: instruction and, where it is not empty, input under the headings that Stanford Alpaca introduced;
- `plain`: a ready-made prompt as it stands, the response on a new line unless white space stands between them already; or
  a text with no prompt at all;
- `chat`: every turn under a heading with its role. It is text, not a tokenizer's own chat template, because teacher and
  student must read the same characters.

Anything else is a Jinja file, rendered in a sandbox. It may use `instruction`, `input`, `prompt`, `messages` (the turns
before the response, each with `role` and `content`) and `row` (all fields).
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipeline.read.jinja import PromptTemplate
from pipeline.read.parts import Parts
from pipeline.read.records import Record
from schemas.alpaca import ALPACA, ALPACA_WITH_INPUT
from schemas.config import FieldsConfig, Form
from schemas.errors import UsageError, nearest
from schemas.part_names import names_of
from schemas.ready_made import ready_made
from schemas.rows import UNPAIRED, RowError, unpaired_surrogate

_PLACES: Final = {"instruction": "{{ instruction }}", "input": "{{ input }}"}
_ALPACA: Final = (
    f"{{% if input %}}{ALPACA_WITH_INPUT.format(**_PLACES)}{{% else %}}{ALPACA.format(**_PLACES)}{{% endif %}}"
)
_CHAT: Final = (
    "{% for turn in messages %}### {{ turn.role | capitalize }}:\n{{ turn.content }}\n\n{% endfor %}### Assistant:\n"
)
BUILT_IN: Final = {"alpaca": _ALPACA, "plain": "{{ prompt }}", "chat": _CHAT}
_NEEDS: Final = {"alpaca": "instruction", "plain": "prompt", "chat": "messages"}

_BY_FORM: Final[dict[Form, str]] = {
    "messages": "chat",
    "ready-made": "plain",
    "instruction": "alpaca",
    "prompt": "plain",
    "text": "plain",
}


@dataclass(frozen=True)
class Rendered:
    """A document. `response_start` counts characters, and is 0 for a text without a prompt."""

    id: str
    text: str
    response_start: int
    used: tuple[str, ...] = ()  # fields of the row that it was made of
    unused: tuple[str, ...] = ()  # what was left out of it (`Parts.left_out`)


def resolve_template(name: str, fields: FieldsConfig) -> str:
    """`auto` -> the template that fits the fields; other names as they are.

    `chat` for messages, `plain` for a ready-made prompt or a text, else `alpaca`. Raises `UsageError` for a name that
    is neither built in nor a file.
    """
    if name == "auto":
        return _BY_FORM[fields.form or "text"]
    if name not in BUILT_IN and not Path(name).is_file():
        near = nearest(name, BUILT_IN)
        hint = f"Did you mean {near}?" if near else f"Built in: auto, {', '.join(BUILT_IN)}."
        raise UsageError(f"Template {name!r} is neither built in nor a file. {hint}")
    return name


class Renderer:
    """Renders rows whose fields are known by a template; `fields` and `template` are resolved ones."""

    def __init__(self, fields: FieldsConfig, template: str) -> None:
        """Raises `UsageError`, with file and line, for a template that is broken or asks for what no field gives."""
        if fields.form == "text" and template != "plain":
            raise UsageError(f"Template {template!r} renders prompts, and a row of --text-field has none; use plain.")
        available = _available(fields.form)
        if template in BUILT_IN and _NEEDS[template] not in available:
            raise UsageError(
                f"Template {template!r} needs a field for `{_NEEDS[template]}`; name it with --{_NEEDS[template]}-field, or "
                f"let `auto` choose the template."
            )
        self._fields = fields
        self._plain = template == "plain"
        self._name = template if template in BUILT_IN else Path(template).name
        self._source = BUILT_IN.get(template) or _read(Path(template))
        self._template = PromptTemplate(self._source, template, available)

    def identity(self) -> dict[str, Any]:
        """All that decides the text of a row: the template's name and hash, and the fields."""
        return {
            "template": self._name,
            "sha256": hashlib.sha256(self._source.encode()).hexdigest(),
            "fields": self._fields.model_dump(exclude_none=True),
            "names": {part: list(names) for part, names in names_of(self._fields).items()},
        }

    def render(self, record: Record) -> Rendered:
        """The document of one row.

        Its id is the row's own where it has one, integers as decimal strings; else the first 16 hexadecimal digits of
        the SHA-256 of `response_start`, a line feed and the text. Raises `RowError` for a row that cannot be used.
        """
        parts = Parts(record, self._fields)
        if "row" in self._template.uses:
            parts.take(self._template.row_fields)
        if self._fields.form == "text":
            prompt, response = "", parts.required("text")
        else:
            values, response = self._values(parts)
            prompt = self._template.render(values | {"row": record.fields})
            if self._plain:
                prompt = ready_made(prompt, response)
        text = prompt + response
        if found := unpaired_surrogate(text):  # which a template can make of none
            raise RowError(UNPAIRED, f"{found} in the text")
        own = parts.id()
        unused = parts.left_out()
        return Rendered(own or _content_id(text, len(prompt)), text, len(prompt), parts.used(), unused)

    def id_of(self, record: Record) -> str | None:
        """The row's own id, if it has one that can be used."""
        try:
            return Parts(record, self._fields).id()
        except RowError:
            return None

    def _values(self, parts: Parts) -> tuple[dict[str, Any], str]:
        """What the template is given of the parts, and the response. Parts that it does not use are not looked at."""
        uses, form = self._template.uses, self._fields.form
        if form == "messages":
            told = parts.conversation()
            return {"messages": told.before}, told.response
        values: dict[str, Any] = {}
        response = parts.response()
        as_chat = "messages" in uses
        if form in ("prompt", "ready-made") and ("prompt" in uses or (as_chat and form == "prompt")):
            values["prompt"] = parts.required("prompt")
            parts.made_of("instruction", "input")
        if form in ("instruction", "ready-made") and uses & {"instruction", "input", "messages"}:
            values["instruction"], values["input"] = parts.instruction()
        if as_chat:
            asked = [values["prompt"]] if form == "prompt" else [values["instruction"], values["input"]]
            values["messages"] = [{"role": "user", "content": "\n\n".join(filter(None, asked))}]
        return values, response


def _available(form: Form | None) -> set[str]:
    """The names that a template may use with rows of this form."""
    names = {"row", "messages"}
    if form in ("instruction", "ready-made"):
        names |= {"instruction", "input"}
    if form in ("prompt", "ready-made", "text"):
        names.add("prompt")
    return names


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Template {path} cannot be read ({error}).") from None


def _content_id(text: str, response_start: int) -> str:
    return hashlib.sha256(f"{response_start}\n{text}".encode()).hexdigest()[:16]
