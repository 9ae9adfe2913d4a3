"""What a chat template writes around the contents of a conversation: literal text, and where the assistant's turns are.

Told from renderings in which a mark, a character that occurs nowhere else, stands for every content:

    <|im_start|>user\\n①<|im_end|>\\n<|im_start|>assistant\\n②<|im_end|>\\n

What a template writes depends on roles, calls and tools, hardly ever on contents; so one outline serves all conversations
of the same frame, and where it does not fit one, `placing` says so.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from schemas.conversations import Conversation
from schemas.rows import RowError
from trainer.models.chat_calls import CallShape
from trainer.models.chat_marked import MARKS_IN_TEXT, Marked, Render, message_of_contents
from trainer.models.chat_turns import Turns


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


def outline(
    conversation: Conversation, marks: str, render: Render, added: re.Pattern[str] | None, knows_reasoning: bool
) -> Outline:
    """The outline of a conversation's frame.

    `marks` are those of `marks_for`; `added` finds the tokenizer's added tokens; a template that knows reasoning may leave
    it out. Raises `RowError` where the template refuses the frame, leaves out any more, or does not tell where turns are.
    """
    marked = Marked(conversation, marks, render)
    plain = marked.without_call_marks()
    turns = Turns(marked, added).spans()
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


def contents_left_out(conversation: Conversation, shown: Iterable[int], knows_reasoning: bool) -> set[int]:
    """Numbers of the contents that are not among the `shown` ones. Raises `RowError` for any but reasoning that may be."""
    messages = message_of_contents(conversation.messages)
    left_out = set(range(len(messages))) - set(shown)
    for number in sorted(left_out):
        role = conversation.contents[number].role
        if role != "reasoning" or not knows_reasoning:
            raise RowError("it leaves out a content", f"message {messages[number] + 1} ({role})")
    return left_out


def _chosen(
    conversation: Conversation,
    occurrences: Sequence[int],
    turns: Sequence[tuple[Position, ...]],
    knows_reasoning: bool,
) -> tuple[int, ...]:
    """Which occurrence each content is: the last one before that of the next content, an answer's within its turn."""
    bounds = dict(zip(conversation.turns(), turns, strict=True))
    messages = message_of_contents(conversation.messages)
    left_out = contents_left_out(conversation, occurrences, knows_reasoning)
    chosen = [-1] * len(messages)
    following = len(occurrences)
    of_contents: dict[int, list[int]] = {}
    for occurrence, number in enumerate(occurrences):
        of_contents.setdefault(number, []).append(occurrence)
    for number, message in reversed(list(enumerate(messages))):
        if number in left_out:
            continue
        shown = of_contents[number]
        if message in bounds:
            start, end = bounds[message]
            shown = [occurrence for occurrence in shown if start.literal <= occurrence < end.literal]
        if not shown:
            raise RowError("it shows an answer outside of its turn", f"message {message + 1}")
        following = max([occurrence for occurrence in shown if occurrence < following] or shown)
        chosen[number] = following
    return tuple(chosen)
