"""In which parts rows go through an output matrix."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from trainer.models.head import parted


@given(st.lists(st.integers(1, 5), max_size=8), st.integers(0, 12), st.data())
def test_parts_end_at_bounds_and_are_as_large_as_may_be(gaps, size, data):
    """Of the rows between two bounds, whatever bounds there are beyond."""
    bounds = [0]
    for gap in gaps:
        bounds.append(bounds[-1] + gap)
    first, end = sorted((data.draw(st.sampled_from(bounds)), data.draw(st.sampled_from(bounds))))
    parts = list(parted(first, end, size, bounds))
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(first, end))
    assert {part.stop for part in parts} <= {*bounds}
    for part in parts:
        inside = [bound for bound in bounds if part.start < bound < part.stop]
        assert part.stop - part.start <= size or not inside
    for before, part in pairwise(parts):
        following = next(bound for bound in bounds if bound > part.start)
        assert following - before.start > size, "more would have fitted"


@given(st.integers(0, 20), st.integers(0, 30), st.integers(0, 12))
def test_without_bounds_anywhere(first, rows, size):
    parts = list(parted(first, first + rows, size, None))
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(first, first + rows))
    assert all(part.stop - part.start <= max(size, 1) for part in parts)
