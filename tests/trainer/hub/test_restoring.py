"""Whatever rows a shard has, its Parquet gives its bytes back; whatever a list names, it stays in its folder."""

import hashlib
import io
from pathlib import Path

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from schemas.columns import arrow_schema
from schemas.hub import PLAIN, PlainPath
from schemas.manifest import ShardFile
from schemas.saved_dataset import BATCH_ROWS, write_shard
from trainer.hub.restoring import ParquetFile, restore, write_parquet

SCHEMA = arrow_schema(trees=True)
PLAIN_PATH = TypeAdapter(PlainPath)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NUMBER = st.integers(-1, 2**31 - 1)


def values(kind: pa.DataType) -> st.SearchStrategy:
    """Values of an Arrow type."""
    if pa.types.is_fixed_size_list(kind):
        return st.lists(values(kind.value_type), min_size=kind.list_size, max_size=kind.list_size)
    if pa.types.is_list(kind):
        return st.lists(values(kind.value_type), max_size=3)
    if pa.types.is_struct(kind):
        return st.fixed_dictionaries({field.name: values(field.type) for field in kind})
    return NUMBER if pa.types.is_integer(kind) else TEXT


ROWS = st.lists(st.fixed_dictionaries({field.name: values(field.type) for field in SCHEMA}), min_size=1, max_size=3)


@settings(max_examples=15)
@given(rows=ROWS, times=st.sampled_from([1, BATCH_ROWS, 2 * BATCH_ROWS + 1]))
def test_a_shard_comes_back_byte_for_byte(rows, times, tmp_path_factory):
    table = pa.Table.from_pylist(rows * times, schema=SCHEMA).combine_chunks()
    stream = io.BytesIO()
    write_shard(stream, table)
    content = stream.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    shard = ShardFile(file="data-00000-of-00001.arrow", rows=len(table), bytes=len(content), sha256=digest)
    folder = tmp_path_factory.mktemp("shard")
    write_parquet(table, folder / "rows.parquet")
    assert restore(folder / "rows.parquet", ParquetFile("rows.parquet", shard, SCHEMA), folder) == shard
    assert (folder / shard.file).read_bytes() == content


PARTS = st.lists(
    st.sampled_from(["..", ".", "/", "\\", "a", "B-1", "_", "data", "\0", " ", "ü", "~", "\n"]), max_size=6
)


@given(
    name=st.one_of(st.text(max_size=20), st.builds("".join, PARTS)), suffix=st.sampled_from([*sorted(PLAIN), ".py", ""])
)
def test_a_name_that_is_taken_stays_in_its_folder(name, suffix):
    try:
        taken = PLAIN_PATH.validate_python(name + suffix)
    except ValidationError:
        return
    folder = Path("/somewhere/else")
    target = (folder / taken).resolve()
    assert target.is_relative_to(folder)
    assert len(target.relative_to(folder).parts) <= 2
    assert target.suffix in PLAIN
    assert taken.isascii()
    assert not any(part.startswith((".", "~")) for part in Path(taken).parts)
