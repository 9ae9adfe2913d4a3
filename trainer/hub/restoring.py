"""A prepared dataset as Parquet on the Hub, and as the Arrow files that it was, byte for byte.

The bytes of an Arrow stream follow from its rows, the sizes of its record batches, and the version of pyarrow. Where that
version lays a stream out in other bytes, the rows are the same all the same: they come from the very Parquet that was read
back when it was pushed, and so do the fingerprints.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa

from schemas import files
from schemas.arrow import told_alike
from schemas.columns import arrow_schema
from schemas.config import ParseConfig
from schemas.errors import StateError
from schemas.manifest import Manifest, ShardFile
from schemas.saved_dataset import dataset_files, write_shard

#: Where the Hub's viewer and `load_dataset` find the rows, as the card tells them.
DATA_FILES: Final = "data/train-*.parquet"
#: The same in a folder.
ARROW_FILES: Final = "data-*.arrow"


def parquet_name(index: int, total: int) -> str:
    """Where the rows of a shard lie on the Hub."""
    return f"data/train-{index:05d}-of-{total:05d}.parquet"


@dataclass(frozen=True)
class ParquetFile:
    """The Parquet of one shard."""

    name: str
    shard: ShardFile
    schema: pa.Schema


def parquet_files(manifest: Manifest) -> tuple[ParquetFile, ...]:
    """The Parquet of each shard, in order."""
    config = ParseConfig.parse(manifest.config, "the manifest")
    schema = arrow_schema(config.parser.keep_trees, config.mined is not None)
    names = (parquet_name(index, len(manifest.shards)) for index in range(len(manifest.shards)))
    return tuple(ParquetFile(name, shard, schema) for name, shard in zip(names, manifest.shards, strict=True))


def write_parquet(table: pa.Table, path: Path) -> None:
    """A shard's rows as Parquet, which says of every column what Arrow type it has."""
    import pyarrow.parquet as pq  # the trainer starts without it

    pq.write_table(table, path, compression="zstd", row_group_size=1000)


def read_parquet(path: Path, source: ParquetFile) -> pa.Table:
    """The rows of a shard, each column in one piece. Raises `StateError` if they are not those of a shard."""
    import pyarrow.parquet as pq

    try:
        with told_alike():
            table = pq.read_table(path, memory_map=True, partitioning=None)
            table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise StateError(f"{source.name} is no whole Parquet file ({error}).") from None
    if table.schema.names != source.schema.names or [*table.schema.types] != [*source.schema.types]:
        raise StateError(f"{source.name} has other columns than a prepared dataset of this version.")
    if table.num_rows != source.shard.rows:
        raise StateError(f"{source.name} has {table.num_rows} rows, the manifest says {source.shard.rows}.")
    return table.combine_chunks().cast(source.schema)


def restore(path: Path, source: ParquetFile, folder: Path) -> ShardFile:
    """Write a shard's Arrow file into `folder` from its Parquet; what the manifest has to say of it there."""
    table = read_parquet(path, source)
    target = folder / source.shard.file
    with files.written(target) as stream:
        write_shard(stream, table)
    if source.shard.problem(folder, content=True) is None:
        return source.shard
    size, sha256 = target.stat().st_size, files.sha256_of(target)
    return source.shard.model_copy(update={"bytes": size, "sha256": sha256})


def finish(manifest: Manifest, folder: Path) -> None:
    """Write what `datasets.load_from_disk` opens the folder by."""
    schema = parquet_files(manifest)[0].schema
    names = [shard.file for shard in manifest.shards]
    for name, text in dataset_files(schema, names, manifest.fingerprint).items():
        files.write_text(folder / name, text)
