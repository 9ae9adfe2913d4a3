"""What a cache will hold, or holds, in bytes: of its config, its teacher's shape and counts alone. Without torch."""

from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.cache.specs import Counts, LayerCounts, Spec, specs
from schemas.columns import Granularity
from schemas.config import CacheConfig
from schemas.manifest import CacheManifest
from schemas.signals import StateTokens
from trainer.teacher.shape import TeacherShape

#: A safetensors header's bytes for one tensor, besides its name: type, shape and place.
HEADER_BYTES = 62


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
