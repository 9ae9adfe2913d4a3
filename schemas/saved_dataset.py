"""A prepared dataset as `datasets` opens it: its shards' Arrow streams, and the two texts beside them."""

import json
from collections.abc import Sequence
from typing import IO, Any, Final

import pyarrow as pa

STATE: Final = "state.json"
INFO: Final = "dataset_info.json"
#: Rows in one Arrow record batch: the unit in which a reader maps a file.
BATCH_ROWS: Final = 256


def write_shard(stream: IO[bytes], table: pa.Table) -> None:
    """A table as an Arrow stream: of tables with the same rows the same bytes, if each column is in one piece."""
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table, max_chunksize=BATCH_ROWS)


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
