"""What a page says of a prepared dataset: its manifest's facts and counts, its rows' sizes, some rows drawn."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from pipeline.dataset.report import percent, warnings_of
from pipeline.read.template import templates_of
from pipeline.report.histograms import Histogram, Tally, histogram
from pipeline.report.rows import DRAWN, DrawnRow, drawn_rows, spread
from pipeline.report.shown import Shown
from schemas import console
from schemas.columns import GRANULARITIES, SIDES, side_column
from schemas.config import ParseConfig
from schemas.console import counted
from schemas.dataset import open_shard
from schemas.html import number
from schemas.manifest import Manifest, read_manifest

#: Columns whose lengths are drawn.
_COLUMNS: Final = (
    "text",
    "sentences",
    *GRANULARITIES,
    *(side_column(side, name) for side in SIDES for name in ("input_ids", "responses", *GRANULARITIES)),
)


@dataclass(frozen=True)
class Share:
    """Units of one granularity on one side, by what became of them."""

    name: str
    kept: int
    inside: int
    cut: int

    @property
    def parts(self) -> list[tuple[str, float]]:
        """Each in percent of all."""
        whole = max(self.kept + self.inside + self.cut, 1)
        return [(name, 100 * getattr(self, name) / whole) for name in ("kept", "inside", "cut")]

    @property
    def percent(self) -> str:
        """Aligned, of those that were read."""
        return percent(self.kept, self.kept + self.inside)


@dataclass(frozen=True)
class DatasetSection(Shown):
    """Everything that the template shows of a dataset."""

    folder: str
    anchor: str
    figures: list[tuple[str, str]]
    facts: list[tuple[str, str]]
    warnings: list[str]
    losses: list[tuple[str, str, str]]
    fields: list[tuple[str, str, str]]
    alignment: list[Share]
    offsets: list[tuple[str, ...]]
    histograms: list[Histogram]
    rows: list[DrawnRow]
    drawn: int = DRAWN
    template: str = "dataset.html"
    kind: str = "Prepared dataset"


def dataset_section(folder: Path, anchor: str, rows: int) -> DatasetSection:
    """Read a dataset, and draw so many of its rows.

    Raises `StateError` for a folder that is none or is unfinished, `DamagedError` for one that is not as it was written.
    """
    manifest = read_manifest(folder)
    tallies = _tallies(folder, manifest)
    return DatasetSection(
        folder=str(folder),
        anchor=anchor,
        figures=_figures(manifest, tallies),
        facts=_facts(manifest, folder),
        warnings=warnings_of(manifest, folder),
        losses=[
            (reason, what, number(count))
            for what, reasons in (("rejected", manifest.rejected), ("dropped", manifest.dropped))
            for reason, count in reasons.items()
        ],
        fields=[
            (name, "read" if what == "used" else "not read", number(count))
            for what in ("used", "unused")
            for name, count in manifest.counts["fields"][what].items()
        ],
        alignment=[
            Share(
                f"{name}, {side}",
                *(manifest.counts["alignment"][side][name][part] for part in ("kept", "inside", "cut")),
            )
            for name in GRANULARITIES
            for side in (*SIDES, "both")
        ],
        offsets=_offsets(manifest),
        histograms=[histogram(title, noun, sides) for (title, noun), sides in tallies.items()],
        rows=drawn_rows(folder, spread(manifest.rows_out, rows)),
    )


Tallies = dict[tuple[str, str], dict[str, Tally]]


def _tallies(folder: Path, manifest: Manifest) -> Tallies:
    """Sizes of everything, by title and noun, and by side. One shard is in memory at a time."""
    tallies: Tallies = {}
    for shard in manifest.shards:
        for title, noun, name, values in _sizes(open_shard(folder, shard, _COLUMNS)):
            tallies.setdefault((title, noun), {}).setdefault(name, Tally()).add(values)
    return tallies


def _sizes(table: pa.Table) -> Iterator[tuple[str, str, str, Int[np.ndarray, " values"]]]:
    """Title, noun and series of each chart, and the values of a shard."""

    def lengths(column: str) -> Int[np.ndarray, " rows"]:
        values: Int[np.ndarray, " rows"] = pc.list_value_length(table[column]).to_numpy()
        return values

    yield "Characters a row", "row", "", pc.utf8_length(table["text"]).to_numpy()
    for side in SIDES:
        yield "Tokens a row", "row", side, lengths(side_column(side, "input_ids"))
    for side in SIDES:
        yield "Learnt tokens a row", "row", side, _sums(table[side_column(side, "responses")])
    for name in ("sentences", *GRANULARITIES):
        yield f"{name.capitalize()} a row", "row", "", lengths(name)
    for name in GRANULARITIES:
        for side in SIDES:
            spans = _spans(table[side_column(side, name)])
            yield f"Tokens a {name[:-1]}", name[:-1], side, np.diff(spans[spans[:, 0] >= 0]).ravel()


def _spans(column: pa.ChunkedArray) -> Int[np.ndarray, "spans 2"]:
    values = [chunk.flatten().flatten().to_numpy() for chunk in column.chunks]
    return np.concatenate([np.empty(0, dtype=np.int32), *values]).reshape(-1, 2)


def _sums(column: pa.ChunkedArray) -> Int[np.ndarray, " rows"]:
    """Of each row's spans, how much they cover together."""
    covered = np.concatenate([[0], np.diff(_spans(column)).ravel().cumsum()])
    ends = np.concatenate([[0], pc.list_value_length(column).to_numpy().cumsum()])
    sums: Int[np.ndarray, " rows"] = np.diff(covered[ends]).astype(np.int64)
    return sums


def _figures(manifest: Manifest, tallies: Tallies) -> list[tuple[str, str]]:
    figures = [(number(manifest.rows_out), f"rows of {number(manifest.rows_in)} read")]
    for (title, _), sides in tallies.items():
        what = title.removesuffix(" a row").lower()
        if title.endswith(" a row") and what != "learnt tokens":
            figures += [(number(tally.sum), f"{what}, {side}" if side else what) for side, tally in sides.items()]
    if manifest.vocabulary is not None:
        learnt = manifest.counts["learnt"]
        figures.append(
            (percent(learnt["exact"], learnt["student"]), "of the student's learnt tokens are the teacher's")
        )
    return figures


def _facts(manifest: Manifest, folder: Path) -> list[tuple[str, str]]:
    config = ParseConfig.parse(manifest.config, str(folder))
    facts = [
        ("Input", f"{file.name}: {counted(file.rows, 'row')}, {console.size(file.bytes)}, sha256 {file.sha256[:16]}")
        for file in manifest.inputs
    ]
    for side, tokenizer in manifest.tokenizers.items():
        first, last = (" ".join(tokenizer[part]) or "nothing" for part in ("prefix", "suffix"))
        revision = f", revision {tokenizer['revision']}" if tokenizer["revision"] else ""
        facts.append(
            (
                f"{side.capitalize()}'s tokenizer",
                f"{tokenizer['name']}{revision}: {number(tokenizer['vocabulary'])} tokens, {first} before a text and "
                f"{last} behind it, sha256 {tokenizer['sha256'][:16]}",
            )
        )
    parser = manifest.parser
    sentences = ", ".join(f"{number(count)} {what}" for what, count in manifest.counts["sentences"].items())
    facts += [
        ("Parser", f"{parser['kind']} {parser['name']}, sha256 {parser['sha256'][:16]}"),
        ("Rendered by", templates_of(config)),
        ("Sentences and units", sentences),
        ("Files", f"{counted(len(manifest.shards), 'shard')}, {console.size(sum(s.bytes for s in manifest.shards))}"),
        ("Fingerprint", manifest.fingerprint),
        ("Teacher's fingerprint", manifest.teacher_fingerprint),
        ("Made with", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())),
    ]
    return facts


def _offsets(manifest: Manifest) -> list[tuple[str, ...]]:
    """How tokens were found in the text, a line for each way that there was."""
    ways: dict[str, Any] = {}
    for side in SIDES:
        for way, count in manifest.counts["offsets"][side].items():
            ways.setdefault(way, {})[side] = count
    return [(way.replace("_", " "), *(number(sides.get(side, 0)) for side in SIDES)) for way, sides in ways.items()]
