"""The turns in one field of a row, each for itself: who speaks, what is said, and what is done beside.

Keys and speakers go by the names that OpenAI, ShareGPT and their kin use. A turn that holds what a message has no place for
(an image, a speaker whom nobody knows) rejects its row; other keys that were not used are told.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Final

from schemas.chat_tools import calls_of
from schemas.conversations import Content, ContentRole
from schemas.part_names import MEDIA, first_among
from schemas.rows import RowError, Unusable, holds_something, listed, require_paired, type_of

_ROLE_KEYS: Final = ("role", "from")
_CONTENT_KEYS: Final = ("content", "value")
_REASONING_KEYS: Final = ("reasoning_content", "reasoning", "thinking")
_CALL_KEYS: Final = ("tool_calls", "function_call")
NAME_KEYS: Final = ("name", "tool_call_id")
#: Whether the turn is learnt: 1 or true, 0 or false.
_LEARN_KEYS: Final = ("weight", "train", "trainable", "loss", "loss_mask")
_READ: Final = frozenset((*_REASONING_KEYS, *_CALL_KEYS, *NAME_KEYS, *_LEARN_KEYS))
#: What would change what is asked, answered or learnt, and has no place in a message.
_UNPLACED: Final = (*MEDIA, "refusal", "tools", "functions", "train_detail")

#: The role, by what data sets call a speaker. Reasoning belongs to the assistant's turn behind it.
_ROLES: Final[dict[str, ContentRole]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "reasoning": "reasoning",
    "thinking": "reasoning",
}
#: Speakers whose text is the JSON of the assistant's calls.
_CALLERS: Final = ("function_call", "tool_call")
_OPEN: Final = "<think>"
_CLOSE: Final = "</think>"

#: Literal text and contents, in order.
Pieces = list[str | Content]


@dataclasses.dataclass(frozen=True)
class Turn:
    """One turn; `said` is None where it has calls alone."""

    role: ContentRole
    said: Pieces | None
    field: str
    number: int  # from 1, in its field
    reasoning: Pieces = dataclasses.field(default_factory=list)
    calls: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    names: dict[str, str] = dataclasses.field(default_factory=dict)  # `name`, `tool_call_id`
    learnt: bool | None = None  # None: the row does not say

    @property
    def where(self) -> str:
        return f"turn {self.number}"


def turns_of(value: Sequence[Any], field: str, unused: Callable[[str], None]) -> list[Turn]:
    """The turns in a list. `unused` is told keys that were not used. Raises `RowError` for a turn that cannot be one."""
    turns: list[Turn] = []
    reasoning: Turn | None = None
    for number, entry in enumerate(value, 1):
        turn = _turn(entry, field, number, unused)
        if reasoning is not None:
            turn = _led_to(reasoning, turn)
        _check(turn)
        reasoning = turn if turn.role == "reasoning" else None
        if reasoning is None:
            turns.append(turn)
    if reasoning is not None:
        raise _no_answer(reasoning)
    return turns


def spoken(role: ContentRole, text: str, field: str, number: int = 1) -> Turn:
    """A turn that is text alone."""
    turn = Turn(role, _pieces(role, text, field, f"turn {number}"), field, number)
    _check(turn)
    return turn


def said_behind_reasoning(text: str, field: str) -> str:
    """What an answer says behind reasoning at its beginning; empty where it is reasoning alone.

    Raises `RowError` for reasoning that does not end.
    """
    pieces = _pieces("assistant", text, field, "turn 1")
    return "".join(piece.text for piece in pieces if isinstance(piece, Content) and piece.role == "assistant")


def string(value: Any, what: str, where: str = "") -> str:
    """A text of a row; empty for null. Raises `RowError` for anything else, and for text that UTF-8 cannot hold."""
    if isinstance(value, Unusable):
        raise value.error(", ".join(filter(None, (what, where))))
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowError(f"{what} is {type_of(value)}, text is wanted", where)
    require_paired(value, what, where)
    return value


def _turn(entry: Any, field: str, number: int, unused: Callable[[str], None]) -> Turn:
    where = f"turn {number}"
    if isinstance(entry, Unusable):
        raise entry.error(f"{where} of `{field}`")
    if not isinstance(entry, dict):
        raise RowError(f"a turn of `{field}` is {type_of(entry)}, an object with role and content is wanted", where)
    role_key, content_key = (
        next((key for key in keys if entry.get(key) is not None), keys[0]) for keys in (_ROLE_KEYS, _CONTENT_KEYS)
    )
    _tell_left(entry, {role_key, content_key}, field, where, unused)
    role, caller = _role(entry.get(role_key), field, where)
    text = _text(entry.get(content_key), f"{content_key} of a turn of `{field}`", where, unused, field)
    calls = _calls(entry, {content_key: text} if caller else {}, field, where, unused)
    silent = caller or (bool(calls) and entry.get(content_key) is None)
    return Turn(
        role,
        None if silent else _pieces(role, text, field, where),
        field,
        number,
        _reasoning(entry, where),
        calls,
        {key: name for key in NAME_KEYS if (name := string(entry.get(key), f"`{key}` of a turn of `{field}`", where))},
        _learnt(entry, where),
    )


def _tell_left(entry: dict[str, Any], read: set[str], field: str, where: str, unused: Callable[[str], None]) -> None:
    """Keys of a turn that are not used. Raises `RowError` for those that must be."""
    for key, value in entry.items():
        if key in read or key in _READ or not holds_something(value):
            continue
        if first_among((key,), _UNPLACED):
            raise RowError(f"a turn of `{field}` has `{key}`, for which a conversation has no place", where)
        unused(f"{field}[].{key}")


def _role(value: Any, field: str, where: str) -> tuple[ContentRole, bool]:
    """The role, and whether the turn's text is of calls."""
    name = string(value, f"the role of a turn of `{field}`", where).strip().lower()
    if not name:
        raise RowError(f"a turn of `{field}` has no role", where)
    if name in _CALLERS:
        return "assistant", True
    if name not in _ROLES:
        raise RowError(f"a turn of `{field}` has a role that is not known", f"{where}: `{name}`")
    return _ROLES[name], False


def _text(value: Any, what: str, where: str, unused: Callable[[str], None], field: str) -> str:
    """A content: text, or a list of parts that are text, one on a line."""
    if not isinstance(value, list):
        return string(value, f"the {what}", where)
    return "\n".join(_part(part, what, where, unused, field) for part in value)


def _part(part: Any, what: str, where: str, unused: Callable[[str], None], field: str) -> str:
    if isinstance(part, dict):
        if part.get("type") != "text":
            raise RowError(f"the {what} has a part that is no text", f"{where}: of the type `{part.get('type')}`")
        for key, value in part.items():
            if key not in ("type", "text") and holds_something(value):
                unused(f"{field}[].{what.split()[0]}[].{key}")
        part = part.get("text")
    if part is None:
        raise RowError(f"the {what} has a part that is null", where)
    return string(part, f"a part of the {what}", where)


def _pieces(role: ContentRole, text: str, field: str, where: str) -> Pieces:
    """A text as literal text and contents: white space alone says nothing, and `<think>` sets reasoning apart."""
    if role != "assistant" or not text.lstrip().startswith(_OPEN):
        return [Content(role, text) if text.strip() else text]
    start, end = text.index(_OPEN) + len(_OPEN), text.find(_CLOSE)
    if end < 0:
        raise RowError(f"the reasoning of a turn of `{field}` does not end", f"{where} has {_OPEN} without {_CLOSE}")
    before, thought, after = _bare(text[start:end])
    between, answer, rest = _bare(text[end + len(_CLOSE) :])
    return [
        text[:start] + before,
        *([Content("reasoning", thought)] if thought else []),
        after + _CLOSE + between,
        *([Content("assistant", answer + rest)] if answer else []),
    ]


def _bare(text: str) -> tuple[str, str, str]:
    """White space before, what lies between, white space after."""
    rest = text.lstrip()
    bare = rest.rstrip()
    return text[: len(text) - len(rest)], bare, rest[len(bare) :]


def _calls(
    entry: dict[str, Any], said: dict[str, str], field: str, where: str, unused: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The calls of a turn, under a key of their own or as what it `said`."""
    sources = {key: entry[key] for key in _CALL_KEYS if holds_something(entry.get(key))} | said
    if len(sources) > 1:
        raise RowError(f"a turn of `{field}` has its calls twice", f"{where}: {listed(list(sources), ' and ')}")
    if not sources:
        return []
    ((key, value),) = sources.items()
    return calls_of(value, where, lambda name: unused(f"{field}[].{key}[].{name}"))


def _reasoning(entry: dict[str, Any], where: str) -> Pieces:
    texts = {key: string(entry[key], f"`{key}` of a turn", where) for key in _REASONING_KEYS if entry.get(key)}
    told = {text for text in texts.values() if text.strip()}
    if len(told) > 1:
        raise RowError("a turn has reasoning of more than one kind", f"{where}: {listed(list(texts), ' and ')}")
    return [Content("reasoning", text) for text in told]


def _learnt(entry: dict[str, Any], where: str) -> bool | None:
    """Whether a turn is learnt, by itself; None where it does not say."""
    told = {key: entry[key] for key in _LEARN_KEYS if entry.get(key) is not None}
    for key, value in told.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise RowError(f"`{key}` of a turn is neither 0 nor 1", where)
    if len(set(told.values())) > 1:
        raise RowError(f"{listed(list(told), ' and ')} of a turn contradict each other", where)
    return bool(next(iter(told.values()))) if told else None


def _check(turn: Turn) -> None:
    """The assistant says or does something; nobody else calls, reasons or is learnt."""
    if turn.role == "assistant":
        pieces = [*(turn.said or ()), *turn.reasoning]
        if not turn.calls and not any(isinstance(piece, Content) for piece in pieces):
            raise RowError(f"a turn of the assistant in `{turn.field}` is empty", turn.where)
        return
    deeds = {"calls a tool": turn.calls, "reasons": turn.reasoning}
    if turn.role != "reasoning":
        deeds["is to be learnt"] = turn.learnt
    for deed, done in deeds.items():
        if done:
            raise RowError(f"a turn of `{turn.field}` that is not the assistant's {deed}", f"{turn.where}: {turn.role}")


def _led_to(reasoning: Turn, answer: Turn) -> Turn:
    """The answer behind a turn of reasoning, which is then its own."""
    if answer.role != "assistant" or answer.reasoning:
        raise _no_answer(reasoning)
    if reasoning.names or reasoning.learnt not in (None, answer.learnt):
        raise RowError(f"a turn of reasoning in `{reasoning.field}` is told apart from its answer", reasoning.where)
    return dataclasses.replace(
        answer, reasoning=[piece for piece in reasoning.said or () if isinstance(piece, Content)]
    )


def _no_answer(reasoning: Turn) -> RowError:
    return RowError(f"a turn of reasoning in `{reasoning.field}` has no answer behind it", reasoning.where)
