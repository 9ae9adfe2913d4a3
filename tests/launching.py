"""The trainer as tests start it: on ranks of its own, or several configs in one process of each rank; and what it leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TRAIN = ROOT / "trainer" / "train.py"
SEVERAL = ROOT / "tests" / "trainer" / "runs.py"
STEPS = 20
NOT_COMPARED = {"tokens_per_second", "memory_gb", "lr", "grad_norm"}


def environment():
    return os.environ | {
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
    }


def command(ranks, script, *arguments):
    if ranks == 1:
        return [sys.executable, str(script), *map(str, arguments)]
    launcher = Path(sys.executable).with_name("deepspeed")
    port = 20000 + os.getpid() % 20000
    return [str(launcher), "--num_gpus", str(ranks), "--master_port", str(port), str(script), *map(str, arguments)]


def launch(ranks, script, *arguments):
    done = subprocess.run(command(ranks, script, *arguments), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def told(*files):
    """Exit code and standard error of the command for each config, one after the other in one process."""
    launch(1, SEVERAL, "--told", *files)
    return [(json.loads(file.with_suffix(".code").read_text()), file.with_suffix(".err").read_text()) for file in files]


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def compared(record):
    return {name: value for name, value in record.items() if name not in NOT_COMPARED}


def assert_same(found, expected, tolerance):
    assert [record["step"] for record in found] == [record["step"] for record in expected]
    for mine, theirs in zip(map(compared, found), map(compared, expected), strict=True):
        assert mine == pytest.approx(theirs, rel=tolerance)
