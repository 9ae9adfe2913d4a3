"""What training learns of a tree: words, the label of each span, tags. Read by several processes where there are cores."""

import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from benepar.ptb_unescape import guess_space_after, ptb_unescape
from jaxtyping import Int64

from pipeline.parse import scoring
from pipeline.parse.treebank import GoldTree, bracketings, parsed_tree, words_of
from pipeline.text import Words
from schemas.errors import UserError
from schemas.processes import end_with_parent

#: Trees that a process reads at a time, about a second's work.
TREES_AT_ONCE = 500


@dataclass(frozen=True)
class GoldSentence:
    """One sentence to learn from. A sentence without a tree has no spans and no tags."""

    words: Words
    starts: Int64[np.ndarray, " spans"] = field(repr=False)
    ends: Int64[np.ndarray, " spans"] = field(repr=False)
    labels: tuple[str, ...] = field(repr=False)  # one a span, unary chains joined as benepar does
    tags: tuple[str, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.words.words)


def collapsed_spans(tree: GoldTree) -> list[tuple[int, int, str]]:
    """[start, end) spans, one each, with benepar's labels (`scoring.joined_chains`)."""
    return scoring.joined_chains(scoring.brackets(tree.tree))


def gold_sentence(tree: GoldTree) -> GoldSentence:
    """`tree` without its tree."""
    spans = collapsed_spans(tree)
    starts, ends = (np.array([span[side] for span in spans], dtype=np.int64) for side in (0, 1))
    tags = tuple(tag for _, tag in tree.tree.pos())
    return GoldSentence(words_of(tree), starts, ends, tuple(label for _, _, label in spans), tags)


def _sentences(path: Path, max_words: int, texts: Iterable[tuple[int, str]]) -> list[GoldSentence]:
    trees = (parsed_tree(path, number, text) for number, text in texts)
    return [gold_sentence(tree) for tree in trees if tree is not None and len(tree.tree.leaves()) <= max_words]


def read_sentences(path: Path, max_words: int, processes: int = 1) -> list[GoldSentence]:
    """The trees of a bracketed file that have at most `max_words` words; raises `UserError` with file and line."""
    work = partial(_sentences, path, max_words)
    texts = list(bracketings(path))
    parts = [texts[first : first + TREES_AT_ONCE] for first in range(0, len(texts), TREES_AT_ONCE)]
    if processes == 1:
        return list(chain.from_iterable(map(work, parts)))
    # forked where that can be, since to import what reads trees takes each process longer than its share of them
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    with ProcessPoolExecutor(processes, multiprocessing.get_context(method), end_with_parent) as pool:
        return list(chain.from_iterable(pool.map(work, parts)))


def read_text(path: Path, max_words: int) -> Iterator[GoldSentence]:
    """Sentences without a tree: one a line, their words parted by spaces and written as in a treebank.

    Empty lines and longer sentences are passed over. Raises `UserError` for a file that is not UTF-8 text.
    """
    empty = np.zeros(0, dtype=np.int64)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}).") from error
    for line in lines:
        leaves = line.split()
        if 0 < len(leaves) <= max_words:
            spaces = tuple(bool(space) for space in guess_space_after(leaves))
            yield GoldSentence(Words(tuple(ptb_unescape(leaves)), spaces), empty, empty, (), ())
