"""The shards of a prepared dataset: Arrow files as `datasets` reads them, and fingerprints over their rows."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, Final

import pyarrow as pa

from pipeline.shards.workspace import Layout, Receipt
from schemas.manifest import DATASET_VERSION
from schemas.saved_dataset import INFO, STATE, write_shard
from schemas.vocabulary import VOCABULARY

REJECTED = "rejected.jsonl"
#: Where the parser's precision was chosen: what was measured (`pipeline.parse.precision`).
PRECISION = "parser-precision.json"
#: Of an id's digest.
ID_BYTES = 8


def shard_name(index: int, total: int) -> str:
    """As `datasets` names them."""
    return f"data-{index:05d}-of-{total:05d}.arrow"


LAYOUT: Final = Layout(
    name="dataset",
    recorded=("versions", "config", "inputs", "template", "tokenizers", "segmenter", "parser"),
    shard=shard_name,
    shards="data-*-of-*.arrow",
    files=frozenset({REJECTED, STATE, INFO, VOCABULARY, PRECISION}),
)


@dataclass(frozen=True)
class RowDigest:
    """Digests of one row: of every column, of the columns that a teacher cache depends on, and of its id."""

    whole: str
    teacher: str
    id: str


@dataclass(frozen=True)
class ShardOutput:
    """What a shard function returns (protocol: `pipeline.shards.workspace.Output`)."""

    table: pa.Table
    digests: tuple[RowDigest, ...]
    stats: dict[str, Any] = field(default_factory=dict)  # nested counts
    left_out: tuple[dict[str, Any], ...] = ()  # rows rejected or dropped (`pipeline.read.records.Rejected.entry`)

    @property
    def rows(self) -> int:
        """Rows in the shard."""
        return int(self.table.num_rows)

    @property
    def details(self) -> dict[str, Any]:
        """Digests, and rows left out."""
        return {
            "digests": [[digest.whole, digest.teacher, digest.id] for digest in self.digests],
            "left_out": self.left_out,
        }

    @property
    def others(self) -> Mapping[str, Callable[[IO[bytes]], None]]:
        """None."""
        return {}

    def write(self, stream: IO[bytes]) -> None:
        """An Arrow stream."""
        write_shard(stream, self.table)


def digests_of(receipt: Receipt) -> tuple[RowDigest, ...]:
    """A finished shard's digests."""
    return tuple(RowDigest(*row) for row in receipt.details["digests"])


def automatic_shard_rows(rows: int) -> int:
    """64 shards, of at least 100 rows (so that small corpora spread over workers) and at most 10,000 (memory)."""
    return min(10_000, max(100, -(-rows // 64)))


class Fingerprint:
    """One hash for all rows in order, wherever the borders of shards fall."""

    def __init__(self) -> None:
        self._total = hashlib.sha256(f"mta-prep rows v{DATASET_VERSION}".encode())

    def update(self, digests: Iterable[str]) -> None:
        """Take in the next rows' digests."""
        for digest in digests:
            self._total.update(bytes.fromhex(digest))

    def hexdigest(self) -> str:
        """The hash so far."""
        return self._total.hexdigest()
