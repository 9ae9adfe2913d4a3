"""Where the contents of a conversation stand in its rendering.

An outline says what stands between them. A template may strip white space or line feeds from a content, so each is tried as
it is and stripped, from left to right; together they must make the rendering, character for character.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from schemas.conversations import Content
from trainer.models.chat_outline import Outline

#: What templates strip: any white space, line feeds alone, blanks alone.
_STRIPPED: Final = (None, "\n", " ")


class Shown(NamedTuple):
    """What stands in a rendering for a content: characters [first, last) of it, or `first` = -1 for a rewritten one."""

    text: str
    first: int
    last: int


LEFT_OUT: Final = Shown("", -1, -1)


def variants(content: Content) -> Iterator[Shown]:
    """What a template may show of a content, all of it first.

    The result of a tool may also stand in a JSON string: it is then rewritten, and has no characters of its own.
    """
    text = content.text
    begins = dict.fromkeys([0, *(len(text) - len(text.lstrip(characters)) for characters in _STRIPPED)])
    ends = dict.fromkeys([len(text), *(len(text.rstrip(characters)) for characters in _STRIPPED)])
    for first in begins:
        for last in ends:
            if first <= last:
                yield Shown(text[first:last] if last - first < len(text) else text, first, last)
    if content.role == "tool" and (escaped := json.dumps(text, ensure_ascii=False)[1:-1]) != text:
        yield Shown(escaped, -1, -1)


class MisfitError(Exception):
    """A rendering is not what its outline says; `content` is the first that does not fit."""

    def __init__(self, content: int) -> None:
        self.content = content
        super().__init__(content)


@dataclass
class _Branch:
    """An occurrence that begins at `start`, and what has not been tried of it."""

    start: int
    untried: Iterator[Shown]


def placed(text: str, outline: Outline, contents: Sequence[Content]) -> list[tuple[int, Shown]]:
    """For each occurrence of the outline the character of `text` at which it begins, and what is shown of its content.

    Raises `MisfitError` where no choice of variants makes `text`.
    """
    literals, occurrences = outline.literals, outline.occurrences
    count = len(occurrences)
    if not text.startswith(literals[0]) or (not count and text != literals[0]):
        raise MisfitError(0)
    chosen: list[tuple[int, Shown]] = []
    branches = [_Branch(len(literals[0]), variants(contents[occurrences[0]]))] if count else []
    tried: set[tuple[int, int]] = set()  # occurrences that begin at a character, each looked at once
    deepest = 0
    while len(chosen) < count:
        if not branches:
            raise MisfitError(occurrences[deepest])
        branch, number = branches[-1], len(branches) - 1
        deepest = max(deepest, number)
        shown = next(branch.untried, None)
        if shown is None:
            branches.pop()
            del chosen[-1:]
            continue
        behind, literal = branch.start + len(shown.text), literals[number + 1]
        if not text.startswith(shown.text, branch.start):
            continue
        if not text.startswith(literal, behind):
            if literal and text.startswith(literal[0], behind):  # what differs stands before the next content
                deepest = max(deepest, min(number + 1, count - 1))
            continue
        end = behind + len(literal)
        if number + 1 == count:
            if end == len(text):
                chosen.append((branch.start, shown))
        elif (number + 1, end) not in tried:
            tried.add((number + 1, end))
            chosen.append((branch.start, shown))
            branches.append(_Branch(end, variants(contents[occurrences[number + 1]])))
    return chosen
