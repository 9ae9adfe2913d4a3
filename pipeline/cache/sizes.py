"""Where a cache's shards begin and what they will hold, from the dataset's own units and tokens: one pass over it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from pipeline.cache.documents import TeacherSide
from pipeline.cache.shard import Counts, LayerCounts, ShardRows, Spec, specs
from schemas.columns import Granularity
from schemas.config import CacheConfig
from schemas.dataset import damaged
from schemas.manifest import CacheManifest, Manifest
from schemas.signals import StateTokens
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
    token_ids: Int64[np.ndarray, " ids"] | None  # those that occur, rising; None: not asked for


def granularities(config: CacheConfig) -> tuple[Granularity, ...]:
    """Units that the chosen layers work on."""
    return tuple(dict.fromkeys(each.granularity for each in config.layers))


def state_tokens(config: CacheConfig) -> StateTokens | None:
    """`StateTokens` of the config, None if it keeps no states."""
    return config.state_tokens if "states" in config.signals else None


def tensors(config: CacheConfig, shape: TeacherShape, counts: Counts) -> dict[str, Spec]:
    """Tensors of a shard that holds this much, by name."""
    return specs(
        counts,
        config.signals,
        config.storage,
        config.state_tokens,
        shape.width,
        config.topk,
        config.response_only,
        states_of_final(config, shape),
        config.sorted,
    )


def states_of_final(config: CacheConfig, shape: TeacherShape) -> int | None:
    """The layer whose states are those of `final`, and kept there; None if there is none."""
    return next((each.layer for each in config.layers if config.states_are_final(each.layer, shape.depth)), None)


def shard_bytes(config: CacheConfig, shape: TeacherShape, counts: Counts) -> int:
    """Bytes of a shard's file that holds this much."""
    found = tensors(config, shape, counts)
    return sum(spec.bytes + len(name) + HEADER_BYTES for name, spec in found.items())


def parts(config: CacheConfig, shape: TeacherShape, counts: Counts) -> list[dict[str, Any]]:
    """Bytes of every signal and layer, and of what holds them together (`structure`: pointers and unit weights)."""
    found: dict[tuple[str, int | None], int] = {}
    for spec in tensors(config, shape, counts).values():
        key = (spec.part.signal or "structure", spec.layer)
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
    return TeacherShape.recorded(manifest), Counts(manifest.rows, manifest.tokens, manifest.counts["learnt"], found)


def nothing(config: CacheConfig) -> Counts:
    """What an empty shard holds."""
    return Counts(0, 0, 0, {each.layer: LayerCounts(0, 0, 0) for each in config.layers})


def documents_of(dataset: Path, manifest: Manifest, limit: int | None) -> TeacherSide:
    """The dataset, or its first `limit` rows."""
    return TeacherSide(dataset, manifest.shards, min(manifest.rows_out, limit or manifest.rows_out))


def measure(documents: TeacherSide, config: CacheConfig, shape: TeacherShape) -> Measured:
    """Count units and tokens, and cut rows into shards of about `shard_bytes`, of at most `shard_tokens`.

    A function of the dataset and the config only. Raises `DamagedError` if a file of the dataset is not as it was written.
    """
    for shard in documents.shards:
        problem = shard.problem(documents.folder, content=True)
        if problem is not None:
            raise damaged(documents.folder, f"{shard.file} {problem}")
    kinds = tensors(config, shape, nothing(config)).values()
    total = nothing(config)
    without_span = {each.layer: 0 for each in config.layers}
    costs = []  # bytes and tokens of every row
    id_bytes = longest = largest_id = 0
    for rows in documents.parts(granularities(config), response_only=config.response_only):
        shard_rows = rows.shard(config.layers, state_tokens(config), config.window)
        counts = shard_rows.counts()
        total += counts
        for each in config.layers:
            units = len(rows.units[each.granularity][0])
            without_span[each.layer] += units - counts.layers[each.layer].units
        costs.append(torch.stack([row_bytes(shard_rows, kinds), shard_rows.token_rows.diff()], 1))
        id_bytes += sum(len(name.encode()) for name in rows.ids)
        longest = max(longest, int(rows.token_rows.diff().max()))
        largest_id = max(largest_id, int(rows.tokens.max()))
    bounds = cut(chain.from_iterable(part.tolist() for part in costs), config.shard_bytes, config.shard_tokens)
    token_ids = documents.token_ids() if "embeddings" in config.signals else None
    return Measured(bounds, total, without_span, id_bytes, longest, largest_id, token_ids)


def row_bytes(rows: ShardRows, kinds: Iterable[Spec]) -> Int64[Tensor, " rows"]:
    """Bytes that each row adds to a shard with tensors of these kinds."""
    bytes_of = torch.zeros(len(rows.token_rows) - 1, dtype=torch.int64)
    for spec in kinds:
        bytes_of += spec.element_bytes * rows.pointers(spec.layer, spec.part.along).diff()
    return bytes_of


def cut(rows: Iterable[Sequence[int]], most_bytes: int, most_tokens: int) -> tuple[int, ...]:
    """Bounds of shards of rows of (bytes, tokens): one ends before the row that would make it too large.

    A row that is too large by itself is a shard by itself.
    """
    bounds = [0]
    size = tokens = number = 0
    for number, (more_bytes, more_tokens) in enumerate(rows, 1):
        size, tokens = size + more_bytes, tokens + more_tokens
        if number - 1 > bounds[-1] and (size > most_bytes or tokens > most_tokens):
            bounds.append(number - 1)
            size, tokens = more_bytes, more_tokens
    return (*bounds, number)
