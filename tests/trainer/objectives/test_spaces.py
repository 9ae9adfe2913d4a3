"""What is true of every term for two tokenizers: what a batch is made of changes nothing, nor how the work is cut up."""

from dataclasses import replace

import pytest
import torch

from trainer.models import head, row_losses
from trainer.models.embeddings import Embeddings
from trainer.objectives import build
from two_tokenizers import DOCUMENTS, STUDENT_VOCABULARY, TEACHER_VOCABULARY, TwoTokenizers, aligned, chunked

#: Of one token, of some, and with sides that have nothing to learn.
VARIOUS = (*DOCUMENTS, ((1, 1), (1, 1)), ((2, 3), (1, 0)), ((2, 0), (1, 3)), ((2, 3), (3, 3)))
TERMS = {
    "dskd": {"dskd": {}},
    "dskd of documents": {"dskd": {"scale": "document", "gate": "confidence"}},
    "dwa": {"dwa": {}},
    "dwa of products": {"dwa": {"normalise": "product", "scale": "document"}},
    "dskd of the likeliest tokens": {"dskd": {"top": 4}},
    "dskd_eta": {"dskd_eta": {}},
    "dskd_eta of what is kept": {"dskd_eta": {"count": "kept"}},
    "uld": {"uld": {}},
    "uld of the likeliest tokens": {"uld": {"k": 4, "reduce": "token"}},
    "uld of chunks": {"uld": {"alignment": "chunks", "k": 4}},
    "uld of chunks that were sorted": {"uld": {"alignment": "chunks", "source": "sorted", "k": 4}},
    "gold": {"gold": {}},
    "gold as TRL has it": {"gold": {"merge": "observed", "beta": 0.5, "rest": "none", "k": 2}},
    "mined": {"mined": {}},
    "mined by js": {"mined": {"divergence": "js", "temperature": 0.7}},
    "soft_dtw": {"soft_dtw": {"band": {"width": 0.3, "entropy": 0.4}}, "dskd": {}},
}


def term_of(problem, objectives):
    """The first of some terms."""
    torch.manual_seed(1)
    terms = build(objectives, problem.setting(shared=getattr(problem, "shared", None)), "objectives")
    first, *_ = [problem.begun(term) for term in terms.values()]
    return first


@pytest.mark.parametrize("objectives", TERMS.values(), ids=TERMS)
def test_a_batch_is_its_documents_whatever_micro_batches_they_are_in(objectives):
    """Values and gradients, with what the whole step counts as denominators."""
    problem = chunked(aligned(TwoTokenizers(VARIOUS)))
    term = term_of(problem, objectives)
    whole = problem.value(term)
    parts = [problem.alone(document) for document in range(len(VARIOUS))]
    divided_by = sum(term.denominators(batch) for batch, _ in parts)
    assert divided_by.tolist() == term.denominators(problem.batch).tolist()
    total = sum(problem.value(term, batch, hidden, divided_by) for batch, hidden in parts)
    torch.testing.assert_close(total, whole, rtol=1e-9, atol=0)
    problem.assert_same_gradients(total, whole, term, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("objectives", TERMS.values(), ids=TERMS)
@pytest.mark.parametrize(("together", "in_cache"), [(1, 1), (3, 2)])
def test_portions_of_logits_change_nothing(objectives, together, in_cache, monkeypatch):
    problem = chunked(aligned(TwoTokenizers(VARIOUS, soft_cap=3.0)))
    term = term_of(problem, objectives)
    whole = problem.value(term)
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", together * TEACHER_VOCABULARY * 2)
    monkeypatch.setattr(row_losses, "IN_CACHE", in_cache * TEACHER_VOCABULARY)
    cut = problem.value(term)
    torch.testing.assert_close(cut, whole, rtol=1e-9, atol=0)
    problem.assert_same_gradients(cut, whole, term, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("objectives", TERMS.values(), ids=TERMS)
def test_numbers_of_tokens_are_names(objectives):
    """Either vocabulary in another order, with the map between them: nothing changes."""
    problem = chunked(aligned(TwoTokenizers(VARIOUS)))
    expected = problem.value(term_of(problem, objectives))
    generator = torch.Generator().manual_seed(5)
    ours, theirs = (torch.randperm(size, generator=generator) for size in (STUDENT_VOCABULARY, TEACHER_VOCABULARY))
    batch, teacher = problem.batch, problem.batch.teacher
    problem.batch = replace(
        batch,
        ids=ours[batch.ids],
        targets=ours[batch.targets],
        teacher=replace(
            teacher,
            ids=theirs[teacher.ids],
            targets=theirs[teacher.targets],
            argmax=theirs[teacher.argmax],
            likeliest=theirs[teacher.likeliest],
        ),
    )
    problem.shared = torch.stack([ours[problem.shared[:, 0]], theirs[problem.shared[:, 1]]], 1)
    with torch.no_grad():
        for matrix in (problem.head.weight, problem.head.bias, problem.embedding.weight):
            matrix.copy_(matrix[ours.argsort()])
    back = theirs.argsort()
    problem.teacher_head = replace(
        problem.teacher_head, weight=problem.teacher_head.weight[back], bias=problem.teacher_head.bias[back]
    )
    problem.teacher_embeddings = Embeddings(problem.teacher_embeddings.weight[back])
    torch.testing.assert_close(problem.value(term_of(problem, objectives)), expected, rtol=1e-8, atol=0)
