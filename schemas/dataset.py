"""Opening a prepared dataset's shards: what the manifest says, or a sentence."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pyarrow as pa

from schemas import arrow
from schemas.columns import arrow_schema, meanings
from schemas.commands import parse_again
from schemas.errors import DamagedError
from schemas.manifest import ShardFile


def open_shard(
    folder: Path,
    shard: ShardFile,
    columns: Sequence[str] | None = None,
    content: bool = False,
    strings: bool = True,
) -> pa.Table:
    """A shard, or some of its columns, memory-mapped: of the manifest's size, rows and schema, its structure validated.

    `content`: its checksum is compared as well; `strings`: as `arrow.table` has it. Raises `DamagedError` naming the file
    and what is wrong with it.
    """
    problem = shard.problem(folder, content)
    if problem is not None:
        raise damaged(folder, f"{shard.file} {problem}")
    try:
        table = arrow.table(folder / shard.file, columns, strings)
    except pa.ArrowInvalid as error:
        raise damaged(folder, f"{shard.file} cannot be read as Arrow ({error})") from None
    if not _of_schema(table.schema, columns):
        raise damaged(folder, f"{shard.file} has another schema than this version writes")
    if table.num_rows != shard.rows:
        raise damaged(folder, f"{shard.file} has {table.num_rows} rows, its manifest says {shard.rows}")
    if lacking := [name for name, column in zip(table.column_names, table.columns, strict=True) if _nulls(column)]:
        raise damaged(folder, f"{shard.file} lacks values of its column `{lacking[0]}`")
    return table


def damaged(folder: Path, what: str) -> DamagedError:
    """What to raise for a dataset that is not as it was written."""
    return DamagedError(folder, what, parse_again(folder))


def _of_schema(schema: pa.Schema, columns: Sequence[str] | None) -> bool:
    if columns is None:
        return any(schema.equals(arrow_schema(*optional)) for optional in product((False, True), repeat=2))
    kinds = meanings(trees=True, mined=True)
    return bool(schema.equals(pa.schema([pa.field(name, kinds[name][0]) for name in columns])))


def _nulls(column: pa.ChunkedArray | pa.Array) -> int:
    """Values that are missing, those inside of lists included."""
    if isinstance(column, pa.ChunkedArray):
        return sum(map(_nulls, column.chunks))
    if pa.types.is_struct(column.type):
        inner = sum(map(_nulls, column.flatten()))
    else:
        inner = _nulls(column.values) if pa.types.is_nested(column.type) else 0
    return int(column.null_count) + inner
