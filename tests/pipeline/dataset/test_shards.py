"""The output folder: resume, exclusion, refusal of what is not ours, differences named."""

import json
import os
import threading

import pyarrow as pa
import pytest
from datasets import DatasetInfo, Features

from pipeline.dataset import shards
from pipeline.dataset.shards import LAYOUT, RowDigest, ShardOutput
from pipeline.shards.workspace import CARD, workspace
from schemas.columns import arrow_schema
from schemas.errors import StateError
from schemas.saved_dataset import INFO, dataset_info

SCHEMA = pa.schema([("id", pa.string())])
RECORD = {name: {"a": 1} for name in LAYOUT.recorded}


def output(name):
    table = pa.table({"id": [name]}, schema=SCHEMA)
    return ShardOutput(table, (RowDigest("00" * 16, "11" * 16, "22" * 8),), {"rows_in": 1})


def test_finished_shards_are_found_again_and_damaged_ones_are_not(tmp_path):
    out = tmp_path / "out"
    with workspace(out, LAYOUT, RECORD, 3, overwrite=False) as space:
        for index in range(2):
            space.publish(index, output(str(index)))
    (out / shards.shard_name(1, 3)).write_bytes(b"damaged")
    with workspace(out, LAYOUT, RECORD, 3, overwrite=False) as space:
        assert space.finished() == {0}


def test_what_is_as_its_receipt_left_it_is_not_read_again(tmp_path, monkeypatch):
    out = tmp_path / "out"
    with workspace(out, LAYOUT, RECORD, 2, overwrite=False) as space:
        for index in range(2):
            space.publish(index, output(str(index)))
        receipt = space.work / "00001.json"
    read = []
    monkeypatch.setattr("schemas.files.sha256_of", lambda path: read.append(path.name) or "another")
    with workspace(out, LAYOUT, RECORD, 2, overwrite=False) as space:
        assert (space.finished(), read) == ({0, 1}, [])
    os.utime(out / shards.shard_name(1, 2), ns=(0, receipt.stat().st_mtime_ns + 1))
    with workspace(out, LAYOUT, RECORD, 2, overwrite=False) as space:
        assert (space.finished(), read) == ({0}, [shards.shard_name(1, 2)])


def test_a_shard_without_receipt_counts_as_not_done(tmp_path):
    out = tmp_path / "out"
    with workspace(out, LAYOUT, RECORD, 1, overwrite=False) as space:
        space.publish(0, output("a"))
        (space.work / "00000.json").unlink()
    with workspace(out, LAYOUT, RECORD, 1, overwrite=False) as space:
        assert space.finished() == set()


def test_two_runs_on_one_folder_exclude_each_other(tmp_path):
    out = tmp_path / "out"
    caught = []

    def second():
        try:
            with workspace(out, LAYOUT, RECORD, 1, overwrite=False):
                pass
        except StateError as error:
            caught.append(str(error))

    with workspace(out, LAYOUT, RECORD, 1, overwrite=False):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert caught == [f"Another run is writing to {out}. Wait for it to end, or choose another --out."]
    with workspace(out, LAYOUT, RECORD, 1, overwrite=False) as space:
        assert space is not None


def test_another_config_is_refused_with_the_difference_named(tmp_path):
    out = tmp_path / "out"
    with workspace(out, LAYOUT, RECORD, 1, overwrite=False):
        pass
    changed = RECORD | {"parser": {"a": 2}}
    with (
        pytest.raises(StateError, match=r"`parser\.a` was 1, is now 2.*--overwrite"),
        workspace(out, LAYOUT, changed, 1, overwrite=False),
    ):
        pass
    with workspace(out, LAYOUT, changed, 1, overwrite=True) as space:
        assert space.finished() == set()


def seal(space):
    space.seal({CARD: "card"}, json.dumps(RECORD))


def test_a_finished_folder_is_left_alone_unless_it_is_another_run(tmp_path):
    out = tmp_path / "out"
    with workspace(out, LAYOUT, RECORD, 1, overwrite=False) as space:
        space.publish(0, output("a"))
        seal(space)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with workspace(out, LAYOUT, RECORD, 1, overwrite=False) as space:
        assert space is None
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    with (
        pytest.raises(StateError, match=r"`inputs\.a` was 1, is now 3"),
        workspace(out, LAYOUT, RECORD | {"inputs": {"a": 3}}, 1, overwrite=False),
    ):
        pass
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_folder_with_other_files_is_never_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with (
            pytest.raises(StateError, match=r"thesis\.tex"),
            workspace(tmp_path, LAYOUT, RECORD, 1, overwrite=overwrite),
        ):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(StateError, match="is a file"), workspace(tmp_path / "out", LAYOUT, RECORD, 1, overwrite=False):
        pass


def test_another_run_is_told_by_every_place_that_differs(tmp_path):
    old, new = {"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"b": 1, "c": [2]}, "e": "x"}
    with workspace(tmp_path / "out", LAYOUT, old, 1, overwrite=False):
        pass
    said = r"`a\.c` was \[1\], is now \[2\].*`d` was 2, is now null.*`e` was null, is now \"x\""
    with pytest.raises(StateError, match=said), workspace(tmp_path / "out", LAYOUT, new, 1, overwrite=False):
        pass


@pytest.mark.parametrize(("rows", "expected"), [(1, 100), (500, 100), (6_400, 100), (50_000, 782), (10**7, 10_000)])
def test_shard_size_depends_on_the_number_of_rows_alone(rows, expected):
    assert shards.automatic_shard_rows(rows) == expected


def test_fingerprint_does_not_see_where_shards_end():
    def over(*parts):
        total = shards.Fingerprint()
        for part in parts:
            total.update(part)
        return total.hexdigest()

    digests = [f"{value:032x}" for value in range(5)]
    assert over(digests) == over(digests[:2], [], digests[2:])
    assert over(digests) != over(digests[::-1])


@pytest.mark.parametrize("trees", [True, False])
def test_a_dataset_is_described_as_datasets_does(tmp_path, trees):
    schema = arrow_schema(trees)
    theirs = DatasetInfo(features=Features.from_arrow_schema(schema), dataset_name="mta-prep")
    theirs.write_to_directory(str(tmp_path), pretty_print=True)
    assert json.dumps(dataset_info(schema), indent=4) == (tmp_path / INFO).read_text(encoding="utf-8")
