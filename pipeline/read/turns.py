"""The turns of a conversation: those before the assistant's last one, and that one.

What a turn holds beside its role and its text (calls of tools, reasoning) has no place in a rendered text: such a row is
rejected, not cut.
"""

from dataclasses import dataclass
from typing import Any, Final

from schemas.rows import RowError, Unusable, holds_something, type_of

#: Names under which chat data sets keep a turn's speaker and text, and what they call the speakers.
_ROLE_KEYS: Final = ("role", "from")
_CONTENT_KEYS: Final = ("content", "value")
_ROLES: Final = {"human": "user", "gpt": "assistant", "model": "assistant"}
#: What a turn says without a place in the text.
_UNPLACED: Final = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
#: What it may have beside, and is told if it has.
_UNUSED: Final = ("name", "tool_call_id", "weight", *_ROLE_KEYS, *_CONTENT_KEYS)


@dataclass(frozen=True)
class Conversation:
    """Turns before the last of the assistant, each with role and content; that one's content; keys that were not used."""

    before: list[dict[str, str]]
    response: str
    unused: frozenset[str]


def conversation(value: Any, field: str) -> Conversation:
    """The turns in `field`. Raises `RowError` for what is no conversation that ends in an answer."""
    if isinstance(value, Unusable):
        raise value.error(f"field `{field}`")
    if not isinstance(value, list):
        raise RowError(f"`{field}` is {type_of(value)}, a list of turns is wanted")
    unused: set[str] = set()
    turns = [_turn(turn, field, number, unused) for number, turn in enumerate(value, 1)]
    if not turns:
        raise RowError(f"`{field}` is empty")
    last = max((place for place, turn in enumerate(turns) if turn["role"] == "assistant"), default=None)
    if last is None:
        raise RowError(f"`{field}` has no turn of the assistant")
    if last < len(turns) - 1:
        raise RowError(
            f"`{field}` goes on after the assistant's last turn", f"{len(turns) - last - 1} of {len(turns)} turns"
        )
    response = turns[last]["content"]
    if not response.strip():
        raise RowError(f"the assistant's last turn in `{field}` is empty")
    return Conversation(turns[:last], response, frozenset(unused))


def _turn(turn: Any, field: str, number: int, unused: set[str]) -> dict[str, str]:
    where = f"turn {number}"
    if not isinstance(turn, dict):
        raise RowError(f"a turn of `{field}` is {type_of(turn)}, an object with role and content is wanted", where)
    for key in _UNPLACED:
        if holds_something(turn.get(key)):
            raise RowError(f"a turn of `{field}` has `{key}`, for which the template has no place", where)
    role_key, content_key = (
        next((key for key in keys if turn.get(key) is not None), keys[0]) for keys in (_ROLE_KEYS, _CONTENT_KEYS)
    )
    role, content = turn.get(role_key), turn.get(content_key)
    for key, said in (("role", role), ("content", content)):
        if isinstance(said, Unusable):
            raise said.error(f"the {key} of {where} of `{field}`")
        if said is not None and not isinstance(said, str):
            raise RowError(f"the {key} of a turn of `{field}` is {type_of(said)}, text is wanted", where)
    if not role:
        raise RowError(f"a turn of `{field}` has no role", where)
    unused.update(key for key in _UNUSED if key not in (role_key, content_key) and holds_something(turn.get(key)))
    return {"role": _ROLES.get(role.lower(), role.lower()), "content": content or ""}
