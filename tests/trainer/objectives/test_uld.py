"""ULD against plain loops in float64, written from the equation; its bounds, and what learns from it."""

from itertools import pairwise

import pytest
import torch

from schemas.errors import UsageError
from trainer.objectives import build
from trainer.objectives.base import Needs
from trainer.objectives.uld import sorted_distance
from two_tokenizers import DOCUMENTS, STUDENT_VOCABULARY, TwoTokenizers, after

#: Of one token on a side, and with sides that have nothing to learn.
VARIOUS = (*DOCUMENTS, ((2, 3), (1, 0)), ((2, 0), (1, 3)), ((2, 3), (1, 1)))


def term_of(problem, **options):
    return problem.begun(build({"uld": options}, problem.setting(), "objectives")["uld"])


def distance(student, teacher, k, temperature):
    """Of two rows of logits, rank by rank; differentiable in the first."""
    p, q = (
        sorted((each / temperature).softmax(0), key=lambda x: float(x.detach()), reverse=True)
        for each in (student, teacher)
    )
    size = max(len(p), len(q))
    p, q = ([*each, *[torch.zeros((), dtype=torch.float64)] * (size - len(each))] for each in (p, q))
    k = size if k is None else min(k, size)
    total = sum(abs(x - y) for x, y in zip(p[:k], q[:k], strict=True))
    return total + abs(sum(p[k:]) - sum(q[k:])) if k < size else total


def plain(problem, config):
    batch, teacher = problem.batch, problem.batch.teacher
    bounds = zip(pairwise(batch.position_rows.tolist()), pairwise(teacher.position_rows.tolist()), strict=True)
    means = []
    for (a, b), (c, d) in bounds:
        distances = []
        for i in range(min(b - a, d - c)):
            hidden = problem.hidden[batch.positions[a + i]]
            student = after(hidden @ problem.head.weight.t() + problem.head.bias, problem.head)
            theirs = problem.teacher_head.logits(teacher.final[c + i : c + i + 1])[0]
            distances.append(distance(student, theirs, config.k, config.temperature))
        if distances:
            means.append(sum(distances) / (len(distances) if config.reduce == "document" else len(batch.targets)))
    return sum(means) / (len(means) if config.reduce == "document" else 1)


@pytest.mark.parametrize("capped", [{}, {"soft_cap": 3.0, "scale": 0.7}], ids=["plain", "capped"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k": None, "reduce": "token"},
        {"k": 1},
        {"k": 5, "temperature": 2.0},
        {"k": STUDENT_VOCABULARY + 2, "reduce": "token"},
    ],
)
def test_against_a_plain_loop(options, capped):
    problem = TwoTokenizers(VARIOUS, **capped)
    term = term_of(problem, **options)
    expected, loss = plain(problem, term.config), problem.value(term)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    problem.assert_same_gradients(loss, expected, term, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("k", [None, 4, 2])
def test_the_oracle(k):
    student, teacher = torch.tensor([[0.2, 0.7, 0.1]]).log(), torch.tensor([[0.05, 0.15, 0.5, 0.3]]).log()
    assert float(sorted_distance(student, teacher, k)) == pytest.approx(0.4, abs=1e-6)


@pytest.mark.parametrize("k", [None, 3, 9])
def test_derivatives(k):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, size, generator=generator, dtype=torch.float64) for size in (8, 11))
    assert torch.autograd.gradcheck(
        lambda x: sorted_distance(x, teacher, k, 1.5), (student.requires_grad_(),), eps=1e-6, atol=1e-8, rtol=1e-6
    )


@pytest.mark.parametrize("k", [None, 3])
def test_the_same_probabilities_of_other_tokens_are_no_distance(k):
    """In another order, and where one side has tokens besides that are impossible."""
    student = torch.randn(4, 9, dtype=torch.float64)
    teacher = torch.cat([student[:, torch.randperm(9)], torch.full((4, 3), -1e9, dtype=torch.float64)], 1)
    assert float(sorted_distance(student, teacher, k).max()) < 1e-14


def test_the_likeliest_tokens_are_below_the_whole_by_what_they_leave():
    student, teacher = (torch.randn(20, size, dtype=torch.float64) * 3 for size in (50, 70))
    whole = sorted_distance(student, teacher, None)
    gaps = []
    for k in (1, 5, 20, 49):
        left = sum(1 - each.softmax(1).topk(k).values.sum(1) for each in (student, teacher))
        gap = whole - sorted_distance(student, teacher, k)
        assert bool((gap > -1e-12).all())
        assert bool((gap <= left + 1e-12).all())
        gaps.append(float(gap.max()))
    assert gaps[0] > 0.01
    torch.testing.assert_close(sorted_distance(student, teacher, 70), whole, rtol=0, atol=0)


def test_the_student_learns_alone():
    problem = TwoTokenizers()
    term = term_of(problem)
    learning = {
        leaf for leaf, each in problem.gradients(problem.value(term), term).items() if each is not None and each.any()
    }
    assert learning == {"hidden", "head", "bias"}


def test_what_is_counted_and_asked_for():
    problem = TwoTokenizers(VARIOUS)
    assert term_of(problem).denominators(problem.batch).tolist() == [len(DOCUMENTS) + 1]
    assert term_of(problem, reduce="token").denominators(problem.batch).tolist() == [len(problem.batch.targets)]
    assert term_of(problem).needs() == Needs(teacher_final=True, output_matrix=True)
    assert not term_of(problem).needs().same_tokens


def test_nothing_to_compare_is_nothing():
    problem = TwoTokenizers((((2, 3), (1, 0)), ((2, 0), (1, 3))))
    term = term_of(problem)
    loss, _ = problem.head(problem.hidden[:0], None, [term.work({4: problem.hidden}, problem.batch, 1.0)])
    assert float(loss.detach()) == 0
    assert not torch.autograd.grad(loss, problem.hidden)[0].any()


def test_no_token_is_too_few():
    with pytest.raises(UsageError, match="`k`"):
        term_of(TwoTokenizers(), k=0)
    assert term_of(TwoTokenizers()).config.k == 1024
