"""Characters to tokens: the vectorised alignment against plain Python, on the same rows in one run.

`speedup_vs_loop` compares with the double loop (every token held against every unit), `speedup_vs_bisect` with what a
careful Python programmer would write instead: two binary searches a unit. All three must give the same spans.

    python tests/benchmarks/align.py [--documents 500] [--json]
"""

import argparse
import random
import re
import sys
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.align.spans import Ragged, Texts, Tokens
from pipeline.bench.machine import report

Span = tuple[int, int]
Document = tuple[str, list[Span], list[Span]]  # text, token offsets, units

SYLLABLES = ["the", "an", "in", "co", "re", "ti", "ver", "sta", "lo", "mi", "pre", "ga", "ous", "ing", "tion", "ment"]
PUNCTUATION = [",", ".", ";", ":", " —", "?"]


def document(rng: random.Random) -> Document:
    """A text of 60 to 240 words, subword tokens of at most five letters, and its words, chunks and nested phrases.

    One piece of punctuation in eight is glued to the letters before it into one token, as large vocabularies do.
    """
    text, words = "", list[Span]()
    for _ in range(rng.randint(60, 240)):
        word = "".join(rng.choices(SYLLABLES, k=rng.choice([1, 1, 1, 2, 2, 3, 4])))
        text += " " * bool(text)
        words.append((len(text), len(text) + len(word)))
        text += word + (rng.choice(PUNCTUATION) if rng.random() < 0.15 else "")
    tokens = [(-1, -1)]
    for match in re.finditer(r"\w+|[^\w\s]", text):
        if not match[0][0].isalnum() and rng.random() < 0.125:
            tokens[-1] = (tokens[-1][0], match.end())
        else:
            tokens += [(at, min(at + 5, match.end())) for at in range(match.start(), match.end(), 5)]
    units = list(words)
    at = 0
    while at < len(words):
        last = min(at + rng.randint(1, 4), len(words)) - 1
        units.append((words[at][0], words[last][1]))
        units += [
            (words[at][0], words[min(last + more, len(words) - 1)][1]) for more in (1, 4, 9) if rng.random() < 0.5
        ]
        at = last + 1 + rng.randint(0, 2)
    return text, tokens, units


def double_loop(documents: list[Document]) -> list[list[Span]]:
    """Every token against every unit."""
    found = []
    for text, tokens, units in documents:
        spans = []
        for start, end in units:
            first, last = -1, -1
            left, right = end, start
            for index, (a, b) in enumerate(tokens):
                if a < end and b > start:
                    first = index if first < 0 else first
                    last, left, right = index, min(left, a), max(right, b)
            exact = first >= 0 and not text[left:start].strip() and not text[end:right].strip()
            spans.append((first, last + 1) if exact and left <= start and right >= end else (-1, -1))
        found.append(spans)
    return found


def bisection(documents: list[Document]) -> list[list[Span]]:
    """Two binary searches a unit, in plain Python."""
    found = []
    for text, tokens, units in documents:
        starts, ends = [a for a, _ in tokens], [b for _, b in tokens]
        spans = []
        for start, end in units:
            first, last = bisect_right(ends, start), bisect_left(starts, end)
            left, right = starts[first], ends[last - 1]
            exact = not text[left:start].strip() and not text[end:right].strip()
            spans.append((first, last) if exact and left <= start and right >= end else (-1, -1))
        found.append(spans)
    return found


def timed(call: Callable[[], list[list[Span]]], repeats: int) -> tuple[float, list[list[Span]]]:
    """The best time of several, and the result."""
    best, result = float("inf"), list[list[Span]]()
    for _ in range(repeats):
        begin = time.perf_counter()
        result = call()
        best = min(best, time.perf_counter() - begin)
    return best, result


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--documents", type=int, default=500)
    flags.add_argument("--json", action="store_true", help="print one JSON object last")
    options = flags.parse_args()
    rng = random.Random(7)
    documents = [document(rng) for _ in range(options.documents)]
    texts = [text for text, _, _ in documents]
    offsets = Ragged.join([np.array(tokens, dtype=np.int32) for _, tokens, _ in documents])
    units = Ragged.join([np.array(found, dtype=np.int32) for _, _, found in documents])

    def vectorised() -> list[np.ndarray]:
        spans, _ = Tokens.of(offsets, Texts.of(texts)).spans_of(units)
        return spans.split()

    seconds, spans = timed(vectorised, 5)
    by_loop, expected = timed(lambda: double_loop(documents), 3)
    by_bisection, searched = timed(lambda: bisection(documents), 5)
    aligned = [list(map(tuple, part.tolist())) for part in spans]
    if not aligned == expected == searched:
        sys.exit("The three alignments differ: a bug, and the times mean nothing.")
    total = len(units.spans)
    report(
        {
            "documents": len(documents),
            "tokens": len(offsets.spans),
            "units": total,
            "aligned": sum(span != (-1, -1) for part in expected for span in part) / total,
            "loop_seconds": by_loop,
            "bisect_seconds": by_bisection,
            "vectorised_seconds": seconds,
            "units_per_second": total / seconds,
            "speedup_vs_bisect": by_bisection / seconds,
            "speedup_vs_loop": by_loop / seconds,
        },
        options.json,
    )


if __name__ == "__main__":
    main()
