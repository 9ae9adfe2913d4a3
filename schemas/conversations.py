"""A conversation: what its people said, apart from the frame in which a chat template is given it.

The frame is a list of messages as chat templates take them, in which every string that somebody said is a list of parts:
literal text, and numbers of contents. So a template can be rendered with the contents, or with a placeholder for each, and a
dataset keeps the frame beside its text without keeping the text twice:

    {"role": "assistant", "content": ["<think>\\n", 1, "\\n</think>\\n\\n", 2]}

Every content stands in one place, and they are numbered in the order of the messages, a message's `reasoning_content` before
its `content`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

ContentRole = Literal["system", "user", "assistant", "reasoning", "tool"]

#: A string of a message: literal text, and numbers of contents.
Parts = list[str | int]

#: Strings of a message that are `Parts`, in the order in which their contents are numbered.
SAID: Final = ("reasoning_content", "content")
#: Whose contents a message of a role may hold: a system prompt may stand in the user's message.
_HOLDS: Final[dict[str, frozenset[ContentRole]]] = {
    "system": frozenset({"system"}),
    "user": frozenset({"system", "user"}),
    "assistant": frozenset({"reasoning", "assistant"}),
    "tool": frozenset({"tool"}),
}


@dataclass(frozen=True)
class Content:
    """What one of the people said, as it stands, with at least one character that is no white space."""

    role: ContentRole
    text: str


@dataclass(frozen=True)
class Conversation:
    """Messages, contents, and tools.

    A message has `role` (system, user, assistant, tool), `content` (`Parts`; None where an assistant's message has calls or
    reasoning alone) and may have `reasoning_content` (`Parts`), `tool_calls`, `name` and `tool_call_id`.
    """

    messages: tuple[Mapping[str, Any], ...]
    contents: tuple[Content, ...]
    tools: tuple[Any, ...] = ()
    unlearnt: frozenset[int] = frozenset()  # numbers of the assistant's messages that the row says are not to be learnt

    def filled(self, contents: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The messages with strings, as a chat template takes them.

        `contents` stand in place of the conversation's own; they may go on, as those of a conversation do of which this is
        the beginning (`before`).
        """
        texts = [content.text for content in self.contents] if contents is None else contents
        return [
            {key: _joined(value, texts) if key in SAID else value for key, value in message.items()}
            for message in self.messages
        ]

    def before(self, message: int) -> "Conversation":
        """The messages before one, by its number from 0, and their contents: the numbers of these stay as they are."""
        messages = self.messages[:message]
        contents = self.contents[: sum(1 for number in _numbers(messages))]
        unlearnt = frozenset(number for number in self.unlearnt if number < message)
        return Conversation(messages, contents, self.tools, unlearnt)

    def turns(self) -> list[int]:
        """Numbers of the assistant's messages, from 0."""
        return [number for number, message in enumerate(self.messages) if message["role"] == "assistant"]

    def contents_of(self, message: int) -> list[int]:
        """Numbers of the contents that one message holds."""
        return [number for _, number in _numbers(self.messages[message : message + 1])]

    def to_json(self) -> str:
        """All but the contents."""
        frame: dict[str, Any] = {"messages": self.messages, "tools": self.tools}
        if self.unlearnt:
            frame["unlearnt"] = sorted(self.unlearnt)
        return json.dumps(frame, ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, skeleton: str, contents: Sequence[Content]) -> "Conversation":
        """What `to_json` was made of, with its contents. Raises `ValueError` for what is none, or of other contents."""
        try:
            frame = json.loads(skeleton)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        if not isinstance(frame, dict) or not {"messages", "tools"} <= frame.keys() <= {
            "messages",
            "tools",
            "unlearnt",
        }:
            raise ValueError("an object with messages and tools is wanted")
        messages, tools, unlearnt = frame["messages"], frame["tools"], frame.get("unlearnt", [])
        if not all(isinstance(value, list) for value in (messages, tools, unlearnt)):
            raise ValueError("messages, tools and unlearnt are lists")
        for message in messages:
            _check(message)
        conversation = cls(tuple(messages), tuple(contents), tuple(tools), frozenset(_whole(unlearnt)))
        _check_contents(messages, contents)
        if not conversation.unlearnt <= set(conversation.turns()):
            raise ValueError("unlearnt are messages that are not the assistant's")
        return conversation


def _joined(parts: Parts | None, texts: Sequence[str]) -> str | None:
    if parts is None:
        return None
    return "".join(part if isinstance(part, str) else texts[part] for part in parts)


def _numbers(messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, int]]:
    """Every content that the messages hold: role of the message, number."""
    for message in messages:
        for key in SAID:
            yield from ((message["role"], part) for part in message.get(key) or () if not isinstance(part, str))


def _check(message: Any) -> None:
    """One message of a frame, without regard to which contents there are."""
    if not isinstance(message, dict) or message.get("role") not in list(_HOLDS) or "content" not in message:
        raise ValueError("a message has a role and a content")
    for key in SAID:
        parts = message.get(key, [])
        if parts is None and key == "content":
            continue
        if not isinstance(parts, list):
            raise ValueError(f"{key} is a list of text and numbers of contents")
        _whole([part for part in parts if not isinstance(part, str)])


def _whole(numbers: list[Any]) -> list[int]:
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
        raise ValueError("a number of a content or a message is a whole one")
    return numbers


def _check_contents(messages: Sequence[Mapping[str, Any]], contents: Sequence[Content]) -> None:
    """Every content has one place, in order, in a message that may hold it."""
    places = list(_numbers(messages))
    if [number for _, number in places] != list(range(len(contents))):
        raise ValueError(f"it does not hold {len(contents)} contents, each once and in order")
    for (role, number), content in zip(places, contents, strict=True):
        if content.role not in _HOLDS[role]:
            raise ValueError(f"content {number} is of the role {content.role}, in a message of the role {role}")
