"""Rows as they are drawn: sentence by sentence, under each tokenization the units that it has there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from pipeline.dataset.view import Row, find_row, marks_of
from pipeline.report.brackets import Bracket, Event, Fate, Kind, events, levels
from pipeline.report.shown import Shown
from schemas.columns import GRANULARITIES, LABELLED, SIDES, Granularity, Side, label_column, side_column

#: Characters of a row that are drawn, and the most rows: a page is to be looked at, not to be a copy of the dataset.
DRAWN: Final = 2_400
#: Characters of it by which a row is known while it is closed.
_BEGINNING: Final = 80
KINDS: Final[dict[Granularity, Kind]] = {"words": "word", "chunks": "chunk", "phrases": "phrase"}


@dataclass(frozen=True)
class DrawnSentence:
    """A sentence on both sides."""

    number: int
    marks: tuple[str, ...]  # whose content begins with it
    levels: int  # of phrases in one another
    sides: dict[Side, list[Event]]


@dataclass(frozen=True)
class DrawnRow(Shown):
    """A row with its sentences, or as many of them as are drawn."""

    row: int
    id: str
    begins: str  # first words of what is learnt
    sizes: dict[str, int]
    special: dict[Side, list[int]]  # ids of tokens that stand for no character
    sentences: tuple[DrawnSentence, ...]
    left_out: int  # sentences behind those
    drawn: int = DRAWN
    template: str = "row.html"


def drawn_rows(folder: Path, rows: Sequence[int]) -> list[DrawnRow]:
    """Rows of a dataset, by their numbers."""
    return [drawn(find_row(folder, row, None)) for row in rows]


def drawn(row: Row) -> DrawnRow:
    """A row as it is drawn."""
    values = row.values
    sizes = {name: len(values[name]) for name in ("sentences", *GRANULARITIES)}
    sizes |= {f"{side} tokens": len(values[side_column(side, "input_ids")]) for side in SIDES}
    brackets = {side: _brackets(row, side) for side in SIDES}
    sentences: list[DrawnSentence] = []
    stretches = _stretches(row, [bracket.start for side in SIDES for bracket in brackets[side]])
    brackets = {side: [bracket for bracket in brackets[side] if bracket.start < DRAWN] for side in SIDES}
    marks = marks_of(row)
    before = 0
    for number, (start, end) in enumerate(stretches):
        if start >= DRAWN:
            break
        said = tuple(mark for at, mark in marks if before <= at < end)
        sentences.append(_sentence(number, said, values["text"], start, min(end, DRAWN), brackets))
        before = end
    learnt = row.spans("responses").tolist()
    begins = values["text"][learnt[0][0] if learnt else 0 :]
    begins = begins if len(begins) <= _BEGINNING else begins[:_BEGINNING].rstrip() + "…"
    special = {
        side: [
            values[side_column(side, "input_ids")][place]
            for place, (start, _) in enumerate(row.spans(side_column(side, "offsets")).tolist())
            if start < 0
        ]
        for side in SIDES
    }
    return DrawnRow(row.index, values["id"], begins, sizes, special, tuple(sentences), len(stretches) - len(sentences))


def _sentence(
    number: int, marks: tuple[str, ...], text: str, start: int, end: int, brackets: Mapping[Side, Sequence[Bracket]]
) -> DrawnSentence:
    sides = {side: [one for one in brackets[side] if one.start < end and one.end > start] for side in SIDES}
    deepest = max((one.level for side in SIDES for one in sides[side] if one.kind == "phrase"), default=-1)
    return DrawnSentence(number, marks, deepest + 1, {side: events(text, start, end, sides[side]) for side in SIDES})


def _stretches(row: Row, starts: Sequence[int]) -> list[tuple[int, int]]:
    """Sentences, each from the first token behind the one before: line breaks between them are tokens as well."""
    begun = np.sort(np.array(starts, dtype=np.int64))
    stretches, before = [], 0
    spans = row.spans("sentences").tolist()
    for number, (start, end) in enumerate(spans):
        if number == len(spans) - 1:
            end = len(row.values["text"].rstrip(" ")) if (begun >= end).any() else end
        place = int(np.searchsorted(begun, before))
        stretches.append((min(start, int(begun[place])) if place < len(begun) else start, end))
        before = end
    return stretches


def _brackets(row: Row, side: Side) -> list[Bracket]:
    """Everything to draw over the text as this side reads it."""
    ids, offsets = row.values[side_column(side, "input_ids")], row.spans(side_column(side, "offsets"))
    read = np.zeros(len(row.values["text"]), dtype=bool)
    brackets: list[Bracket] = []
    for index, (number, (start, end)) in enumerate(zip(ids, offsets.tolist(), strict=True)):
        if start >= 0:
            read[start:end] = True
            brackets.append(Bracket("token", start, end, index, number=number))
    for name in GRANULARITIES:
        spans, tokens = row.spans(name).tolist(), row.spans(side_column(side, name)).tolist()
        labels = row.values[label_column(name)] if name in LABELLED else [""] * len(spans)
        heights = levels([(start, end) for start, end in spans]) if name == "phrases" else [0] * len(spans)
        for index, ((start, end), (first, last), label, level) in enumerate(
            zip(spans, tokens, labels, heights, strict=True)
        ):
            fate: Fate = "kept" if first >= 0 else "inside" if read[start] and read[end - 1] else "unread"
            brackets.append(Bracket(KINDS[name], start, end, index, label, fate, span=(first, last), level=level))
    return brackets


def spread(rows: int, wanted: int) -> list[int]:
    """`wanted` of so many rows, as far apart as can be, from the first on."""
    return sorted({rows * place // wanted for place in range(wanted)}) if rows else []
