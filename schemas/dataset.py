"""Opening a prepared dataset's shards: what the manifest says, or a sentence."""

from collections.abc import Iterator, Sequence
from functools import cache
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
    if not any(map(table.schema.equals, _schemas(None if columns is None else tuple(columns)))):
        raise damaged(folder, f"{shard.file} has another schema than this version writes")
    if table.num_rows != shard.rows:
        raise damaged(folder, f"{shard.file} has {table.num_rows} rows, its manifest says {shard.rows}")
    if lacking := [name for name, column in zip(table.column_names, table.columns, strict=True) if _nulls(column)]:
        raise damaged(folder, f"{shard.file} lacks values of its column `{lacking[0]}`")
    return table


def tables(
    folder: Path, shards: Sequence[ShardFile], columns: Sequence[str] | None, first: int, last: int
) -> Iterator[pa.Table]:
    """Columns of rows [first, last), counted over all shards, in parts that lie in one file. Raises as `open_shard`."""
    begin = 0
    for shard in shards:
        start, stop = max(first - begin, 0), min(last - begin, shard.rows)
        if start < stop:
            yield open_shard(folder, shard, columns).slice(start, stop - start)
        begin += shard.rows


def damaged(folder: Path, what: str) -> DamagedError:
    """What to raise for a dataset that is not as it was written."""
    return DamagedError(folder, what, parse_again(folder))


@cache  # there may be thousands of shards
def _schemas(columns: tuple[str, ...] | None) -> list[pa.Schema]:
    """What these columns may be, or all."""
    if columns is None:
        return [arrow_schema(*optional) for optional in product((False, True), repeat=2)]
    kinds = meanings(trees=True, mined=True)
    return [pa.schema([pa.field(name, kinds[name][0]) for name in columns])]


def _nulls(column: pa.ChunkedArray | pa.Array) -> int:
    """Values that are missing, those inside of lists included."""
    if isinstance(column, pa.ChunkedArray):
        return sum(map(_nulls, column.chunks))
    if not column.type.num_fields:
        return int(column.null_count)
    parts = column.flatten() if pa.types.is_struct(column.type) else [column.values]
    return int(column.null_count) + sum(map(_nulls, parts))
