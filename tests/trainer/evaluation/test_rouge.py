"""ROUGE-L against a longest common subsequence written out here."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.stem.porter import PorterStemmer

from trainer.evaluation.rouge import RougeL

stemmer = PorterStemmer()


def tokens(text):
    words = re.sub(r"[^a-z0-9]+", " ", text.lower()).split()
    return [stemmer.stem(word) if len(word) > 3 else word for word in words]


def plain(text, reference):
    a, b = tokens(text), tokens(reference)
    if not a or not b:
        return 0.0
    common = {(-1, -1): 0}
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            if left == right:
                common[i, j] = common.get((i - 1, j - 1), 0) + 1
            else:
                common[i, j] = max(common.get((i - 1, j), 0), common.get((i, j - 1), 0))
    longest = common[len(a) - 1, len(b) - 1]
    precision, recall = longest / len(a), longest / len(b)
    return 100 * 2 * precision * recall / (precision + recall) if longest else 0.0


WORDS = st.lists(
    st.sampled_from(["The", "cats", "cat,", "running", "runs!", "is", "easily", "2020", "é", "naïve", "ing", "-"]),
    max_size=14,
).map(" ".join)


@settings(max_examples=40)
@given(WORDS, WORDS)
def test_equals_the_plain_computation(text, reference):
    assert RougeL().score(text, [reference]) == pytest.approx(plain(text, reference), abs=1e-9)


@settings(max_examples=20)
@given(WORDS, st.lists(WORDS, min_size=2, max_size=4))
def test_takes_the_best_reference(text, references):
    assert RougeL().score(text, references) == pytest.approx(max(plain(text, each) for each in references), abs=1e-9)


def test_known_values():
    rouge = RougeL()
    assert rouge.score("police killed the gunman", ["police kill the gunman"]) == pytest.approx(100), "stemmed"
    assert rouge.score("police kill the gunman", ["the gunman police killed"]) == pytest.approx(50)
    assert rouge.score("", ["something"]) == 0
    assert rouge.score("same", ["other", "same"]) == pytest.approx(100)
