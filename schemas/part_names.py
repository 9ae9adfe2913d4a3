"""The names under which rows have their parts, by the form of the rows."""

from collections.abc import Collection, Iterable
from typing import Final

from schemas.config import FieldsConfig, Form

MESSAGES: Final = ("messages", "conversations")
INPUTS: Final = ("input", "context")
AFTER_INSTRUCTION: Final = ("output", "response", "completion", "chosen")
AFTER_PROMPT: Final = ("response", "completion", "output", "chosen")
#: What is seen or heard: no text has a place for it, and none that goes with it is whole without.
MEDIA: Final = (
    "image",
    "images",
    "image_url",
    "image_urls",
    "image_path",
    "image_paths",
    "audio",
    "audios",
    "video",
    "videos",
)
#: What belongs to a prompt or a response beside its text: a conversation alone has a place for it.
OF_CONVERSATIONS: Final = (
    "system",
    "system_prompt",
    "history",
    "tools",
    "functions",
    "tool_calls",
    "function_call",
    "reasoning_content",
)
#: What would change what is asked, answered or learnt, and has no place in a prompt.
UNPLACED: Final = (*OF_CONVERSATIONS, "chat_template_kwargs", *MEDIA)

#: Parts of each form, and their usual names.
USUAL_NAMES: Final[dict[Form, dict[str, tuple[str, ...]]]] = {
    "conversation": {
        "messages": MESSAGES,
        "prompt": ("prompt",),
        "instruction": ("instruction",),
        "input": INPUTS,
        "response": AFTER_PROMPT,
    },
    "ready-made": {
        "prompt": ("prompt",),
        "instruction": ("instruction",),
        "input": INPUTS,
        "response": AFTER_INSTRUCTION,
    },
    "instruction": {"instruction": ("instruction",), "input": INPUTS, "response": AFTER_INSTRUCTION},
    "prompt": {"prompt": ("prompt",), "response": AFTER_PROMPT},
    "text": {"text": ("text",)},
}


def names_of(fields: FieldsConfig) -> dict[str, tuple[str, ...]]:
    """Part to the names under which a row may have it, the first of them preferred; of resolved fields."""
    assert fields.form is not None
    named = fields.model_dump(exclude={"form", "output", "id"}) | {"response": fields.response or fields.output}
    return {part: (named[part],) if named[part] else usual for part, usual in USUAL_NAMES[fields.form].items()}


def part_like(field: str, fields: FieldsConfig) -> tuple[str, str] | None:
    """The part, and its name, from which a field's name differs by its case alone: `Input`; of resolved fields."""
    likes = ((part, name) for part, names in names_of(fields).items() for name in names if name != field)
    return next(((part, name) for part, name in likes if name.lower() == field.lower()), None)


def first_among(fields: Iterable[str], names: Collection[str]) -> str | None:
    """The first of `fields` that is one of `names` (in lower case), in whatever case it is written."""
    return next((field for field in fields if field.lower() in names), None)
