"""One run by several processes that torchrun or srun has started: each takes every n-th shard.

All they share is the output folder. Rank 0 holds it, as any run does; the others say hello in its working folder, and
begin once rank 0 has cleared it and written their very words back, so that nothing an earlier run left there can be
taken for an answer. Each holds a lock of its own for as long as it lives. Rank 0 waits for every receipt and seals.
"""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from filelock import BaseFileLock, FileLock, Timeout

from pipeline.shards.workspace import LOCK, WORK, Layout, Workspace, claim, require_same_run, workspace
from schemas import files
from schemas.errors import ResourceError
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
    local_count: int = 1

    def takes(self, shard: int) -> bool:
        """Whether a shard is this rank's."""
        return shard % self.count == self.number


ALONE: Final = Rank()


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
