"""SIGKILL at named points and at random times: what is left is never taken for whole, and resuming gives the same bytes."""

import os
import random
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

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


@pytest.mark.parametrize(("name", "when"), POINTS)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_at_a_named_point(killed_at, settings_for, prepared, contents, tmp_path, name, when):
    out = tmp_path / "out"
    config = settings_for()
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
    assert {path: data for path, data in left.items() if path not in work} == contents(prepared)
    assert not work or (name, when) == (MANIFEST, "after")


def receipt(out, shard):
    return out / workspace.WORK / f"{shard.name[5:10]}.json"


def test_killed_at_random_times_with_two_workers(settings_for, sample_file, prepared, contents, tmp_path):
    out, config = tmp_path / "out", tmp_path / "config.yaml"
    config.write_text(settings_for().to_yaml(), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pipeline",
        "parse",
        "--config",
        str(config),
        "--out",
        str(out),
        "--workers",
        "2",
        "--json",
    ]
    moments = random.Random(7)
    for _ in range(3):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + 240
        while (
            process.poll() is None and not (out / workspace.WORK / "run.json").exists() and time.monotonic() < deadline
        ):
            time.sleep(0.05)
        time.sleep(moments.uniform(0, 6))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert contents(out) == contents(prepared)


def test_ctrl_c_leaves_a_folder_that_can_be_resumed_and_says_so(settings_for, prepared, contents, tmp_path):
    out, config = tmp_path / "out", tmp_path / "config.yaml"
    config.write_text(settings_for().to_yaml(), encoding="utf-8")
    command = [sys.executable, "-m", "pipeline", "parse", "--config", str(config), "--out", str(out), "--workers", "2"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a test run in the background of a shell ignores SIGINT, and its children with it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 240
    while process.poll() is None and not list((out / workspace.WORK).glob("0*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "run the same command again" in said
    assert "Traceback" not in said
    prepare(settings_for(), out, workers=1, quiet=True)
    assert contents(out) == contents(prepared)
