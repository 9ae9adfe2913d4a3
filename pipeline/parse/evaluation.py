"""How well a parser finds gold brackets: given the gold words, or end to end from raw text.

With gold words the parser is given each tree's words, and brackets are compared over words (`scoring`).

From raw text, consecutive trees of a file become documents of `SENTENCES_PER_DOCUMENT` sentences: words are joined by
benepar's guess at spaces, quotation marks attached by their tags, sentences joined by single spaces. Our segmenter cuts
the text, and the parser is run as the pipeline runs it. Brackets are then compared over the document's characters:

- a bracket is (first character, last character, label); white space counts on neither side, and neither does any
  character of a gold word tagged as punctuation, whatever token it became part of. What is left of the spans is
  compared, so a tokenization error costs nothing unless it moves an edge of a constituent;
- a bracket belongs to the gold sentence in which it begins. So a false or missed sentence boundary costs the brackets
  that reach over it, and a sentence is exact if the brackets that begin in it are its own and no others;
- a stretch that the segmenter takes for markup or code, and a sentence too long for the model, has no brackets found.

With the gold sentences and words both give the same counts. All figures are micro-averaged.
"""

import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from pipeline.parse.benepar import parsed_parts, trees_of
from pipeline.parse.engine import Engine
from pipeline.parse.scoring import Bracket, Pair, Scores, brackets, compacted, is_scored, scores_of, word_pair
from pipeline.parse.treebank import GoldTree, words_of
from pipeline.read.segment import Segmenter
from pipeline.text import Constituents, Document, Sentence

SENTENCES_PER_DOCUMENT = 10
#: Trees handed to the parser at once: enough for batches of like length, few enough to show progress.
TREES_AT_ONCE = 1024
#: Trees parsed before the clock runs: the decoder is compiled on its first call, and spaCy fills its caches.
WARM_UP = 30
#: Longest sentence, in gold words with punctuation, of every row of a table by length but the last.
LENGTHS = (10, 20, 40, 80)
LENGTH_NAMES = ("1-10", "11-20", "21-40", "41-80", "81+")

#: Called with the number of trees done since the last call.
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Evaluation:
    """Scores of a parser on files of trees, and what it took to find the brackets."""

    total: Scores
    by_file: list[Scores]
    by_length: dict[str, Scores]  # by `LENGTH_NAMES`; lengths that do not occur are left out
    seconds: float  # of segmentation, if any, subwords, network and decoding
    counts: dict[str, int]  # what was parsed

    def as_dict(self) -> dict[str, Any]:
        """Everything, with the gold sentences a second, ready for JSON."""
        return {
            **self.total.as_dict(),
            "sentences_per_s": round(self.counts["trees"] / self.seconds, 1),
            "counts": self.counts,
            "by_file": [scores.as_dict() for scores in self.by_file],
            "by_length": {length: scores.as_dict() for length, scores in self.by_length.items()},
        }


@dataclass(frozen=True)
class RawText:
    """Gold trees joined to one document."""

    text: str
    sentences: Int64[np.ndarray, "sentences 2"]  # characters
    kept: Bool[np.ndarray, " characters"]  # neither white space nor punctuation by its gold tag
    brackets: list[Bracket]  # characters


def raw_text(trees: Sequence[GoldTree]) -> RawText:
    """`trees` as the text of one document (see the module's docstring)."""
    parts: list[str] = []
    kept, bounds = [], []
    found: list[Bracket] = []
    at = 0
    for tree in trees:
        surface = words_of(tree)
        tags = [tag for _, tag in tree.tree.pos()]
        space = np.array(surface.space_after, dtype=bool)
        space[[tag == "``" for tag in tags]] = False
        space[:-1][[tag == "''" for tag in tags[1:]]] = False
        space[-1] = True  # between sentences
        lengths = np.array([len(word) for word in surface.words], dtype=np.int64)
        ends = at + np.cumsum(lengths + space) - space
        starts = ends - lengths
        parts.extend(word + " " * gap for word, gap in zip(surface.words, space.tolist(), strict=True))
        kept.append(np.repeat(np.stack([is_scored(tags), np.zeros_like(space)], 1), np.stack([lengths, space], 1).flat))
        bounds.append((starts[0], ends[-1]))
        found.extend((int(starts[a]), int(ends[b - 1]), label) for a, b, label in brackets(tree.tree))
        at = int(ends[-1]) + 1
    return RawText("".join(parts)[:-1], np.array(bounds, dtype=np.int64), np.concatenate(kept)[:-1], found)


def character_brackets(sentence: Sentence, tree: Constituents) -> list[Bracket]:
    """The brackets of `tree`, which is over the tokens of `sentence`, in characters of the document."""
    starts = sentence.spans[tree.spans[:, 0], 0].tolist()
    ends = sentence.spans[tree.spans[:, 1] - 1, 1].tolist()
    return list(zip(starts, ends, tree.labels, strict=True))


def character_pairs(raw: RawText, found: Iterable[Bracket]) -> list[Pair]:
    """Brackets over characters for each gold sentence of a document; `found` are those of the whole document."""
    before = np.concatenate([[0], np.cumsum(raw.kept)])
    starts = before[raw.sentences[:, 0]].tolist()

    def by_sentence(spans: Iterable[Bracket]) -> list[Counter[Bracket]]:
        parts: list[Counter[Bracket]] = [Counter() for _ in starts]
        for bracket, times in compacted(spans, raw.kept).items():
            parts[bisect_right(starts, bracket[0]) - 1][bracket] = times
        return parts

    return [Pair(*pair) for pair in zip(by_sentence(raw.brackets), by_sentence(found), strict=True)]


def on_gold_words(
    engine: Engine, files: Sequence[Sequence[GoldTree]], advance: Advance = lambda trees: None
) -> Evaluation:
    """Parse the gold words of the trees of `files`."""
    trees = list(chain.from_iterable(files))
    words = [words_of(tree) for tree in trees]
    engine.constituents(words[:WARM_UP])
    found: list[Constituents | None] = []
    seconds = 0.0
    for start in range(0, len(words), TREES_AT_ONCE):
        group = words[start : start + TREES_AT_ONCE]
        began = time.perf_counter()
        found.extend(engine.constituents(group))
        seconds += time.perf_counter() - began
        advance(len(group))
    pairs = [word_pair(tree, parsed) for tree, parsed in zip(trees, found, strict=True)]
    return tabulate(pairs, files, seconds, {"trees": len(trees), "too_long": found.count(None)})


def on_raw_text(
    engine: Engine,
    segmenter: Segmenter,
    longest: int,
    files: Sequence[Sequence[GoldTree]],
    advance: Advance = lambda trees: None,
) -> Evaluation:
    """Segment and parse the trees of `files` as raw text; no document reaches over a file's end.

    Sentences of more than `longest` words are split as the pipeline splits them. Beside the number of `documents`, the
    counts tell how many sentences the segmenter found, and how many of them are gold sentences to the character.
    """
    step = SENTENCES_PER_DOCUMENT
    texts = [raw_text(trees[at : at + step]) for trees in files for at in range(0, len(trees), step)]
    _parse_documents(engine, segmenter, longest, texts[: WARM_UP // step])
    pairs: list[Pair] = []
    counts = dict.fromkeys(("trees", "too_long", "documents", "sentences_found", "sentences_alike"), 0)
    seconds = 0.0
    for start in range(0, len(texts), TREES_AT_ONCE // step):
        group = texts[start : start + TREES_AT_ONCE // step]
        began = time.perf_counter()
        documents, parsed = _parse_documents(engine, segmenter, longest, group)
        seconds += time.perf_counter() - began
        for raw, document, trees in zip(group, documents, parsed, strict=True):
            found = [b for part, tree in trees if tree is not None for b in character_brackets(part, tree)]
            pairs.extend(character_pairs(raw, found))
            gold_spans, spans = raw.sentences.tolist(), document.sentence_spans.tolist()
            counts["trees"] += len(gold_spans)
            counts["too_long"] += sum(tree is None for _, tree in trees)
            counts["documents"] += 1
            counts["sentences_found"] += len(spans)
            counts["sentences_alike"] += len(set(map(tuple, gold_spans)) & set(map(tuple, spans)))
        advance(sum(len(raw.sentences) for raw in group))
    return tabulate(pairs, files, seconds, counts)


def _parse_documents(
    engine: Engine, segmenter: Segmenter, longest: int, texts: Sequence[RawText]
) -> tuple[list[Document], list[list[tuple[Sentence, Constituents | None]]]]:
    """Documents, and the parsed sentences (or their pieces) of each, as `BeneparParser.extract` parses them."""
    documents = segmenter.segment([raw.text for raw in texts], [()] * len(texts))
    todo = [
        (row, part) for row, document in enumerate(documents) for _, part in parsed_parts(document, longest, Counter())
    ]
    parsed: list[list[tuple[Sentence, Constituents | None]]] = [[] for _ in documents]
    for (row, part), tree in zip(todo, trees_of(engine, [part for _, part in todo]), strict=True):
        parsed[row].append((part, tree))
    return documents, parsed


def tabulate(
    pairs: Sequence[Pair], files: Sequence[Sequence[GoldTree]], seconds: float, counts: dict[str, int]
) -> Evaluation:
    """Scores of all `pairs`, one a tree of `files`, and by file and gold length in words, punctuation included."""
    groups: dict[str, list[Pair]] = {name: [] for name in LENGTH_NAMES}
    for pair, tree in zip(pairs, chain.from_iterable(files), strict=True):
        groups[LENGTH_NAMES[bisect_left(LENGTHS, len(tree.tree.leaves()))]].append(pair)
    return Evaluation(
        total=scores_of(pairs),
        by_file=[scores_of(pairs[a:b]) for a, b in pairwise(accumulate(map(len, files), initial=0))],
        by_length={name: scores_of(group) for name, group in groups.items() if group},
        seconds=seconds,
        counts=counts,
    )
