"""Sentence-boundary quality and speed of the segmenters, on bracketed treebank files.

Gold sentences are detokenized (benepar's guess at spaces; quotation marks by their tags), joined by single spaces into
documents of ten, and cut again by each candidate. A boundary is the character at which a sentence begins; the first of
a document is given and not scored. Headings and captions end without a stop, and in running text no rule can find
those: `recall_after_stop` is the recall on boundaries that follow a stop.

    python tests/benchmarks/sentences.py gum/dev.ptb gum/train.ptb --senter en_core_web_sm
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import spacy

from pipeline.parse.evaluation import SENTENCES_PER_DOCUMENT, raw_text
from pipeline.parse.treebank import read_trees
from pipeline.read.segment import Segmenter
from schemas.config import SegmentConfig

STOPS = (".", "!", "?", "…")
CLOSERS = "\"'”’»)]"
#: Sentence starts of each text.
Candidate = Callable[[Sequence[str]], list[list[int]]]


def documents(path: Path, skip: int, limit: int | None) -> tuple[list[str], list[list[int]]]:
    """Texts of ten sentences, and where all but the first sentence begin."""
    end = None if limit is None else skip + limit
    trees = list(itertools.islice(read_trees(path), skip, end))
    step = SENTENCES_PER_DOCUMENT
    texts = [raw_text(trees[first : first + step]) for first in range(0, len(trees), step)]
    return [raw.text for raw in texts], [raw.sentences[1:, 0].tolist() for raw in texts]


def segmenter(method: str) -> Candidate:
    """Our own segmenter with one of its methods."""
    ours = Segmenter(SegmentConfig(sentences=method))
    return lambda texts: [d.sentence_spans[1:, 0].tolist() for d in ours.segment(texts, [()] * len(texts))]


def sentencizer() -> Candidate:
    """spaCy's rule as it is."""
    pipeline = spacy.blank("en")
    pipeline.add_pipe("sentencizer")
    return lambda texts: [[s.start_char for s in doc.sents][1:] for doc in pipeline.pipe(texts)]


def score(texts: Sequence[str], gold: Sequence[list[int]], found: Sequence[list[int]]) -> dict[str, float]:
    """Micro-averaged precision, recall and F1 in percent."""
    hits = sum(len(set(a) & set(b)) for a, b in zip(gold, found, strict=True))
    right, given = sum(map(len, gold)), sum(map(len, found))
    stopped = [
        (start, set(b))
        for text, a, b in zip(texts, gold, found, strict=True)
        for start in a
        if text[:start].rstrip().rstrip(CLOSERS).endswith(STOPS)
    ]
    return {
        "precision": 100 * hits / max(given, 1),
        "recall": 100 * hits / max(right, 1),
        "f1": 200 * hits / max(right + given, 1),
        "recall_after_stop": 100 * sum(start in b for start, b in stopped) / max(len(stopped), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="bracketed trees, one a line")
    parser.add_argument("--senter", action="append", default=[], help="also the senter of this installed pipeline")
    parser.add_argument("--skip", type=int, default=0, help="leave out the first trees of each file")
    parser.add_argument("--limit", type=int, help="trees of each file")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    arguments = parser.parse_args()

    candidates: dict[str, Candidate] = {"sentencizer": sentencizer(), "rules": segmenter("rules")}
    candidates |= {f"senter:{name}": segmenter(f"senter:{name}") for name in arguments.senter}
    tokenizer = spacy.blank("en").tokenizer
    results: dict[str, dict[str, dict[str, float]]] = {}
    for path in arguments.files:
        texts, gold = documents(path, arguments.skip, arguments.limit)
        tokens = sum(len(tokenizer(text)) for text in texts)
        results[str(path)] = {}
        for name, candidate in candidates.items():
            candidate(texts)  # fills spaCy's caches, so that order does not matter
            start = time.perf_counter()
            found = candidate(texts)
            seconds = time.perf_counter() - start
            figures = score(texts, gold, found) | {"tokens_per_s": tokens / seconds}
            results[str(path)][name] = figures
            line = "  ".join(f"{key} {value:,.2f}" for key, value in figures.items())
            print(f"{path.parent.name}/{path.name}  {name:<12}  {line}", file=sys.stderr)
    if arguments.json:
        print(json.dumps({"benchmark": "sentences", "results": results}))


if __name__ == "__main__":
    main()
