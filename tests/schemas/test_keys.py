"""Dotted keys: what is set is there and nothing else changes, what is spelled is read back, differences are complete."""

from copy import deepcopy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import UsageError
from schemas.keys import Difference, assign, assignment, differences, dump, flat, load, spelled

NAMES = st.sampled_from(["a", "b", "c"])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(st.characters(codec="utf-8", exclude_categories=("Cs",))),
    st.sampled_from(
        ["2e-4", "2026-11-26", "null", "on", "0x1", "12:30", "~", "=", "[SEP]", "<|im_end|>", "|", "'", "a: b", " "]
    ),
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(st.text(max_size=3), SCALARS, max_size=2))
NESTED = st.recursive(SCALARS, lambda inner: st.dictionaries(NAMES, inner, max_size=3), max_leaves=8)
MAPPINGS = st.dictionaries(NAMES, NESTED, max_size=3)


@given(st.lists(NAMES, min_size=1, max_size=3).map(".".join), VALUES)
def test_what_is_spelled_is_read_back(key, value):
    assert assignment(spelled(key, value)) == (key, value)
    assert load(dump(value)) == value


@given(MAPPINGS, MAPPINGS)
def test_setting_what_differs_makes_them_equal(old, new):
    changed = deepcopy(old)
    for key, before, now in differences(old, new):
        assert before != now
        assign(changed, key, now)
    assert list(differences(changed, new)) == []


@given(MAPPINGS)
def test_nothing_differs_from_itself(values):
    assert list(differences(values, deepcopy(values))) == []


def test_differences_are_innermost_and_tell_empty_from_absent():
    old = {"a": {"b": 1, "c": {"d": [1, 2]}}, "e": {}}
    assert list(differences(old, {"a": {"b": 1, "c": {"d": [1]}, "f": 0}})) == [
        Difference("a.c.d", [1, 2], [1]),
        Difference("a.f", None, 0),
        Difference("e", {}, None),
    ]


def test_a_key_below_a_value_is_told_with_its_place():
    with pytest.raises(UsageError, match=r"^`a\.b` is 3 and has no keys, so none is `a\.b\.c`\.$"):
        assign({"a": {"b": 3}}, "a.b.c", 1)


def test_flat():
    assert flat({"optim": {"lr": 1, "betas": [1]}, "out": "o"}) == {"optim.lr": 1, "optim.betas": [1], "out": "o"}


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3", "x: {a: 1, a: 1}", "- a: 1\n  a: 2"])
def test_a_key_that_stands_twice_is_none(text):
    with pytest.raises(ValueError, match="the key 'a' stands twice, also in line "):
        load(text)


def test_keys_that_are_written_alike_are_not_the_same():
    assert load("{1: a, '1': b, null: c, 'null': d}") == {1: "a", "1": "b", None: "c", "null": "d"}
