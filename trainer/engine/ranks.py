"""Ranks that end together: what goes wrong on one of them, none of the others waits for.

A rank that raises alone leaves the others in their next collective for as long as that takes to time out. So whatever may
go wrong on one rank, a folder that it cannot write or a shard that it cannot read, is done `together` or read `in_step`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from schemas.console import os_problem
from schemas.errors import UserError

T = TypeVar("T")
#: Ranks wait for each other while weights are read through and checkpoints converted, of models of any size.
_PATIENCE: Final = timedelta(days=1)


class AgreedError(UserError):
    """An error of some rank, its cause, that all ranks raise; so one of them has to tell it."""

    def __init__(self, cause: UserError) -> None:
        super().__init__(str(cause))
        self.exit_code = cause.exit_code


@contextmanager
def together() -> Iterator[None]:
    """Ranks wait for each other at the end of it; a `UserError` within, on whichever rank, ends it for all of them.

    All raise the lowest such rank's, as an `AgreedError`, or as it is where there is only one rank. What is done within
    may differ from rank to rank, and uses no collectives.
    """
    problem: UserError | None = None
    try:
        yield
    except UserError as error:
        problem = error
    except OSError as error:
        problem = os_problem(error)
        if problem is None:
            raise
    _raise_first(problem)


def gathered(value: T) -> list[T]:
    """What every rank has, in their order. All of them call it."""
    if dist.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=_on_the_host())
    return values


def from_first(action: Callable[[], T]) -> T:
    """What an action gives on the first rank, which alone runs it, `together`."""
    result: Any = None
    with together():
        if dist.get_rank() == 0:
            result = action()
    first: T = gathered(result)[0]
    return first


def in_step(items: Iterator[T]) -> Iterator[T]:
    """Items of each rank's own iterator, of which all ranks have as many; a `UserError` is raised as in `together`."""
    if dist.get_world_size() == 1:
        yield from items
        return
    device = get_accelerator().current_device_name()
    while True:
        problem, item = None, None
        try:
            item = next(items, None)
        except UserError as error:
            problem = error
        failures = torch.tensor([float(problem is not None)], device=device)
        dist.all_reduce(failures)
        if failures.item() > 0:
            _raise_first(problem)
        if item is None:
            return
        yield item


def _raise_first(problem: UserError | None) -> None:
    if dist.get_world_size() == 1:
        if problem is not None:
            raise problem
        return
    for rank, cause in enumerate(gathered(problem)):
        if cause is not None:
            # this rank's own still knows where it was raised
            raise AgreedError(cause) from (problem if rank == dist.get_rank() else cause)


_groups: dict[dist.ProcessGroup, dist.ProcessGroup] = {}


def _on_the_host() -> dist.ProcessGroup:
    """A group of all ranks with more patience than one for tensors, whose messages touch no GPU."""
    everybody = dist.group.WORLD
    assert everybody is not None
    if everybody not in _groups:
        _groups[everybody] = dist.new_group(backend="gloo", timeout=_PATIENCE)
    return _groups[everybody]
