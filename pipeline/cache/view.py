"""`mta-prep inspect CACHE`: the relations of one row's units as a person wants to see them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float32
from rich.table import Table

from schemas import console
from schemas.columns import Granularity
from schemas.console import Text, counted, visible
from schemas.dataset import tables
from schemas.errors import StateError, UsageError
from schemas.manifest import is_finished, read_manifest
from schemas.signals import SCALARS
from trainer.cache_folder import CacheFolder
from trainer.hub.folders import folder_here
from trainer.maths.pairs import cosines_of, later_in_document

#: Columns of a terminal that one cosine, and the beginning of a matrix's line, take.
CELL_WIDTH: Final = 6
LABEL_WIDTH: Final = 34
#: Cosines are coloured from here: what is close, and what is far, among cosines of one layer.
NEAR: Final = 0.75
FAR: Final = 0.25
#: Scalars that are told as a mean.
_MEANS: Final = {
    "entropy": "Entropy of the next token",
    "logprob": "Log-probability of the row's own next token",
}


@dataclass(frozen=True)
class LayerView:
    """One layer of a row."""

    layer: int
    granularity: Granularity
    index: list[int]  # which of the row's units
    texts: list[str] | None  # None: the dataset is not there to spell them
    weights: list[float]
    relations: (
        list[Float32[np.ndarray, " pairs"]] | None
    )  # of each unit with those behind it, as many as there are pairs

    @property
    def whole(self) -> bool:
        """Whether there are all of its pairs: a long document has those within a window alone."""
        pairs = len(self.index) * (len(self.index) - 1) // 2
        return self.relations is not None and sum(map(len, self.relations)) == pairs

    def cosine(self, one: int, other: int) -> float | None:
        """Of two units, by their places here; None where there is no such pair."""
        first, second = sorted((one, other))
        assert self.relations is not None
        behind = self.relations[first]
        return float(behind[second - first - 1]) if second - first <= len(behind) else None


@dataclass(frozen=True)
class RowView:
    """One row of a cache."""

    row: int
    id: str
    tokens: int
    learnt: int  # tokens of which states, `final` and what is of the next token may be kept
    layers: list[LayerView]
    scalars: dict[str, list[float]]  # of the next token after each of those


def find_row(folder: Path, row: int, row_id: str | None) -> RowView:
    """The row at `row`, or with `row_id`; raises `UsageError` if there is none."""
    cache: CacheFolder[np.ndarray] = CacheFolder(folder)
    if row_id is not None:
        row = cache.row_of(row_id)
    elif row >= len(cache):
        raise UsageError(f"{folder} has {counted(len(cache), 'row')}, counted from 0; there is no row {row}.")
    texts = _texts(cache, row)
    for layer, granularity in cache.layers.items():
        if texts is not None and (cache.values(row, "unit_index", layer) >= len(texts[granularity])).any():
            raise cache.damaged(f"layer {layer} has {granularity} in row {row} that the dataset does not have")
    layers = [
        LayerView(
            layer,
            granularity,
            index := cache.values(row, "unit_index", layer).tolist(),
            None if texts is None else [texts[granularity][unit] for unit in index],
            cache.values(row, "unit_weights", layer).tolist(),
            _relations(cache, row, layer) if "relations" in cache.config.signals else None,
        )
        for layer, granularity in cache.layers.items()
    ]
    line = cache.index.slice(row, 1).to_pylist()[0]
    scalars: dict[str, list[float]] = {
        name: cache.values(row, name).tolist() for name in SCALARS if name in cache.config.signals
    }
    return RowView(row, line["id"], line["tokens"], cache.learnt_tokens(row), layers, scalars)


def _relations(cache: CacheFolder[np.ndarray], row: int, layer: int) -> list[Float32[np.ndarray, " pairs"]]:
    later = later_in_document(len(cache.values(row, "unit_index", layer)), cache.config.window)
    return np.split(cosines_of(cache.values(row, "relations", layer)), later.cumsum())[:-1]


def _texts(cache: CacheFolder[np.ndarray], row: int) -> dict[Granularity, list[str]] | None:
    """What the row's units spell; None if the dataset is no longer where it was, or is another one."""
    folder = folder_here(cache.config.dataset)
    if folder is None or not is_finished(folder):
        return None
    try:
        manifest = read_manifest(folder)
    except StateError:
        return None  # something else lies there now
    if manifest.teacher_fingerprint != cache.manifest.teacher_fingerprint:
        return None
    wanted = sorted(set(cache.layers.values()))
    (table,) = tables(folder, manifest.shards, ["text", *wanted], row, row + 1)
    values = table.to_pylist()[0]
    return {name: [values["text"][start:end] for start, end in values[name]] for name in wanted}


def as_json(view: RowView) -> dict[str, Any]:
    """Everything, in full; of a document with pairs within a window alone, `relations_behind` instead of the matrix: the
    cosines of each unit with those behind it that it has one with."""
    return {
        "row": view.row,
        "id": view.id,
        "tokens": view.tokens,
        "learnt_tokens": view.learnt,
        **view.scalars,
        "layers": {
            str(each.layer): {
                "granularity": each.granularity,
                "unit_index": each.index,
                "units": each.texts,
                "unit_weights": each.weights,
                **_relations_json(each),
            }
            for each in view.layers
        },
    }


def _relations_json(view: LayerView) -> dict[str, Any]:
    if view.relations is None:
        return {"relations": None}
    if not view.whole:
        return {"relations": None, "relations_behind": [behind.tolist() for behind in view.relations]}
    matrix = np.eye(len(view.index), dtype=np.float32)
    for unit, behind in enumerate(view.relations):
        matrix[unit, unit + 1 :] = matrix[unit + 1 :, unit] = behind
    return {"relations": matrix.tolist()}


def show(view: RowView, folder: Path) -> None:
    """Print the row, a table for each layer: its heaviest units if not all fit the terminal."""
    out = console.stdout
    tokens = counted(view.tokens, "teacher token")
    if view.learnt < view.tokens:
        tokens += f", {view.learnt} of them learnt or just before"
    out.print(Text(f"{folder}  row {view.row}  id {view.id}  {tokens}", style="bold"))
    if not view.layers:
        out.print("It holds no layers: what it keeps is kept once a document.")
    room = max(2, (out.width - LABEL_WIDTH) // CELL_WIDTH)
    for each in view.layers:
        units = len(each.index)
        shown = sorted(sorted(range(units), key=lambda unit: -each.weights[unit])[:room])
        title = f"Layer {each.layer}, {each.granularity}: {counted(units, 'unit')}"
        if len(shown) < units:
            title += f", the {len(shown)} heaviest"
        out.print(_table(title, each, shown))
    for name, sentence in _MEANS.items():
        if values := view.scalars.get(name):
            out.print(f"{sentence}: {sum(values) / len(values):.3g} nats on average.")
    if any(each.texts is None for each in view.layers):
        out.print("Units are numbered only: the dataset that spells them is not where it was.")


def _table(title: str, view: LayerView, shown: Sequence[int]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
    table.add_column("unit", max_width=LABEL_WIDTH - 8, no_wrap=True, overflow="ellipsis")
    table.add_column("weight", justify="right")
    if view.relations is not None:
        for unit in shown:
            table.add_column(str(view.index[unit]), justify="right", min_width=CELL_WIDTH - 1, no_wrap=True)
    for unit in shown:
        label = Text(f"{view.index[unit]:>3} ", style="dim")
        if view.texts is not None:
            label.append(visible(view.texts[unit]), style="default")
        cells = [label, Text(f"{view.weights[unit]:.3f}")]
        if view.relations is not None:
            cells += [_cosine(None if unit == other else view.cosine(unit, other)) for other in shown]
        table.add_row(*cells)
    return table


def _cosine(value: float | None) -> Text:
    if value is None:
        return Text("·", style="dim")
    style = "green" if value >= NEAR else "red" if value <= FAR else ""
    return Text(f"{value:.2f}", style=style)
