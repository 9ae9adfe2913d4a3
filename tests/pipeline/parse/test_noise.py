"""Noise leaves a sentence its words' number, spaces and order, so that its tree still fits."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.parse.noise import LEFT_OUT, SHORTEST_MISSPELT, misspelt, noisy
from pipeline.text import Words

WORD = st.text(st.characters(exclude_categories=["Cs", "Zs", "Cc"]), min_size=1, max_size=12)


@given(words=st.lists(WORD, min_size=1, max_size=20), share=st.floats(0, 1), seed=st.integers())
def test_the_tree_still_fits(words, share, seed):
    clean = Words(tuple(words), tuple(len(word) % 2 == 0 for word in words))
    changed = noisy(clean, share, "[UNK]", random.Random(seed))
    assert len(changed.words) == len(words)
    assert all(changed.words)
    assert changed.space_after == clean.space_after
    assert changed == noisy(clean, share, "[UNK]", random.Random(seed))


@given(word=WORD, seed=st.integers())
def test_a_slip_is_one_slip(word, seed):
    slipped = misspelt(word, random.Random(seed))
    if len(word) < SHORTEST_MISSPELT or not word.isalpha():
        assert slipped == word
    assert abs(len(slipped) - len(word)) <= 1
    assert slipped.startswith(word[:1]) or sorted(slipped[1:]) != sorted(word[1:])
    differing = sum(a != b for a, b in zip(slipped, word, strict=False))
    if len(slipped) == len(word):
        assert differing <= 2


def test_about_the_share_is_altered():
    words = Words(("planets",) * 3000, (True,) * 3000)
    changed = noisy(words, 0.3, "[UNK]", random.Random(7)).words
    left_out = changed.count("[UNK]")
    assert left_out == pytest.approx(3000 * 0.3 * LEFT_OUT, rel=0.15)
    # a few of the misspelt ones read as before: a letter in its own place
    assert 3000 - changed.count("planets") == pytest.approx(900, rel=0.15)
    assert noisy(words, 0.0, "[UNK]", random.Random(7)) == words
