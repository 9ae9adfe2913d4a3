"""Nothing half-written is ever readable as whole (invariant 4): SIGKILL at named points and at random times, Ctrl-C.

What is left is never taken for whole, and resuming gives the same bytes (invariant 2). The same of caches:
`tests/faults/test_cache_faults.py`; of training runs: `tests/trainer/test_run.py`.
"""

import itertools
import multiprocessing
import os
import random
import signal
import sys
import time
from contextlib import redirect_stderr
from functools import partial

import pytest

from kept_stage import one_stage  # noqa: F401  # a fixture
from pipeline.dataset.prepare import prepare
from pipeline.shards import workspace
from schemas.errors import StateError
from schemas.manifest import MANIFEST, read_manifest

#: (file whose rename into place is the point, whether the process dies before or after it)
POINTS = [
    (name, when)
    for name in (
        "run.json",
        "data-00000",
        "data-00002",
        "00002.json",
        "data-00004",
        "dataset_info.json",
        "README.md",
        MANIFEST,
    )
    for when in ("before", "after")
]
#: Rounds of runs that are killed at random moments of about as long as one takes: in the same folder until it is finished.
KILLS = [6, pytest.param(50, marks=pytest.mark.slow)]

pytestmark = [pytest.mark.usefixtures("one_stage"), pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]


@pytest.fixture(scope="module")
def short(shard_a_row):
    return shard_a_row(5)


@pytest.fixture(scope="module")
def config(short):
    """Short rows, a shard each."""
    return short[0]


@pytest.fixture(scope="module")
def plain(short):
    """An uninterrupted run."""
    return short[1]


@pytest.mark.parametrize(("name", "when"), POINTS)
def test_killed_at_a_named_point(killed_at, config, plain, contents, tmp_path, name, when):
    out = tmp_path / "out"
    killed_at(name, when, partial(prepare, config, out, workers=1, quiet=True))
    whole = (out / MANIFEST).exists()
    assert whole == ((name, when) == (MANIFEST, "after"))
    if not whole:
        with pytest.raises(StateError, match="has not finished"):
            read_manifest(out)
    finished = {path: path.stat().st_mtime_ns for path in out.glob("data-*.arrow") if receipt(out, path).exists()}
    prepare(config, out, workers=1, quiet=True)
    assert all(path.stat().st_mtime_ns == when_written for path, when_written in finished.items()), "a shard was redone"
    left = contents(out)
    work = [path for path in left if path.startswith(workspace.WORK)]
    # a kill between the manifest and the clearing leaves the working folder, which no reader looks at
    assert {path: data for path, data in left.items() if path not in work} == contents(plain)
    assert not work or (name, when) == (MANIFEST, "after")


def receipt(out, shard):
    return out / workspace.WORK / f"{shard.name[5:10]}.json"


def in_a_group(work):
    """`work` in this process and in those that it starts, all of which a signal to the group reaches."""
    os.setpgid(0, 0)
    work()


@pytest.mark.parametrize("kills", KILLS)
def test_killed_at_random_times_with_two_workers(forked_workers, config, plain, contents, tmp_path, kills):
    began = time.monotonic()
    prepare(config, tmp_path / "timed", workers=2, quiet=True)
    took = time.monotonic() - began
    moments, folders, unfinished = random.Random(7), itertools.count(), 0
    fork, out = multiprocessing.get_context("fork"), tmp_path / "first"
    for _ in range(kills):
        run = fork.Process(target=in_a_group, args=(partial(prepare, config, out, workers=2, quiet=True),))
        run.start()
        run.join(moments.uniform(0, took))
        if run.is_alive():
            os.killpg(run.pid, signal.SIGKILL)
        run.join()
        if (out / MANIFEST).exists():
            assert published(out, contents) == contents(plain)
            out = tmp_path / str(next(folders))
        else:
            unfinished += 1
    assert unfinished, "no run was killed before its end"
    prepare(config, out, workers=2, quiet=True)
    assert published(out, contents) == contents(plain)


def published(out, contents):
    """What readers look at: a kill between the manifest and the clearing leaves the working folder."""
    return {path: data for path, data in contents(out).items() if not path.startswith(workspace.WORK)}


def typed(arguments, said):
    """`mta-prep` in this process; what it says goes to a file."""
    from pipeline import cli

    sys.argv = ["mta-prep", *map(str, arguments)]
    with said.open("w", encoding="utf-8") as file, redirect_stderr(file):
        cli.main()


def test_ctrl_c_leaves_a_folder_that_can_be_resumed_and_says_so(
    signalled_at, forked_workers, config, plain, contents, tmp_path
):
    out, file, said = tmp_path / "out", tmp_path / "config.yaml", tmp_path / "said.txt"
    file.write_text(config.to_yaml(), encoding="utf-8")
    arguments = ["parse", "--config", file, "--out", out, "--workers", 2]
    assert signalled_at("00001.json", "after", partial(typed, arguments, said), signal.SIGINT) == 130, said.read_text()
    assert "run the same command again" in said.read_text()
    assert "Traceback" not in said.read_text()
    assert not (out / MANIFEST).exists()
    prepare(config, out, workers=1, quiet=True)
    assert contents(out) == contents(plain)
