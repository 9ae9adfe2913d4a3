"""Where a cache's shards begin and what they will hold, from the dataset's own units and tokens: one pass over it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from pipeline.cache.documents import TeacherSide
from pipeline.cache.shard import Counts, LayerCounts, LayerRows, ShardRows, Spec, specs
from schemas import files
from schemas.columns import Granularity
from schemas.config import CacheConfig
from schemas.errors import StateError
from schemas.manifest import CacheManifest, Manifest
from schemas.signals import LAYER_SIGNALS, StateTokens
from trainer.maths.triangle import pair_rows
from trainer.teacher.shape import TeacherShape

#: A safetensors header's bytes for one tensor, besides its name: type, shape and place.
HEADER_BYTES = 62


@dataclass(frozen=True)
class Measured:
    """A dataset as a cache of it will hold it."""

    bounds: tuple[int, ...]  # shard i holds rows [bounds[i], bounds[i + 1])
    counts: Counts
    without_span: Mapping[int, int]  # units of each layer that have no teacher span
    id_bytes: int
    longest: int  # tokens of the longest row
    largest_id: int


def granularities(config: CacheConfig) -> tuple[Granularity, ...]:
    """Units that the chosen layers work on."""
    return tuple(dict.fromkeys(each.granularity for each in config.layers))


def state_tokens(config: CacheConfig) -> StateTokens | None:
    """`StateTokens` of the config, None if it keeps no states."""
    return config.state_tokens if "states" in config.signals else None


def tensors(config: CacheConfig, shape: TeacherShape, counts: Counts) -> dict[str, Spec]:
    """Tensors of a shard that holds this much, by name."""
    found: dict[str, Spec] = {}
    for last in (False, True):
        layers = {layer: of for layer, of in counts.layers.items() if (layer == shape.depth) == last}
        signals = config.signals if last else [each for each in config.signals if each in LAYER_SIGNALS]
        width = shape.width(shape.depth) if last else shape.hidden_size
        part = replace(counts, layers=layers)
        found |= specs(part, signals, config.storage, config.state_tokens, width, config.topk)
    return found


def shard_bytes(config: CacheConfig, shape: TeacherShape, counts: Counts) -> int:
    """Bytes of a shard's file that holds this much."""
    found = tensors(config, shape, counts)
    return sum(spec.bytes + len(name) + HEADER_BYTES for name, spec in found.items())


def parts(config: CacheConfig, shape: TeacherShape, counts: Counts) -> list[dict[str, Any]]:
    """Bytes of every signal and layer, and of what holds them together (`structure`: pointers and unit weights)."""
    found: dict[tuple[str, int | None], int] = {}
    for spec in tensors(config, shape, counts).values():
        key = (spec.signal or "structure", spec.layer)
        found[key] = found.get(key, 0) + spec.bytes
    units = {each.layer: each.granularity for each in config.layers}
    return [
        {"signal": signal, "layer": layer, "granularity": None if layer is None else units[layer], "bytes": size}
        for (signal, layer), size in found.items()
    ]


def plain_bytes(config: CacheConfig, shape: TeacherShape, counts: Counts) -> int:
    """What every token's hidden state would take in bf16, of as many layers (at least of one)."""
    layers = [each.layer for each in config.layers] or [shape.depth]
    return 2 * counts.tokens * sum(map(shape.width, layers))


def told(manifest: CacheManifest) -> tuple[TeacherShape, Counts]:
    """Teacher and totals of a finished cache."""
    layers = manifest.counts["layers"]
    found = {
        int(layer): LayerCounts(int(of["units"]), int(of["pairs"]), int(of["state_tokens"]))
        for layer, of in sorted(layers.items(), key=lambda item: int(item[0]))
    }
    return TeacherShape.recorded(manifest), Counts(manifest.rows, manifest.tokens, found)


def nothing(config: CacheConfig) -> Counts:
    """What an empty shard holds."""
    return Counts(0, 0, {each.layer: LayerCounts(0, 0, 0) for each in config.layers})


def documents_of(dataset: Path, manifest: Manifest, limit: int | None) -> TeacherSide:
    """The dataset, or its first `limit` rows."""
    return TeacherSide(dataset, manifest.shards, min(manifest.rows_out, limit or manifest.rows_out))


def measure(documents: TeacherSide, config: CacheConfig, shape: TeacherShape) -> Measured:
    """Count units and tokens, and cut rows into shards of about `shard_bytes`, of at most `shard_tokens`.

    A function of the dataset and the config only. Raises `StateError` if a file of the dataset is not as it was written.
    """
    for shard in documents.shards:
        path = documents.folder / shard.file
        if not path.is_file() or files.sha256_of(path) != shard.sha256:
            raise StateError(
                f"{path} is missing or damaged (its checksum is not the manifest's); `mta-prep verify "
                f"{documents.folder}` says more. Make the dataset again."
            )
    price = _Price.of(config, shape)
    cutter = _Cutter(config.shard_bytes, config.shard_tokens)
    total = nothing(config)
    without_span = {each.layer: 0 for each in config.layers}
    id_bytes = longest = largest_id = 0
    for rows in documents.parts(granularities(config)):
        shard_rows = rows.shard(config.layers, state_tokens(config))
        counts = shard_rows.counts()
        total += counts
        for each in config.layers:
            units = len(rows.units[each.granularity][0])
            without_span[each.layer] += units - counts.layers[each.layer].units
        cutter.add(price.of_rows(shard_rows), shard_rows.token_rows.diff())
        id_bytes += sum(len(name.encode()) for name in rows.ids)
        longest = max(longest, int(rows.token_rows.diff().max()))
        largest_id = max(largest_id, int(rows.tokens.max()))
    return Measured(cutter.bounds(), total, without_span, id_bytes, longest, largest_id)


@dataclass(frozen=True)
class _Price:
    """Bytes of each thing in a shard: its size is linear in what it holds."""

    row: int
    token: int
    layers: Mapping[int, tuple[int, int, int]]  # of a unit, a pair, a kept state

    @classmethod
    def of(cls, config: CacheConfig, shape: TeacherShape) -> "_Price":
        empty = nothing(config)
        free = _total(config, shape, empty)

        def more(**changed: Any) -> int:
            return _total(config, shape, replace(empty, **changed)) - free

        one = (LayerCounts(1, 0, 0), LayerCounts(0, 1, 0), LayerCounts(0, 0, 1))
        layers = {}
        for layer in empty.layers:
            unit, pair, state = (more(layers={**empty.layers, layer: thing}) for thing in one)
            layers[layer] = (unit, pair, state)
        return cls(more(rows=1), more(tokens=1), layers)

    def of_rows(self, rows: ShardRows) -> Int64[Tensor, " rows"]:
        """Bytes that each row adds."""
        total: Tensor = self.row + self.token * rows.token_rows.diff()
        for layer, of in rows.layers.items():
            unit, pair, state = self.layers[layer]
            total = total + unit * of.unit_rows.diff() + pair * pair_rows(of.unit_rows).diff()
            total = total + state * _states(of, rows.token_rows)
        return total


def _total(config: CacheConfig, shape: TeacherShape, counts: Counts) -> int:
    return sum(spec.bytes for spec in tensors(config, shape, counts).values())


def _states(rows: LayerRows, token_rows: Int64[Tensor, " pointers"]) -> Int64[Tensor, " rows"]:
    return torch.zeros_like(token_rows[1:]) if rows.state_rows is None else rows.state_rows.diff()


@dataclass
class _Cutter:
    """Cuts rows that come in parts: a shard ends before the row that would make it too large."""

    most_bytes: int
    most_tokens: int
    _starts: list[int] = field(default_factory=lambda: [0])
    _rows: int = 0
    _before: np.ndarray = field(default_factory=lambda: np.zeros(2, dtype=np.int64))  # bytes, tokens so far
    _start: np.ndarray = field(default_factory=lambda: np.zeros(2, dtype=np.int64))  # of them, before this shard

    def add(self, size: Int64[Tensor, " rows"], tokens: Int64[Tensor, " rows"]) -> None:
        """The next rows."""
        totals = np.concatenate(
            [self._before[None], self._before + np.cumsum(torch.stack([size, tokens], 1).numpy(), 0)]
        )
        rows = len(size)
        place = 0  # of these rows, the first that is in no finished shard
        while place < rows:
            room = self._start + np.array([self.most_bytes, self.most_tokens])
            fitting = min(int(np.searchsorted(totals[1:, column], room[column], "right")) for column in (0, 1))
            if fitting >= rows:
                break
            # a row that is too large by itself is a shard by itself
            place = fitting + int(self._rows + fitting == self._starts[-1])
            self._starts.append(self._rows + place)
            self._start = totals[place]
        self._rows += rows
        self._before = totals[-1]

    def bounds(self) -> tuple[int, ...]:
        """First row of every shard, and the number of rows."""
        return (*(start for start in self._starts if start < self._rows), self._rows)
