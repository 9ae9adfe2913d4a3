"""What a training step is made of: the order of rows, their portions for each rank, and the loader that reads ahead.

Rows come in a stream: all of them in an order of the first epoch, then in one of the second, and so on; step s takes
rows [s·B, (s+1)·B) of it. So the number of the step is the whole position, and what a step trains on is a function of
seed and step alone, however many ranks and micro-batches it is dealt to.
"""

import multiprocessing
import multiprocessing.connection
import os
import shlex
import signal
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar, Final, Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from schemas.errors import UsageError, UserError
from schemas.training import DataConfig
from trainer.batches.batch import Batch
from trainer.batches.documents import Documents
from trainer.batches.order import Dealt, Rows, deal, held_out, stream
from trainer.batches.transfer import Parcel, pack

#: Steps that each worker reads ahead.
AHEAD: Final = 2


@runtime_checkable
class BatchSource(Protocol):
    """Where batches come from: `trainer.teacher.cached.CachedTeacher`, `trainer.teacher.live.LiveTeacher`."""

    documents: Documents
    rows: int  # the dataset's first rows, of which it has everything
    portable: ClassVar[bool]  # whether other processes may fetch

    def fetch(self, rows: Sequence[int]) -> Batch:
        """A batch of these rows."""


class StepLoader:
    """This rank's micro-batches, a step at a time."""

    def __init__(self, source: BatchSource, config: DataConfig, *, rank: int, ranks: int, pinned: bool) -> None:
        """`pinned`: into page-locked memory, from where a GPU copies while it computes.

        Raises `UsageError` if there are no rows, or if a step's documents, or those held out, do not go round the ranks.
        """
        self._source = source
        self._config = config
        self._rank = rank
        self._ranks = ranks
        self._pinned = pinned
        self._lengths = source.documents.lengths("student")
        if source.rows == 0:
            folder = source.documents.folder
            look = shlex.join(["mta-prep", "info", str(folder)])
            raise UsageError(f"{folder} has no rows to train on; `{look}` tells what became of them.")
        self._training, self._held_out = held_out(source.rows, config.held_out, config.seed)
        deal([0] * config.batch_size, ranks, config.micro_batches)
        if 0 < config.held_out < ranks:
            raise UsageError(
                f"`data.held_out` is {config.held_out}, which does not go round {ranks} ranks; hold out at least {ranks}."
            )

    @property
    def rows(self) -> int:
        """Rows of an epoch."""
        return len(self._training)

    def training(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """Steps [start, stop)."""
        return iter(self._reader(_Each(self._step, range(start, stop)), lasting=False))

    def validation(self) -> Iterator[list[Batch]]:
        """The rows held out, in a fixed order; as many steps on every rank. Its worker processes stay for the next time.

        In portions of at most `data.batch_size`, but for the few more that it takes to give each rank a document.
        """
        return iter(self._validation)

    def close(self) -> None:
        """End the workers that stay: as they leave signals to this process, it would wait for them at its own end."""
        reader = self.__dict__.pop("_validation", None)
        if isinstance(reader, _Elsewhere):
            reader.close()

    @cached_property
    def _validation(self) -> Iterable[list[Batch]]:
        count = len(self._held_out)
        steps = min(-(-count // self._config.batch_size), count // self._ranks)
        portions = np.array_split(self._held_out, max(steps, 1))[:steps]
        return self._reader(_Each(self._validation_step, portions), lasting=True)

    def dealt(self, step: int) -> Dealt:
        """Rows of a training step, for every rank."""
        size = self._config.batch_size
        places = stream(len(self._training), self._config.seed, step * size, (step + 1) * size)
        return self._dealt(self._training[places], self._config.micro_batches)

    def _step(self, step: int) -> list[list[int]]:
        return self.dealt(step)[self._rank]

    def _validation_step(self, rows: Rows) -> list[list[int]]:
        micro_batches = min(self._config.micro_batches, len(rows) // self._ranks)
        return self._dealt(rows, micro_batches)[self._rank]

    def _dealt(self, rows: Rows, micro_batches: int) -> Dealt:
        found = deal(self._lengths[rows].tolist(), self._ranks, micro_batches)
        return [[rows[places].tolist() for places in mine] for mine in found]

    def _reader(self, steps: "_Each", lasting: bool) -> Iterable[list[Batch]]:
        """`lasting`: its workers are there for all iterations, one after the other."""
        if not self._source.portable or self._config.workers == 0:
            return _Here(self._source, steps)
        loader: DataLoader[Any] = DataLoader(
            _Reader(self._source),
            sampler=steps,
            batch_size=None,
            num_workers=self._config.workers,
            prefetch_factor=AHEAD,
            persistent_workers=lasting,
            pin_memory=self._pinned,
            multiprocessing_context=_context(),
            worker_init_fn=_settle,
            generator=torch.Generator(),  # else it takes a number from the generator that dropout uses
        )
        return _Elsewhere(loader)


class _Here:
    """Batches that are made in this process, when they are asked for."""

    def __init__(self, source: BatchSource, steps: "_Each") -> None:
        self._source = source
        self._steps = steps

    def __iter__(self) -> Iterator[list[Batch]]:
        for step in self._steps:
            yield [self._source.fetch(rows) for rows in step]


class _Elsewhere:
    """Batches that worker processes make ahead of time."""

    def __init__(self, loader: "DataLoader[Any]") -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[list[Batch]]:
        loader: Any = self._loader
        anew = loader._iterator is None  # one that stays is the same every time
        reading = iter(loader)
        if anew:
            weakref.finalize(reading, _kill, tuple(reading._workers))
        for parcel in reading:
            if isinstance(parcel, UserError):
                raise parcel
            yield parcel.unpack()

    def close(self) -> None:
        """End workers that stay, also in the middle of an iteration that an error ended."""
        iterator: Any = self._loader._iterator  # nothing public ends them while a traceback holds the iterator
        if iterator is not None:
            iterator._shutdown_workers()


def _kill(workers: Sequence[multiprocessing.process.BaseProcess]) -> None:
    """When an iteration is gone, or this process ends: workers, which only read, ignore its signals (`_settle`).

    torch asks them to end by a queue. That may be closed already where the iteration was part of a cycle, and torch asks
    no more once Python ends, as where an error's traceback holds the iteration; this process would wait for them forever.
    """
    for worker in workers:
        worker.kill()


class _Each:
    """A function of each item, as often as it is iterated over."""

    def __init__(self, function: Callable[[Any], list[list[int]]], items: Sequence[Any]) -> None:
        self._function = function
        self._items = items

    def __iter__(self) -> Iterator[list[list[int]]]:
        return map(self._function, self._items)


class _Reader(Dataset[Any]):
    """What a worker does: rows of a step's micro-batches to the batches."""

    def __init__(self, source: BatchSource) -> None:
        self._source = source

    def __getitem__(self, step: list[list[int]]) -> Parcel | UserError:
        try:
            return pack([self._source.fetch(rows) for rows in step])
        except UserError as error:  # raised where it is received: the loader would make a traceback of its message
            return error


def _context() -> multiprocessing.context.BaseContext:
    """How workers start: from a server process that has imported what they need.

    A fork of the training process itself would inherit the locks of its threads, and CUDA; a fresh interpreter for each
    (`spawn`) imports torch anew. Until the first step's batches are there, on two busy cores: 10 s with `spawn`, 6 s so,
    and 1 s when the server is there already; each worker then shares the server's 180 MB.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainer.teacher.cached", "trainer.batches.loader"])
    return context


def _settle(_worker: int) -> None:
    """In a worker: leave signals to the training process, which may want batches still, and end when it does."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
