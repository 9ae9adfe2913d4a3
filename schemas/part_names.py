"""The names under which rows have their parts, by the form of the rows."""

from typing import Final

from schemas.config import FieldsConfig, Form

MESSAGES: Final = ("messages", "conversations")
INPUTS: Final = ("input", "context")
AFTER_INSTRUCTION: Final = ("output", "response", "completion", "chosen")
AFTER_PROMPT: Final = ("response", "completion", "output", "chosen")
#: What belongs to a prompt or a response beside its text: a conversation alone has a place for it.
UNPLACED: Final = (
    "system",
    "system_prompt",
    "history",
    "tools",
    "functions",
    "tool_calls",
    "function_call",
    "reasoning_content",
)

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
