"""One run by several processes that torchrun or srun has started: each takes every n-th shard.

All they share is the output folder. Rank 0 holds it, as any run does; the others say hello in its working folder, and
begin once rank 0 has cleared it and written their very words back, so that nothing an earlier run left there can be
taken for an answer. Each holds a lock of its own for as long as it lives. Rank 0 waits for every receipt and seals.
"""

import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from filelock import BaseFileLock, FileLock, Timeout

from pipeline.shards.workspace import LOCK, WORK, Layout, Workspace, claim, require_same_run, workspace
from schemas import files
from schemas.errors import ResourceError, UsageError, quoted
from schemas.manifest import is_finished

#: Seconds that ranks wait for each other at the start; weights are hashed and the dataset is read before that.
PATIENCE: Final = 1800.0
POLL: Final = 0.2
_WORDS: Final = 32


@dataclass(frozen=True)
class Rank:
    """This process among those of a run."""

    number: int = 0
    count: int = 1
    local: int = 0  # its number on this machine
    local_count: int = 1  # how many share the cores that this process may use

    def takes(self, shard: int) -> bool:
        """Whether a shard is this rank's."""
        return shard % self.count == self.number


ALONE: Final = Rank()
#: What torchrun, and srun in each task of a step, tell a process: its number, their number, its number on this machine.
_TORCHRUN: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_SRUN: Final = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
#: Tasks of each node, such as `2(x3),1`, and how they are bound to cores: with a mask or map each may use its own alone.
_SRUN_TASKS: Final = "SLURM_STEP_TASKS_PER_NODE"
_SRUN_BOUND: Final = "SLURM_CPU_BIND_TYPE"


def rank_of(environment: Mapping[str, str]) -> Rank:
    """This process, as its environment tells; alone where neither torchrun nor srun has started it.

    torchrun goes first: it may have been started by srun. Of Slurm only what a step's tasks are told counts: in a batch script
    itself, which is one process, the job's numbers stand as well. Raises `UsageError` for what is no rank.
    """
    if "RANK" in environment:
        own = _numbers(environment, _TORCHRUN)
        return _rank(*own, _number(environment, "LOCAL_WORLD_SIZE", 1))
    if _SRUN[1] in environment:
        node = _number(environment, "SLURM_NODEID", 0)
        bound = environment.get(_SRUN_BOUND, "").startswith(("mask_cpu", "map_cpu"))
        sharing = 1 if bound else _tasks_of(environment.get(_SRUN_TASKS, ""), node)
        return _rank(*_numbers(environment, _SRUN), sharing)
    return ALONE


def _numbers(environment: Mapping[str, str], names: tuple[str, str, str]) -> tuple[int, int, int]:
    number, count, local = (_number(environment, name, usual) for name, usual in zip(names, (0, 1, 0), strict=True))
    return number, count, local


def _rank(number: int, count: int, local: int, local_count: int) -> Rank:
    if not 0 <= number < count:
        raise UsageError(
            f"The environment says that this process is rank {number} of {count}: ranks are 0 to {count - 1}."
        )
    return Rank(number, count, local, max(1, local_count))


def _number(environment: Mapping[str, str], name: str, usual: int) -> int:
    text = environment.get(name, str(usual))
    if not text.isdecimal():
        raise UsageError(f"The environment variable {name} is {quoted(text)}, where torchrun and srun put a number.")
    return int(text)


def _tasks_of(text: str, node: int) -> int:
    """Of `2(x3),1` the tasks of a node; 1 where it does not say."""
    counts = [int(tasks) for tasks, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text) for _ in range(int(times or 1))]
    return counts[node] if node < len(counts) else 1


@contextmanager
def shared_workspace(
    out: Path, layout: Layout, record: dict[str, Any], shards: int, overwrite: bool, rank: Rank
) -> Iterator[tuple[Workspace | None, set[int]]]:
    """`workspace` for one of several ranks, and the shards that were finished before.

    Raises also `ResourceError` if ranks wait for each other in vain.
    """
    if rank.number:
        with _joined(out, layout, record, shards, overwrite, rank) as space:
            yield space, set() if space is None else {index for index in range(shards) if space.has_receipt(index)}
        return
    with workspace(out, layout, record, shards, overwrite) as space:
        finished = set() if space is None else space.finished()
        if space is not None and rank.count > 1:
            _welcome(space, rank)
        yield space, finished


@contextmanager
def _joined(
    out: Path, layout: Layout, record: dict[str, Any], shards: int, overwrite: bool, rank: Rank
) -> Iterator[Workspace | None]:
    words = uuid.uuid4().hex
    work = out / WORK
    hello, answer = _hello(work, rank.number), _answer(work, rank.number)
    lock = FileLock(work / f"{LOCK}-{rank.number}")
    until = time.monotonic() + PATIENCE
    try:
        while not (answer.exists() and answer.read_text(encoding="ascii") == words):
            if is_finished(out) and not overwrite:
                require_same_run(out, layout, record)
                yield None
                return
            if time.monotonic() > until:
                raise ResourceError(
                    f"Rank {rank.number} waited {PATIENCE / 60:.0f} minutes for rank 0 to open {out}. "
                    "Start all ranks at once, on a folder that all of them see."
                )
            if work.is_dir() and not hello.exists() and (lock.is_locked or _acquired(lock)):
                hello.write_text(words, encoding="ascii")
            time.sleep(POLL)
        claim(work, record)
        yield Workspace(out, layout, shards)
    finally:
        lock.release()


def _welcome(space: Workspace, rank: Rank) -> None:
    """Answer every other rank once."""
    others = range(1, rank.count)
    for number in others:
        _hello(space.work, number).unlink(missing_ok=True)
        _answer(space.work, number).unlink(missing_ok=True)
    waiting = set(others)
    until = time.monotonic() + PATIENCE
    while waiting:
        for number in sorted(waiting):
            hello = _hello(space.work, number)
            words = hello.read_text(encoding="ascii") if hello.exists() else ""
            if len(words) == _WORDS:  # else it is being written
                files.write_text(_answer(space.work, number), words)
                waiting.discard(number)
        if waiting and time.monotonic() > until:
            raise ResourceError(
                f"Only {rank.count - len(waiting)} of {rank.count} ranks came to {space.out} within "
                f"{PATIENCE / 60:.0f} minutes. Start all ranks at once, on a folder that all of them see."
            )
        if waiting:
            time.sleep(POLL)


def wait_for_others(space: Workspace, rank: Rank) -> None:
    """Until every shard has its receipt. Raises `ResourceError` if a rank ended before its own had."""
    missing = {index for index in range(space.shards) if not space.has_receipt(index)}
    while missing:
        owners = {index % rank.count for index in missing} - {rank.number}
        ended = {number for number in owners if _ended(space, number)}
        # looked for after that: a rank may have finished its last shard and ended in between
        missing = {index for index in missing if not space.has_receipt(index)}
        lost = sorted(ended & {index % rank.count for index in missing})
        if lost:
            raise ResourceError(
                f"Rank {lost[0]} ended before its shards were finished. Finished shards are kept: "
                "run the same command again."
            )
        if missing:
            time.sleep(POLL)


def _ended(space: Workspace, number: int) -> bool:
    lock = FileLock(space.work / f"{LOCK}-{number}")
    ended = _acquired(lock)
    lock.release()
    return ended


def _acquired(lock: BaseFileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def _hello(work: Path, number: int) -> Path:
    return work / f"hello-{number}"


def _answer(work: Path, number: int) -> Path:
    return work / f"answer-{number}"
