"""Where a cache's shards begin and what they will hold, from the dataset's own units and tokens: one pass over it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from pipeline.cache import sizes
from pipeline.cache.documents import TeacherSide
from pipeline.cache.shard import ShardRows
from pipeline.cache.specs import Counts, Spec
from schemas.config import CacheConfig
from schemas.dataset import damaged
from trainer.teacher.shape import TeacherShape


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


def measure(documents: TeacherSide, config: CacheConfig, shape: TeacherShape) -> Measured:
    """Count units and tokens, and cut rows into shards of about `shard_bytes`, of at most `shard_tokens`.

    A function of the dataset and the config only. Raises `DamagedError` if a file of the dataset is not as it was written.
    """
    for shard in documents.shards:
        problem = shard.problem(documents.folder, content=True)
        if problem is not None:
            raise damaged(documents.folder, f"{shard.file} {problem}")
    kinds = sizes.tensors(config, shape, sizes.nothing(config)).values()
    total = sizes.nothing(config)
    without_span = {each.layer: 0 for each in config.layers}
    costs = []  # bytes and tokens of every row
    id_bytes = longest = largest_id = 0
    for rows in documents.parts(sizes.granularities(config), response_only=config.response_only):
        shard_rows = rows.shard(config.layers, sizes.state_tokens(config), config.window)
        counts = shard_rows.counts()
        total += counts
        for each in config.layers:
            units = len(rows.units[each.granularity][0])
            without_span[each.layer] += units - counts.layers[each.layer].units
        costs.append(torch.stack([row_bytes(shard_rows, kinds), shard_rows.token_rows.diff()], 1))
        id_bytes += sum(len(name.encode()) for name in rows.ids)
        longest = max(longest, int(rows.token_rows.diff().max()))
        largest_id = max(largest_id, int(rows.tokens.max()))
    bounds = sizes.cut(chain.from_iterable(part.tolist() for part in costs), config.shard_bytes, config.shard_tokens)
    token_ids = documents.token_ids() if "embeddings" in config.signals else None
    return Measured(bounds, total, without_span, id_bytes, longest, largest_id, token_ids)


def row_bytes(rows: ShardRows, kinds: Iterable[Spec]) -> Int64[Tensor, " rows"]:
    """Bytes that each row adds to a shard with tensors of these kinds."""
    bytes_of = torch.zeros(len(rows.token_rows) - 1, dtype=torch.int64)
    for spec in kinds:
        bytes_of += spec.element_bytes * rows.pointers(spec.layer, spec.part.along).diff()
    return bytes_of
