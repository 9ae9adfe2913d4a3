"""What a training step is made of: the order of rows, their portions for each rank, and the loader that reads ahead.

Rows come in a stream: all of them in an order of the first epoch, then in one of the second, and so on; step s takes
rows [s·B, (s+1)·B) of it. So the number of the step is the whole position, and what a step trains on is a function of
seed and step alone, however many ranks and micro-batches it is dealt to.

Of several datasets each has a stream of its own, and a step takes as many rows of each; a micro-batch is of one dataset.
Where they are joined, their streams are of the same pairs (`trainer.batches.joined`), so partners come in the same step.
"""

import multiprocessing
import shlex
import signal
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Final, Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from schemas.errors import UsageError, UserError
from schemas.processes import end_with_parent
from schemas.training import DataConfig
from trainer.batches.batch import Batch
from trainer.batches.documents import Documents
from trainer.batches.joined import joined
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


#: A micro-batch before it is fetched: which dataset, and its rows.
Portion = tuple[str, list[int]]


@dataclass(frozen=True)
class _Split:
    """A dataset's rows as a run uses them."""

    training: Rows
    held_out: Rows
    lengths: Rows  # student tokens of every row

    def dealt(self, rows: Rows, ranks: int, micro_batches: int) -> Dealt:
        """Some rows, for every rank."""
        shares = deal(self.lengths[rows].tolist(), ranks, micro_batches)
        return [[rows[places].tolist() for places in mine] for mine in shares]


class StepLoader:
    """This rank's micro-batches, a step at a time."""

    def __init__(
        self, sources: Mapping[str, BatchSource], config: DataConfig, *, rank: int, ranks: int, pinned: bool
    ) -> None:
        """`sources`: by dataset; `pinned`: into page-locked memory, from where a GPU copies while it computes.

        Raises `UsageError` if there are no rows, if a step's documents, or those held out, do not go round the ranks, or if
        no rows answer the same prompt where datasets are to be joined by it.
        """
        self._sources = dict(sources)
        self._config = config
        self._rank = rank
        self._ranks = ranks
        self._pinned = pinned
        for source in self._sources.values():
            _require_rows(source)
        deal([0] * config.batch_size, ranks, config.micro_batches)
        if 0 < config.held_out < ranks:
            raise UsageError(
                f"`data.held_out` is {config.held_out}, which does not go round {ranks} ranks; hold out at least {ranks}."
            )
        self._splits = {name: self._split(name, rows) for name, rows in self._used().items()}

    @property
    def rows(self) -> dict[str, int]:
        """Rows of each dataset that are trained on."""
        return {name: len(split.training) for name, split in self._splits.items()}

    def training(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """Steps [start, stop)."""
        return iter(self._reader(_Each(self._step, range(start, stop)), lasting=False))

    def validation(self) -> Iterator[list[Batch]]:
        """The rows held out, in a fixed order; as many steps on every rank. Its worker processes stay for the next time.

        In portions of at most `data.batch_size` of each dataset, but for the few more that it takes to give each rank a
        document.
        """
        return iter(self._validation)

    def close(self) -> None:
        """End the workers that stay: as they leave signals to this process, it would wait for them at its own end."""
        reader = self.__dict__.pop("_validation", None)
        if isinstance(reader, _Elsewhere):
            reader.close()

    @cached_property
    def _validation(self) -> Iterable[list[Batch]]:
        count = self._config.held_out
        steps = min(-(-count // self._config.batch_size), count // self._ranks)
        portions = [
            [(name, rows) for rows in np.array_split(split.held_out, max(steps, 1))[:steps]]
            for name, split in self._splits.items()
        ]
        return self._reader(_Each(self._validation_step, list(zip(*portions, strict=True))), lasting=True)

    def _used(self) -> dict[str, Rows]:
        """Rows of each dataset that are used at all."""
        if self._config.join is not None:
            return joined({name: (source.documents, source.rows) for name, source in self._sources.items()})
        return {name: np.arange(source.rows) for name, source in self._sources.items()}

    def _split(self, name: str, rows: Rows) -> _Split:
        training, validation = held_out(len(rows), self._config.held_out, self._config.seed)
        lengths = self._sources[name].documents.lengths("student")
        return _Split(rows[training], rows[validation], lengths)

    def _step(self, step: int) -> list[Portion]:
        size = self._config.batch_size
        portions = []
        for name, split in self._splits.items():
            places = stream(len(split.training), self._config.seed, step * size, (step + 1) * size)
            dealt = split.dealt(split.training[places], self._ranks, self._config.micro_batches)
            portions += [(name, rows) for rows in dealt[self._rank]]
        return portions

    def _validation_step(self, step: Sequence[tuple[str, Rows]]) -> list[Portion]:
        portions = []
        for name, rows in step:
            micro_batches = min(self._config.micro_batches, len(rows) // self._ranks)
            dealt = self._splits[name].dealt(rows, self._ranks, micro_batches)
            portions += [(name, mine) for mine in dealt[self._rank]]
        return portions

    def _reader(self, steps: "_Each", lasting: bool) -> Iterable[list[Batch]]:
        """`lasting`: its workers are there for all iterations, one after the other."""
        portable = all(source.portable for source in self._sources.values())
        if not portable or self._config.workers == 0:
            return _Here(self._sources, steps)
        loader: DataLoader[Any] = DataLoader(
            _Reader(self._sources),
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


def _require_rows(source: BatchSource) -> None:
    """Raises `UsageError` if a source has no rows."""
    if source.rows == 0:
        folder = source.documents.folder
        look = shlex.join(["mta-prep", "info", str(folder)])
        raise UsageError(f"{folder} has no rows to train on; `{look}` tells what became of them.")


def _fetched(sources: Mapping[str, BatchSource], portions: Iterable[Portion]) -> list[Batch]:
    """The batches of a step's micro-batches."""
    return [replace(sources[name].fetch(rows), data=name) for name, rows in portions]


class _Here:
    """Batches that are made in this process, when they are asked for."""

    def __init__(self, sources: Mapping[str, BatchSource], steps: "_Each") -> None:
        self._sources = sources
        self._steps = steps

    def __iter__(self) -> Iterator[list[Batch]]:
        for step in self._steps:
            yield _fetched(self._sources, step)


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

    def __init__(self, function: Callable[[Any], list[Portion]], items: Sequence[Any]) -> None:
        self._function = function
        self._items = items

    def __iter__(self) -> Iterator[list[Portion]]:
        return map(self._function, self._items)


class _Reader(Dataset[Any]):
    """What a worker does: rows of a step's micro-batches to the batches."""

    def __init__(self, sources: Mapping[str, BatchSource]) -> None:
        self._sources = sources

    def __getitem__(self, step: list[Portion]) -> Parcel | UserError:
        try:
            return pack(_fetched(self._sources, step))
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
    end_with_parent()
