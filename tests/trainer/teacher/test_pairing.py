"""Layers paired without being told: each teacher layer with the student layer whose partner it is, else with the nearest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.columns import GRANULARITIES
from schemas.errors import UsageError
from trainer.teacher.pairing import automatic_pairs, teacher_layer


def paired(layers, student_depth, teacher_depth):
    pairs = automatic_pairs(dict.fromkeys(layers, "chunks"), student_depth, teacher_depth)
    return [(pair.student, pair.teacher) for pair in pairs]


@pytest.mark.parametrize(
    ("layers", "student_depth", "teacher_depth", "expected"),
    [
        ([2, 4, 6], 3, 6, [(1, 2), (2, 4), (3, 6)]),
        ([6, 2], 3, 6, [(1, 2), (3, 6)]),
        ([0, 12], 4, 12, [(0, 0), (4, 12)]),
        ([8, 16, 32], 22, 32, [(6, 8), (11, 16), (22, 32)]),
        ([5], 3, 6, [(2, 5)]),  # nobody's partner: as near to 2 as to 3
        ([1, 2, 3], 6, 3, [(2, 1), (4, 2), (6, 3)]),  # a student deeper than its teacher
        ([], 3, 6, []),
    ],
)
def test_known_pairs(layers, student_depth, teacher_depth, expected):
    assert paired(layers, student_depth, teacher_depth) == expected


@given(st.data())
def test_partners_by_the_formula_or_the_nearest(data):
    student_depth, teacher_depth = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    layer = data.draw(st.integers(0, teacher_depth))
    ((student, teacher),) = paired([layer], student_depth, teacher_depth)
    assert teacher == layer
    assert 0 <= student <= student_depth
    distance = [abs(number - layer * student_depth / teacher_depth) for number in range(student_depth + 1)]
    partners = [number for number in range(student_depth + 1) if number * teacher_depth // student_depth == layer]
    if partners:
        assert teacher_layer(student, student_depth, teacher_depth) == layer
        assert distance[student] - min(distance[number] for number in partners) < 0.5 + 1e-9
    else:
        assert distance[student] == pytest.approx(min(distance))


@given(st.integers(1, 40), st.integers(1, 40))
def test_embeddings_go_with_embeddings_and_the_last_layer_with_the_last(student_depth, teacher_depth):
    assert paired([teacher_depth], student_depth, teacher_depth) == [(student_depth, teacher_depth)]
    assert paired([0], student_depth, teacher_depth)[0][0] in range(-(-student_depth // teacher_depth))


def test_granularities_stay_with_their_layers():
    pairs = automatic_pairs(dict(zip((6, 2, 4), GRANULARITIES, strict=True)), 3, 6)
    assert {pair.teacher: pair.granularity for pair in pairs} == dict(zip((6, 2, 4), GRANULARITIES, strict=True))


def test_two_for_one_are_refused():
    with pytest.raises(
        UsageError, match=r"layers 10 and 11 both fall to layer 1 of a student of 2 layers; say in `layers`"
    ):
        automatic_pairs({10: "words", 11: "chunks"}, 2, 22)
