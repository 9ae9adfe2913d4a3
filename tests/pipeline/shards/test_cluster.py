"""What an actor takes of a cluster, and what a node is told that it lacks: no Ray is needed to say so."""

import importlib.util
import shutil
from dataclasses import replace

import pytest

import letters
from pipeline.shards import cluster
from pipeline.shards.workspace import workspace
from schemas.errors import Exit, UsageError, UserError

SIDES = ["--teacher", "embedded:sentencepiece-bpe", "--student", "embedded:bytelevel-bpe"]


@pytest.mark.parametrize(
    ("text", "device", "resources"),
    [
        (None, "cpu", {"CPU": 1}),
        (None, "cuda", {"CPU": 1, "GPU": 1}),
        ("CPU=4", "cuda:0", {"CPU": 4, "GPU": 1}),
        ("GPU=0.5, CPU=0,memory=8e9,large=1", "cuda", {"GPU": 0.5, "memory": 8e9, "large": 1}),
    ],
)
def test_an_actor_takes_what_is_said(text, device, resources):
    assert cluster.resources_of(text, device) == resources


@pytest.mark.parametrize("text", ["CPU", "CPU=", "=1", "CPU=x", "CPU=-1", "CPU=nan", "CPU=inf", "CPU=1,", "CPU=0"])
def test_what_is_no_list_of_resources_is_refused(text):
    with pytest.raises(UsageError, match="--ray-resources '"):
        cluster.resources_of(text)


def test_ray_is_told_so():
    taken = cluster.Cluster("auto", {"GPU": 0.5, "memory": 8e9, "large": 1.0})
    assert taken.options() == {"num_cpus": 0, "num_gpus": 0.5, "memory": 8_000_000_000, "resources": {"large": 1.0}}
    assert taken.cores == 1
    assert cluster.Cluster("auto", {"CPU": 4.0}).cores == 4


def test_room_is_counted_by_node(monkeypatch):
    nodes = [{"Resources": {"CPU": 7.0}}, {"Resources": {"CPU": 8.0, "GPU": 2.0}}, {"Resources": {"memory": 1e9}}]
    monkeypatch.setattr(cluster, "_living", lambda: nodes)
    assert cluster.Cluster("auto", {"CPU": 4.0}).slots() == 3
    assert cluster.Cluster("auto", {"CPU": 1.0, "GPU": 1.0}).nodes() == nodes[1:2]
    with pytest.raises(UserError, match=r"has room for an actor of CPU=1, GPU=4; they have CPU=0, GPU=0; CPU=7"):
        cluster.Cluster("auto", {"CPU": 1.0, "GPU": 4.0}).slots()


@pytest.fixture
def held(tmp_path):
    """A run that has begun, a model in a folder, and a tokenizer in a file."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    with workspace(tmp_path / "out", letters.LAYOUT, {}, 1, overwrite=False) as space:
        yield space


@pytest.fixture
def needed(held, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reads = {
        "teacher": "model",
        "tokenizer": str(tmp_path / "tokenizer.json"),
        "parser model": "embedded",
        "student": "embedded:teacher",
        "other": "org/name",
    }
    with cluster.shared(held, reads) as needed:
        yield needed
    assert not needed.marker.exists()


def test_a_node_that_sees_all_lacks_nothing(needed, tmp_path, monkeypatch):
    assert [file.what for file in needed.files] == ["teacher", "tokenizer"]
    monkeypatch.chdir("/")  # a worker is anywhere
    assert needed.problem() is None
    assert [path.name for path in needed.space.work.iterdir() if path != needed.marker] == ["lock", "run.json"]


def test_a_node_is_told_what_it_lacks(needed, tmp_path):
    elsewhere = replace(needed.space, out=tmp_path / "elsewhere")
    told = {
        replace(needed, version="0.0.1").problem(),
        replace(needed, marker=elsewhere.work / needed.marker.name, space=elsewhere).problem(),
        replace(needed, word="another run's").problem(),
    }
    (tmp_path / "model" / "config.json").write_text("{ }")
    told.add(needed.problem())
    (tmp_path / "model" / "config.json").unlink()
    told.add(needed.problem())
    shutil.rmtree(tmp_path / "model")
    told.add(needed.problem())
    assert len(told) == 6
    for part in (
        "and this machine 0.0.1",
        f"does not see the output folder {elsewhere.out} ",
        f"does not see the output folder {needed.space.out} ",
        "config.json has 3 bytes",
        "config.json is missing",
        f"has no {tmp_path / 'model'}, where the teacher is.",
    ):
        assert sum(part in problem for problem in told) == 1, part


def test_a_node_that_cannot_write_is_told_so(needed, monkeypatch):
    def refused(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cluster.tempfile, "TemporaryFile", refused)
    assert needed.problem() == f"cannot write to the output folder {needed.space.out} (Permission denied)."


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--address", "auto"], "--address is of --engine ray"),
        (["--ray-resources", "CPU=1"], "--ray-resources is of --engine ray"),
        (["--engine", "ray", "--ray-resources", "CPU"], "--ray-resources 'CPU': as CPU=4,GPU=1"),
        (["--engine", "ray"], "pip install 'mta-prep[ray]'"),
    ],
)
def test_flags_that_do_not_fit_are_refused(command, monkeypatch, tmp_path, flags, told):
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    code, _, err = command("parse", "embedded:sample", *SIDES, "-o", tmp_path / "out", *flags)
    assert (code, told in err) == (Exit.USAGE, True), err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.parametrize(
    ("address", "code", "told"),
    [
        (
            "127.0.0.1:1",
            Exit.RESOURCE,
            "no Ray cluster to be reached at '127.0.0.1:1' ([Errno 111] Connection refused)",
        ),
        ("ray://head:10001", Exit.USAGE, "--address 'ray://head:10001': `auto`, or the HOST:PORT"),
        ("local", Exit.USAGE, "--address 'local'"),
        ("head:99999", Exit.USAGE, "--address 'head:99999'"),
    ],
)
def test_an_address_where_nobody_is_is_told_at_once(command, tmp_path, address, code, told):
    flags = ["--engine", "ray", "--address", address]
    ended, _, err = command("parse", "embedded:sample", *SIDES, "-o", tmp_path / "out", *flags)
    assert (ended, told in err) == (code, True), err
    assert not (tmp_path / "out").exists()


def test_a_rank_starts_no_actors(command, monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = command("parse", "embedded:sample", *SIDES, "-o", tmp_path / "out", "--engine", "ray")
    assert (code, "this is rank 1 of 2" in err) == (Exit.USAGE, True), err
