"""Shards through a stage: in this process or in a pool of processes, the same bytes either way.

A stage is made once in every process and turns one item (the input rows of a shard, say) into one shard. Items are
read in order by this process and handed out as workers become free, so memory is bounded by a few shards.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from pipeline.store.shards import ShardOutput, Workspace
from schemas.errors import ResourceError


@runtime_checkable
class Stage(Protocol):
    """One shard's work. Constructed in the process that runs it."""

    def run(self, item: Any) -> ShardOutput:
        """Turn one item into one shard."""
        ...


_stage: Stage | None = None
_workspace: Workspace | None = None


def single_thread() -> None:
    """One thread for torch in every process.

    Matrix products split over another number of threads may differ in their last bits, and shards must not depend on how
    many workers there were; processes give the parallelism.
    """
    import torch

    torch.set_num_threads(1)


@contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    """Processes started here ignore Ctrl-C from their first moment, so that none dies of it half-started."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers, and only it is interrupted
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _start(make: Callable[[], Stage], workspace: Workspace) -> None:
    global _stage, _workspace
    single_thread()
    _stage, _workspace = make(), workspace


def _work(index: int, item: Any) -> tuple[int, int]:
    assert _stage is not None
    assert _workspace is not None
    return index, _workspace.publish(index, _stage.run(item))


def run_shards(
    make: Callable[[], Stage], items: Iterable[tuple[int, Any]], workspace: Workspace, workers: int
) -> Iterator[tuple[int, int]]:
    """Run and publish every item's shard; yields (index, input rows) as they finish, in any order.

    `make` and the items must pickle if there is more than one worker. Raises `ResourceError` if a worker dies.
    """
    if workers == 1:
        single_thread()
        stage = make()
        for index, item in items:
            yield index, workspace.publish(index, stage.run(item))
        return
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start, initargs=(make, workspace)
    )
    waiting: set[Future[tuple[int, int]]] = set()
    try:
        for index, item in items:
            with _ctrl_c_ignored():  # the first submission starts the processes; this one decides what Ctrl-C means
                waiting.add(pool.submit(_work, index, item))
            if len(waiting) > workers:  # one item ready for whoever is done first
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    except BrokenProcessPool:
        raise ResourceError(
            "A worker process died, most likely for lack of memory. Finished shards are kept: "
            "run the same command again, with fewer --workers."
        ) from None
    finally:
        for process in list((pool._processes or {}).values()):
            if waiting:
                process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


def default_workers() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
