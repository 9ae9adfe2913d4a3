"""The shards of a prepared dataset: Arrow files as `datasets` reads them, and fingerprints over their rows."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Final

import pyarrow as pa

from pipeline.shards.workspace import Layout, Receipt
from schemas.manifest import DATASET_VERSION
from schemas.vocabulary import VOCABULARY

REJECTED = "rejected.jsonl"
STATE = "state.json"
INFO = "dataset_info.json"
#: Rows in one Arrow record batch: the unit in which a reader maps a file.
BATCH_ROWS = 256
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
    files=frozenset({REJECTED, STATE, INFO, VOCABULARY}),
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
        with pa.ipc.new_stream(stream, self.table.schema) as writer:
            writer.write_table(self.table, max_chunksize=BATCH_ROWS)


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


def dataset_info(schema: pa.Schema) -> dict[str, Any]:
    """What `datasets` writes of a schema of strings, numbers, lists and structs; importing it would take half a second."""
    return {
        "description": "",
        "citation": "",
        "homepage": "",
        "license": "",
        "features": {column.name: _feature(column.type) for column in schema},
        "dataset_name": "mta-prep",
    }


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_fixed_size_list(kind):
        return {"feature": _feature(kind.value_type), "length": kind.list_size, "_type": "List"}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    return {"dtype": str(kind), "_type": "Value"}


def dataset_files(schema: pa.Schema, shards: Sequence[str], name: str) -> dict[str, str]:
    """`dataset_info.json` and `state.json`, as `datasets.load_from_disk` reads them: their texts."""
    state: dict[str, Any] = {
        "_data_files": [{"filename": shard} for shard in shards],
        "_fingerprint": name[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    return {INFO: json.dumps(dataset_info(schema), indent=4), STATE: json.dumps(state, indent=2) + "\n"}
