"""Bracket scores: against a second scorer, EVALB's own counts, and by characters as by words."""

import itertools
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.tree import Tree

from pipeline.parse.evaluation import character_brackets, character_pairs, raw_text
from pipeline.parse.scoring import Pair, Scores, brackets, scored, scores_of, word_pair
from pipeline.parse.treebank import GoldTree, words_of
from pipeline.text import Constituents, Sentence, Words

LABELS = ["S", "NP", "VP", "NP", "VP", "PP", "ADVP", "PRT", "QP"]
TAGS = ["NN", "VB", "RP", "POS", "-LRB-", "-RRB-", "HYPH", ",", ":", "``", "''", "."]
WORDS = ["the", "naïve", "東京", "do", "n't", "can", "not", "'s", "-LRB-", "-RRB-", "``", "''", '"', "…", "$", "%", "-"]
WORDS += ["5\\/6", "👍🏽", "मैं", ".", ",", ":", "p.m.", "--"]


def phrase(rng, leaves):
    """A random bracketing of `leaves`, a phrase at the top; unary chains and repeated labels occur."""
    cuts = sorted(rng.sample(range(1, len(leaves)), rng.randrange(1, len(leaves)))) if len(leaves) > 1 else []
    parts = [leaves[a:b] for a, b in itertools.pairwise([0, *cuts, len(leaves)])]
    inside = "".join(part[0] if len(part) == 1 and rng.random() < 0.7 else phrase(rng, part) for part in parts)
    label = rng.choice(LABELS)
    return f"({label} {inside})" if rng.random() < 0.8 else f"({label} ({rng.choice(LABELS)} {inside}))"


@st.composite
def tree_pairs(draw):
    """Two bracketings of the same tagged words."""
    leaves = draw(
        st.lists(st.builds("({} {})".format, st.sampled_from(TAGS), st.sampled_from(WORDS)), min_size=1, max_size=9)
    )
    rng = draw(st.randoms(use_true_random=False))
    return phrase(rng, leaves), phrase(rng, leaves)


def by_rewriting(bracketing):
    """(label, numbers of its words) of every phrase, from a string alone, innermost phrase first."""
    numbers = itertools.count()

    def number(leaf):
        place = next(numbers)
        return "" if leaf[1] in {",", ":", "``", "''", "."} else f" {place} "

    text = re.sub(r"\(([^\s()]+) ([^\s()]+)\)", number, bracketing)
    found = []
    while inner := re.search(r"\(([^\s()]+)([\d\s]*)\)", text):
        if inner[2].strip():
            found.append(("ADVP" if inner[1] == "PRT" else inner[1], tuple(inner[2].split())))
        text = text[: inner.start()] + inner[2] + text[inner.end() :]
    return found


def counts(bracketing):
    tree = Tree.fromstring(bracketing)
    return scored(brackets(tree), [tag for _, tag in tree.pos()])


@given(st.lists(tree_pairs(), min_size=1, max_size=3))
def test_scores_are_those_of_a_scorer_that_shares_no_code(pairs):
    ours = Scores()
    matched, gold, predicted, exact, sentences = Counter(), Counter(), Counter(), 0, 0
    for right, guess in pairs:
        ours.add(counts(right), counts(guess))
        wanted, left = by_rewriting(right), by_rewriting(guess)
        gold.update(label for label, _ in wanted)
        predicted.update(label for label, _ in left)
        exact += bool(wanted) and sorted(wanted) == sorted(left)
        sentences += bool(wanted)
        for bracket in wanted:
            if bracket in left:
                left.remove(bracket)
                matched[bracket[0]] += 1
    assert (ours.matched, ours.gold, ours.predicted) == (matched, gold, predicted)
    assert (ours.exact, ours.sentences) == (exact, sentences)


EVALB = [
    # gold, guess, and what the C program EVALB prints with COLLINS.prm: matched, gold, predicted
    (
        "(S (`` ``) (NP (NN a) (, ,)) (VP (VB b) (PRT (RP c)) (, ,) (NP (NN d))) ('' '') (. .))",
        "(S (`` ``) (NP (NN a)) (, ,) (VP (VB b) (ADVP (RP c)) (, ,) (NP (NN d) ('' ''))) (. .))",
        (5, 5, 5),
    ),
    (
        "(S (NP (NP (NP (NN a)) (: :))) (VP (VB b) (PRN (, ,) (, ,))))",
        "(S (NP (NP (NN a)) (: :)) (VP (VB b) (VP (, ,) (, ,))))",
        (4, 5, 4),
    ),
    (
        "(FRAG (-LRB- -LRB-) (NP (CD a) (HYPH -) (NN b)) (-RRB- -RRB-) (. .))",
        "(NP (NP (-LRB- -LRB-) (CD a)) (HYPH -) (NP (NN b)) (-RRB- -RRB-) (. .))",
        (0, 2, 3),
    ),
]


@pytest.mark.parametrize(("gold", "guess", "printed"), EVALB)
def test_counts_are_those_that_evalb_prints(gold, guess, printed):
    scores = Scores()
    scores.add(counts(gold), counts(guess))
    assert (scores.matched.total(), scores.gold.total(), scores.predicted.total()) == printed


def test_a_sentence_of_punctuation_alone_is_skipped():
    scores = Scores()
    scores.add(counts("(FRAG (: --) (. .))"), counts("(NP (: --) (. .))"))
    assert scores.as_dict()["sentences"] == 0
    assert scores.as_dict()["exact"] == 0.0


def gold_tree(bracketing):
    return GoldTree(Tree.fromstring(bracketing), "test")


def constituents(tree):
    found = brackets(tree)
    spans = np.array([span[:2] for span in found], dtype=np.int32)
    return Constituents(spans, tuple(label for _, _, label in found))


def places(text, words):
    """Where `words` stand in `text`, which must hold them in order with at most one space between two."""
    spans, at = [], 0
    for word in words:
        at += text.startswith(" ", at)
        assert text.startswith(word, at)
        spans.append((at, at + len(word)))
        at += len(word)
    assert at == len(text)
    return spans


def cut(spans, rng):
    """Finer tokens than `spans`, and the first of them in each old one (and one past the last)."""
    finer, firsts = [], []
    for start, end in spans:
        firsts.append(len(finer))
        inner = sorted(rng.sample(range(start + 1, end), rng.randrange(end - start)))
        finer.extend(itertools.pairwise([start, *inner, end]))
    return finer, [*firsts, len(finer)]


@given(st.lists(tree_pairs(), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_by_characters_counts_are_those_by_words_however_words_are_cut(pairs, rng):
    golds = [gold_tree(gold) for gold, _ in pairs]
    guesses = [constituents(Tree.fromstring(guess)) for _, guess in pairs]
    raw = raw_text(golds)
    surface = [words_of(gold).words for gold in golds]
    spans = iter(places(raw.text, list(itertools.chain.from_iterable(surface))))
    coarse, fine = [], []
    for words, guess in zip(surface, guesses, strict=True):
        mine = list(itertools.islice(spans, len(words)))
        nothing = Words(words, (True,) * len(words))
        coarse += character_brackets(Sentence(nothing, np.array(mine, dtype=np.int32)), guess)
        finer, firsts = cut(mine, rng)
        moved = Constituents(np.array(firsts, dtype=np.int32)[guess.spans], guess.labels)
        fine += character_brackets(Sentence(nothing, np.array(finer, dtype=np.int32)), moved)
    by_words = [word_pair(gold, guess) for gold, guess in zip(golds, guesses, strict=True)]
    assert scores_of(character_pairs(raw, coarse)) == scores_of(by_words)
    assert character_pairs(raw, fine) == character_pairs(raw, coarse)
    for mine, theirs in zip(by_words, character_pairs(raw, coarse), strict=True):
        assert scores_of([mine]) == scores_of([theirs])  # sentence by sentence too


FIRST = "(S (NP (NN Rain)) (VP (VBZ falls)) (. .))"
SECOND = "(S (NP (PRP It)) (VP (VBZ is) (ADJP (JJ cold))) (. .))"


def found_in(raw, *phrases):
    """Brackets of (label, text of the phrase)."""
    spans = [(raw.text.index(part), raw.text.index(part) + len(part), label) for label, part in phrases]
    return character_pairs(raw, spans)


def triple(pair: Pair):
    return (pair.gold & pair.found).total(), pair.gold.total(), pair.found.total()


def test_a_missed_boundary_costs_what_reaches_over_it():
    raw = raw_text([gold_tree(FIRST), gold_tree(SECOND)])
    assert raw.text == "Rain falls. It is cold."
    assert raw.sentences.tolist() == [[0, 11], [12, 23]]
    second = [("S", "It is cold"), ("NP", "It"), ("VP", "is cold"), ("ADJP", "cold.")]
    merged = [("S", raw.text), ("NP", "Rain"), ("VP", "falls")]
    pairs = found_in(raw, *merged, *second)
    assert list(map(triple, pairs)) == [(2, 3, 3), (4, 4, 4)]
    assert scores_of(pairs).exact == 1


def test_a_token_that_swallows_an_edge_costs_only_with_more_than_punctuation():
    raw = raw_text([gold_tree("(S (NP (NN Rain)) (VP (VBZ falls) (PP (IN at) (NP (CD 6) (NN pm)))) (. .))")])
    right = [
        ("S", "Rain falls at 6 pm."),
        ("NP", "Rain"),
        ("VP", "falls at 6 pm."),
        ("PP", "at 6 pm."),
        ("NP", "6 pm."),
    ]
    assert list(map(triple, found_in(raw, *right))) == [(5, 5, 5)]
    wrong = [*right[:-1], ("NP", "6 p")]
    assert list(map(triple, found_in(raw, *wrong))) == [(4, 5, 5)]


def test_nothing_found_is_counted_against():
    raw = raw_text([gold_tree(FIRST), gold_tree(SECOND)])
    assert list(map(triple, character_pairs(raw, []))) == [(0, 3, 0), (0, 4, 0)]
    assert triple(word_pair(gold_tree(FIRST), None)) == (0, 3, 0)


def test_raw_text_reads_as_text():
    quoted = "(S (NP (PRP He)) (VP (VBD said) (`` \") (S (VP (VB go))) ('' \")) (-LRB- -LRB-) (RB twice) (-RRB- -RRB-) (. .))"
    raw = raw_text([gold_tree(quoted), gold_tree("(S (VP (VBP Do) (RB n't)) (. !))")])
    assert raw.text == 'He said "go" (twice). Don\'t!'
    kept = "".join(char if keep else "_" for char, keep in zip(raw.text, raw.kept, strict=True))
    assert kept == "He_said__go__(twice)__Don't_"
