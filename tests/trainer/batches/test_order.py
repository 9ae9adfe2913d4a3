"""Order of rows over epochs, rows held out, and documents dealt to ranks and micro-batches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import UsageError
from trainer.batches.order import deal, held_out, order, stream


@given(st.integers(1, 50), st.integers(0, 5), st.integers(1, 20))
@settings(max_examples=40)
def test_every_row_once_an_epoch(rows, seed, size):
    steps = -(-3 * rows // size)
    parts = [stream(rows, seed, step * size, (step + 1) * size) for step in range(steps)]
    assert all(len(part) == size for part in parts)
    whole = np.concatenate(parts)[: 3 * rows].reshape(3, rows)
    for epoch in range(3):
        assert sorted(whole[epoch]) == list(range(rows))
        assert whole[epoch].tolist() == np.random.default_rng([seed, epoch]).permutation(rows).tolist()


def test_orders_differ_by_seed_and_epoch():
    found = {tuple(order(20, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(found) == 25


@given(st.integers(2, 60), st.integers(0, 59), st.integers(0, 3))
@settings(max_examples=40)
def test_held_out_rows(rows, count, seed):
    if count >= rows:
        with pytest.raises(UsageError, match="hold out fewer"):
            held_out(rows, count, seed)
        return
    training, validation = held_out(rows, count, seed)
    assert len(validation) == count
    assert sorted([*training, *validation]) == list(range(rows))
    assert (np.diff(training) > 0).all()


@given(st.lists(st.integers(0, 500), min_size=1, max_size=64), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=40)
def test_dealing(lengths, ranks, micro_batches):
    if len(lengths) < ranks * micro_batches:
        with pytest.raises(UsageError, match=rf"{len(lengths)} documents .* {ranks} ranks of {micro_batches} micro"):
            deal(lengths, ranks, micro_batches)
        return
    dealt = deal(lengths, ranks, micro_batches)
    assert [len(mine) for mine in dealt] == [micro_batches] * ranks
    assert all(part for mine in dealt for part in mine)
    assert sorted(each for mine in dealt for part in mine for each in part) == list(range(len(lengths)))
    assert dealt == deal(lengths, ranks, micro_batches)
    # the greedy rule's bound, where no bin had to be served first: no bin exceeds another by more than one document
    if len(lengths) >= 4 * ranks * micro_batches and min(lengths) > 0 and max(lengths) <= 2 * min(lengths):
        totals = [sum(lengths[each] for part in mine for each in part) for mine in dealt]
        assert max(totals) - min(totals) <= max(lengths)
    for mine in dealt:
        parts = [sum(lengths[each] for each in part) for part in mine]
        assert parts == sorted(parts, reverse=True)


def test_dealing_real_lengths_is_even():
    lengths = np.random.default_rng(0).lognormal(4.5, 0.7, 64).astype(int).clip(10, 512).tolist()
    parts = [sum(lengths[each] for each in part) for mine in deal(lengths, 4, 2) for part in mine]
    assert max(parts) / (sum(parts) / len(parts)) < 1.03
