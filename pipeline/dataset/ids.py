"""Ids that several rows of a finished run have: told, for a row is asked for by its id."""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from jaxtyping import UInt64

from pipeline.dataset.shards import ID_BYTES, digests_of
from pipeline.shards.workspace import Workspace
from schemas import arrow

#: Digests compared at a time: 128 MiB of them. Of more rows, parts are compared by the digests' remainders.
AT_ONCE: Final = 1 << 24
#: Ids that are told.
EXAMPLES: Final = 3

Digests = UInt64[np.ndarray, " rows"]


def repeated_ids(space: Workspace, rows: int) -> dict[str, Any]:
    """`rows`: how many of all rows have the id of an earlier one; `examples`: some of those ids."""
    portions = -(-rows // AT_ONCE)
    repeated, twice = 0, np.array([], dtype=np.uint64)
    for portion in range(portions):
        digests = np.concatenate([part[part % portions == portion] for part in _digests(space)])
        values, times = np.unique(digests, return_counts=True)
        repeated += len(digests) - len(values)
        twice = np.concatenate([twice, values[times > 1]])[:EXAMPLES]
    return {"rows": repeated, "examples": _ids_of(space, twice)}


def _digests(space: Workspace) -> Iterator[Digests]:
    """Those of the ids of every shard's rows."""
    for index in range(space.shards):
        spelled = "".join(row.id for row in digests_of(space.receipt(index)))
        yield np.frombuffer(bytes.fromhex(spelled), dtype=f">u{ID_BYTES}").astype(np.uint64)


def _ids_of(space: Workspace, wanted: Digests) -> list[str]:
    """The ids with these digests, in the order of their rows."""
    places: dict[int, tuple[int, int]] = {}
    for index, digests in enumerate(_digests(space) if len(wanted) else ()):
        for row in np.flatnonzero(np.isin(digests, wanted)).tolist():
            places.setdefault(int(digests[row]), (index, row))
    ids = []
    for index, row in places.values():
        table = arrow.table(space.out / space.layout.shard(index, space.shards), ["id"])
        ids.append(table.column("id")[row].as_py())
    return ids
