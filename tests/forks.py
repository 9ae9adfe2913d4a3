"""Processes forked from the tests', which import nothing anew: killed at a point, told to stop, starved of disk."""

import io
import multiprocessing
import os
import pickle
import resource
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import pytest
import torch

# torch makes its pool of threads anew in a fork, when first asked, and not safely where several threads ask at once
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def signalling(work, name, when, send):
    """Runs `work`; as a file whose name begins so appears, `send` is called, before or after it is there."""
    real = Path.replace

    def replace(self, target):
        hit = Path(target).name.startswith(name)
        if hit and when == "before":
            send()
        moved = real(self, target)
        if hit and when == "after":
            send()
        return moved

    Path.replace = replace
    work()


@pytest.fixture(scope="session")
def signalled_at():
    """Runs `work` in a process that gets a signal at the point, with those that it starts; gives its exit code."""

    def send(number):
        os.killpg(os.getpgrp(), number)

    def run(name, when, work, number):
        def begun():
            os.setpgid(0, 0)
            # a test run in the background of a shell ignores SIGINT, and its children with it
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signalling(work, name, when, partial(send, number))

        child = multiprocessing.get_context("fork").Process(target=begun)
        child.start()
        child.join(timeout=300)
        return child.exitcode

    return run


@pytest.fixture(scope="session")
def killed_at(signalled_at):
    """Runs `work` in a process that is killed at the point, and makes sure that it was."""

    def run(name, when, work):
        assert signalled_at(name, when, work, signal.SIGKILL) == -signal.SIGKILL, "the point was never reached"

    return run


def _in_a_group(work):
    os.setpgid(0, 0)
    work()


@pytest.fixture(scope="session")
def killed_after():
    """Runs `work` in a process that is killed after some seconds, with those that it starts; whether it had not ended."""

    def run(seconds, work):
        child = multiprocessing.get_context("fork").Process(target=_in_a_group, args=(work,))
        child.start()
        child.join(seconds)
        killed = child.is_alive()
        if killed:
            os.kill(child.pid, signal.SIGSTOP)  # it starts no others from here on
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:  # it has no group yet
                child.kill()
        child.join()
        assert killed or child.exitcode == 0
        return killed

    return run


def _command_on_full_disk(arguments, most, outcome):
    """`mta-prep` in this process, for which the kernel lets no file grow beyond `most` bytes."""
    from pipeline import cli

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    sys.argv = ["mta-prep", *map(str, arguments)]
    with redirect_stderr(io.StringIO()) as said:
        try:
            cli.main()
        except SystemExit as ended:
            outcome.put((ended.code, said.getvalue()))


@pytest.fixture(scope="session")
def on_full_disk():
    """Runs `mta-prep` on a disk that is full when a file has `most` bytes: (exit code, standard error)."""

    def run(arguments, most):
        context = multiprocessing.get_context("fork")
        outcome = context.SimpleQueue()
        child = context.Process(target=_command_on_full_disk, args=(arguments, most, outcome))
        child.start()
        child.join(timeout=300)
        assert not outcome.empty(), "the command did not end"
        return outcome.get()

    return run


RANKS = 2


def _command_of_a_rank(rank, arguments, said):
    """`mta-prep` in this process as torchrun starts it; what it says goes to a file."""
    from pipeline import cli

    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{RANKS}", "LOCAL_WORLD_SIZE": f"{RANKS}"}
    sys.argv = ["mta-prep", *map(str, arguments)]
    with said.open("w", encoding="utf-8") as file, redirect_stdout(file):
        cli.main()


@pytest.fixture
def on_ranks(tmp_path_factory):
    """Runs `mta-prep` on two ranks, as torchrun starts them; what each printed."""

    def run(*arguments):
        said = [tmp_path_factory.mktemp("said") / f"{rank}.json" for rank in range(RANKS)]
        fork = multiprocessing.get_context("fork")
        ranks = [fork.Process(target=_command_of_a_rank, args=(rank, arguments, said[rank])) for rank in range(RANKS)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(timeout=300)
        assert [rank.exitcode for rank in ranks] == [0] * RANKS
        return [path.read_text(encoding="utf-8") for path in said]

    return run


@pytest.fixture
def forked_workers(monkeypatch):
    """Workers of a pool are forks, too; they get what a process started anew would: it goes through pickle."""
    from pipeline.shards import pool

    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(pool.multiprocessing, "get_context", lambda _: context)
    in_pool = pool._run_in_pool

    def sent(make, items, workspace, *others):
        in_pool(pickle.loads(pickle.dumps(make)), items, pickle.loads(pickle.dumps(workspace)), *others)

    monkeypatch.setattr(pool, "_run_in_pool", sent)
