"""Terms beside cross-entropy, whose logits they take: the same as by products of their own."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.batches.batch import Chunks
from trainer.maths.ragged import pointers
from trainer.models import head, row_losses
from trainer.objectives import build, chunks
from trainer.objectives.base import Rider
from trainer.objectives.cross_entropy import CrossEntropy
from trainer.objectives.position_spans import PositionSpans
from trainer.student.output_head import LogitWork
from two_tokenizers import (
    DOCUMENTS,
    SHARED,
    STUDENT_VOCABULARY,
    TEACHER,
    TEACHER_VOCABULARY,
    TwoTokenizers,
    aligned,
    chunked,
)

VARIOUS = (*DOCUMENTS, ((2, 3), (1, 0)), ((2, 0), (1, 3)), ((2, 9), (1, 8)), ((2, 3), (1, 1)))
CAPPED = {"soft_cap": 3.0, "scale": 0.7}
TERMS = [
    ("uld", {}),
    ("uld", {"k": 4, "temperature": 2.0, "reduce": "token"}),
    ("uld", {"k": 4, "source": "sorted"}),
    ("uld", {"alignment": "chunks"}),
    ("uld", {"alignment": "chunks", "k": 3, "reduce": "token"}),
    ("gold", {}),
    ("gold", {"merge": "observed", "beta": 0.4, "k": 2}),
    ("gold", {"rest": "none", "beta": 1.0, "unmatched": 0.3}),
    ("mined", {}),
    ("mined", {"divergence": "tvd", "temperature": 1.0}),
]


def problem_of(documents=VARIOUS, **options):
    return chunked(aligned(TwoTokenizers(documents, **options)))


def terms_of(problem, *named):
    setting = problem.setting(shared=SHARED)
    return [problem.begun(build({name: options}, setting, "objectives")[name]) for name, options in named]


def of_own(problem, *terms):
    """Cross-entropy, and terms by products of their own: 1.5 of the first, 2.5 of the second, and so on."""
    ce = CrossEntropy(CrossEntropy.options(), problem.setting())
    alone = LogitWork.of(problem.batch, {4: problem.hidden}, [ce], [0.25], None)
    works = [term.work({4: problem.hidden}, problem.batch, 1.5 + number) for number, term in enumerate(terms)]
    return problem.head(problem.hidden[problem.batch.positions], alone, works)


def beside(problem, *terms):
    """The same by the logits that cross-entropy has; and how many rows of their own terms still have."""
    ce = CrossEntropy(CrossEntropy.options(), problem.setting())
    parts = [term.work_beside({4: problem.hidden}, problem.batch, 1.5 + number) for number, term in enumerate(terms)]
    riders, rests = ([part for part in side if part is not None] for side in zip(*parts, strict=True))
    work = LogitWork.of(problem.batch, {4: problem.hidden}, [ce], [0.25], None, riders=riders)
    assert all(isinstance(rider, Rider) for rider in riders)
    loss, _ = problem.head(problem.hidden[problem.batch.positions], work, rests)
    return loss, sum(len(rest.rows) for rest in rests)


@pytest.mark.parametrize(("together", "in_cache"), [(1, 1), (5, 3), (100, 100)])
@pytest.mark.parametrize("capped", [{}, CAPPED], ids=["plain", "capped"])
@pytest.mark.parametrize(("name", "options"), TERMS, ids=str)
def test_the_same_as_by_products_of_its_own(monkeypatch, name, options, capped, together, in_cache):
    """However few logits are in memory at once."""
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", together * STUDENT_VOCABULARY)
    monkeypatch.setattr(row_losses, "IN_CACHE", in_cache * STUDENT_VOCABULARY)
    problem = problem_of(**capped)
    (term,) = terms_of(problem, (name, options))
    expected, (loss, rest) = of_own(problem, term)[0], beside(problem, term)
    assert not rest
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    problem.assert_same_gradients(loss, expected, term, rtol=1e-10, atol=1e-13)
    with torch.no_grad():
        torch.testing.assert_close(beside(problem, term)[0], loss.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("named", [TERMS[3:4], [TERMS[5], TERMS[3], TERMS[8]]], ids=["one", "several"])
def test_long_chunks_go_their_own_way(monkeypatch, named):
    monkeypatch.setattr(chunks, "MOST_TOGETHER", 2)
    monkeypatch.setattr(row_losses, "IN_CACHE", 2 * STUDENT_VOCABULARY)
    problem = problem_of()
    lengths = problem.batch.chunks.student.diff(dim=1)
    terms = terms_of(problem, *named)
    expected, (loss, rest) = of_own(problem, *terms)[0], beside(problem, *terms)
    of_chunks = sum(isinstance(term, chunks.ChunkObjective) for term in terms)
    assert rest == of_chunks * int(lengths[lengths > 2].sum()) > 0
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    problem.assert_same_gradients(loss, expected, terms[0], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("name", "options"), [TERMS[0], TERMS[3], TERMS[5], TERMS[8]], ids=str)
def test_no_matrix_of_all_logits(largest_tensor, monkeypatch, name, options):
    """Of either side, whatever the number of positions."""
    at_once, positions = 64, 600
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", at_once * STUDENT_VOCABULARY)
    problem = problem_of((((1, positions), (1, positions)),))
    (term,) = terms_of(problem, (name, options))
    spans = torch.arange(0, positions, 2)[:, None] + torch.tensor([0, 2])
    problem.batch = replace(problem.batch, chunks=Chunks(spans, spans, pointers([len(spans)])))
    with largest_tensor:
        beside(problem, term)[0].backward()
    states = positions * TEACHER
    assert largest_tensor.elements <= max(2 * at_once * TEACHER_VOCABULARY, states) < positions * STUDENT_VOCABULARY


def test_texts_of_a_turn_in_another_order():
    """As a chat template may have them: the student's chunks do not rise with the teacher's."""
    problem = problem_of()
    whole = problem.batch.chunks
    order = torch.cat([part.flip(0) for part in torch.arange(len(whole.student)).split(whole.rows.diff().tolist())])
    turned = Chunks(whole.student[order], whole.teacher[order], whole.rows)
    assert bool((turned.student.diff(dim=0) < 0).any())
    (term,) = terms_of(problem, ("gold", {}))
    expected = beside(problem, term)[0]
    problem.batch = replace(problem.batch, chunks=turned)
    for loss in (of_own(problem, term)[0], beside(problem, term)[0]):
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("name", "options"), [TERMS[0], TERMS[3], TERMS[8]], ids=str)
def test_of_nothing_nothing(name, options):
    problem = chunked(TwoTokenizers((((2, 3), (1, 0)), ((2, 0), (1, 3)))))
    problem.batch = replace(problem.batch, mined=torch.zeros(0, 2, dtype=torch.int64))
    (term,) = terms_of(problem, (name, options))
    expected, (loss, rest) = of_own(problem, term)[0], beside(problem, term)
    assert not rest
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), max_size=8), st.integers(0, 2), st.data())
def test_spans_of_positions(gaps_and_lengths, after, data):
    """Edges cut none; and between two of them stands what a plain search says."""
    spans, end = [], 0
    for gap, length in gaps_and_lengths:
        spans.append([end + gap, end + gap + length])
        end += gap + length
    positions = PositionSpans(torch.tensor(spans, dtype=torch.int64).reshape(-1, 2))
    edges = positions.edges(end + after)
    assert edges == [edge for edge in range(end + after + 1) if not any(a < edge < b for a, b in spans)]
    first, last = sorted(data.draw(st.sampled_from(edges)) for _ in range(2))
    among = positions.among(slice(first, last))
    assert spans[among] == [[a, b] for a, b in spans if first <= a and b <= last]
    assert PositionSpans.single(torch.arange(3)).edges(3) == pointers([1, 1, 1]).tolist()
