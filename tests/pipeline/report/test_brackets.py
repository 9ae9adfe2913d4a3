"""What is drawn is the text: brackets open and close well nested, and pieces of one span are that span."""

from collections import Counter

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.report.axes import ticks
from pipeline.report.brackets import Bracket, Close, Piece, events, levels
from pipeline.report.histograms import Tally, histogram

KINDS = ("phrase", "chunk", "word", "token")


@st.composite
def drawings(draw):
    """A text, a stretch of it, and any spans, crossing ones as well."""
    text = draw(st.text(min_size=1, max_size=30))
    places = st.integers(0, len(text))
    start, end = sorted((draw(places), draw(places)))
    spans = draw(st.lists(st.tuples(st.sampled_from(KINDS), places, places), max_size=12))
    brackets = [
        Bracket(kind, min(one, other), max(one, other), index)
        for index, (kind, one, other) in enumerate(spans)
        if one != other
    ]
    return text, start, end, brackets


@given(drawings())
def test_the_text_is_whole_and_each_span_covers_what_it_says(drawing):
    text, start, end, brackets = drawing
    stack, position = [], start
    covered, begins, ends = Counter(), Counter(), Counter()
    for event in events(text, start, end, brackets):
        if isinstance(event, Close):
            stack.pop()
        elif isinstance(event, Piece):
            stack.append(event)
            begins[event.bracket.index] += event.begins
            ends[event.bracket.index] += event.ends
        else:
            assert event == text[position : position + len(event)] != ""
            for piece in stack:
                covered.update((piece.bracket.index, place) for place in range(position, position + len(event)))
            position += len(event)
    assert (position, stack) == (end, [])
    for bracket in brackets:
        shown = range(max(bracket.start, start), min(bracket.end, end))
        assert {place for index, place in covered if index == bracket.index} == set(shown)
        assert begins[bracket.index] == (len(shown) > 0 and bracket.start >= start)
        assert ends[bracket.index] == (len(shown) > 0 and bracket.end <= end)
    assert set(covered.values()) <= {1}


def test_a_verb_group_that_reaches_into_a_phrase_is_drawn_in_pieces():
    text = "must travel far"
    outer, inner = Bracket("phrase", 0, 15, 0, "VP"), Bracket("phrase", 5, 15, 1, "VP")
    group = Bracket("chunk", 0, 11, 0, "VP")
    drawn = [
        (event.bracket.kind, event.begins, event.ends)
        for event in events(text, 0, 15, [inner, group, outer])
        if isinstance(event, Piece)
    ]
    assert drawn == [
        ("phrase", True, True),
        ("chunk", True, False),
        ("phrase", True, True),
        ("chunk", False, True),
    ]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)).map(lambda at: (at[0], sum(at))), max_size=10))
def test_lines_of_spans_in_one_another_do_not_fall_together(spans):
    heights = levels(spans)
    for one, (start, end) in enumerate(spans):
        for other, (first, last) in enumerate(spans):
            inside = start <= first and last <= end and (start, end) != (first, last)
            if inside or (other > one and (start, end) == (first, last)):
                assert heights[one] > heights[other]


values = st.lists(st.integers(0, 5_000) | st.integers(0, 20), max_size=60)


@given(values, values)
def test_every_value_is_in_the_bar_that_says_so(one, other):
    tallies = {"teacher": Tally(), "student": Tally()}
    for tally, numbers in zip(tallies.values(), (one, other), strict=True):
        tally.add(np.array(numbers, dtype=np.int32))
        assert tally.total == len(numbers)
    chart = histogram("Tokens a row", "row", tallies)
    for series, numbers in zip(chart.series, (one, other), strict=True):
        assert sum(bar.count for bar in series.bars) == len(numbers)
        for bar in series.bars:
            assert bar.count == sum(bar.low <= each and (bar.high is None or each < bar.high) for each in numbers)
            assert 0 <= bar.x <= bar.x + bar.width <= 320
            assert 0 < bar.height <= bar.y + bar.height <= 130
        if numbers:
            assert series.largest == max(numbers)
            assert series.median == np.quantile(numbers, 0.5, method="inverted_cdf")


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.integers(2, 12))
@example(1.181160529e-06, 1500.0, 2)  # as good as 0
def test_ticks_are_few_and_on_the_axis(low, reach, most):
    high = low + reach
    marks = ticks(low, high, most)
    assert len(marks) <= most + 1
    assert all(low - 1e-8 * reach <= mark <= high + 1e-8 * reach for mark in marks)
