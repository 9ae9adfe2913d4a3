"""What a page says of a teacher cache: who the teacher is, what is kept at what size, and a row's relations by layer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from pipeline.cache import sizes
from pipeline.cache.view import LayerView, find_row
from pipeline.report.rows import spread
from pipeline.report.shown import Shown
from schemas import console
from schemas.config import CacheConfig
from schemas.console import counted
from schemas.html import number
from schemas.manifest import CacheManifest, read_cache_manifest
from trainer.cache_folder import CacheFolder

#: Units of a heat map: the heaviest of a row that has more.
UNITS: Final = 24
#: Of the rows that could be shown, the one that comes nearest to so many units.
WANTED: Final = 14
ROWS_LOOKED_AT: Final = 20
#: Of a unit's text, characters beside a heat map, and of both in a cell's note.
LABEL: Final = 20
TOLD: Final = 40
#: The box of a heat map.
WIDTH: Final = 440.0
LEFT: Final = 132.0
TOP: Final = 4.0
LARGEST_CELL: Final = 20.0


@dataclass(frozen=True)
class Cell:
    """One cosine."""

    x: float
    y: float
    shade: float  # 0 for the layer's smallest cosine here, 1 for its largest
    told: str


@dataclass(frozen=True)
class HeatMap:
    """The relations of a row's units at one layer: below the diagonal, since they are symmetric."""

    title: str
    size: float  # of a cell
    height: float
    labels: tuple[tuple[float, str, str], ...]  # where, what, and in full
    cells: tuple[Cell, ...]
    low: float
    high: float


@dataclass(frozen=True)
class CacheSection(Shown):
    """Everything that the template shows of a cache."""

    folder: str
    anchor: str
    figures: list[tuple[str, str]]
    facts: list[tuple[str, str]]
    layers: list[tuple[str, ...]]
    parts: list[
        tuple[str, str, str, float]
    ]  # signal, size, bytes a document, percent of the largest or of plain states
    plain: str
    row: str | None
    maps: list[HeatMap]
    template: str = "cache.html"
    kind: str = "Teacher cache"


def cache_section(folder: Path, anchor: str) -> CacheSection:
    """Read a cache. Raises `StateError` for a folder that is none, is unfinished or damaged."""
    manifest = read_cache_manifest(folder)
    config = CacheConfig.parse(manifest.config, str(folder))
    shape, counts = sizes.told(manifest)
    plain = sizes.plain_bytes(config, shape, counts)
    stored = [
        (
            part["signal"] + ("" if part["layer"] is None else f", layer {part['layer']} ({part['granularity']})"),
            part["bytes"],
        )
        for part in sizes.parts(config, shape, counts)
    ]
    matrices = (manifest.index, manifest.head, manifest.embeddings)
    stored += [(file.file, file.bytes) for file in matrices if file is not None]
    stored.append(("hidden states of these layers in bf16, for comparison", plain))
    largest = max(size for _, size in stored) or 1
    row, maps = _maps(folder, config)
    return CacheSection(
        folder=str(folder),
        anchor=anchor,
        figures=_figures(manifest, plain),
        facts=_facts(manifest, config),
        layers=[
            (
                f"{layer.layer}",
                layer.granularity,
                number(counts.layers[layer.layer].units),
                number(manifest.counts["layers"][str(layer.layer)]["units_without_span"]),
                number(counts.layers[layer.layer].pairs),
            )
            for layer in config.layers
        ],
        parts=[
            (name, console.size(size), f"{size / max(manifest.rows, 1):,.0f}", 100 * size / largest)
            for name, size in stored
        ],
        plain=console.size(plain),
        row=row,
        maps=maps,
    )


def _figures(manifest: CacheManifest, plain: int) -> list[tuple[str, str]]:
    size = sum(file.bytes for file in manifest.files.values())
    return [
        (number(manifest.rows), "rows"),
        (number(manifest.tokens), "teacher tokens"),
        (str(len(manifest.counts["layers"])), "layers"),
        (console.size(size), f"in {counted(len(manifest.files), 'file')}"),
        (f"{100 * size / max(plain, 1):.3g} %", "of bf16 hidden states of as many layers"),
    ]


def _facts(manifest: CacheManifest, config: CacheConfig) -> list[tuple[str, str]]:
    teacher = manifest.teacher
    revision = f", revision {teacher['revision']}" if teacher["revision"] else ""
    facts = [
        ("Teacher", f"{teacher['name']}{revision}, sha256 {teacher['sha256'][:16]}"),
        (
            "Its shape",
            f"{teacher['architecture']}: {counted(teacher['depth'], 'layer')}, {number(teacher['hidden_size'])} features, "
            f"{number(teacher['vocabulary'])} tokens",
        ),
        ("Run in", f"{config.teacher.dtype} on {config.teacher.device}"),
        ("Signals", ", ".join(config.signals)),
        ("Dataset", config.dataset),
        ("Teacher's fingerprint", manifest.teacher_fingerprint),
        ("Made with", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())),
    ]
    if manifest.counts["learnt"] < manifest.tokens:
        told = f"{number(manifest.counts['learnt'])} of {number(manifest.tokens)} tokens: learnt or just before one"
        facts.insert(4, ("States and what is of the next token", told))
    return facts


def _maps(folder: Path, config: CacheConfig) -> tuple[str | None, list[HeatMap]]:
    """Which row was taken, and its relations."""
    if not config.layers or "relations" not in config.signals:
        return None, []
    cache: CacheFolder[np.ndarray] = CacheFolder(folder)
    rows = spread(len(cache), ROWS_LOOKED_AT)
    units = {row: [len(cache.values(row, "unit_index", layer)) for layer in cache.layers] for row in rows}
    row = min(rows, key=lambda each: sum(abs(count - WANTED) for count in units[each]))
    view = find_row(folder, row, None)
    return f"{row}, id {view.id}", [_map(layer) for layer in view.layers if len(layer.index) > 1]


def _map(view: LayerView) -> HeatMap:
    shown = sorted(sorted(range(len(view.index)), key=lambda unit: -view.weights[unit])[:UNITS])
    cosines = {
        (one, other): cosine  # of a long document, only pairs within a window are kept
        for one in range(len(shown))
        for other in range(one)
        if (cosine := view.cosine(shown[one], shown[other])) is not None
    }
    low, high = min(cosines.values(), default=0.0), max(cosines.values(), default=0.0)
    cell = min(LARGEST_CELL, (WIDTH - LEFT) / len(shown))
    names = [
        f"{view.index[unit]}" if view.texts is None else f"{view.index[unit]} {view.texts[unit]}" for unit in shown
    ]
    title = f"Layer {view.layer}, {view.granularity}: {counted(len(view.index), 'unit')}"
    return HeatMap(
        title=title + (f", the {len(shown)} heaviest" if len(shown) < len(view.index) else ""),
        size=cell,
        height=TOP + cell * len(shown) + 2,
        labels=tuple(
            (
                TOP + cell * (place + 0.5) + 3,
                name if len(name) <= LABEL else f"{name[:LABEL]}…",
                f"{name[: 4 * LABEL]}: weight {view.weights[unit]:.3f}",
            )
            for place, (unit, name) in enumerate(zip(shown, names, strict=True))
        ),
        cells=tuple(
            Cell(
                LEFT + cell * other,
                TOP + cell * one,
                (cosine - low) / (high - low) if high > low else 1.0,
                f"{names[one][:TOLD]} – {names[other][:TOLD]}: {cosine:.2f}",
            )
            for (one, other), cosine in cosines.items()
        ),
        low=low,
        high=high,
    )
