"""Pooled spans against plain loops in float64, and what may and may not have a gradient."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.maths.ragged import pointers
from trainer.maths.spans import LearntSpans
from trainer.teacher.targets import span_layer

HIDDEN = 3


@st.composite
def documents(draw):
    """Of each document: whether each token is learnt, and spans in what is, apart or side by side."""
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        parts.append([])
        learnt = draw(st.lists(st.booleans(), min_size=1, max_size=9))
        spans, start = [], 0
        while start < len(learnt):
            if learnt[start] and draw(st.booleans()):
                longest = next((end for end in range(start, len(learnt)) if not learnt[end]), len(learnt))
                end = draw(st.integers(start + 1, longest))
                spans.append([start, end])
                start = end
            else:
                start += 1
        parts[-1] = (learnt, spans)
    return parts


@given(documents(), st.booleans(), st.integers(0, 5))
def test_spans_against_plain_loops(parts, uniform, seed):
    random = torch.Generator().manual_seed(seed)
    lengths = [len(learnt) for learnt, _ in parts]
    rows = pointers(lengths)
    hidden = torch.randn(sum(lengths), HIDDEN, generator=random, dtype=torch.float64)
    attention = torch.rand(sum(lengths), generator=random, dtype=torch.float64)
    attention[torch.rand(sum(lengths), generator=random) < 0.3] = 0
    flat = [
        [first + edge for edge in span]
        for (_, spans), first in zip(parts, rows.tolist(), strict=False)
        for span in spans
    ]
    mask = torch.tensor([each for learnt, _ in parts for each in learnt])
    within = LearntSpans.of(mask, rows, torch.tensor(flat, dtype=torch.int64).reshape(-1, 2))
    span_rows = pointers([len(spans) for _, spans in parts])
    found = span_layer(hidden[within.tokens], None if uniform else attention[within.tokens], within, span_rows)
    vectors, omegas = [], []
    for (learnt, spans), first in zip(parts, rows.tolist(), strict=False):
        mine = [first + token for token, is_learnt in enumerate(learnt) if is_learnt]
        paid = {token: 1.0 if uniform else float(attention[token]) for token in mine}
        total = sum(paid.values())
        weights = {token: value / total if total else 1 / len(mine) for token, value in paid.items()}
        of_spans = [sum(weights[first + token] for token in range(a, b)) for a, b in spans]
        for (a, b), weight in zip(spans, of_spans, strict=True):
            # what nothing is paid to, as outside of a sliding window, is the plain mean
            share = {token: weights[first + token] / weight if weight else 1 / (b - a) for token in range(a, b)}
            vectors.append(sum(share[token] * hidden[first + token] for token in range(a, b)))
        omegas += [each / sum(of_spans) if sum(of_spans) else 1 / len(spans) for each in of_spans]
    expected = torch.stack(vectors) if vectors else torch.zeros(0, HIDDEN, dtype=torch.float64)
    torch.testing.assert_close(found.vectors, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.weights.double(), torch.tensor(omegas, dtype=torch.float64), rtol=1e-5, atol=1e-7)


def test_a_span_of_what_is_not_learnt():
    learnt = torch.tensor([False, True, True, False, True])
    with pytest.raises(ValueError, match="a span holds a token that is not learnt"):
        LearntSpans.of(learnt, pointers([5]), torch.tensor([[2, 5]]))
    assert LearntSpans.of(learnt, pointers([5]), torch.tensor([[1, 3], [4, 5]])).spans.tolist() == [[0, 2], [2, 3]]


def test_gradients_reach_states_and_not_weights():
    hidden, attention = torch.randn(4, HIDDEN, requires_grad=True), torch.rand(4, requires_grad=True)
    within = LearntSpans.of(torch.ones(4, dtype=torch.bool), pointers([4]), torch.tensor([[0, 1], [1, 4]]))
    weights = within.weights(attention, hidden.device)
    pooled, omega = within.pool(hidden, weights), within.shares(weights, pointers([2]))
    assert not omega.requires_grad
    pooled.square().sum().backward()
    assert attention.grad is None
    assert bool((hidden.grad != 0).all())
