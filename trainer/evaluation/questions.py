"""Test rows: a prompt, and the references that a response is scored against.

A row is a JSON object on a line of its own, in any of the forms that the field uses: a ready-made `prompt` (MiniLLM), or
`instruction` with `input` or `context` where there is one (Alpaca, Dolly) or the question in `input` alone, which the
Alpaca template turns into a prompt;
and `output`, `response` or `completion`, a text or a list of them.

Or it is a conversation, in any of the forms of `schemas.chat_rows`, or is read as one where a chat template is asked for: all
before its last answer is the prompt, which the model's chat template renders, and that answer, without its reasoning, the
reference; `references`, a list of texts, stands in its place.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from schemas.alpaca import alpaca, question
from schemas.chat_rows import conversation_of
from schemas.conversations import Conversation
from schemas.errors import UsageError, UserError
from schemas.part_names import AFTER_PROMPT, MESSAGES
from schemas.ready_made import ready_made
from schemas.rows import RowError

_INPUTS: Final = ("input", "context")
_REFERENCES: Final = ("output", "response", "completion")
#: Fields that hold turns, if the row is a conversation.
_TURNS: Final = (*MESSAGES, "prompt", *AFTER_PROMPT)


@dataclass(frozen=True)
class Question:
    """One row. `row` counts the file's rows from 0, those left out included."""

    row: int
    prompt: str | Conversation
    references: tuple[str, ...]


def read_questions(
    path: Path, min_words: int = 0, limit: int | None = None, *, as_conversations: bool = False
) -> list[Question]:
    """The rows of a file of JSON lines, those whose first reference has at least `min_words` words, and of them the first
    `limit`. `as_conversations`: single questions are conversations as well.

    Raises `UserError` with file and line for a row that cannot be used: to leave it out would change the score.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}).") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    places = [place for place, line in enumerate(lines, 1) if line.strip()]
    if places and lines[places[0] - 1].lstrip().startswith("["):
        raise UserError(f"{path} is a JSON array; write one object a line.")
    questions = [
        _question(row, lines[place - 1], f"{path}, line {place}", as_conversations) for row, place in enumerate(places)
    ]
    if not questions:
        raise UserError(f"{path} holds no rows.")
    kept = [question for question in questions if len(question.references[0].split()) >= min_words]
    if not kept:
        raise UserError(f"{path}: no row has a reference of {min_words} words or more; lower --min-words.")
    return kept[:limit]


def names_of(paths: Sequence[Path]) -> list[str]:
    """What results call the files: their stems, with the folder's name where stems are the same (`dolly/valid`).

    Raises `UsageError` if they are the same even so.
    """
    stems = [path.stem for path in paths]
    names = stems
    if len(set(stems)) < len(stems):
        names = [f"{path.resolve().parent.name}/{path.stem}" for path in paths]
    if len(set(names)) < len(names):
        raise UsageError("Two of the files have the same name and folder name, so results could not be told apart.")
    return names


def digest(questions: Sequence[Question]) -> str:
    """SHA-256 of everything in them: results can be compared row by row where it is the same."""
    rows = [[question.row, _told(question.prompt), *question.references] for question in questions]
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


def _told(prompt: str | Conversation) -> Any:
    if isinstance(prompt, str):
        return prompt
    return [prompt.to_json(), *(content.text for content in prompt.contents)]


def _question(row: int, line: str, where: str, as_conversation: bool) -> Question:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: broken JSON ({error.msg} at character {error.pos + 1}).") from None
    if not isinstance(fields, dict):
        raise UserError(f"{where}: not a JSON object.")
    if as_conversation or any(_is_turns(fields.get(name)) for name in _TURNS):
        return _conversation(row, fields, where)
    references = _references(fields, where)
    return Question(row, _prompt(fields, references[0], where), references)


def _is_turns(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) for turn in value)


def _conversation(row: int, fields: dict[str, Any], where: str) -> Question:
    given = fields.get("references")
    try:
        conversation, _, _ = conversation_of({name: value for name, value in fields.items() if name != "references"})
    except RowError as error:
        raise UserError(f"{where}: {error}.") from None
    last = len(conversation.messages) - 1
    answer = [
        conversation.contents[number].text
        for number in conversation.contents_of(last)
        if conversation.contents[number].role == "assistant"
    ]
    if given is not None:
        references = _references({"output": given}, where)
    elif answer:
        references = ("".join(answer).strip(),)
    else:
        raise UserError(f"{where}: the last answer is calls of tools alone, which no text is compared with.")
    return Question(row, conversation.before(last), references)


def _prompt(fields: dict[str, Any], response: str, where: str) -> str:
    """As training on the row with that response would have it."""
    if fields.get("prompt") is not None:
        return ready_made(_text(fields, "prompt", where), response)
    name = next((name for name in _INPUTS if fields.get(name)), None)
    context = _text(fields, name, where) if name else ""
    if fields.get("instruction") or ("instruction" in fields and not context):
        return alpaca(*question(_text(fields, "instruction", where), context))
    if not context:
        raise UserError(f"{where}: neither `prompt` nor `instruction`; the fields are {', '.join(fields) or 'none'}.")
    return alpaca(*question("", context))


def _references(fields: dict[str, Any], where: str) -> tuple[str, ...]:
    name = next((name for name in _REFERENCES if fields.get(name) is not None), None)
    if name is None:
        raise UserError(f"{where}: no reference; the fields are {', '.join(fields)}, wanted is `output`.")
    values = fields[name] if isinstance(fields[name], list) else [fields[name]]
    if not values:
        raise UserError(f"{where}: `{name}` is an empty list.")
    return tuple(_text({name: value}, name, where) for value in values)


def _text(fields: dict[str, Any], name: str, where: str) -> str:
    value = fields[name]
    if not isinstance(value, str):
        raise UserError(f"{where}: `{name}` is {json.dumps(value, ensure_ascii=False)[:40]}, a text is wanted.")
    if not value.strip():
        raise UserError(f"{where}: `{name}` is empty.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where}: `{name}` holds an unpaired surrogate, which is no character.") from None
    return value
