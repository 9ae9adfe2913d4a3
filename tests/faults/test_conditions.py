"""Machines as they are: a full disk, a coarse or wrong clock, few open files, no rename over files, two writers.

Each ends in the same bytes or in a sentence, and what is finished is kept.
"""

import multiprocessing
import os
import resource
import shutil
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from kept_stage import one_stage  # noqa: F401  # a fixture
from pipeline.cache import plan as planning
from pipeline.dataset.prepare import prepare
from pipeline.shards import workspace
from schemas import files
from schemas.errors import DamagedError, Exit, StateError
from schemas.manifest import MANIFEST
from trainer.batches.documents import Documents
from trainer.cache import TeacherCache

pytestmark = [pytest.mark.usefixtures("one_stage"), pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]

ROWS = 12
DAY = 24 * 3600
#: What a process may open beside what it has open.
FEW = 8


@pytest.fixture(scope="module")
def short(shard_a_row):
    return shard_a_row(ROWS)


@pytest.fixture(scope="module")
def config(short):
    """Short rows, a shard each."""
    return short[0]


@pytest.fixture(scope="module")
def plain(short):
    """An uninterrupted run."""
    return short[1]


@pytest.fixture
def begun(killed_at, config, tmp_path):
    """A run that was killed when three shards were finished."""
    out = tmp_path / "out"
    killed_at("00002.json", "after", partial(prepare, config, out, workers=1, quiet=True))
    return out


def finished(out):
    return sorted(path for path in out.glob("data-*") if (out / workspace.WORK / f"{path.name[5:10]}.json").exists())


def test_a_clock_of_whole_seconds_hides_no_change(begun, config, plain, contents):
    """A shard that was changed within the second of its receipt has the receipt's time."""
    now = int(time.time())
    for path in begun.rglob("*"):
        os.utime(path, (now, now))
    changed = finished(begun)[1]
    data = changed.read_bytes()
    changed.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    os.utime(changed, (now, now))
    prepare(config, begun, workers=1, quiet=True)
    assert contents(begun) == contents(plain)


@pytest.mark.parametrize("shift", [DAY, -DAY, None])
def test_a_clock_that_is_set_back_or_ahead(begun, config, plain, contents, monkeypatch, shift):
    """Files of the future, of the past, or shards younger than their receipts: none is made again, and none is doubted."""
    shards = finished(begun)
    for path in begun.rglob("*") if shift is not None else shards:
        when = path.stat().st_mtime_ns + (shift if shift is not None else DAY) * 10**9
        os.utime(path, ns=(when, when))
    times = {path: path.stat().st_mtime_ns for path in shards}
    real = time.time
    moments = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: real() - 60 * next(moments))
    prepare(config, begun, workers=1, quiet=True)
    assert {path: path.stat().st_mtime_ns for path in shards} == times, "a shard was made again"
    assert contents(begun) == contents(plain)


def test_where_no_file_may_take_the_name_of_another(begun, config, plain, contents, monkeypatch):
    """Some network file systems refuse a rename over a file: the old one goes first, and nothing half-written is ever there."""
    real = Path.replace

    def replace(self, target):
        if Path(target).exists():
            raise FileExistsError(17, "File exists", str(self))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    (begun / workspace.WORK / "00001.json").write_text("{")
    prepare(config, begun, workers=1, quiet=True)
    assert contents(begun) == contents(plain)
    prepare(config, begun, workers=1, overwrite=True, quiet=True)
    assert contents(begun) == contents(plain)
    files.write_text(begun / "README.md", "another")
    assert (begun / "README.md").read_text() == "another"
    assert not list(begun.rglob(f"*{files.PARTIAL}"))


def written_by(config, out, gate, outcome):
    gate.wait()
    try:
        prepare(config, out, workers=1, quiet=True)
        outcome.put("finished")
    except StateError as error:
        outcome.put(str(error))


def test_two_writers_at_once(config, plain, contents, tmp_path):
    """One of them writes; the other is told, or finds all of it finished."""
    out, fork = tmp_path / "out", multiprocessing.get_context("fork")
    gate, outcome = fork.Barrier(2), fork.SimpleQueue()
    writers = [fork.Process(target=written_by, args=(config, out, gate, outcome)) for _ in range(2)]
    for writer in writers:
        writer.start()
    ends = sorted(outcome.get() for _ in writers)
    for writer in writers:
        writer.join()
    assert "finished" in ends
    assert all(end == "finished" or end.startswith("Another run is writing") for end in ends), ends
    assert contents(out) == contents(plain)


def with_few_files(work, outcome):
    open_now = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + FEW, open_now + FEW))
    try:
        work()
        outcome.put("done")
    except BaseException as error:
        outcome.put(f"{type(error).__name__}: {error}")


def limited(work):
    """What comes of `work` in a process that may open few files."""
    fork = multiprocessing.get_context("fork")
    outcome = fork.SimpleQueue()
    child = fork.Process(target=with_few_files, args=(work, outcome))
    child.start()
    end = outcome.get()
    child.join()
    return end


def read_dataset(folder):
    documents = Documents(folder)
    assert len(documents.ids.to_pylist()) == len(documents) == ROWS > FEW


def read_cache(folder):
    cache = TeacherCache(folder)
    assert len(cache.manifest.shards) > FEW
    for row in range(len(cache)):
        for layer in cache.layers:
            cache.relations(row, layer)


@pytest.fixture(scope="module")
def many_shards(make_cache):
    """A cache with a shard a row."""
    return make_cache(shard_tokens=1)


@pytest.mark.skipif(sys.platform != "linux", reason="open files are counted in /proc")
def test_more_shards_than_files_may_be_open(config, plain, many_shards, tmp_path, begun):
    assert limited(partial(read_dataset, plain)) == "done"
    assert limited(partial(read_cache, many_shards)) == "done"
    assert limited(partial(prepare, config, begun, workers=1, quiet=True)) == "done"


def test_a_cache_that_goes_while_it_is_read(many_shards, tmp_path):
    folder = tmp_path / "cache"
    shutil.copytree(many_shards, folder)
    cache = TeacherCache(folder)
    layer = min(cache.layers)
    before = cache.relations(0, layer)
    shutil.rmtree(folder)
    assert cache.relations(0, layer).equal(before), "what is mapped stays"
    with pytest.raises(DamagedError, match=r"shards/\d+.safetensors cannot be read \(No such file") as told:
        cache.relations(len(cache) - 1, layer)
    assert "\n" not in str(told.value)


def test_a_disk_that_is_full_at_any_moment_of_parse(small_disk, config, plain, contents, command, tmp_path):
    """It grows by a few pages whenever it is full; every command but the last ends in the same sentence."""
    (folder, sized), file = small_disk, tmp_path / "config.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    used = sum(path.stat().st_size for path in plain.rglob("*"))
    for share in (0.0, 0.02, 0.3, 0.7, 0.99):
        sized(4096 + int(share * used))
        code, _, said = command("parse", "--config", file, "--out", folder / "out", "--workers", 1)
        assert code == Exit.RESOURCE, said
        assert "No room left on the disk" in " ".join(said.split())
        assert not (folder / "out" / MANIFEST).exists()
        assert not list(folder.rglob(f"*{files.PARTIAL}"))
    sized("64m")
    assert command("parse", "--config", file, "--out", folder / "out", "--workers", 1)[0] == Exit.OK
    assert contents(folder / "out") == contents(plain)


def test_a_disk_that_is_full_at_any_moment_of_cache_teacher_and_report(
    small_disk, cache_plan, prepared, contents, command, tmp_path
):
    (folder, sized), whole = small_disk, tmp_path / "whole"
    planning.cache(cache_plan(), whole, workers=1, quiet=True)
    used = sum(path.stat().st_size for path in whole.rglob("*"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "require_room", lambda plan, out: None)  # what is looked at is when that was wrong
        for share in (0.0, 0.5, 0.97):
            sized(4096 + int(share * used))
            code, _, said = command("cache-teacher", "--config", whole / "config.yaml", "-o", folder / "out")
            assert code == Exit.RESOURCE, said
            assert "No room left on the disk" in " ".join(said.split())
            assert not (folder / "out" / MANIFEST).exists()
    sized(8192 + used)
    code, _, said = command("report", prepared, "-o", folder / "report.html")
    assert (code, list(folder.glob("*"))) == (Exit.RESOURCE, [folder / "out"]), said
    sized("64m")
    assert command("cache-teacher", "--config", whole / "config.yaml", "-o", folder / "out")[0] == Exit.OK
    assert contents(folder / "out") == contents(whole)
