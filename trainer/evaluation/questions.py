"""Test rows: what is asked, and the references that a response is scored against.

A row is a JSON object on a line of its own, in any of the forms that the field uses, mixed as they come:

- a ready-made `prompt` (MiniLLM), or `instruction` with `input` or `context` where there is one (Alpaca, Dolly) or the
  question in `input` alone, which the Alpaca template turns into a prompt; and `output`, `response`, `completion` or
  `chosen`, a text or a list of them;
- a conversation in any form that `schemas.chat_rows` reads: its last answer is the reference, without reasoning, and all
  before it is asked.

`references`, a text or a list, stands in the answer's place; then `messages` may end with the question.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from schemas.alpaca import alpaca, question
from schemas.chat_rows import conversation_of
from schemas.chat_tools import decoded
from schemas.chat_turns import said_behind_reasoning
from schemas.conversations import Conversation
from schemas.errors import UsageError, UserError
from schemas.part_names import (
    AFTER_INSTRUCTION,
    AFTER_PROMPT,
    INPUTS,
    MESSAGES,
    OF_CONVERSATIONS,
    UNPLACED,
    first_among,
)
from schemas.ready_made import ready_made
from schemas.rows import UNPAIRED, RowError, Unusable, holds_something, is_turns, unpaired_surrogate

_REFERENCES: Final = "references"
#: Between contents of one answer, which are several where turns were merged.
_BETWEEN: Final = "\n\n"
_WAY_OUT: Final = f"`{_REFERENCES}` may hold what to compare with"
#: An answer with which a row that only lacks one can be read.
_ANY: Final = "answer"
_REASONING_ALONE: Final = "a reference is reasoning alone, without an answer"


@dataclass(frozen=True)
class Question:
    """One row. `row` counts the file's rows from 0, those left out included."""

    row: int
    where: str  # file and line, for messages
    prompt: str | Conversation  # a conversation is rendered by a chat template
    references: tuple[str, ...]
    sha256: str  # of the whole row


@dataclass(frozen=True)
class Reading:
    """How rows are read. `as_conversations`: those of a single turn as well; the others as `conversation_of` has them."""

    as_conversations: bool = False
    merge_turns: bool = False
    system_into_user: bool = False


def read_questions(
    path: Path,
    min_words: int = 0,
    limit: int | None = None,
    reading: Reading = Reading(),
) -> list[Question]:
    """The rows of a file of JSON lines, those whose first reference has at least `min_words` words, and of them the first
    `limit`.

    Raises `UserError` with file and line for a row that cannot be used: to leave it out would change the score.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}).") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    numbers = [number for number, line in enumerate(lines, 1) if line.strip()]
    if numbers and lines[numbers[0] - 1].lstrip().startswith("["):
        raise UserError(f"{path} is a JSON array; write one object a line.")
    questions = [
        _question(row, lines[number - 1], f"{path}, line {number}", reading) for row, number in enumerate(numbers)
    ]
    if not questions:
        raise UserError(f"{path} holds no rows.")
    long_enough = [question for question in questions if len(question.references[0].split()) >= min_words]
    if not long_enough:
        raise UserError(f"{path}: no row has a reference of {min_words} words or more; lower --min-words.")
    return long_enough[:limit]


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
    """SHA-256 of their rows: results can be compared row by row where it is the same, however the rows were asked."""
    rows = [[question.row, question.sha256] for question in questions]
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


def _question(row: int, line: str, where: str, reading: Reading) -> Question:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: broken JSON ({error.msg} at character {error.pos + 1}).") from None
    except (RecursionError, ValueError):
        raise UserError(f"{where}: a value in it is nested too deeply, or a number has too many digits.") from None
    if not isinstance(fields, dict):
        raise UserError(f"{where}: not a JSON object.")
    try:
        prompt, references = _exchange(fields, reading) if converses(fields, reading) else _pair(fields)
    except RowError as error:
        raise UserError(f"{where}: {error.reason}.") from None
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return Question(
        row, where, prompt, tuple(dict.fromkeys(references)), hashlib.sha256(canonical.encode()).hexdigest()
    )


def converses(fields: Mapping[str, Any], reading: Reading) -> bool:
    """Whether a row is read as a conversation: all are, or it can be read as nothing else."""
    return reading.as_conversations or holds_turns(fields)


def holds_turns(fields: Mapping[str, Any]) -> bool:
    """Whether a row can be read as a conversation alone."""
    if any(holds_something(fields.get(name)) for name in MESSAGES):
        return True
    if any(is_turns(fields.get(name)) for name in ("prompt", *AFTER_PROMPT)):
        return True
    asks = any(holds_something(fields.get(name)) for name in ("prompt", "instruction", *INPUTS))
    return not asks and isinstance(fields.get("chosen"), str)  # of preference data, turns as text


def asked_by(fields: Mapping[str, Any], reading: Reading) -> str | Conversation:
    """What a row asks, whether or not it holds an answer. Raises `RowError` for one that asks nothing."""
    if not converses(fields, reading):
        return _prompt(fields, "")
    try:
        conversation = _read(fields, reading)
    except RowError:  # it may end with the question
        conversation = _read(_answered(fields, _ANY), reading)
    return _before_the_answer(conversation)


def _pair(fields: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """A single prompt, and the references."""
    responses = _responses(fields)
    return _prompt(fields, responses[0]), _answers_in(responses)


def _exchange(fields: Mapping[str, Any], reading: Reading) -> tuple[Conversation, tuple[str, ...]]:
    """What is asked, and the references."""
    given = _answers_in(_texts(fields, _REFERENCES)) if fields.get(_REFERENCES) is not None else ()
    try:
        conversation = _read(fields, reading)
    except RowError as error:  # it may end with the question
        try:
            conversation = _read(_answered(fields, given[0] if given else _ANY), reading)
        except RowError as other:
            raise (other if given else error) from None
        if not given:
            raise RowError(error.reason.kind, "; ".join(filter(None, (error.reason.detail, _WAY_OUT)))) from None
    asked = _before_the_answer(conversation)
    last = len(conversation.messages) - 1
    references = given or _answers(fields, conversation, last)
    if not references and conversation.messages[last].get("tool_calls"):
        raise RowError("the last answer is calls of tools alone", _WAY_OUT)
    if not references:
        raise RowError(_REASONING_ALONE)
    return asked, references


def _read(fields: Mapping[str, Any], reading: Reading) -> Conversation:
    conversation, *_ = conversation_of(
        fields, merge_turns=reading.merge_turns, system_into_user=reading.system_into_user
    )
    return conversation


def _before_the_answer(conversation: Conversation) -> Conversation:
    last = len(conversation.messages) - 1
    if last == 0:
        raise RowError("nothing stands before the answer")
    return conversation.before(last)


def _answered(fields: Mapping[str, Any], answer: str) -> dict[str, Any]:
    """The row with an answer at its end. Raises `RowError` for turns that are broken JSON."""
    for name in MESSAGES:
        value = fields.get(name)
        turns = decoded(value, f"`{name}`") if isinstance(value, str) and value.lstrip().startswith("[") else value
        if isinstance(turns, list):
            return {**fields, name: [*turns, {"role": "assistant", "content": answer}]}
    return {**fields, _answer_names(fields)[0]: answer}


def _answers(fields: Mapping[str, Any], conversation: Conversation, last: int) -> tuple[str, ...]:
    """The texts of a response that is a list of them, or the answer of the last turn, if it has one."""
    name = next((name for name in _answer_names(fields) if holds_something(fields.get(name))), None)
    apart = name is not None and not any(holds_something(fields.get(key)) for key in MESSAGES)
    if name is not None and apart and isinstance(fields[name], list) and not is_turns(fields[name]):
        return _answers_in(_texts(fields, name))
    contents = [conversation.contents[number] for number in conversation.contents_of(last)]
    answer = _BETWEEN.join(content.text for content in contents if content.role == "assistant")
    return (answer,) if answer else ()


def _answer_names(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the response, in the order in which training looks for it."""
    return AFTER_INSTRUCTION if holds_something(fields.get("instruction")) else AFTER_PROMPT


def _prompt(fields: Mapping[str, Any], response: str) -> str:
    """As training on the row with that response would have it."""
    if unplaced := first_among((name for name, value in fields.items() if holds_something(value)), UNPLACED):
        hint = "; a chat template has, with --template" if first_among((unplaced,), OF_CONVERSATIONS) else ""
        raise RowError(f"a ready-made or Alpaca prompt has no place for `{unplaced}`{hint}")
    if fields.get("prompt") is not None:
        return ready_made(_text(fields, "prompt"), response)
    name = next((name for name in INPUTS if fields.get(name)), None)
    context = _text(fields, name) if name else ""
    if fields.get("instruction") or ("instruction" in fields and not context):
        return alpaca(*question(_text(fields, "instruction"), context))
    if not context:
        raise RowError("neither `prompt` nor `instruction`", f"the fields are {', '.join(fields) or 'none'}")
    return alpaca(*question("", context))


def _answers_in(responses: Sequence[str]) -> tuple[str, ...]:
    """Texts to compare with: responses without reasoning at their beginning. Raises `RowError` for one without an answer."""
    with suppress(RowError):  # of reasoning that does not end
        answers = tuple(said_behind_reasoning(response, _REFERENCES) for response in responses)
        if all(answers):
            return answers
    raise RowError(_REASONING_ALONE)


def _responses(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Responses of the row, at least one."""
    name = next((name for name in (_REFERENCES, *_answer_names(fields)) if fields.get(name) is not None), None)
    if name is None:
        raise RowError("no reference", f"the fields are {', '.join(fields)}, wanted is `output`")
    return _texts(fields, name)


def _texts(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A text, or each of a list of them, at least one."""
    values = fields[name] if isinstance(fields[name], list) else [fields[name]]
    if not values:
        raise RowError(f"`{name}` is an empty list")
    return tuple(_text({name: value}, name) for value in values)


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields[name]
    if isinstance(value, Unusable):
        raise value.error(f"field `{name}`")
    if not isinstance(value, str):
        raise RowError(f"`{name}` is {json.dumps(value, ensure_ascii=False)[:40]}, a text is wanted")
    if not value.strip():
        raise RowError(f"`{name}` is empty")
    if unpaired_surrogate(value) is not None:
        raise RowError(f"`{name}` holds an {UNPAIRED}, which is no character")
    return value
