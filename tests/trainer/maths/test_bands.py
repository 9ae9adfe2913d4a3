"""Pairs of units within a window: which there are, and what is computed of them, against plain double loops."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.maths.geometry import pair_products, relations
from trainer.maths.ragged import pointers
from trainer.maths.triangle import (
    later_of,
    later_units,
    pair_rows,
    partners,
    select_pairs,
    square,
    unit_pairs,
    whole_documents,
    within,
)

WINDOWS = st.sampled_from([None, 2, 3, 4, 7, 30])


def near(places, count, window):
    """Pairs (i, j), i < j, of a document of `count` units that count; `places`: some of the units."""
    whole = window is None or count <= 2 * window
    return [(a, b) for a in places for b in places if a < b and (whole or b - a < window)]


@given(st.lists(st.lists(st.booleans(), max_size=20), max_size=5), WINDOWS, WINDOWS)
def test_pairs_are_those_of_a_double_loop(masks, window, stored):
    """`masks`: which units are kept of each document; `stored`: the window under which all units' pairs are there."""
    rows = pointers([len(mask) for mask in masks])
    later = later_units(rows, window)
    first = rows.tolist()
    want = [
        (a + start, b + start)
        for mask, start in zip(masks, first, strict=False)
        for a, b in near(range(len(mask)), len(mask), window)
    ]
    assert [tuple(pair) for pair in torch.stack(unit_pairs(later), 1).tolist()] == want
    counts = [len(near(range(len(mask)), len(mask), window)) for mask in masks]
    assert pair_rows(rows, window).diff().tolist() == counts
    assert whole_documents(rows, later).tolist() == [
        2 * count == len(mask) * (len(mask) - 1) for mask, count in zip(masks, counts, strict=True)
    ]
    kept = torch.tensor([flag for mask in masks for flag in mask], dtype=torch.bool).nonzero().flatten()
    place = {unit: k for k, unit in enumerate(kept.tolist())}
    some = [pair for pair in want if pair[0] in place and pair[1] in place]
    wanted = later_of(kept, later)
    got = [(int(kept[i]), int(kept[j])) for i, j in zip(*unit_pairs(wanted), strict=True)]
    assert got == some
    there = later_units(rows, stored)
    if bool((wanted <= later_of(kept, there)).all()):
        every = torch.stack(unit_pairs(there), 1)
        assert [tuple(pair) for pair in every[select_pairs(kept, there, wanted)].tolist()] == some
    else:
        assert not within(window, stored)
        with pytest.raises(ValueError, match="further apart than those that are there"):
            select_pairs(kept, there, wanted)
    of_units, partner_rows = partners(wanted)
    for unit, (begin, end) in enumerate(itertools.pairwise(partner_rows.tolist())):
        others = [sum(some[pair]) - int(kept[unit]) for pair in of_units[begin:end].tolist()]
        assert others == [a + b - int(kept[unit]) for a, b in sorted(some) if int(kept[unit]) in (a, b)]


@given(
    st.lists(st.sampled_from([0, 1, 2, 5, 6, 7, 13, 40]), max_size=5),
    st.integers(1, 5),
    WINDOWS,
    st.integers(0, 2**16),
)
@settings(max_examples=40)
def test_cosines_within_a_window_are_those_of_all_pairs(lengths, features, window, seed):
    rows = pointers(lengths)
    units = torch.randn(sum(lengths), features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    later = later_units(rows, window)
    got = relations(units, rows, later)
    every = relations(units, rows)
    place = select_pairs(torch.arange(len(units)), later_units(rows), later)
    torch.testing.assert_close(got, every[place], rtol=0, atol=1e-14)
    if bool(whole_documents(rows, later).all()):
        assert torch.equal(got, every)
    parts = [
        relations(part, pointers([len(part)]), later_units(pointers([len(part)]), window))
        for part in units.split(lengths)
    ]
    torch.testing.assert_close(got, torch.cat([every[:0], *parts]), rtol=0, atol=1e-14)


def test_gradients_within_a_window_are_those_of_finite_differences():
    """Documents that are cut, beside one that is not and one without pairs; and units some of which are gone."""
    rows = pointers([9, 3, 1, 7])
    units = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    later = later_units(rows, 3)
    assert torch.autograd.gradcheck(lambda values: relations(values, rows, later), (units,))
    kept = torch.tensor([0, 1, 4, 8, 9, 10, 12, 13, 19])
    assert torch.autograd.gradcheck(
        lambda values: pair_products(values[kept], pointers([4, 2, 1, 2]), later_of(kept, later)), (units,)
    )


def test_a_band_takes_memory_of_its_width(largest_tensor):
    """Nothing is quadratic in a document: 4,000 units within 16 of each other."""
    units = torch.randn(4000, 8, requires_grad=True)
    rows = pointers([4000])
    with largest_tensor as largest:
        relations(units, rows, later_units(rows, 16)).square().sum().backward()
    assert largest.elements <= 4000 * (2 * 16 + 1) + 16


def test_the_matrix_of_a_band_says_where_nothing_is():
    assert square(torch.ones(15), 6, 3).isfinite().all()  # six units are no more than twice three
    matrix = square(torch.arange(1.0, 7.0), 7, 2)
    for i in range(7):
        for j in range(7):
            want = 1.0 if i == j else 1.0 + min(i, j) if abs(i - j) == 1 else math.nan
            assert float(matrix[i, j]) == pytest.approx(want, nan_ok=True)
    with pytest.raises(ValueError, match="7 units have 6 pairs, got 21"):
        square(torch.zeros(21), 7, 2)
