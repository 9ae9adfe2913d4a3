"""ULD against plain loops in float64, written from the equation; its bounds, and what learns from it."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from schemas.errors import UsageError
from trainer.batches.batch import Chunks
from trainer.maths.ranked import Ranked
from trainer.objectives import build
from trainer.objectives.base import Needs
from two_tokenizers import DOCUMENTS, STUDENT_VOCABULARY, TOP, TwoTokenizers, after, chunk_distributions, chunked

#: Of one token on a side, and with sides that have nothing to learn.
VARIOUS = (*DOCUMENTS, ((2, 3), (1, 0)), ((2, 0), (1, 3)), ((2, 3), (1, 1)))


def term_of(problem, **options):
    return problem.begun(build({"uld": options}, problem.setting(), "objectives")["uld"])


def sorted_distance(student, teacher, k, temperature=1.0):
    """Of rows of logits."""
    ours, theirs = (Ranked.of((each / temperature).log_softmax(1), k) for each in (student, teacher))
    return ours.distance(theirs)


def distance(student, teacher, k, temperature):
    """Of two rows of logits; differentiable in the first."""
    return by_rank((student / temperature).softmax(0), (teacher / temperature).softmax(0), k)


def by_rank(student, teacher, k):
    """Of two rows of probabilities."""
    p, q = (sorted(each, key=lambda x: float(x.detach()), reverse=True) for each in (student, teacher))
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


def plain_of_chunks(problem, config):
    means = []
    for chunks in chunk_distributions(problem):
        distances = [by_rank(*chunk, config.k) for chunk in chunks]
        if distances:
            count = len(distances) if config.reduce == "document" else len(problem.batch.targets)
            means.append(sum(distances) / count)
    return sum(means) / (len(means) if config.reduce == "document" else 1)


@pytest.mark.parametrize("options", [{}, {"k": None, "reduce": "token"}, {"k": 3}])
@pytest.mark.parametrize("capped", [{}, {"soft_cap": 3.0, "scale": 0.7}], ids=["plain", "capped"])
def test_chunks_against_a_plain_loop(options, capped):
    problem = chunked(TwoTokenizers(VARIOUS, **capped))
    term = term_of(problem, alignment="chunks", **options)
    expected, loss = plain_of_chunks(problem, term.config), problem.value(term)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    problem.assert_same_gradients(loss, expected, term, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("alignment", ["position", "chunks"])
@pytest.mark.parametrize("k", [TOP, 3])
def test_distributions_that_were_sorted_before_are_as_good(alignment, k):
    """In float32, and with log-probabilities of what is written beside them: without the teacher's output matrix."""
    problem = chunked(TwoTokenizers(VARIOUS))
    teacher = problem.batch.teacher
    logprobs = problem.teacher_head.logits(teacher.final).log_softmax(1).gather(1, teacher.targets[:, None]).squeeze(1)
    expected = problem.value(term_of(problem, alignment=alignment, k=k))
    problem.batch = replace(problem.batch, teacher=replace(teacher, final=None, logprob=logprobs.float()))
    term = term_of(problem, alignment=alignment, k=k, source="sorted")
    term.matrices = replace(term.matrices, teacher_head=None)
    loss = problem.value(term)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    problem.assert_same_gradients(loss, expected, term, rtol=1e-5, atol=1e-9)


def test_stored_probabilities_leave_what_is_left_of_1():
    """Rounding may have them above it."""
    falling = torch.tensor([[0.5, 0.25], [0.75, 0.2503]])
    assert Ranked.stored(falling).rest.tolist() == [0.25, 0.0]


def test_one_token_a_side_is_the_same_by_position_and_by_chunk():
    problem = TwoTokenizers((((1, 1), (2, 1)), ((2, 1), (1, 1))))
    both = [problem.value(term_of(chunked(problem), alignment=each)).detach() for each in ("position", "chunks")]
    torch.testing.assert_close(*both, rtol=0, atol=0)


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
    assert term_of(problem, source="sorted", k=7).needs() == Needs(sorted=7)
    of_chunks = {"chunks": True, "logprob": True}
    assert term_of(problem, source="sorted", alignment="chunks").needs() == Needs(sorted=1024, **of_chunks)
    assert term_of(problem, alignment="chunks").needs() == Needs(teacher_final=True, output_matrix=True, **of_chunks)
    chunks = chunked(problem)
    chunks.batch = replace(
        chunks.batch, chunks=Chunks(torch.zeros(0, 2).long(), torch.zeros(0, 2).long(), torch.zeros(7).long())
    )
    assert term_of(problem, alignment="chunks").denominators(chunks.batch).tolist() == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "sorted", "temperature": 2.0}, "take `source: final`"),
        ({"source": "sorted", "k": None}, "set `k`, or take `source: final`"),
        ({"alignment": "chunks", "temperature": 2.0}, "merges probabilities at `temperature` 1"),
        ({"alignment": "words"}, "`alignment`"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(UsageError, match=message):
        term_of(TwoTokenizers(), **options)


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
