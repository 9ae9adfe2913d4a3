"""Spans over a text as marks one inside another, which HTML can draw: brackets of phrases, chunks, words, tokens.

Spans may cross (a verb group reaches into a verb phrase that begins inside it). HTML elements cannot, so a span is then
drawn in pieces: the first says that the span begins there, the last that it ends there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Kind = Literal["phrase", "chunk", "word", "token"]
#: What became of a unit on a side: exact tokens, an edge in a token, or beyond what the side reads.
Fate = Literal["kept", "inside", "unread"]
#: From the outermost to the innermost.
_ORDER: dict[Kind, int] = {"phrase": 0, "chunk": 1, "word": 2, "token": 3}


@dataclass(frozen=True)
class Bracket:
    """One span to draw, characters half-open, and what is said of it."""

    kind: Kind
    start: int
    end: int
    index: int  # among the row's units of this kind, or its tokens
    label: str = ""  # NP or VP
    fate: Fate = "kept"
    number: int | None = None  # a token's id
    span: tuple[int, int] | None = None  # of a unit: its tokens on this side
    level: int = 0  # of a phrase: how many lie one inside another below it


@dataclass
class Piece:
    """A bracket, or a part of it, from here to the matching `Close`."""

    bracket: Bracket
    begins: bool  # whether the bracket begins here
    ends: bool = False  # whether it ends where the piece does


@dataclass(frozen=True)
class Close:
    """The end of the piece opened last."""


Event = Piece | Close | str


def events(text: str, start: int, end: int, brackets: Sequence[Bracket]) -> list[Event]:
    """`text[start:end]` in pieces with brackets opened and closed between them, well nested; brackets beyond it are cut."""
    emitted: list[Event] = []
    stack: list[Piece] = []
    for first, last, covering in _atoms(start, end, brackets):
        common = 0
        while common < min(len(stack), len(covering)) and stack[common].bracket is covering[common]:
            common += 1
        _close(stack, common, first, emitted)
        for bracket in covering[common:]:
            piece = Piece(bracket, begins=bracket.start == first)
            stack.append(piece)
            emitted.append(piece)
        emitted.append(text[first:last])
    _close(stack, 0, end, emitted)
    return emitted


def _close(stack: list[Piece], depth: int, at: int, emitted: list[Event]) -> None:
    while len(stack) > depth:
        piece = stack.pop()
        piece.ends = piece.bracket.end == at
        emitted.append(Close())


def _atoms(start: int, end: int, brackets: Sequence[Bracket]) -> Iterator[tuple[int, int, list[Bracket]]]:
    """Stretches between one border and the next, each with the brackets over it, outermost first."""
    waiting = sorted(
        (bracket for bracket in brackets if bracket.start < bracket.end), key=lambda bracket: -bracket.start
    )
    borders = sorted({start, end} | {at for each in waiting for at in (each.start, each.end) if start < at < end})
    covering: list[Bracket] = []
    for first, last in pairwise(borders):
        covering = [bracket for bracket in covering if bracket.end > first]
        while waiting and waiting[-1].start <= first:
            bracket = waiting.pop()
            if bracket.end > first:
                covering.append(bracket)
        covering.sort(key=lambda bracket: (_ORDER[bracket.kind], bracket.start, -bracket.end, bracket.index))
        yield first, last, list(covering)


def levels(spans: Sequence[tuple[int, int]]) -> list[int]:
    """Of each span, how many others lie one inside another in it, so that their lines do not fall on one another.

    Of equal spans the first is the outer one. None is empty. Only those that overlap are compared, which keeps it linear in
    a text of many sentences.
    """
    heights = [0] * len(spans)
    for group in _overlapping(spans):
        inner_first = sorted(group, key=lambda place: (spans[place][1] - spans[place][0], -place))
        for rank, place in enumerate(inner_first):
            start, end = spans[place]
            heights[place] = 1 + max(
                (heights[other] for other in inner_first[:rank] if start <= spans[other][0] and spans[other][1] <= end),
                default=-1,
            )
    return heights


def _overlapping(spans: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    """Places of spans in groups: those of one group overlap one after the other, those of two do not."""
    group: list[int] = []
    reach = 0
    for place in sorted(range(len(spans)), key=lambda place: spans[place]):
        start, end = spans[place]
        if group and start >= reach:
            yield group
            group = []
        group.append(place)
        reach = max(reach, end)
    if group:
        yield group
