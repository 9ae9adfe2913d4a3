"""Rows of a dataset as batches: tokens, positions and units against its columns, units left out, damaged shards."""

import shutil

import numpy as np
import pyarrow as pa
import pytest
from datasets import load_from_disk

from cached_batches import CHUNKS, ROWS, WORDS, source_of
from schemas.columns import GRANULARITIES
from schemas.errors import StateError
from trainer.batches.documents import Documents
from trainer.cache import TeacherCache


@pytest.mark.parametrize("dataset", ["prepared", "aligned", "turns"])
def test_a_batch_is_what_the_columns_say(request, make_cache, dataset):
    """Tokens, positions, units that both sides have, their weights and relations, recomputed row by row in plain Python.

    `aligned` is served by the cache that was made before it.
    """
    folder = request.getfixturevalue(dataset)
    made = make_cache(dataset=str(folder)) if dataset == "turns" else make_cache()
    cache = TeacherCache(made)
    batch = source_of(folder, [made], WORDS, CHUNKS).fetch(ROWS)
    table = load_from_disk(str(folder))
    assert batch.documents.tolist() == ROWS
    ids, positions, targets, rows = [], [], [], [0]
    spans, weights, relations, unit_rows = ({2: [], 4: []} for _ in range(4))
    left_out = 0
    for row in ROWS:
        document = table[row]
        base, mine = len(ids), document["student_input_ids"]
        for first, last in document["student_responses"]:
            for place in range(max(first, 1), last):
                positions.append(base + place - 1)
                targets.append(mine[place])
        ids += mine
        rows.append(len(ids))
        for layer, name in ((2, "words"), (4, "chunks")):
            both = []
            columns = zip(document[f"teacher_{name}"], document[f"student_{name}"], strict=True)
            for unit, (teacher, student) in enumerate(columns):
                if teacher != [-1, -1] and student != [-1, -1]:
                    both.append(unit)
                    spans[layer].append([base + student[0], base + student[1]])
                elif teacher != [-1, -1]:
                    left_out += 1
            place = {unit: k for k, unit in enumerate(cache.unit_index(row, layer).tolist())}
            omega = [cache.unit_weights(row, layer).tolist()[place[unit]] for unit in both]
            weights[layer] += [each / sum(omega) for each in omega]
            matrix = cache.relations(row, layer).tolist()
            relations[layer] += [matrix[place[a]][place[b]] for i, a in enumerate(both) for b in both[i + 1 :]]
            unit_rows[layer].append(len(both))
    assert batch.ids.tolist() == ids
    assert batch.rows.tolist() == rows
    assert batch.positions.tolist() == positions
    assert batch.targets.tolist() == targets
    for layer, found in batch.layers.items():
        assert found.spans.tolist() == spans[layer]
        assert found.rows.diff().tolist() == unit_rows[layer]
        np.testing.assert_allclose(found.weights, weights[layer], rtol=1e-5)
        assert found.relations.tolist() == relations[layer]
    assert dataset != "aligned" or left_out > 0


def other_spans(column, spans):
    """The column with other spans of its second row."""
    values = column.to_pylist()
    values[1] = spans
    return pa.array(values, column.type)


@pytest.mark.parametrize(
    "spans", [[], [[3, 3]], [[4, 3]], [[-1, 2]], [[2, 10**6]], [[0, 3], [2, 5]], [[4, 6], [0, 3]], [[1, 2], [2, 2]]]
)
def test_spans_that_a_row_cannot_have(turns, monkeypatch, spans):
    """Told when spans are first asked for, whichever rows' they are."""
    documents = Documents(turns)
    assert len(documents.responses("student", np.array([0]))[0]) > 1
    documents = Documents(turns)
    table = documents._table
    index = table.schema.get_field_index("student_responses")
    column = pa.chunked_array([other_spans(chunk, spans) for chunk in table.column(index).chunks])
    monkeypatch.setitem(documents.__dict__, "_table", table.set_column(index, table.schema.field(index), column))
    with pytest.raises(StateError, match="its column `student_responses` has spans that its rows cannot have"):
        documents.batch(np.array([0]))


@pytest.mark.parametrize("limit", [None, 7])
@pytest.mark.parametrize("dataset", ["prepared", "aligned"])
def test_units_left_out_are_counted(request, dataset, limit):
    folder = request.getfixturevalue(dataset)
    documents = Documents(folder, limit)
    table = load_from_disk(str(folder)).select(range(documents.rows))
    for name in GRANULARITIES:
        teacher, student = (
            [span == [-1, -1] for row in table[f"{side}_{name}"] for span in row] for side in ("teacher", "student")
        )
        found = documents.left_out(name)
        assert found.units == len(teacher)
        assert found.teacher == sum(teacher)
        assert found.student == sum(student)
        assert found.either == sum(a or b for a, b in zip(teacher, student, strict=True))
    assert dataset == "prepared" or found.student > 0


def test_plain_columns(prepared):
    documents = Documents(prepared)
    table = load_from_disk(str(prepared))
    assert len(documents) == documents.rows == len(table)
    assert documents.ids.to_pylist() == list(table["id"])
    assert documents.largest_student_id == max(max(ids) for ids in table["student_input_ids"])
    for side in ("teacher", "student"):
        assert documents.lengths(side).tolist() == [len(ids) for ids in table[f"{side}_input_ids"]]
    short = Documents(prepared, 3)
    assert len(short.ids) == len(short.lengths("student")) == short.rows == 3
    assert short.largest_student_id == max(max(ids) for ids in table[:3]["student_input_ids"])
    for rows in ([], [3], [-1]):
        with pytest.raises(ValueError):
            short.batch(np.array(rows, dtype=np.int64))


def test_a_damaged_dataset(prepared, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(prepared, folder)
    shard = sorted(folder.glob("*.arrow"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-8])
    with pytest.raises(StateError, match=r"is damaged: data-00001.* bytes, its manifest says"):
        Documents(folder)
    shard.write_bytes(bytes(len(content)))
    with pytest.raises(StateError, match=r"is damaged: data-00001.* cannot be read"):
        Documents(folder).lengths("student")
    shard.unlink()
    with pytest.raises(StateError, match=r"data-00001.* is missing"):
        Documents(folder)
