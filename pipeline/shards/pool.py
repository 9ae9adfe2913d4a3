"""Shards through a stage: in this process or in a pool of processes, the same bytes either way.

A stage is made once in every process and turns one item (the input rows of a shard, say) into one shard. Items are
read in order by this process and handed out as workers become free, so memory is bounded by a few shards. Without
workers, a thread writes a shard while the next one is in the making.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

from pipeline.shards.workspace import Output, Workspace
from schemas.errors import ResourceError, UserError
from schemas.processes import end_with_parent

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

#: Told of rows and teacher tokens (0 where they are not counted) as a stage finishes them.
Tick = Callable[[int, int], None]


def untold(rows: int, tokens: int) -> None:
    """Where nobody wants to know."""


@runtime_checkable
class Stage(Protocol):
    """One shard's work. Constructed in the process that runs it."""

    def run(self, item: Any, tick: Tick) -> Output:
        """Turn one item into one shard; calls `tick` from this thread."""
        ...


#: Kernels that oneDNN keeps: a batch needs a few, for every layer anew, and each takes 2 MB or so. By default it keeps 1,024.
KERNELS: Final = 16

_stage: Stage | None = None
_refusal: UserError | None = None  # why this process could not make its stage
_workspace: Workspace | None = None
_number = 0


def worker_number() -> int:
    """Which of a pool's processes this is, from 0; 0 outside of a pool."""
    return _number


def settle_torch() -> None:
    """One thread for torch in every process, and in every thread that is started then; few of oneDNN's kernels kept.

    Matrix products split over another number of threads may differ in their last bits, and shards must not depend on how
    many workers there were; processes, or threads with batches of their own, give the parallelism. oneDNN compiles and
    keeps a kernel for each shape of a product: packed batches are of ever new ones, each used for all layers and never again.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS))  # read when the first is compiled

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


def _start(make: Callable[[], Stage], workspace: Workspace, started: "Synchronized[int]") -> None:
    global _stage, _refusal, _workspace, _number
    end_with_parent()
    with started.get_lock():
        _number = started.value
        started.value += 1
    settle_torch()
    _workspace = workspace
    try:
        _stage = make()
    except (
        UserError
    ) as error:  # raised where a shard is waited for: a process that ends at its start has no way to say why
        _refusal = error


def _work(index: int, item: Any) -> tuple[int, int]:
    """A shard in a worker; returns its rows and tokens."""
    if _refusal is not None:
        raise _refusal
    assert _stage is not None
    assert _workspace is not None
    return publish_one(_stage, _workspace, index, item)


def publish_one(stage: Stage, workspace: Workspace, index: int, item: Any) -> tuple[int, int]:
    """Make a shard and publish it; its rows and tokens, as ticked."""
    rows, tokens = 0, 0

    def tick(more_rows: int, more_tokens: int) -> None:
        nonlocal rows, tokens
        rows, tokens = rows + more_rows, tokens + more_tokens

    workspace.publish(index, stage.run(item, tick))
    return rows, tokens


class Made:
    """A stage that this process has made already, as something that makes stages: other processes make their own."""

    def __init__(self, stage: Stage, make: Callable[[], Stage]) -> None:
        """`make` must pickle; `stage` need not."""
        self._stage = stage
        self._make = make

    def __call__(self) -> Stage:
        return self._stage

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return partial, (self._make,)


def run_shards(
    make: Callable[[], Stage], items: Iterable[tuple[int, Any]], workspace: Workspace, workers: int, tick: Tick
) -> None:
    """Run and publish every item's shard; `tick` is called from this thread.

    `make` and the items must pickle if there is more than one worker. Raises `ResourceError` if a worker dies.
    """
    if workers == 1:
        _run_here(make, items, workspace, tick)
    else:
        _run_in_pool(make, items, workspace, workers, tick)


def _run_here(make: Callable[[], Stage], items: Iterable[tuple[int, Any]], workspace: Workspace, tick: Tick) -> None:
    settle_torch()
    stage: Stage | None = None
    writing: Future[None] | None = None
    with ThreadPoolExecutor(1) as writer:
        for index, item in items:
            stage = stage or make()  # not for a run that has nothing left to do
            output = stage.run(item, tick)
            if writing is not None:
                writing.result()
            writing = writer.submit(workspace.publish, index, output)
            del output  # the writer's alone: two shards are in memory, not three
        if writing is not None:
            writing.result()


def _run_in_pool(
    make: Callable[[], Stage], items: Iterable[tuple[int, Any]], workspace: Workspace, workers: int, tick: Tick
) -> None:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start, initargs=(make, workspace, context.Value("i", 0))
    )
    waiting: set[Future[tuple[int, int]]] = set()
    try:
        for index, item in items:
            with _ctrl_c_ignored():  # the first submission starts the processes; this one decides what Ctrl-C means
                waiting.add(pool.submit(_work, index, item))
            if len(waiting) > workers:  # one item ready for whoever is done first
                waiting = _some_done(waiting, tick)
        while waiting:
            waiting = _some_done(waiting, tick)
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


def _some_done(waiting: set[Future[tuple[int, int]]], tick: Tick) -> set[Future[tuple[int, int]]]:
    """Wait for a shard or more; returns what is not done yet."""
    done, left = wait(waiting, return_when=FIRST_COMPLETED)
    for future in done:
        tick(*future.result())
    return left


def threads_of(workers: int, sharing: int = 1) -> int:
    """Cores for each of so many workers, where so many runs share this machine."""
    return max(1, default_workers() // (workers * sharing))


def default_workers() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
