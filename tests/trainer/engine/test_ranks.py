"""Ranks end together: what one raises, none of the others waits for."""

import errno
import multiprocessing
import os

import pytest
import torch.distributed as dist

from schemas.errors import Exit, StateError, UserError
from trainer.engine.ranks import in_step, together

RANKS = 2
#: A rank that waits for another would wait for minutes.
SOON = 60


def alone(work, rank, folder, results):
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=RANKS)
    try:
        results.put((rank, "returned", work(rank)))
    except Exception as error:  # whatever it is, the parent compares it
        results.put((rank, type(error.__cause__).__name__, str(error), getattr(error, "exit_code", None)))
    dist.destroy_process_group()


@pytest.fixture
def ranks(tmp_path):
    """Runs a function on each of two ranks; what each returned or raised, in their order."""
    context = multiprocessing.get_context("fork")

    def run(work):
        results = context.SimpleQueue()
        processes = [context.Process(target=alone, args=(work, rank, tmp_path, results)) for rank in range(RANKS)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(SOON)
            assert process.exitcode == 0
        return [outcome[1:] for outcome in sorted(results.get() for _ in processes)]

    return run


@pytest.mark.parametrize("failing", [(0,), (1,), (0, 1)])
def test_what_any_rank_raises_all_raise(ranks, failing):
    def work(rank):
        with together():
            if rank in failing:
                raise StateError(f"rank {rank} has it")

    assert ranks(work) == [("StateError", f"rank {failing[0]} has it", Exit.STATE)] * RANKS


def test_what_the_system_refuses_is_told_as_well(ranks):
    def work(rank):
        with together():
            if rank == 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")

    first, second = ranks(work)
    assert first == second
    assert first[::2] == ("ResourceError", Exit.RESOURCE)
    assert "somewhere" in first[1]


def test_items_come_in_step_until_a_rank_has_none(ranks):
    taken = multiprocessing.get_context("fork").Array("i", RANKS)

    def items(rank):
        yield "a"
        yield "b"
        if rank == 1:
            raise UserError("the third cannot be read")
        yield "c"

    def work(rank):
        for _ in in_step(items(rank)):
            taken[rank] += 1

    assert ranks(work) == [("UserError", "the third cannot be read", Exit.INPUT)] * RANKS
    assert list(taken) == [2, 2]


def test_nothing_is_lost_where_nothing_goes_wrong(ranks):
    def work(rank):
        with together():
            pass
        return list(in_step(iter(range(rank, rank + 3))))

    assert ranks(work) == [("returned", [0, 1, 2]), ("returned", [1, 2, 3])]
