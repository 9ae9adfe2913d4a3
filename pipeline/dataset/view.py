"""`mta-prep inspect`: one row as a person wants to see it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Int
from rich.style import Style

from pipeline.dataset.decoding import in_a_text
from pipeline.read.loading import load_fast_tokenizer
from schemas import arrow, console, embedded
from schemas.columns import GRANULARITIES, LABELLED, SIDES, Granularity, Side, label_column, side_column
from schemas.config import ParseConfig
from schemas.console import Text, counted, visible
from schemas.dataset import open_shard
from schemas.errors import UsageError, UserError
from schemas.manifest import Manifest, read_manifest

Spans = Int[np.ndarray, "_ 2"]

LABEL_STYLES = {"NP": Style(color="green"), "VP": Style(color="yellow")}
#: Neighbouring tokens and words alternate, so that borders show without marks inside the text.
STRIPES = (Style(bgcolor="grey23"), Style(bgcolor="grey37"))
#: Characters of a row that are printed: a terminal is to be looked at, and takes seconds for these.
SHOWN: Final = 50_000


@dataclass(frozen=True)
class Row:
    """One row and its place."""

    index: int
    values: dict[str, Any]

    @cached_property
    def _spans(self) -> dict[str, Spans]:
        return {}

    @cached_property
    def _orders(self) -> dict[str, Int[np.ndarray, " _"]]:
        return {}

    def spans(self, column: str) -> Spans:
        """A span column as an array, made once."""
        if column not in self._spans:
            self._spans[column] = np.array(self.values[column], dtype=np.int64).reshape(-1, 2)
        return self._spans[column]

    def places(self, column: str, start: int, end: int) -> Int[np.ndarray, " places"]:
        """Which of a column's spans begin in [start, end), rising; found in the logarithm of their number."""
        starts = self.spans(column)[:, 0]
        if column not in self._orders:
            self._orders[column] = np.argsort(starts, kind="stable")
        order = self._orders[column]
        first, last = np.searchsorted(starts, (start, end), sorter=order)
        return np.sort(order[first:last])


def find_row(folder: Path, index: int, row_id: str | None) -> Row:
    """The row at `index`, or the first with `row_id`; raises `UsageError` if there is none, `DamagedError` if its shard is
    not as it was written."""
    manifest = read_manifest(folder)
    if row_id is not None:
        index = _row_of(folder, manifest, row_id)
    first = 0
    for shard in manifest.shards:
        if index < first + shard.rows:
            table = open_shard(folder, shard, content=True)
            return Row(index, table.slice(index - first, 1).to_pylist()[0])
        first += shard.rows
    raise UsageError(f"{folder} has {counted(first, 'row')}, counted from 0; there is no row {index}.")


def _row_of(folder: Path, manifest: Manifest, row_id: str) -> int:
    first = 0
    for shard in manifest.shards:
        place = arrow.place_of(open_shard(folder, shard, ["id"]).column("id"), row_id)
        if place is not None:
            return first + place
        first += shard.rows
    raise UsageError(f"{folder} has no row with id {row_id!r}.")


def as_json(row: Row) -> dict[str, Any]:
    """The row's columns, with the text of every unit and token beside its span."""
    text = row.values["text"]

    def spelled(column: str) -> list[str | None]:
        return [text[a:b] if a >= 0 else None for a, b in row.spans(column).tolist()]

    extra = {f"{column}_text": spelled(column) for column in ("sentences", *GRANULARITIES)}
    extra |= {f"{side}_tokens": spelled(side_column(side, "offsets")) for side in SIDES}
    return {"row": row.index, **row.values, **extra}


def show(row: Row, folder: Path) -> None:
    """Print the row, sentence by sentence; of a conversation also what each side reads, its template's tokens dimmed."""
    values = row.values
    text = values["text"]
    out = console.stdout
    out.print(Text(f"{folder}  row {row.index}  id {values['id']}", style="bold"))
    sizes = ", ".join(counted(len(values[name]), name.removesuffix("s")) for name in ("sentences", *GRANULARITIES))
    tokens = ", ".join(counted(len(values[side_column(side, "input_ids")]), f"{side} token") for side in SIDES)
    turns = counted(len(values["messages"]), "content") + ", " if values["messages"] else ""
    out.print(f"{counted(len(text), 'character')}, {turns}learnt {_ranges(row.spans('responses'))}; {sizes}; {tokens}")
    marks = marks_of(row)[::-1]
    sentences = [(start, min(end, SHOWN)) for start, end in row.spans("sentences").tolist() if start < SHOWN]
    for number, (start, end) in enumerate(sentences):
        out.print()
        while marks and marks[-1][0] < end:
            out.print(Text(marks.pop()[1], "bold magenta"))
        out.print(Text.assemble((f"{number:>3} ", "dim"), visible(text[start:end])))
        _line("words", _striped(text, _within(row, "words", start, end)))
        for name in LABELLED:
            _line(name, _labelled(row, name, _inside(row, name, start, end).tolist()))
        for side in SIDES:
            _line(side, _striped(text, _within(row, side_column(side, "offsets"), start, end)))
            lost = _lost(row, side, start, end)
            if lost:
                _line("", Text(f"no {side} span: {lost}", style="red"))
    if values["messages"]:
        show_sides(row, folder)
    if len(text) > SHOWN:
        out.print()
        out.print(f"That were the first {SHOWN:,} characters: --json gives the whole row.")


def _ranges(spans: Spans) -> str:
    """`120 to 180, 300 to 412`."""
    return ", ".join(f"{start} to {end}" for start, end in spans.tolist()) or "nothing of the text"


def marks_of(row: Row) -> list[tuple[int, str]]:
    """What to say before the sentence that a character stands in: whose content begins there, and whether it is learnt."""
    learnt = {tuple(span) for span in row.spans("responses").tolist()}
    if not row.values["messages"]:
        return [(start, "response") for start, _ in sorted(learnt) if start]
    return [
        (message["start"], message["role"] + (", learnt" if (message["start"], message["end"]) in learnt else ""))
        for message in row.values["messages"]
    ]


def show_sides(row: Row, folder: Path) -> None:
    """Print what each side of a conversation reads: its template's tokens dimmed, what is learnt underlined."""
    manifest = read_manifest(folder)
    config = ParseConfig.parse(manifest.config, str(folder))
    for side in SIDES:
        console.stdout.print()
        console.stdout.print(Text(f"{side}, template {manifest.tokenizers[side]['template']['source']}", "bold"))
        console.stdout.print(as_read(row, side, spelled_by(side, config))[:SHOWN])


def spelled_by(side: Side, config: ParseConfig) -> Callable[[Sequence[int]], str]:
    """What tokens say in the middle of a text; their numbers where the tokenizer is not there."""
    try:
        library = load_fast_tokenizer(side, embedded.side(getattr(config, side)))
    except UserError:
        return lambda ids: "".join(f"<{index}>" for index in ids)
    return in_a_text(library.backend)


def as_read(row: Row, side: Side, spelled: Callable[[Sequence[int]], str]) -> Text:
    """What a side reads of a conversation, from its tokens; what the contents say is taken from the row's own text."""
    line = Text()
    ids, offsets = row.values[side_column(side, "input_ids")], row.spans(side_column(side, "offsets"))
    learnt = np.zeros(len(ids), dtype=bool)
    for start, end in row.spans(side_column(side, "responses")).tolist():
        learnt[start:end] = True
    borders = [message["start"] for message in row.values["messages"]]
    contents = np.where(
        offsets[:, 0] < 0, 0, np.searchsorted(borders, offsets[:, 0], side="right")
    )  # 0: of the template
    for (content, underlined), run in groupby(range(len(ids)), lambda place: (contents[place], learnt[place])):
        style, places = Style(underline=bool(underlined)), list(run)
        if not content:
            line.append(visible(spelled([ids[place] for place in places])), style=style + Style(dim=True))
            continue
        said = spelled([ids[places[0]]])  # the space before a content is in its first token, and the template's
        line.append(visible(said[: len(said) - len(said.lstrip())]), style=style + Style(dim=True))
        shown = int(offsets[places[0], 0])
        for place in places:
            end = max(shown, int(offsets[place, 1]))
            line.append(visible(row.values["text"][shown:end]), style=style + STRIPES[place % 2])
            shown = end
    return line


def _line(name: str, content: Text) -> None:
    line = Text.assemble((f"    {name:<8} ", "dim"), content)
    console.stdout.print(line)


def _within(row: Row, column: str, start: int, end: int) -> Spans:
    """Spans of something that begin in [start, end)."""
    spans = row.spans(column)[row.places(column, start, end)]
    within: Spans = spans[spans[:, 1] > spans[:, 0]]
    return within


def _inside(row: Row, column: str, start: int, end: int) -> Int[np.ndarray, " places"]:
    """Which spans lie in [start, end)."""
    places = row.places(column, start, end)
    inside: Int[np.ndarray, " places"] = places[row.spans(column)[places, 1] <= end]
    return inside


def _striped(text: str, spans: Spans) -> Text:
    line = Text()
    for index, (start, end) in enumerate(spans.tolist()):
        line.append("|", style="dim")
        line.append(visible(text[start:end]), style=STRIPES[index % 2])
    if len(spans):
        line.append("|", style="dim")
    return line


def _labelled(row: Row, name: Granularity, chosen: list[int]) -> Text:
    text, spans, labels = row.values["text"], row.spans(name), row.values[label_column(name)]
    line = Text()
    for index in chosen:
        start, end = spans[index].tolist()
        style = LABEL_STYLES[labels[index]]
        line.append("[", style="dim")
        line.append(labels[index], style=style + Style(bold=True))
        line.append(" " + visible(text[start:end]), style=style)
        line.append("] ", style="dim")
    return line


def _lost(row: Row, side: Side, start: int, end: int) -> str:
    """Units of this sentence without a token span on this side."""
    text, lost = row.values["text"], []
    for name in GRANULARITIES:
        places = _inside(row, name, start, end)
        gone = places[row.spans(side_column(side, name))[places, 0] < 0]
        lost += [f"{name[:-1]} {visible(text[a:b])!r}" for a, b in row.spans(name)[gone].tolist()]
    return ", ".join(lost)
