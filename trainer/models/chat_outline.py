"""What a chat template writes around the contents of a conversation: literal text, and where the assistant's turns are.

Told from renderings in which a mark, a character that occurs nowhere else, stands for every content:

    <|im_start|>user\\n①<|im_end|>\\n<|im_start|>assistant\\n②<|im_end|>\\n

What a template writes depends on roles, calls and tools, hardly ever on contents; so one outline serves all conversations
of the same frame, and where it does not fit one, `placing` says so.

A turn begins where the rendering of the messages before it, with the generation prompt, and that of the whole part company
behind the last mark that they share; it ends likewise, where the rendering that ends with it parts from the whole.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Position:
    """A place in a rendering: in which literal, and how many characters into it."""

    literal: int
    offset: int


@dataclass(frozen=True)
class Outline:
    """A rendering is `literals[0]`, content `occurrences[0]`, `literals[1]`, ..., `literals[-1]`."""

    shape: CallShape
    literals: tuple[str, ...]
    occurrences: tuple[int, ...]  # numbers of contents; one may occur twice
    chosen: tuple[int, ...]  # for each content which occurrence it is, others being the template's text; -1: left out
    turns: tuple[tuple[Position, Position], ...]  # of each message of the assistant
    calls: tuple[Position | None, ...]  # behind the calls of each


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


class _Marked:
    """The renderings of a frame with its marks: the whole one, and those of its beginnings."""

    def __init__(self, conversation: Conversation, marks: str, render: Render, added: re.Pattern[str] | None) -> None:
        contents, messages = len(conversation.contents), len(conversation.messages)
        self.conversation = conversation
        self.content_marks, self.call_marks = marks[:contents], marks[contents : contents + messages]
        self.tool_marks = marks[contents + messages :]
        self._any = re.compile(f"[{re.escape(marks)}]")
        self._render = render
        self._added = added
        self._plain = conversation.filled(self.content_marks)
        self._messages = [
            {**message, "tool_calls": [marked_call(call, mark) for call in message["tool_calls"]]}
            if message.get("tool_calls")
            else message
            for message, mark in zip(self._plain, self.call_marks, strict=True)
        ]
        self._tools = [marked_tool(tool, mark) for tool, mark in zip(conversation.tools, self.tool_marks, strict=True)]
        self.shape, self.whole = self._shape_and_whole()
        self._owner = {
            **dict(zip(self.content_marks, message_of_contents(conversation.messages), strict=True)),
            **{mark: number for number, mark in enumerate(self.call_marks)},
        }

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
            if message.get("tool_calls") and whole.count(self.call_marks[number]) < len(message["tool_calls"]):
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
        marks = self.call_marks + self.tool_marks
        return [found.start() for found in MARKS_IN_TEXT.finditer(self.whole) if found.group() in marks]

    def behind_calls(self, message: int, turn: tuple[int, int]) -> int | None:
        """The character behind the last mark of a message's calls."""
        if not self._messages[message].get("tool_calls"):
            return None
        at = self.whole.rfind(self.call_marks[message], *turn)
        if at < 0:
            raise RowError("it shows calls outside of their turn", f"message {message + 1}")
        return at + 1

    def turn(self, message: int, earliest: int) -> tuple[int, int]:
        """Characters [start, end) of the whole that are the turn of a message. `earliest`: where it may begin."""
        start = self._start(message, earliest)
        if start is None:
            raise RowError("it does not tell where the assistant's turn begins", f"message {message + 1}")
        if message == len(self._messages) - 1:
            return start, len(self.whole)
        end = self._end(message, start)
        if end is None:
            raise RowError("it does not tell where the assistant's turn ends", f"message {message + 1}")
        return start, end

    def _start(self, message: int, earliest: int) -> int | None:
        if message:
            try:
                prefix = self._render(shaped(self._messages[:message], self.shape), self._tools, True)
            except RowError:
                return self._behind_header(message, earliest)
            for start, complete in self._shared(prefix, self._any.findall(self.whole)):
                start = start if complete else self._token_at(start)[0]
                if start >= earliest and self._begins(message, start):
                    return start
        return self._behind_header(message, earliest)

    def _begins(self, message: int, start: int) -> bool:
        """Whether what comes first behind `start` is of the message, if anything of it is shown at all."""
        own = self._own(message)
        first = self._any.search(self.whole, start)
        return not own or (first is not None and first.group() in own)

    def _own(self, message: int) -> list[str]:
        """The marks of a message that are shown."""
        return [mark for mark, owner in self._owner.items() if owner == message and mark in self.whole]

    def _end(self, message: int, start: int) -> int | None:
        try:
            prefix = self._render(shaped(self._messages[: message + 1], self.shape), self._tools, False)
        except RowError:
            return None
        for end, complete in self._shared(prefix, self._own(message) or self._any.findall(self.whole)):
            end = end if complete else self._token_at(end)[1]
            if end >= max(start, self.last_own(message, start)):
                return end
        return None

    def last_own(self, message: int, start: int) -> int:
        """Behind the last mark of a message that follows `start` before one of another message does."""
        last = start
        for found in self._any.finditer(self.whole, start):
            if self._owner.get(found.group()) != message:
                break
            last = found.end()
        return last

    def _shared(self, prefix: str, marks: Sequence[str]) -> Iterator[tuple[int, bool]]:
        """How far the whole goes along with the end of `prefix`: places behind it, the farthest along first.

        And whether it goes along to the end. The comparison begins behind the last of these marks in `prefix`.
        """
        anchors = [found.start() for found in self._any.finditer(prefix) if found.group() in marks]
        tail = prefix[anchors[-1] + 1 :] if anchors else prefix
        places = [-1]
        if anchors:
            places = [found.start() for found in re.finditer(re.escape(prefix[anchors[-1]]), self.whole)]
        shared = [(_shared_length(tail, self.whole[at + 1 : at + 1 + len(tail)]), at) for at in places]
        for length, at in sorted(shared, key=lambda pair: (-pair[0], pair[1])):
            yield at + 1 + length, length == len(tail)

    def _token_at(self, position: int) -> tuple[int, int]:
        """Bounds of the added token (`<|end|>`) in the midst of which a position lies; else the position twice."""
        for token in self._added.finditer(self.whole) if self._added else ():
            if token.start() < position < token.end():
                return token.span()
        return position, position

    def _behind_header(self, message: int, earliest: int) -> int | None:
        """The start of a turn by the header that the template gives an answer to a question.

        For a conversation that the assistant opens, and templates that cannot render what stands before a turn.
        """
        header = self._header()
        own = [self.whole.find(mark, earliest) for mark, owner in self._owner.items() if owner == message]
        first = min((at for at in own if at >= 0), default=None)
        if header is None or first is None:
            return None
        before = [found.end() for found in self._any.finditer(self.whole, earliest, first)]
        begin = before[-1] if before else earliest
        for wanted in (header, header.lstrip()):
            at = self.whole.rfind(wanted, begin, first)
            if at >= 0:
                return at + len(wanted)
        return None

    def _header(self) -> str | None:
        """What the template writes between a question and its answer because an answer follows."""
        question, answer = chr(FIRST_MARK), chr(FIRST_MARK + 1)
        asked = [{"role": "user", "content": question}]
        try:
            ends, prompts, whole = (
                self._render(messages, (), prompt).rpartition(question)[2]
                for messages, prompt in (
                    (asked, False),
                    (asked, True),
                    ([*asked, {"role": "assistant", "content": answer}], False),
                )
            )
        except RowError:
            return None
        shared = _shared_length(prompts, whole)
        return prompts[_shared_length(ends, prompts) : shared]


def _shared_length(one: str, other: str) -> int:
    """How many characters two texts share at their beginning."""
    return next(
        (at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other))
    )


def outline(
    conversation: Conversation, marks: str, render: Render, added: re.Pattern[str] | None, knows_reasoning: bool
) -> Outline:
    """The outline of a conversation's frame.

    `marks` are those of `marks_for`; `added` finds the tokenizer's added tokens; a template that knows reasoning may leave
    it out. Raises `RowError` where the template refuses the frame, leaves out any more, or does not tell where turns are.
    """
    marked = _Marked(conversation, marks, render, added)
    plain = marked.without_call_marks()
    turns = _turns(marked)
    shown = [found for found in MARKS_IN_TEXT.finditer(plain) if found.group() in marked.content_marks]
    occurrences = [marked.content_marks.index(found.group()) for found in shown]
    starts = [0, *(found.end() for found in shown)]
    ends = [start - 1 for start in starts[1:]] + [len(plain)]
    literals = tuple(plain[start:end] for start, end in zip(starts, ends, strict=True))

    inserted = marked.inserted()

    def position(character: int) -> Position:
        """Of a character of the marked rendering."""
        character -= bisect_left(inserted, character)
        literal = bisect_right(starts, character) - 1
        return Position(literal, character - starts[literal])

    return Outline(
        marked.shape,
        literals,
        tuple(occurrences),
        _chosen(conversation, occurrences, [tuple(map(position, turn)) for turn in turns], knows_reasoning),
        tuple((position(start), position(end)) for start, end in turns),
        tuple(None if end is None else position(end) for end in map(marked.behind_calls, conversation.turns(), turns)),
    )


def _turns(marked: _Marked) -> list[tuple[int, int]]:
    """The turns as characters of the marked rendering, none of which begins within another."""
    turns: list[tuple[int, int]] = []
    earliest = 0
    for message in marked.conversation.turns():
        start, end = marked.turn(message, earliest)
        earliest = marked.last_own(message, start)
        turns.append((start, end))
    following = [start for start, _ in turns[1:]] + [len(marked.whole)]
    return [(start, min(end, limit)) for (start, end), limit in zip(turns, following, strict=True)]


def _chosen(
    conversation: Conversation,
    occurrences: Sequence[int],
    turns: Sequence[tuple[Position, ...]],
    knows_reasoning: bool,
) -> tuple[int, ...]:
    """Which occurrence each content is: the last one before that of the next content, an answer's within its turn."""
    bounds = dict(zip(conversation.turns(), turns, strict=True))
    messages = message_of_contents(conversation.messages)
    left_out = set(range(len(messages))) - set(occurrences)
    for number in sorted(left_out):
        role = conversation.contents[number].role
        if role != "reasoning" or not knows_reasoning:
            raise RowError("it leaves out a content", f"message {messages[number] + 1} ({role})")
    chosen = [-1] * len(messages)
    following = len(occurrences)
    for number, message in reversed(list(enumerate(messages))):
        shown = [occurrence for occurrence, content in enumerate(occurrences) if content == number]
        if number in left_out:
            continue
        if message in bounds:
            start, end = bounds[message]
            shown = [occurrence for occurrence in shown if start.literal <= occurrence < end.literal]
        if not shown:
            raise RowError("it shows an answer outside of its turn", f"message {message + 1}")
        following = max([occurrence for occurrence in shown if occurrence < following] or shown)
        chosen[number] = following
    return tuple(chosen)
