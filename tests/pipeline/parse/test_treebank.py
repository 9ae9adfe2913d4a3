"""Bracketed trees: traces, function tags, foreign labels, malformed files."""

from collections import Counter

import pytest
from nltk.tree import Tree

from pipeline.parse.gold import collapsed_spans
from pipeline.parse.scoring import Scores, brackets, scored
from pipeline.parse.treebank import plain_label, read_trees, words_of
from schemas.errors import UserError


def trees_of(tmp_path, text):
    path = tmp_path / "a.ptb"
    path.write_text(text, encoding="utf-8")
    return list(read_trees(path))


@pytest.mark.parametrize(
    ("label", "plain"),
    [("NP-SBJ-1", "NP"), ("NP=2", "NP"), ("ADVP|PRT", "ADVP"), ("-LRB-", "-LRB-"), ("VP", "VP"), ("NP-TMP=1", "NP")],
)
def test_plain_label(label, plain):
    assert plain_label(label) == plain


def test_traces_and_what_they_leave_empty_are_dropped(tmp_path):
    (tree,) = trees_of(tmp_path, "( (S (NP-SBJ (-NONE- *PRO*)) (VP (TO to) (VP (VB go))) (. .)))")
    assert str(tree.tree).split() == ["(S", "(VP", "(TO", "to)", "(VP", "(VB", "go)))", "(.", ".))"]


def test_foreign_labels_are_spliced_and_chains_of_one_label_become_one(tmp_path):
    (tree,) = trees_of(tmp_path, "( (HEADING (NP (NML (NN mouse) (NN gene)) (NN list))) )")
    assert str(tree.tree) == "(NP (NN mouse) (NN gene) (NN list))"
    (tree,) = trees_of(tmp_path, "(ROOT (NP (NML (NP (NN a) (NN b)))))")
    assert str(tree.tree) == "(NP (NN a) (NN b))"


def test_a_root_of_several_children_and_a_lone_word_get_a_label(tmp_path):
    several, lone = trees_of(tmp_path, "(ROOT (NP (NN a)) (. .))\n(ROOT (UH Yes))")
    assert str(several.tree) == "(FRAG (NP (NN a)) (. .))"
    assert str(lone.tree) == "(FRAG (UH Yes))"


def test_a_tree_may_span_lines_and_only_traces_are_no_tree(tmp_path):
    found = trees_of(tmp_path, "(ROOT (NP\n   (NN a)\n (NN b)))\n\n(ROOT (NP (-NONE- *)))\n(ROOT (NP (NN c) (NN d)))\n")
    assert [tree.place for tree in found] == ["a.ptb:1", "a.ptb:6"]


@pytest.mark.parametrize(("text", "line"), [("(NP (NN a))\n(NP (NN b)))\n", 2), ("(NP (NN a))\n\n(NP (NN b)\n", 3)])
def test_brackets_that_do_not_match_are_named_by_line(tmp_path, text, line):
    with pytest.raises(UserError, match=rf"a\.ptb, line {line}:"):
        trees_of(tmp_path, text)


@pytest.mark.parametrize("word", ["\\", "C:\\", "\\\\", "a\\b"])
def test_a_backslash_before_a_bracket_belongs_to_the_word(tmp_path, word):
    first, second = trees_of(tmp_path, f"(S (NP (SYM {word}) (NN b)) (VP (VB {word} )))\n(NP (NN c) (NN d))\n")
    assert first.tree.leaves() == [word, "b", word]
    assert second.tree.leaves() == ["c", "d"]


def test_a_byte_order_mark_is_no_part_of_the_first_tree(tmp_path):
    (tree,) = trees_of(tmp_path, "\ufeff(NP (NN a) (NN b))\n")
    assert str(tree.tree) == "(NP (NN a) (NN b))"


def test_words_undo_penn_escapes_and_guess_spaces(tmp_path):
    (tree,) = trees_of(tmp_path, "(S (`` ``) (NP (NN cat)) (-LRB- -LRB-) (NP (NN x)) (-RRB- -RRB-) ('' '') (. .))")
    words = words_of(tree)
    assert words.words == ('"', "cat", "(", "x", ")", '"', ".")
    assert words.space_after == (False, True, False, False, False, False, True)


def test_unary_chains_are_joined_from_the_top(tmp_path):
    (tree,) = trees_of(tmp_path, "(S (VP (VB Go)))")
    assert collapsed_spans(tree) == [(0, 1, "S::VP")]


def counts(text):
    tree = Tree.fromstring(text)
    return scored(brackets(tree), [tag for _, tag in tree.pos()])


def test_scores_leave_out_punctuation_and_read_prt_as_advp():
    gold = counts("(S (NP (NN a) (, ,)) (VP (VB go) (PRT (RP on))) (. .))")
    guess = counts("(S (NP (NN a)) (, ,) (VP (VB go) (ADVP (RP on))) (. .))")
    assert gold == guess == Counter({(0, 3, "S"): 1, (0, 1, "NP"): 1, (1, 3, "VP"): 1, (2, 3, "ADVP"): 1})


def test_f1_is_over_all_sentences_together():
    scores = Scores()
    scores.add(counts("(S (NP (NN a)) (VP (VB b)))"), counts("(S (NP (NN a)) (VP (VB b)))"))
    scores.add(counts("(S (NP (NN a)) (VP (VB b)))"), counts("(S (NP (NN a) (VB b)))"))
    # sentence 2: gold S NP[0,1] VP[1,2]; guess S NP[0,2]: 1 of 3 and 1 of 2
    assert scores.f1() == pytest.approx(200 * 4 / (6 + 5))
    assert scores.f1("NP") == pytest.approx(200 * 1 / (2 + 2))
    assert scores.as_dict()["exact"] == 50.0


def test_repeated_brackets_count_as_often_as_they_occur():
    scores = Scores()
    scores.add(Counter({(0, 1, "NP"): 2}), Counter({(0, 1, "NP"): 1}))
    assert scores.f1("NP") == pytest.approx(200 * 1 / 3)
