"""Renderings of a conversation in which marks stand for what people said, and behind what is called.

A mark is a character that occurs nowhere else; so what a template writes of itself can be told from what it was given.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

from schemas.conversations import SAID, Conversation
from schemas.rows import RowError
from trainer.models.chat_calls import CallShape, Messages, marked_call, marked_tool, shaped, shapes

#: A template applied to messages, tools, and whether to end with the generation prompt. Raises `RowError`.
Render = Callable[[Messages, Sequence[Any], bool], str]

#: Marks are private-use characters of the last plane: hardly a text has any, and JSON leaves them as they are.
FIRST_MARK: Final = 0x100000
LAST_MARK: Final = 0x10FFFD
MARKS_IN_TEXT: Final = re.compile(f"[{chr(FIRST_MARK)}-{chr(LAST_MARK)}]")


def message_of_contents(messages: Messages) -> list[int]:
    """For each content the number of its message."""
    return [
        number
        for number, message in enumerate(messages)
        for key in SAID
        for part in message.get(key) or ()
        if isinstance(part, int)
    ]


def marks_for(conversation: Conversation, texts: Iterator[str]) -> str:
    """A mark for each content, each message with calls, and each tool, in this order: none occurs in `texts`."""
    wanted = len(conversation.contents) + len(conversation.messages) + len(conversation.tools)
    taken = {mark for text in texts if not text.isascii() for mark in MARKS_IN_TEXT.findall(text)}
    free = (mark for number in range(FIRST_MARK, LAST_MARK + 1) if (mark := chr(number)) not in taken)
    marks = list(islice(free, wanted))
    if len(marks) < wanted:
        raise RowError("a conversation has too many messages for a chat template", f"{len(conversation.messages):,}")
    return "".join(marks)


class Marked:
    """The renderings of a frame with its marks: the whole one, and those of its beginnings."""

    def __init__(self, conversation: Conversation, marks: str, render: Render) -> None:
        """Raises `RowError` where the template refuses the frame, or leaves out calls or tools."""
        contents, messages = len(conversation.contents), len(conversation.messages)
        self.conversation = conversation
        self.content_marks, self.call_marks = marks[:contents], marks[contents : contents + messages]
        self.tool_marks = marks[contents + messages :]
        self._render = render
        self._plain = conversation.filled(self.content_marks)
        self._messages = [
            {**message, "tool_calls": [marked_call(call, mark) for call in message["tool_calls"]]}
            if message.get("tool_calls")
            else message
            for message, mark in zip(self._plain, self.call_marks, strict=True)
        ]
        self._tools = [marked_tool(tool, mark) for tool, mark in zip(conversation.tools, self.tool_marks, strict=True)]
        self.shape, self.whole = self._shape_and_whole()
        owners = [*message_of_contents(conversation.messages), *range(messages), *(None for _ in conversation.tools)]
        known = dict(zip(marks, owners, strict=True))
        #: Every mark in the whole, in order: where it stands, and the number of its message (None: a tool's).
        self.shown = [
            (found.start(), known[found.group()])
            for found in MARKS_IN_TEXT.finditer(self.whole)
            if found.group() in known
        ]

    def beginning(self, messages: int, add_generation_prompt: bool) -> str:
        """The rendering of the first messages alone, with their marks. Raises `RowError`."""
        return self._render(shaped(self._messages[:messages], self.shape), self._tools, add_generation_prompt)

    def exchange(self, question: str, answer: str | None, add_generation_prompt: bool) -> str:
        """The rendering of a question, and an answer to it or none. Raises `RowError`."""
        asked: list[dict[str, Any]] = [{"role": "user", "content": question}]
        answered = [] if answer is None else [{"role": "assistant", "content": answer}]
        return self._render([*asked, *answered], (), add_generation_prompt)

    def _shape_and_whole(self) -> tuple[CallShape, str]:
        """The first shape that the template takes and of which it shows all calls, and what it makes of it."""
        errors: list[RowError] = []
        for shape in shapes(self._messages):
            try:
                whole = self._render(shaped(self._messages, shape), self._tools, False)
            except RowError as error:
                errors.append(error)
                continue
            lacking = self._left_out(whole)
            if lacking is None:
                return shape, whole
            errors.insert(0, lacking)  # says more than that it fails with another shape
        raise errors[0]

    def _left_out(self, whole: str) -> RowError | None:
        for number, message in enumerate(self._messages):
            mark, calls = self.call_marks[number], message.get("tool_calls")
            if calls and whole.count(mark) < json.dumps(calls, ensure_ascii=False).count(mark):
                return RowError("it leaves out calls of tools", f"message {number + 1}")
        for tool, given, mark in zip(self._tools, self.conversation.tools, self.tool_marks, strict=True):
            if tool != given and mark not in whole:
                return RowError("it has no place for tools", f"tool {self.tool_marks.index(mark) + 1}")
        return None

    def without_call_marks(self) -> str:
        """The whole rendering with the marks of contents alone, checked to be what the template makes of them."""
        plain = self._render(shaped(self._plain, self.shape), self.conversation.tools, False)
        if plain != self.whole.translate(dict.fromkeys(map(ord, self.call_marks + self.tool_marks))):
            raise RowError("it writes a call or a tool otherwise than it stands")
        return plain

    def inserted(self) -> list[int]:
        """Characters of the whole that are marks of calls and tools, in order."""
        return [at for at, _ in self.shown if self.whole[at] in self.call_marks + self.tool_marks]

    def behind_calls(self, message: int, turn: tuple[int, int]) -> int | None:
        """The character behind the last mark of a message's calls."""
        if not self._messages[message].get("tool_calls"):
            return None
        at = self.whole.rfind(self.call_marks[message], *turn)
        if at < 0:
            raise RowError("it shows calls outside of their turn", f"message {message + 1}")
        return at + 1
