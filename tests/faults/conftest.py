"""Faults that datasets and caches are both put through: a kill at a point, a disk that is full."""

import multiprocessing
import os
import resource
import signal
import subprocess
from pathlib import Path

import pytest


def _work_and_die(work, name, when):
    """Runs `work` in this process, which kills itself as a file whose name begins so appears, before or after."""
    real = Path.replace

    def replace(self, target):
        hit = Path(target).name.startswith(name)
        if hit and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        moved = real(self, target)
        if hit:
            os.kill(os.getpid(), signal.SIGKILL)
        return moved

    Path.replace = replace
    work()


@pytest.fixture(scope="session")
def killed_at():
    """Runs `work` in a process that is killed at the point, and makes sure that it was."""

    def run(name, when, work):
        child = multiprocessing.get_context("fork").Process(target=_work_and_die, args=(work, name, when))
        child.start()
        child.join(timeout=300)
        assert child.exitcode == -signal.SIGKILL, "the point was never reached"

    return run


@pytest.fixture(scope="session")
def on_full_disk():
    """Runs a command for which the kernel lets no file grow beyond `most` bytes, as a full disk does."""

    def run(command, most):
        def limit():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))

        return subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=False)

    return run
