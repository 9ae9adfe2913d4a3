"""Turns in order make a conversation: neighbours are joined and the system prompt moved where that is asked for.

Raises `RowError` for an order that nothing can be learnt from.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from schemas.chat_turns import NAME_KEYS, Pieces, Turn
from schemas.conversations import Content, Conversation, Parts
from schemas.rows import RowError

#: Between what is joined into one message: a blank line, as between contents of a dataset's text.
_BETWEEN: Final = "\n\n"


def assembled(
    turns: Sequence[Turn], tools: Sequence[Any] = (), *, merge_turns: bool = False, system_into_user: bool = False
) -> Conversation:
    """The conversation of these turns. `merge_turns` joins neighbours of one role; results of tools stay apart."""
    turns = _arranged(turns, merge_turns, system_into_user)
    _check_answers(turns)
    return _numbered(turns, tools)


def arranged_anew(
    conversation: Conversation, *, merge_turns: bool = False, system_into_user: bool = False
) -> Conversation:
    """What `assembled` would have made of the conversation's turns, or of the beginning of one, with these options."""
    turns = [_turn(conversation, number) for number in range(len(conversation.messages))]
    return _numbered(_arranged(turns, merge_turns, system_into_user), conversation.tools)


def _arranged(turns: Sequence[Turn], merge_turns: bool, system_into_user: bool) -> Sequence[Turn]:
    if merge_turns:
        turns = _merged(turns)
    systems = [turn for turn in turns if turn.role == "system"]
    if len(systems) > 1:
        raise RowError("a conversation has two turns of the system", f"{systems[1].where} of `{systems[1].field}`")
    if system_into_user and systems:
        turns = _moved(turns)
        if merge_turns:
            turns = _merged(turns)
    return turns


def _check_answers(turns: Sequence[Turn]) -> None:
    last = turns[-1]
    answers = [turn for turn in turns if turn.role == "assistant"]
    if not answers:
        raise RowError(f"`{last.field}` has no turn of the assistant")
    if last.role != "assistant":
        raise RowError(f"`{last.field}` ends with a turn that is not the assistant's", f"{last.where}: {last.role}")
    if all(turn.learnt is False for turn in answers):
        raise RowError(f"no turn of `{last.field}` is to be learnt", "each says so of itself")


def _merged(turns: Sequence[Turn]) -> list[Turn]:
    """Neighbours of one role joined."""
    merged: list[Turn] = []
    for turn in turns:
        if merged and merged[-1].role == turn.role != "tool":
            merged[-1] = _joined(merged[-1], turn)
        else:
            merged.append(turn)
    return merged


def _joined(first: Turn, second: Turn) -> Turn:
    reason = None
    if first.names != second.names:
        reason = "their names differ"
    elif (first.learnt is False) != (second.learnt is False):
        reason = "one of them is not to be learnt"
    elif second.reasoning and (_speaks(first.said) or first.calls):
        reason = "reasoning would follow what it led to"
    elif _speaks(second.said) and first.calls:
        reason = "an answer would come before the calls that it follows"
    if reason:
        raise RowError(f"neighbouring turns of `{second.field}` cannot be joined, {reason}", second.where)
    reasoning = _apart(first.reasoning, second.reasoning)
    said = None if first.said is second.said is None else _apart(first.said or [], second.said or [])
    return replace(second, said=said, reasoning=reasoning, calls=[*first.calls, *second.calls])


def _apart(*pieces: Sequence[str | Content]) -> list[str | Content]:
    """Pieces one after the other, a blank line between those that say something."""
    joined: list[str | Content] = []
    for piece in pieces:
        if _speaks(joined) and _speaks(piece):
            joined.append(_BETWEEN)
        joined.extend(piece)
    return joined


def _speaks(pieces: Sequence[str | Content] | None) -> bool:
    return any(isinstance(piece, Content) for piece in pieces or ())


def _moved(turns: Sequence[Turn]) -> list[Turn]:
    """The system's turn at the beginning of the user's behind it; where none is behind it, a turn of the user itself."""
    number = next(number for number, turn in enumerate(turns) if turn.role == "system")
    system, behind = turns[number], turns[number + 1 :]
    if system.names:
        raise RowError(f"the system's turn in `{system.field}` has a name, and cannot be the user's", system.where)
    if behind and behind[0].role == "user":
        user = replace(behind[0], said=_apart(system.said or [], behind[0].said or []))
        return [*turns[:number], user, *behind[1:]]
    return [*turns[:number], replace(system, role="user"), *behind]


def _numbered(turns: Sequence[Turn], tools: Sequence[Any]) -> Conversation:
    contents: list[Content] = []

    def parts(pieces: Sequence[str | Content]) -> Parts:
        numbered: Parts = []
        for piece in pieces:
            if isinstance(piece, Content):
                numbered.append(len(contents))
                contents.append(piece)
            elif numbered and isinstance(numbered[-1], str):
                numbered[-1] += piece
            elif piece:
                numbered.append(piece)
        return numbered

    messages: list[dict[str, Any]] = []
    for turn in turns:
        reasoning = {"reasoning_content": parts(turn.reasoning)} if turn.reasoning else {}
        message: dict[str, Any] = {"role": turn.role, "content": None if turn.said is None else parts(turn.said)}
        calls = {"tool_calls": turn.calls} if turn.calls else {}
        messages.append(message | reasoning | calls | turn.names)
    unlearnt = frozenset(n for n, turn in enumerate(turns) if turn.role == "assistant" and turn.learnt is False)
    return Conversation(tuple(messages), tuple(contents), tuple(tools), unlearnt)


def _turn(conversation: Conversation, number: int) -> Turn:
    """The turn that a message was made of."""
    message = conversation.messages[number]

    def pieces(parts: Parts) -> Pieces:
        return [part if isinstance(part, str) else conversation.contents[part] for part in parts]

    return Turn(
        message["role"],
        None if message["content"] is None else pieces(message["content"]),
        "messages",
        number + 1,
        pieces(message.get("reasoning_content", [])),
        message.get("tool_calls", []),
        {key: message[key] for key in NAME_KEYS if key in message},
        False if number in conversation.unlearnt else None,
    )
