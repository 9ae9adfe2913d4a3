"""MinED against plain loops in float64, written from the equation; what learns from it, and what is refused."""

from dataclasses import replace

import pytest
import torch

from schemas.errors import UsageError
from trainer.models import head as head_module
from trainer.objectives import build
from trainer.objectives.base import MinedNeed, Needs
from trainer.objectives.cross_space import SharedRows
from trainer.objectives.mined import MinedDivergences, MinedTargets
from trainer.objectives.position_spans import PositionSpans
from two_tokenizers import (
    DOCUMENTS,
    SHARED,
    STUDENT,
    STUDENT_VOCABULARY,
    TEACHER_VOCABULARY,
    TwoTokenizers,
    after,
    aligned,
    divergence,
)

#: Of one token on a side, and with sides that have nothing to learn.
VARIOUS = (*DOCUMENTS, ((2, 3), (1, 0)), ((2, 0), (1, 3)), ((2, 3), (1, 1)))
#: Of each of the teacher's tokens the student's: the shared ones their own; others one that is shared, or not, or none.
NEAREST = torch.full((TEACHER_VOCABULARY,), -1)
NEAREST[SHARED[:, 1]] = SHARED[:, 0]
NEAREST[[0, 1, 2, 3, 26]] = torch.tensor([5, 0, 22, 22, 0])


def term_of(problem, **options):
    setting = problem.setting(shared=SHARED, nearest=NEAREST)
    return problem.begun(build({"mined": options}, setting, "objectives")["mined"])


def target(problem, position, config):
    """The distribution that a position learns, over the student's vocabulary."""
    batch, partners = problem.batch, dict(problem.batch.mined.tolist())
    p = torch.zeros(STUDENT_VOCABULARY, dtype=torch.float64)
    if position not in partners:
        p[batch.targets[position]] = 1
        return p
    stands = {}
    for mine, theirs in SHARED.tolist():
        stands[mine] = theirs
    if config.vocabulary == "nearest":
        for theirs, mine in enumerate(NEAREST.tolist()):
            if mine >= 0:
                stands.setdefault(mine, theirs)
    state = batch.teacher.final[partners[position]]
    logits = problem.teacher_head.logits(state[None])[0]
    total = sum(float((logits[theirs] / config.temperature).exp()) for theirs in stands.values())
    for mine, theirs in stands.items():
        p[mine] = float((logits[theirs] / config.temperature).exp()) / total
    return p


def distance(name, p, log_q):
    """From a distribution with zeros; differentiable in the second."""
    if name == "fkl":
        return sum(a * (a.log() - b) for a, b in zip(p, log_q, strict=True) if a)
    return divergence(name, p.clamp_min(1e-300).log(), log_q)


def plain(problem, config):
    total = 0
    for position, place in enumerate(problem.batch.positions.tolist()):
        logits = after(problem.hidden[place] @ problem.head.weight.t() + problem.head.bias, problem.head)
        log_q = (logits / config.temperature).log_softmax(0)
        total = total + distance(config.divergence, target(problem, position, config), log_q)
    return total / len(problem.batch.targets)


@pytest.mark.parametrize("capped", [{}, {"soft_cap": 3.0, "scale": 0.7}], ids=["plain", "capped"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"vocabulary": "nearest"},
        {"temperature": 1.0, "divergence": "tvd"},
        {"divergence": "sfkl", "vocabulary": "nearest"},
        {"divergence": "js"},
    ],
    ids=str,
)
def test_against_a_plain_loop(options, capped):
    problem = aligned(TwoTokenizers(VARIOUS, **capped))
    term = term_of(problem, **options)
    expected, loss = plain(problem, term.config), problem.value(term)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    problem.assert_same_gradients(loss, expected, term, rtol=1e-9, atol=1e-12)


def test_where_nothing_is_aligned_it_is_cross_entropy_at_a_temperature():
    problem = aligned(TwoTokenizers())
    problem.batch = replace(problem.batch, mined=problem.batch.mined[:0])
    rows = problem.hidden[problem.batch.positions] @ problem.head.weight.t() + problem.head.bias
    expected = torch.nn.functional.cross_entropy(rows / 2, problem.batch.targets)
    torch.testing.assert_close(problem.value(term_of(problem)), expected, rtol=1e-12, atol=0)


def test_the_same_model_and_tokens_are_no_distance():
    """A student that is its teacher, with one vocabulary, where everything is aligned."""
    problem = TwoTokenizers((((2, 4), (2, 4)), ((1, 2), (1, 2))))
    head = problem.head
    teacher = replace(
        problem.teacher_head, weight=head.weight.detach(), bias=head.bias.detach(), soft_cap=None, scale=None
    )
    problem.teacher_head = teacher
    count = len(problem.batch.positions)
    mine = replace(problem.batch.teacher, final=problem.hidden[problem.batch.positions].detach())
    problem.batch = replace(problem.batch, teacher=mine, mined=torch.arange(count)[:, None].repeat(1, 2))
    term = problem.begun(build({"mined": {}}, problem.setting(same_tokens=True), "objectives")["mined"])
    assert term.needs() == Needs(teacher_final=True, output_rows=True, mined=MinedNeed("exact", "any"))
    loss = problem.value(term)
    assert abs(float(loss.detach())) < 1e-14
    assert all(gradient is None or gradient.abs().max() < 1e-14 for gradient in problem.gradients(loss, term).values())


@pytest.mark.parametrize("name", ["fkl", "sfkl", "srkl", "js", "tvd"])
def test_derivatives(name):
    """Finite differences, of rows with a teacher's distribution and without."""
    problem = aligned(TwoTokenizers())
    term = term_of(problem, divergence=name, temperature=1.5)

    def loss(hidden):
        work = term.work({4: hidden}, problem.batch, 1.0)
        return problem.head(hidden, None, [work])[0]

    hidden = problem.hidden.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(hidden), hidden)
    generator = torch.Generator().manual_seed(3)
    for _ in range(4):
        direction = torch.randn(hidden.shape, generator=generator, dtype=torch.float64)
        step = 1e-6 * direction
        with torch.no_grad():
            change = (loss(hidden + step) - loss(hidden - step)) / 2e-6
        torch.testing.assert_close((gradient * direction).sum(), change, rtol=1e-6, atol=1e-8)


def test_the_student_learns_alone():
    problem = aligned(TwoTokenizers())
    term = term_of(problem)
    learning = {
        leaf for leaf, each in problem.gradients(problem.value(term), term).items() if each is not None and each.any()
    }
    assert learning == {"hidden", "head", "bias"}


def test_of_a_document_without_a_response_nothing_is_added():
    problem = aligned(TwoTokenizers())
    more = aligned(TwoTokenizers((*DOCUMENTS, ((2, 0), (1, 0)))))
    more.batch = replace(more.batch, mined=problem.batch.mined)
    assert len(more.batch.targets) == len(problem.batch.targets)
    assert float(problem.value(term_of(problem)).detach()) > 0
    assert torch.isfinite(more.value(term_of(more)))


def test_what_is_counted_and_asked_for():
    problem = aligned(TwoTokenizers(VARIOUS))
    term = term_of(problem, vocabulary="nearest", prefix="exact")
    assert term.denominators(problem.batch).tolist() == [len(problem.batch.targets)]
    need = MinedNeed("nearest", "exact")
    assert term.needs() == Needs(teacher_final=True, output_rows=True, shared=True, mined=need)
    assert not term.needs().same_tokens


@pytest.mark.parametrize(("count", "told"), [(0, "no token"), (1, "1 token")])
def test_vocabularies_without_common_tokens_are_refused(count, told):
    problem = aligned(TwoTokenizers())
    with pytest.raises(UsageError, match=f"`mined`: the two vocabularies have {told} in common"):
        problem.begun(build({"mined": {}}, problem.setting(shared=SHARED[:count]), "objectives")["mined"])


@pytest.mark.parametrize(
    "options", [{"divergence": "rkl"}, {"divergence": "akl"}, {"skew": 0.2}, {"temperature": 0}, {"vocabulary": "all"}]
)
def test_options_that_are_refused(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        term_of(aligned(TwoTokenizers()), **options)


def test_no_matrix_of_all_logits(largest_tensor, monkeypatch):
    """Some rows at a time, whatever their number, on either side."""
    generator = torch.Generator().manual_seed(0)
    rows, vocabulary = 512, 1024
    monkeypatch.setattr(head_module, "LOGITS_AT_ONCE", 2**16)
    problem = TwoTokenizers(dtype=torch.float32)
    head = problem.head
    wide = torch.randn(vocabulary, STUDENT, generator=generator)
    head.weight, head.bias = torch.nn.Parameter(wide), None
    teacher = replace(problem.teacher_head, weight=wide[:, :STUDENT], bias=None)
    states = torch.randn(rows, STUDENT, generator=generator)
    targets = MinedTargets(
        following=torch.zeros(rows, dtype=torch.int64),
        teacher=SharedRows(torch.arange(vocabulary), teacher),
        aligned=PositionSpans.single(torch.arange(0, rows, 2)),
        final=states[::2].detach(),
        temperature=2.0,
        rule=term_of(aligned(TwoTokenizers())).config.rule,
    )
    work = MinedDivergences(states.requires_grad_(), targets, 1.0)
    with largest_tensor:
        head(states, None, [work])[0].backward()
    assert largest_tensor.elements < 2 * 2**16 < rows * vocabulary
