"""Labelled bracket F1 as EVALB computes it with its COLLINS.prm.

The root wrapper is not scored; words tagged as punctuation are removed from both trees before spans are compared, and
brackets that held nothing else vanish; ADVP and PRT count as the same label; brackets are a multiset, so a repeated one
must be found as often as it occurs. Both trees are judged by the gold tags. Scores are over all sentences together
(micro-averaged); a sentence of nothing but punctuation is skipped.

Checked against EVALB itself (the C program of Sekine and Collins) on all of GUM's dev trees, count by count, and in
`tests/pipeline/parse/test_scoring.py` against a second implementation that shares no code with this one.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from nltk.tree import Tree

from pipeline.parse.treebank import GoldTree
from pipeline.text import Constituents

#: Tags EVALB deletes (COLLINS.prm).
PUNCTUATION_TAGS = frozenset({",", ":", "``", "''", "."})

Bracket = tuple[int, int, str]


def brackets(tree: Tree) -> list[Bracket]:
    """(start, end, label) of every phrase of `tree`, the tree's own root included, words as units."""
    found: list[Bracket] = []

    def walk(node: Tree, start: int) -> int:
        if len(node) == 1 and isinstance(node[0], str):
            return start + 1
        place = len(found)
        found.append((start, start, node.label()))
        end = start
        for child in node:
            end = walk(child, end)
        found[place] = (start, end, node.label())
        return end

    walk(tree, 0)
    return found


def joined_chains(found: Iterable[Bracket]) -> list[Bracket]:
    """One bracket a span, unary chains joined from the top with `::` (benepar's labels)."""
    joined: dict[tuple[int, int], str] = {}
    for start, end, label in found:
        joined[start, end] = f"{joined[start, end]}::{label}" if (start, end) in joined else label
    return [(start, end, label) for (start, end), label in joined.items()]


def is_scored(tags: Sequence[str]) -> Bool[np.ndarray, " words"]:
    """Whether each word is kept: not tagged as punctuation."""
    return np.array([tag not in PUNCTUATION_TAGS for tag in tags], dtype=bool)


def compacted(found: Iterable[Bracket], kept: Bool[np.ndarray, " units"]) -> Counter[Bracket]:
    """Brackets over units (words, or characters) after all units but those `kept` are taken out, PRT read as ADVP.

    The new ends count kept units; brackets that hold none vanish.
    """
    before = np.concatenate([[0], np.cumsum(kept)]).tolist()
    return Counter(
        (before[start], before[end], "ADVP" if label == "PRT" else label)
        for start, end, label in found
        if before[start] < before[end]
    )


def scored(found: Iterable[Bracket], tags: Sequence[str]) -> Counter[Bracket]:
    """Brackets over words with punctuation taken out and PRT read as ADVP."""
    return compacted(found, is_scored(tags))


@dataclass
class Scores:
    """Running counts per label; `f1(label)` in percent, `f1()` over all labels."""

    matched: Counter[str] = field(default_factory=Counter)
    gold: Counter[str] = field(default_factory=Counter)
    predicted: Counter[str] = field(default_factory=Counter)
    sentences: int = 0
    exact: int = 0

    def add(self, gold: Counter[Bracket], predicted: Counter[Bracket]) -> None:
        """Count one sentence; one without brackets on either side (nothing but punctuation) is skipped."""
        if not gold and not predicted:
            return
        both = gold & predicted
        for counts, spans in ((self.matched, both), (self.gold, gold), (self.predicted, predicted)):
            for (_, _, label), times in spans.items():
                counts[label] += times
        self.sentences += 1
        self.exact += gold == predicted

    def f1(self, label: str | None = None) -> float:
        """Labelled F1 in percent, 0 where there is nothing to find."""
        if label is None:
            matched, gold, predicted = self.matched.total(), self.gold.total(), self.predicted.total()
        else:
            matched, gold, predicted = self.matched[label], self.gold[label], self.predicted[label]
        return 200.0 * matched / (gold + predicted) if gold + predicted else 0.0

    def as_dict(self) -> dict[str, float | int]:
        """F1 of all labels, NP and VP, how many sentences are wholly right, and the brackets of all labels."""
        return {
            "f1": round(self.f1(), 2),
            "np_f1": round(self.f1("NP"), 2),
            "vp_f1": round(self.f1("VP"), 2),
            "exact": round(100.0 * self.exact / self.sentences, 2) if self.sentences else 0.0,
            "sentences": self.sentences,
            "matched": self.matched.total(),
            "gold": self.gold.total(),
            "predicted": self.predicted.total(),
        }


class Pair(NamedTuple):
    """Brackets of one gold tree and those found for it, punctuation taken out."""

    gold: Counter[Bracket]
    found: Counter[Bracket]


def word_pair(gold: GoldTree, found: Constituents | None) -> Pair:
    """Brackets over gold words; a sentence too long for the model (None) has none found."""
    tags = [tag for _, tag in gold.tree.pos()]
    spans = (
        []
        if found is None
        else [(a, b, label) for (a, b), label in zip(found.spans.tolist(), found.labels, strict=True)]
    )
    return Pair(scored(brackets(gold.tree), tags), scored(spans, tags))


def scores_of(pairs: Iterable[Pair]) -> Scores:
    """All of `pairs` together."""
    scores = Scores()
    for gold, found in pairs:
        scores.add(gold, found)
    return scores
