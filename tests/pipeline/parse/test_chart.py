"""The decoder finds the best binary tree, in batches as alone."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.parse.chart import LOOPS, best_trees, best_trees_on_device, node_count, span_count, span_index, triangle


def slow_best(scores: dict[tuple[int, int], float], i: int, j: int) -> float:
    """Score of the best binary tree over [i, j), by trying every split."""
    own = scores[i, j]
    if j - i == 1:
        return own
    return own + max(slow_best(scores, i, k) + slow_best(scores, k, j) for k in range(i + 1, j))


charts = st.integers(1, 7).flatmap(
    lambda n: st.lists(
        st.floats(-10, 10, width=16).map(lambda value: float(np.float32(value))),
        min_size=span_count(n),
        max_size=span_count(n),
    ).map(lambda scores: (n, np.array(scores, dtype=np.float32)))
)


@given(charts)
def test_the_tree_found_is_a_tree_and_none_scores_more(chart):
    n, scores = chart
    left, right = triangle(n)
    nodes = best_trees(scores, np.array([n], dtype=np.int32))
    spans = [(int(left[node]), int(right[node])) for node in nodes]
    assert len(spans) == len(set(spans)) == 2 * n - 1
    assert {(0, n)} | {(i, i + 1) for i in range(n)} <= set(spans)
    assert not any(a < c < b < d for a, b in spans for c, d in spans), "crossing brackets"
    assert spans == sorted(spans, key=lambda span: (span[0], -span[1])), "pre-order"
    table = {(int(a), int(b)): float(s) for a, b, s in zip(left, right, scores, strict=True)}
    assert abs(float(scores[nodes].sum()) - slow_best(table, 0, n)) < 1e-3


@given(st.lists(charts, max_size=5))
def test_sentences_of_a_batch_do_not_touch_each_other(batch):
    lengths = np.array([n for n, _ in batch], dtype=np.int32)
    scores = np.concatenate([np.zeros(0, np.float32), *(scores for _, scores in batch)])
    together = best_trees(scores, lengths)
    base, alone = 0, []
    for n, own in batch:
        alone.append(best_trees(own, np.array([n], dtype=np.int32)) + base)
        base += span_count(n)
    assert together.tolist() == np.concatenate([np.zeros(0, np.int64), *alone]).tolist()


@given(st.integers(1, 60))
def test_span_index_is_the_storage_order(n):
    left, right = triangle(n)
    assert len(left) == span_count(n)
    assert span_index(left, right, n).tolist() == list(range(span_count(n)))


@given(st.lists(charts, min_size=1, max_size=5))
def test_the_search_for_accelerators_finds_trees_of_the_same_score(batch):
    lengths = np.array([n for n, _ in batch], dtype=np.int32)
    scores = np.concatenate([scores for _, scores in batch])
    ours, theirs = best_trees(scores, lengths), best_trees_on_device(torch.from_numpy(scores), lengths)
    first = 0
    for n, _ in batch:
        # float32 sums of up to 13 scores below 10, in another order
        part = slice(first, first + 2 * n - 1)
        assert abs(float(scores[ours[part]].sum()) - float(scores[theirs[part]].sum())) < 1e-4
        assert len(set(theirs[part].tolist())) == 2 * n - 1
        first += 2 * n - 1


@given(st.integers(0, 2**31), st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_without_ties_both_searches_find_the_same_nodes(seed, lengths):
    scores = np.random.default_rng(seed).normal(size=sum(map(span_count, lengths))).astype(np.float32)
    sizes = np.array(lengths, dtype=np.int32)
    assert best_trees(scores, sizes).tolist() == best_trees_on_device(torch.from_numpy(scores), sizes).tolist()


@given(st.integers(0, 2**31), st.lists(st.integers(0, 12), max_size=5), st.sampled_from([1e-3, 1.0, 1e30]))
def test_interpreted_and_compiled_the_search_is_the_same(seed, lengths, scale):
    """Bit for bit, ties and rounding included: which is used depends on what was parsed before."""
    sizes = np.array(lengths, dtype=np.int32)
    normal = np.random.default_rng(seed).normal(size=sum(map(span_count, lengths)))
    for scores in ((normal * scale).astype(np.float32), np.round(normal).astype(np.float32)):
        results = []
        for search, walk in (LOOPS.interpreted, LOOPS.compiled):
            splits, nodes = np.ones(len(scores), dtype=np.int32), np.zeros(node_count(sizes), dtype=np.int64)
            search(scores, sizes, splits)
            walk(splits, sizes, nodes)
            results.append((splits.tolist(), nodes.tolist()))
        assert results[0] == results[1]
