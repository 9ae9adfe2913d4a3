"""Exact match against SQuAD's own normalisation, step by step, where punctuation is ASCII."""

import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.evaluation.exact import exact_match, normalized

PIECES = st.lists(
    st.sampled_from(
        ["The", "a", "AN", "cat", "theatre", "U.S.", "3,000", "l'art", "É", "日本", ".", " ", "\n", "-", "$5"]
    ),
    max_size=8,
).map("".join)


def squad(text):
    lowered = text.lower()
    bare = "".join(character for character in lowered if character not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


@settings(max_examples=60)
@given(PIECES, st.lists(PIECES, min_size=1, max_size=3))
def test_equals_squad(text, references):
    assert normalized(text) == squad(text)
    telling = list(filter(squad, references))
    assert exact_match(text, telling) == (squad(text) in map(squad, telling))


@settings(max_examples=60)
@given(PIECES, PIECES)
def test_a_reference_of_articles_or_punctuation_is_right_itself_and_nothing_without_content_is(text, reference):
    assert exact_match(text, [text]) == bool(text.strip())
    if squad(reference) and not squad(text):
        assert not exact_match(text, [reference])
        assert not exact_match(reference, [text])


@pytest.mark.parametrize(
    ("text", "reference", "same"),
    [
        ("The Eiffel Tower.", "eiffel  tower", True),
        ("U.S.", "us", True),
        ("A", "a.", True),
        ("...", "A", False),
        ("The", "A", False),
        ("?!", "+", False),
        ("+", " + ", True),
        ("The answer is A", "A", False),
        ("theatre", "tre", False),
        ("Paris, France", "Paris", False),
        ("", "A", False),
        ("パリ", "パリ", True),
        ("「パリ」。", "パリ", True),
        ("It’s 12:15", "its 1215", True),
        ("twelve", "12", False),
    ],
)
def test_known_answers(text, reference, same):
    assert exact_match(text, ["elsewhere", reference]) is same
