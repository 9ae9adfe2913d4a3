"""The parser's losses against plain loops, in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.parse.chart import span_count, triangle
from pipeline.parse.loss import divergence, tag_loss, with_empty
from pipeline.parse.teachers import best_spans


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_divergence_is_the_sum_over_spans_of_the_labels_own(temperature):
    generator = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(7, 5, generator=generator, dtype=torch.float64) * 4 for _ in range(2))
    student, teacher = with_empty(student), with_empty(teacher)
    expected = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = ([math.exp(score / temperature) for score in row] for row in (t, s))
        for a, b in zip(p, q, strict=True):
            expected += a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) * temperature**2
    assert divergence(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-12)
    assert divergence(teacher, teacher, temperature).item() == pytest.approx(0.0, abs=1e-12)


def test_its_gradient_is_that_of_finite_differences():
    generator = torch.Generator().manual_seed(4)
    teacher = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    student = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda scores: divergence(with_empty(scores), with_empty(teacher), 1.5), (student,))


def test_words_without_a_tag_cost_nothing():
    scores = torch.randn(4, 3, dtype=torch.float64)
    tags = torch.tensor([2, -100, 0, -100])
    plain = [-(scores[row] - scores[row].logsumexp(0))[tag].item() for row, tag in ((0, 2), (2, 0))]
    assert tag_loss(scores, tags).item() == pytest.approx(sum(plain) / 2)
    assert tag_loss(scores, torch.full((4,), -100)).item() == 0.0


def best_by_trying(scores, left, right, start, end):
    """Greatest total of the best labels over all binary trees of [start, end), the empty label at 0."""
    own = scores[list(zip(left, right, strict=True)).index((start, end))]
    if end - start == 1:
        return own
    return own + max(
        best_by_trying(scores, left, right, start, cut) + best_by_trying(scores, left, right, cut, end)
        for cut in range(start + 1, end)
    )


@settings(max_examples=25)
@given(words=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_a_teachers_tree_is_the_best_there_is(words, seed):
    scores = torch.randn(span_count(words), 3, generator=torch.Generator().manual_seed(seed))
    left, right = (side.tolist() for side in triangle(words))
    spans, labels = best_spans(scores, words)
    assert (labels > 0).all()
    assert words - 1 in spans  # the root has a label whatever it scores
    own = scores.max(1).values.clamp(min=0)
    own[words - 1] = scores[words - 1].max()
    total = sum(scores[span, label - 1].item() for span, label in zip(spans.tolist(), labels.tolist(), strict=True))
    assert total == pytest.approx(best_by_trying(own.tolist(), left, right, 0, words), abs=1e-4)
    assert len(np.unique(spans)) == len(spans)
