"""Units of random trees, against the definition written out a second time, slowly, on nested trees."""

import re
from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.tree import Tree

from pipeline.align.units import CONJUNCTIONS, bracketed, is_punctuation, units_of
from pipeline.text import Constituents, Sentence, Words

#: Labels that the children of a node may have; None is a word.
BELOW = {
    "VP": [None, None, None, "VP", "VP", "VP", "ADVP", "PRT", "NP", "PP", "S"],
    "NP": [None, None, "NP", "NP", "QP", "PP", "S", "VP"],
    "S": [None, "NP", "VP", "ADVP"],
    "ADVP": [None, None, None, "ADVP", "NP", "VP", "PP"],
}
WORDS = [
    "cat",
    "runs",
    "sat",
    "and",
    "Either",
    ",",
    "“",
    ")",
    "--",
    "%",
    "n't",
    "猫",
    "f(x)",
    "[",
    "🙂",
    "و",
    "\\",
    "C:\\",
    "\\(",
    "a\\\\",
]


@dataclass(frozen=True)
class Node:
    """A node over tokens [start, end); `label` is None for a token."""

    label: str | None
    start: int
    end: int
    children: tuple["Node", ...] = ()

    def below(self) -> list["Node"]:
        return [node for child in self.children for node in (child, *child.below())]


@dataclass(frozen=True)
class Case:
    """A forest over words; arrays are made outside the strategy, since type checks there draw random numbers."""

    tops: tuple[Node, ...]
    words: tuple[str, ...]
    spaces: tuple[bool, ...]

    def sentence(self) -> Sentence:
        lengths = np.array([[len(word), space] for word, space in zip(self.words, self.spaces, strict=True)], np.int32)
        ends = np.cumsum(lengths.sum(1), dtype=np.int32) - lengths[:, 1] + np.int32(3)
        return Sentence(Words(self.words, self.spaces), np.stack([ends - lengths[:, 0], ends], 1))

    def tree(self) -> Constituents:
        nodes = [node for top in self.tops for node in (top, *top.below()) if node.label is not None]
        spans = np.array([(node.start, node.end) for node in nodes], np.int32).reshape(-1, 2)
        return Constituents(spans, tuple(node.label or "" for node in nodes))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A forest with unary chains and flat nodes, rich in VPs below VPs, and words for it."""
    words: list[str] = []

    def node(label: str | None, depth: int) -> Node:
        start = len(words)
        if label is None:
            words.append(draw(st.sampled_from(WORDS)))
            return Node(None, start, start + 1)
        inside = BELOW.get(label, BELOW["S"]) if depth < 5 and start < 10 else [None]
        labels = draw(st.lists(st.sampled_from(inside), min_size=1, max_size=4))
        children = tuple(node(child, depth + 1) for child in labels)
        return Node(label, start, len(words), children)

    tops = tuple(
        node(label, 0) for label in draw(st.lists(st.sampled_from(["VP", "NP", "S", None]), min_size=1, max_size=2))
    )
    spaces = draw(st.lists(st.booleans(), min_size=len(words), max_size=len(words)))
    return Case(tops, tuple(words), tuple(spaces))


def without_repeats(node: Node) -> Node:
    """`X -> X` chains made one node."""
    while len(node.children) == 1 and node.children[0].label == node.label:
        node = node.children[0]
    return Node(node.label, node.start, node.end, tuple(map(without_repeats, node.children)))


def verb_phrases(node: Node) -> list[Node]:
    return [child for child in node.children if child.label == "VP"]


def letters(vp: Node, words: tuple[str, ...]) -> str:
    """A letter a token of a chain: own Word, own Mark or conjunction, Adverb, Punctuation in one, other X, V apart."""
    out = ""
    for child in vp.children:
        tokens = words[child.start : child.end]
        inner = verb_phrases(child)
        if child.label is None:
            out += "M" if is_punctuation(tokens[0]) or tokens[0].lower() in CONJUNCTIONS else "W"
        elif child.label == "VP":
            out += letters(child, words) if len(verb_phrases(vp)) == 1 and len(inner) < 2 else "V" * len(tokens)
        elif child.label in ("ADVP", "PRT") and not any(node.label in ("NP", "VP") for node in child.below()):
            out += "".join("P" if is_punctuation(token) else "A" for token in tokens)
        else:
            out += "X" * len(tokens)
    return out


def expected_chunks(tops: tuple[Node, ...], words: tuple[str, ...]) -> set[tuple[int, int, str]]:
    """The definition: base NPs, and the verb group of each chain that no base NP holds."""
    chunks: set[tuple[int, int, str]] = set()

    def visit(node: Node, above: Node | None) -> None:
        if node.label == "NP" and all(other.label != "NP" for other in node.below()):
            kept = [i for i in range(node.start, node.end) if not is_punctuation(words[i])]
            chunks.update([(kept[0], kept[-1] + 1, "NP")] if kept else [])
            return
        coordinated = above is not None and above.label == "VP" and len(verb_phrases(above)) > 1
        is_head = above is None or above.label != "VP" or coordinated
        if node.label == "VP" and len(verb_phrases(node)) < 2 and is_head:
            group = re.match(r"(?:[MAP]*X)*([MAP]*W[WMAP]*)", letters(node, words))
            if group:
                kept = [i for i, letter in enumerate(group[1], node.start + group.start(1)) if letter in "WA"]
                chunks.add((kept[0], kept[-1] + 1, "VP"))
        for child in node.children:
            visit(child, node)

    for top in tops:
        visit(top, None)
    return chunks


def expected_phrases(tops: tuple[Node, ...], words: tuple[str, ...]) -> set[tuple[int, int, str]]:
    found = set()
    for node in (node for top in tops for node in (top, *top.below())):
        kept = [i for i in range(node.start, node.end) if not is_punctuation(words[i])]
        if node.label in ("NP", "VP") and kept:
            found.add((kept[0], kept[-1] + 1, node.label))
    return found


def in_tokens(spans: np.ndarray, labels: tuple[str, ...], sentence: Sentence) -> list[tuple[int, int, str]]:
    starts, ends = sentence.spans.T.tolist()
    return [(starts.index(a), ends.index(b) + 1, label) for (a, b), label in zip(spans.tolist(), labels, strict=True)]


SETTINGS = settings(max_examples=75)


@settings(SETTINGS, max_examples=150)
@given(cases())
def test_units_follow_the_definition(case: Case) -> None:
    tops, sentence, tree = case.tops, case.sentence(), case.tree()
    units = units_of(sentence, tree)
    words = sentence.words.words
    merged = tuple(map(without_repeats, tops))
    chunks = in_tokens(units.chunks, units.chunk_labels, sentence)
    phrases = in_tokens(units.phrases, units.phrase_labels, sentence)
    assert set(chunks) == expected_chunks(merged, words)
    assert set(phrases) == expected_phrases(merged, words)
    assert len(set(chunks)) == len(chunks)
    assert len(set(phrases)) == len(phrases)
    assert phrases == sorted(phrases, key=lambda unit: (unit[0], -unit[1]))


@SETTINGS
@given(cases())
def test_chunks_are_disjoint_and_noun_chunks_are_phrases(case: Case) -> None:
    sentence, tree = case.sentence(), case.tree()
    units = units_of(sentence, tree)
    edges = units.chunks.ravel()
    assert (np.diff(edges) >= 0).all()
    assert (units.chunks[:, 0] < units.chunks[:, 1]).all()
    assert edges.size == 0 or (sentence.spans[0, 0] <= edges[0] and edges[-1] <= sentence.spans[-1, 1])
    phrases = list(zip(map(tuple, units.phrases.tolist()), units.phrase_labels, strict=True))
    nouns = [p for p, label in phrases if label == "NP"]
    for chunk, label in zip(map(tuple, units.chunks.tolist()), units.chunk_labels, strict=True):
        if label == "NP":
            assert chunk in nouns
            assert not any(chunk[0] <= a and b <= chunk[1] and (a, b) != chunk for a, b in nouns)


@SETTINGS
@given(cases())
def test_repeating_a_node_changes_nothing(case: Case) -> None:
    sentence, tree = case.sentence(), case.tree()
    doubled = Constituents(np.repeat(tree.spans, 2, axis=0), tuple(x for x in tree.labels for _ in range(2)))
    once, twice = units_of(sentence, tree), units_of(sentence, doubled)
    np.testing.assert_array_equal(once.chunks, twice.chunks)
    np.testing.assert_array_equal(once.phrases, twice.phrases)
    assert (once.chunk_labels, once.phrase_labels) == (twice.chunk_labels, twice.phrase_labels)
    assert once.counts == twice.counts


NAMES = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}"}


@SETTINGS
@given(cases())
def test_bracketed_trees_can_be_read_back(case: Case) -> None:
    sentence, tree = case.sentence(), case.tree()
    read = Tree.fromstring(bracketed(sentence.words.words, tree))
    assert read.label() == "TOP"
    assert [re.sub("-[LR][RSC]B-", lambda m: NAMES[m[0]], leaf) for leaf in read.leaves()] == list(sentence.words.words)
    spans, labels = [], []
    for place in read.treepositions("preorder"):
        node = read[place]
        if place and isinstance(node, Tree) and node.label() != "XX":
            before = sum(1 for leaf in read.treepositions("leaves") if leaf < place)
            spans.append([before, before + len(node.leaves())])
            labels.append(node.label())
    assert spans == tree.spans.tolist()
    assert tuple(labels) == tree.labels
