"""Which documents a step takes: the order of epochs, the rows held out, what each rank is dealt. Pure functions."""

import heapq
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from jaxtyping import Int64

from schemas.console import counted
from schemas.errors import UsageError

#: Keeps the rows held out from depending on the same random numbers as an epoch's order.
_HELD_OUT: Final = 0x48454C44


Rows = Int64[np.ndarray, " _"]


#: Rows of a step: of each rank, of each of its micro-batches.
Dealt = list[list[list[int]]]


def order(rows: int, seed: int, epoch: int) -> Rows:
    """The order of an epoch: a permutation of 0 to `rows` - 1."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def held_out(rows: int, count: int, seed: int) -> tuple[Rows, Rows]:
    """Rows to train on, and `count` of them to validate on, chosen by `seed`; both rising.

    Raises `UsageError` if nothing would be left to train on.
    """
    if count >= rows:
        raise UsageError(
            f"`data.held_out` is {count} of {counted(rows, 'row')}, which leaves none to train on; hold out fewer."
        )
    chosen = np.zeros(rows, dtype=bool)
    chosen[np.random.default_rng([seed, _HELD_OUT]).permutation(rows)[:count]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def stream(rows: int, seed: int, first: int, last: int) -> Rows:
    """Elements [first, last) of the epochs' orders one after the other."""
    found = [np.zeros(0, dtype=np.int64)]
    while first < last:
        epoch, begin = divmod(first, rows)
        end = min(begin + last - first, rows)
        found.append(_order(rows, seed, epoch)[begin:end])
        first += end - begin
    return np.concatenate(found)


#: A step asks for an epoch's order many times over.
_order = lru_cache(maxsize=2)(order)


def deal(lengths: Sequence[int], ranks: int, micro_batches: int) -> Dealt:
    """Documents to ranks, and those of a rank to its micro-batches, so that each has about the same number of tokens.

    `lengths`: tokens of each document of a step; what comes back is their places. The longest first, each to the lightest
    that has room for it: every micro-batch gets a document. The heaviest micro-batch of a rank comes first, so that
    ranks which wait for each other after each wait little. Raises `UsageError` for too few documents.
    """
    if len(lengths) < ranks * micro_batches:
        raise UsageError(
            f"A step of {len(lengths)} documents (`data.batch_size`) does not go round {ranks} ranks of {micro_batches} "
            f"micro-batches (`data.micro_batches`) each; it takes at least {ranks * micro_batches}."
        )
    found = []
    for mine in _evenly(range(len(lengths)), lengths, ranks, micro_batches):
        parts = _evenly(mine, lengths, micro_batches, 1)
        found.append(sorted(parts, key=lambda part: -sum(lengths[each] for each in part)))
    return found


def _evenly(documents: Iterable[int], lengths: Sequence[int], bins: int, least: int) -> list[list[int]]:
    """The longest document first, each to the lightest bin; all bins get at least `least`."""
    found: list[list[int]] = [[] for _ in range(bins)]
    heap = [(0, each) for each in range(bins)]  # tokens, bin
    waiting = sorted(documents, key=lambda document: (-lengths[document], document))
    short = bins * least
    for left, document in zip(range(len(waiting), 0, -1), waiting, strict=True):
        if left == short:  # all that are left are owed
            heap = [each for each in heap if len(found[each[1]]) < least]
            heapq.heapify(heap)
        tokens, chosen = heapq.heappop(heap)
        short -= len(found[chosen]) < least
        found[chosen].append(document)
        heapq.heappush(heap, (tokens + lengths[document], chosen))
    return found
