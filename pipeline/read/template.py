"""From a row to the text of a document: a rendered prompt with its response, or the contents of a conversation.

Where both sides read one template (`alpaca`, `plain`, a Jinja file), the document is what it renders: prompt, then response
as it stands.

- `alpaca`: instruction and, where it is not empty, input under the headings that Stanford Alpaca introduced;
- `plain`: a ready-made prompt as it stands, the response on a new line unless white space stands between them already; or
  a text with no prompt at all;
- a Jinja file, rendered in a sandbox. It may use `instruction`, `input`, `prompt`, `messages` (the turns before the
  response) and `row` (all fields).

Conversations are documents of their contents (`pipeline.read.contents`), which each side renders by a chat template of its
own: so are rows that hold turns, and others where the sides' templates differ or render conversations only. A Jinja file
that uses `add_generation_prompt` is such a template.
"""

import hashlib
from pathlib import Path
from typing import Any, Final

from pipeline.read.jinja import PromptTemplate
from pipeline.read.parts import Parts
from pipeline.read.records import Record
from pipeline.text import Rendered
from schemas.alpaca import ALPACA, ALPACA_WITH_INPUT
from schemas.columns import SIDES
from schemas.config import FieldsConfig, Form, ParseConfig, SideConfig
from schemas.errors import UsageError, nearest
from schemas.part_names import names_of
from schemas.ready_made import ready_made
from schemas.rows import RowError, require_paired
from trainer.models.built_in_templates import BUILT_IN as BUILT_IN_OF_CHATS

_PLACES: Final = {"instruction": "{{ instruction }}", "input": "{{ input }}"}
_ALPACA: Final = (
    f"{{% if input %}}{ALPACA_WITH_INPUT.format(**_PLACES)}{{% else %}}{ALPACA.format(**_PLACES)}{{% endif %}}"
)
BUILT_IN: Final = {"alpaca": _ALPACA, "plain": "{{ prompt }}"}
_NEEDS: Final = {"alpaca": "instruction", "plain": "prompt"}

#: Templates of conversations by name: a tokenizer's own, and built-in ones.
CHAT_TEMPLATES: Final = ("native", *BUILT_IN_OF_CHATS)

_BY_FORM: Final[dict[Form, str]] = {
    "ready-made": "plain",
    "instruction": "alpaca",
    "prompt": "plain",
    "text": "plain",
}


def resolve_templates(config: ParseConfig) -> ParseConfig:
    """The config with its templates, its fields resolved; to resolve the result again changes nothing.

    Either `template` is the one that both sides read rendered, and the sides have none, or both sides have the chat template
    of their own. Raises `UsageError` for a name that is neither built in nor a file, or for what does not go together.
    """
    chosen = {side: _known(getattr(config, side).template or config.template) for side in SIDES}
    form = config.fields.form
    one = chosen["teacher"] if chosen["teacher"] == chosen["student"] else None
    if one is not None and (
        _renders_prompts(one) or (form != "conversation" and not _renders_conversations_alone(one))
    ):
        name = _BY_FORM[form or "text"] if one == "auto" else one
        sides: dict[str, Any] = {side: getattr(config, side).model_copy(update={"template": None}) for side in SIDES}
        return config.model_copy(update={"template": name, **sides})
    if form == "text":
        raise UsageError(
            "Rows of --text-field have no turns, which chat templates render; leave their template to `auto`."
        )
    for side, name in chosen.items():
        if _renders_prompts(name):
            raise UsageError(
                f"Template {name!r} renders prompts, so both sides must have it (--template). A template of the {side} "
                "alone renders conversations, and uses `add_generation_prompt`."
            )
        require_no_prompt_limit(getattr(config, side))
    own: dict[str, Any] = {
        side: getattr(config, side).model_copy(update={"template": "native" if name == "auto" else name})
        for side, name in chosen.items()
    }
    return config.model_copy(update={"template": "auto", **own})


def require_no_prompt_limit(side: SideConfig) -> None:
    """Raises `UsageError` if a side of conversations has a limit that only single prompts can have."""
    if side.max_prompt_length is not None:
        raise UsageError(
            "--max-prompt-length is for single prompts; a conversation is cut at its end, by --max-length."
        )


def _known(name: str) -> str:
    if name in ("auto", *CHAT_TEMPLATES) or Path(name).is_file():
        return name
    near = nearest(name, ("auto", *CHAT_TEMPLATES))
    hint = f"Did you mean {near}?" if near else f"Built in: auto, {', '.join(CHAT_TEMPLATES)}."
    raise UsageError(f"Template {name!r} is neither built in nor a file. {hint}")


def _renders_prompts(name: str) -> bool:
    """Whether it is a Jinja file of prompts."""
    return name not in ("auto", *CHAT_TEMPLATES) and "add_generation_prompt" not in _read(Path(name))


def _renders_conversations_alone(name: str) -> bool:
    """Whether there is no such template of prompts."""
    return name not in ("auto", *BUILT_IN) and not _renders_prompts(name)


def templates_of(config: ParseConfig) -> str:
    """`template alpaca`, or those of the sides of conversations."""
    if not config.of_conversations:
        return f"template {config.template}"
    sides = f"{config.teacher.template} and {config.student.template}"
    return f"conversations ({config.conversations.learn} learnt), template {sides}"


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
                "let `auto` choose the template."
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
        require_paired(text, "the text")  # a template can make such of none
        own = parts.id()
        unused = parts.left_out()
        responses = ((len(prompt), len(text)),)
        return Rendered(own or _content_id(text, len(prompt)), text, responses, used=parts.used(), unused=unused)

    def id_of(self, record: Record) -> str | None:
        """The row's own id, if it has one that can be used."""
        try:
            return Parts(record, self._fields).id()
        except RowError:
            return None

    def _values(self, parts: Parts) -> tuple[dict[str, Any], str]:
        """What the template is given of the parts, and the response. Parts that it does not use are not looked at."""
        uses, form = self._template.uses, self._fields.form
        if form == "conversation":
            return _last_turn(parts)
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


def _last_turn(parts: Parts) -> tuple[dict[str, Any], str]:
    """The messages before the last one, and what that one says; raises `RowError` if it says it by calls."""
    conversation = parts.conversation()
    *before, last = conversation.filled()
    if last.get("tool_calls") or last.get("reasoning_content"):
        raise RowError("a rendered prompt has no place for calls or reasoning in the last turn")
    if conversation.tools:
        raise RowError("a rendered prompt has no place for `tools`")
    return {"messages": before}, last["content"]


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
