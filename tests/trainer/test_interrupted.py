"""A run that is killed at random moments, or loses its cache: what is done is kept, and going on ends as if nothing had been."""

import os
import random
import re
import shutil
import signal
import time

import pytest

from launching import compared, ended, launch, metrics, start, told, train_command, train_without
from schemas.errors import Exit

pytestmark = pytest.mark.xdist_group("trainer")

TERMS = {"ce": {}, "dsa": {"weight": 2.0}}


@pytest.fixture
def cache(make_cache, tmp_path):
    """Its own copy, a shard a row."""
    folder = tmp_path / "cache"
    shutil.copytree(make_cache(shard_tokens=1), folder)
    return folder


def losses(out):
    return [compared(record) for record in metrics(out)]


def test_a_cache_that_is_removed_under_it(config, cache, contents, tmp_path):
    """No checkpoint was due: what is done is saved all the same, and goes on when the cache is there again."""
    whole, out = tmp_path / "whole", tmp_path / "run"
    settings = {"data": {"caches": [str(cache)]}, "objectives": TERMS}
    launch(1, train_command, "--config", config(whole, **settings))
    file = config(out, **settings)
    pids = start(out.with_suffix(".log"), 1, train_without, cache, 2, "--config", file)
    assert ended(pids) == [Exit.STATE]
    said = out.with_suffix(".log").read_text()
    assert f"2 of 8 steps are done, and saved in {out}" in said
    (error,) = [line for line in said.splitlines() if line.startswith("Error: ")]
    assert f"{cache} is damaged: shards/" in error
    assert "Traceback" not in said
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000002"]
    cache.with_name("removed").rename(cache)
    launch(1, train_command, "--config", file)
    assert losses(out) == losses(whole)
    assert (out / "student" / "model.safetensors").read_bytes() == (
        whole / "student" / "model.safetensors"
    ).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("kills", [50])
def test_killed_at_random_times(config, cache, tmp_path, kills):
    """In the same folder until the run is finished, then in the next; a checkpoint is written after every step."""
    settings = {"data": {"caches": [str(cache)]}, "objectives": TERMS, "checkpoint": {"every": 1}}
    whole, moments, unfinished = tmp_path / "whole", random.Random(11), 0
    pids = start(whole.with_suffix(".log"), 1, train_command, "--config", config(whole, **settings))
    began = time.monotonic()  # what it is forked from has imported everything by now
    assert ended(pids) == [0]
    took = time.monotonic() - began
    outs = iter(tmp_path / f"run-{number}" for number in range(kills + 1))
    out = next(outs)
    for _ in range(kills):
        (pid,) = start(out.with_suffix(".log"), 1, train_command, "--config", config(out, **settings))
        time.sleep(moments.uniform(0, took))
        os.kill(pid, signal.SIGKILL)
        (code,) = ended([pid])
        if code == 0:
            require_same(out, whole)
            out = next(outs)
        else:
            assert code == -signal.SIGKILL, out.with_suffix(".log").read_text()[-3000:]
            unfinished += 1
    assert unfinished > kills / 4, "hardly a run was killed before its end"
    launch(1, train_command, "--config", config(out, **settings))
    require_same(out, whole)


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_moment(config, cache, small_disk, tmp_path):
    """It grows each time; the first time there is no room for a log, then for one checkpoint after the other."""
    (disk, sized), whole = small_disk, tmp_path / "whole"
    settings = {"data": {"caches": [str(cache)]}, "objectives": TERMS, "checkpoint": {"every": 4}}
    launch(1, train_command, "--config", config(whole, **settings))
    checkpoint = sum(path.stat().st_size for path in (whole / "checkpoints" / "step-00000004").rglob("*"))
    file = config(tmp_path / "run", **settings)
    file.write_text(file.read_text().replace(str(tmp_path / "run"), str(disk / "out")))
    for size, steps in ((4096, []), (checkpoint // 2, []), (checkpoint * 3 // 2, [4])):
        sized(size)
        ((code, said),) = told(file)
        assert code == Exit.RESOURCE, said
        assert re.search(r"No room left on the disk|cannot be written \(No space left on device\)", said)
        assert "Traceback" not in said
        assert [path.name for path in (disk / "out").glob("checkpoints/*")] == [f"step-{step:08d}" for step in steps]
    sized("64m")
    ((code, said),) = told(file)
    assert code == 0, said
    require_same(disk / "out", whole)


def require_same(out, whole):
    assert losses(out) == losses(whole)
    for name in ("model.safetensors", "config.json"):
        assert (out / "student" / name).read_bytes() == (whole / "student" / name).read_bytes()
    assert not [path.name for path in (out / "checkpoints").iterdir() if path.name.endswith(".part")]
