"""Charts of span scores, ragged and triangular, and the search for the best tree in them.

A sentence of n words has n(n+1)/2 spans [i, j), 0 <= i < j <= n. They are stored row by row: all spans that
start at 0, then all that start at 1, and so on, so span (i, j) stands at i*n - i(i-1)/2 + (j - i - 1).
Sentences of a batch lie one after the other without padding.

The best label of a span does not depend on the tree around it, so the maximum over labels is taken before the
search, and the search (CKY: Kasami 1965, Younger 1967; for span scores: Stern, Andreas & Klein 2017) needs one
number a span. It is cubic in the sentence and compiled: 10 µs for 40 words.
"""

from functools import lru_cache
from typing import Final

import numpy as np
import torch
from jaxtyping import Float32, Int, Int32, Int64
from torch import Tensor

from trainer.maths.loops import Loops


@lru_cache(maxsize=512)
def triangle(words: int) -> tuple[Int64[np.ndarray, " spans"], Int64[np.ndarray, " spans"]]:
    """Left and right fenceposts of every span of a sentence of `words` words, in storage order."""
    left, right = np.triu_indices(words + 1, k=1)
    left.setflags(write=False)
    right.setflags(write=False)
    return left, right


def span_count(words: int) -> int:
    """Number of spans of a sentence of `words` words."""
    return words * (words + 1) // 2


def node_count(lengths: Int32[np.ndarray, " sentences"]) -> int:
    """Nodes of the binary trees of sentences of these lengths, 2n-1 for n words."""
    return int((2 * lengths.astype(np.int64) - 1).clip(min=0).sum())


def span_index(left: Int[np.ndarray, " k"], right: Int[np.ndarray, " k"], words: int) -> Int[np.ndarray, " k"]:
    """Place of spans [left, right) in the storage order of a sentence of `words` words."""
    index: Int[np.ndarray, " k"] = left * words - left * (left - 1) // 2 + (right - left - 1)
    return index


def _search(scores, lengths, splits):  # type: ignore[no-untyped-def]
    offset = 0
    longest = 0
    for n in lengths:
        longest = max(longest, n)
    # best[i, l]: score of the best tree over [i, i+l), and, mirrored, by its end; both are read with stride 1
    by_start = np.zeros((longest + 1, longest + 1), dtype=np.float32)
    by_end = np.zeros((longest + 1, longest + 1), dtype=np.float32)
    for s in range(len(lengths)):
        n = lengths[s]
        for length in range(1, n + 1):
            for i in range(n - length + 1):
                j = i + length
                place = offset + i * n - i * (i - 1) // 2 + length - 1
                own = scores[place]
                if length > 1:
                    best = np.float32(-np.inf)
                    where = 1
                    for k in range(1, length):
                        total = by_start[i, k] + by_end[j, length - k]
                        if total > best:
                            best = total
                            where = k
                    splits[place] = where
                    own += best
                by_start[i, length] = own
                by_end[j, length] = own
        offset += n * (n + 1) // 2


def _walk(splits, lengths, nodes):  # type: ignore[no-untyped-def]
    # pre-order walk of every sentence's binary tree
    offset = 0
    written = 0
    longest = 0
    for n in lengths:
        longest = max(longest, n)
    stack = np.zeros((longest + 1, 2), dtype=np.int32)
    for s in range(len(lengths)):
        n = lengths[s]
        top = 0
        if n > 0:
            stack[0, 0] = 0
            stack[0, 1] = n
            top = 1
        while top > 0:
            top -= 1
            i = stack[top, 0]
            j = stack[top, 1]
            place = offset + i * n - i * (i - 1) // 2 + (j - i - 1)
            nodes[written] = place
            written += 1
            if j - i > 1:
                m = i + splits[place]
                stack[top, 0] = m
                stack[top, 1] = j
                stack[top + 1, 0] = i
                stack[top + 1, 1] = m
                top += 2
        offset += n * (n + 1) // 2


#: Work is the cube of a sentence's words; so much, or two sentences of 20 words, is interpreted in some 4 ms.
LOOPS: Final = Loops(_search, _walk, patience=2 * 20**3)


def load_compiled() -> None:
    """Load the compiled search now, so that from here on time can be taken."""
    search, walk = LOOPS.compiled
    splits, lengths = np.ones(1, dtype=np.int32), np.ones(1, dtype=np.int32)
    search(np.zeros(1, dtype=np.float32), lengths, splits)
    walk(splits, lengths, np.zeros(1, dtype=np.int64))


def best_trees(
    scores: Float32[np.ndarray, " spans"], lengths: Int32[np.ndarray, " sentences"]
) -> Int64[np.ndarray, " nodes"]:
    """Binary tree of greatest total score for each sentence of a ragged batch.

    `scores`: for each span the score of its best label (0 for "no constituent" by benepar's convention),
    sentences concatenated. Returns the places in `scores` of each tree's 2n-1 nodes, sentence after sentence, in
    pre-order. Of equal scores the shortest left child wins.
    """
    search, walk = LOOPS.for_work(int((lengths.astype(np.int64) ** 3).sum()))
    splits = np.ones(len(scores), dtype=np.int32)
    nodes = np.zeros(node_count(lengths), dtype=np.int64)
    search(scores, lengths, splits)
    walk(splits, lengths, nodes)
    return nodes


def best_trees_on_device(
    scores: Float32[Tensor, " spans"], lengths: Int32[np.ndarray, " sentences"]
) -> Int64[np.ndarray, " nodes"]:
    """`best_trees` for scores on an accelerator: one step for all spans of a length, of all sentences together.

    Only the split points, two bytes a span, come to the CPU, which walks them. Of equal scores any may win.
    """
    longest, device = int(lengths.max(initial=0)), scores.device
    batch = torch.from_numpy(np.repeat(np.arange(len(lengths)), [span_count(int(n)) for n in lengths])).to(device)
    ends = [triangle(int(n)) for n in lengths]
    start = torch.from_numpy(np.concatenate([left for left, _ in ends])).to(device)
    size = torch.from_numpy(np.concatenate([right - left for left, right in ends])).to(device)
    shape = (len(lengths), longest + 1, longest + 1)
    by_start = torch.zeros(shape, device=device)  # [sentence, start, length]: the span's own score, then its tree's
    by_start[batch, start, size] = scores
    by_end = torch.zeros(shape, device=device)  # the same by end
    by_end[batch, start + size, size] = scores
    splits = torch.ones(shape, dtype=torch.int16, device=device)
    for length in range(2, longest + 1):
        places = longest + 1 - length
        left = by_start[:, :places, 1:length]
        right = by_end[:, length:, 1:length].flip(-1)
        best = (left + right).max(-1)
        by_start[:, :places, length] += best.values
        by_end[:, length:, length] = by_start[:, :places, length]
        splits[:, :places, length] = best.indices.to(torch.int16) + 1
    nodes = np.zeros(node_count(lengths), dtype=np.int64)
    _, walk = LOOPS.compiled
    walk(splits[batch, start, size].cpu().numpy().astype(np.int32), lengths, nodes)
    return nodes
