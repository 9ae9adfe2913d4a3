"""Ids that several rows of a finished run have: told, for a row is asked for by its id."""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from pipeline.dataset.shards import digests_of
from pipeline.shards.workspace import Workspace
from schemas import arrow

#: Digests compared at a time: 128 MiB of them. Of more rows, parts are compared by the digests' remainders.
AT_ONCE: Final = 1 << 24
#: Ids that are told.
EXAMPLES: Final = 3


def repeated_ids(space: Workspace, rows: int) -> dict[str, Any]:
    """`rows`: how many of all rows have the id of an earlier one; `examples`: some of those ids."""
    portions = -(-rows // AT_ONCE)
    repeated, twice = 0, np.array([], dtype=np.uint64)
    for portion in range(portions):
        digests = np.fromiter(
            (digest for _, digest in _digests(space) if digest % portions == portion), dtype=np.uint64
        )
        values, times = np.unique(digests, return_counts=True)
        repeated += len(digests) - len(values)
        twice = np.concatenate([twice, values[times > 1]])[:EXAMPLES]
    return {"rows": repeated, "examples": _ids_of(space, set(twice.tolist()))}


def _digests(space: Workspace) -> Iterator[tuple[int, int]]:
    """Shard and digest of every row's id."""
    for index in range(space.shards):
        for row in digests_of(space.receipt(index)):
            yield index, int(row.id, 16)


def _ids_of(space: Workspace, wanted: set[int]) -> list[str]:
    """The ids with these digests, in the order of their rows."""
    places: dict[int, tuple[int, int]] = {}
    row, before = 0, -1
    for index, digest in _digests(space) if wanted else ():
        row, before = row + 1 if index == before else 0, index
        if digest in wanted and digest not in places:
            places[digest] = index, row
    ids = []
    for index, row in places.values():
        table = arrow.table(space.out / space.layout.shard(index, space.shards), ["id"])
        ids.append(table.column("id")[row].as_py())
    return ids
