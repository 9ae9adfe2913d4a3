"""Columns made of buffers are what pyarrow makes of Python objects, to the byte once written."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dataset.columns import int_column, string_column, string_list_column

texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=6)


def written(column: pa.Array) -> bytes:
    """An Arrow stream of it."""
    table = pa.table({"a": column})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return bytes(sink.getvalue())


def assert_same(mine: pa.Array, theirs: pa.Array) -> None:
    mine.validate(full=True)
    assert mine.equals(theirs)
    assert mine.type == theirs.type
    assert written(mine) == written(theirs)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()], ids=str)
@given(rows=texts)
def test_strings(kind, rows):
    assert_same(string_column(rows, kind), pa.array(rows, kind))


@given(st.lists(texts, max_size=5))
def test_lists_of_strings(rows):
    assert_same(string_list_column(rows), pa.array(rows, pa.list_(pa.string())))


@given(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=6))
def test_integers(values):
    assert_same(int_column(values), pa.array(values, pa.int32()))
    assert_same(int_column(np.array(values, dtype=np.int32)), pa.array(values, pa.int32()))


def test_what_does_not_fit_is_refused():
    with pytest.raises(OverflowError):
        int_column([2**31])
    with pytest.raises(UnicodeEncodeError):
        string_column(["\ud800"], pa.string())
