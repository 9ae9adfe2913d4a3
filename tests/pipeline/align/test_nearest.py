"""Nearest tokens against every pair of two vocabularies, whatever is compared at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from pipeline.align import nearest
from pipeline.align.nearest import nearest_tokens
from pipeline.align.vocabulary import SideVocabulary, shared_tokens

PIECES = [
    b"",
    b" ",
    b"  ",
    b"a",
    b" a",
    b"ab",
    b" ab c",
    b"b",
    b" ba",
    b"abcdefgh",
    b"\n",
    b"\xf0",
    b"\x9f\x98",
    b"</s>",
]


def vocabulary(spelled, special):
    own = tuple(index for index in sorted(special) if index < len(spelled))
    return SideVocabulary(tuple(spelled), own, own[:1])


def bare(text):
    return text.replace(b" ", b"")


def plain(student, teacher):
    exact = {theirs: mine for mine, theirs in shared_tokens({"student": student, "teacher": teacher}).tolist()}
    candidates = sorted(student.ids().values())
    for index, text in enumerate(teacher.spelled):
        if index in exact:
            yield exact[index]
        elif index in teacher.special or not text or not candidates:
            yield -1
        elif text in student.ids():
            yield student.ids()[text]
        else:
            yield min(candidates, key=lambda own: (Levenshtein.distance(bare(student.spelled[own]), bare(text)), own))


SIDES = st.tuples(
    st.lists(st.sampled_from(PIECES) | st.binary(max_size=6), min_size=1, max_size=12),
    st.sets(st.integers(0, 11), max_size=2),
)


@given(SIDES, SIDES, st.booleans())
def test_nearest_tokens_are_those_of_all_pairs(one, other, few_at_once):
    student, teacher = vocabulary(*one), vocabulary(*other)
    done = []
    with pytest.MonkeyPatch.context() as patch:
        if few_at_once:
            patch.setattr(nearest, "CELLS", 2)
        found = nearest_tokens({"student": student, "teacher": teacher}, done.append)
    assert found.tolist() == list(plain(student, teacher))
    assert sum(done) == len(teacher.spelled)


def test_the_first_of_equally_near_tokens_and_the_exact_one_before_all():
    student = vocabulary([b"cat", b" cut", b"cut", b"bat"], [])
    teacher = vocabulary([b"cut", b"cit", b"bats", b" bat"], [])
    assert nearest_tokens({"student": student, "teacher": teacher}, lambda _: None).tolist() == [2, 0, 3, 3]
    assert nearest_tokens({"student": student, "teacher": teacher}, lambda _: None).dtype == np.int32
