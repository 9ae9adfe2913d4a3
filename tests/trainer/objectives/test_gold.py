"""GOLD against plain loops in float64, written from the equation; its oracles, and what learns from it."""

import math
from dataclasses import replace

import pytest
import torch

from schemas.errors import UsageError
from trainer.batches.batch import Chunks
from trainer.maths.ragged import pointers
from trainer.objectives import build
from trainer.objectives.base import Needs
from trainer.objectives.chunks import ChunkBatch, Merged
from trainer.objectives.gold import Columns, Events, GoldOptions
from two_tokenizers import (
    DOCUMENTS,
    SHARED,
    STUDENT_VOCABULARY,
    TEACHER_VOCABULARY,
    TwoTokenizers,
    chunk_distributions,
    chunked,
)

#: Of one token on a side, and with sides that have nothing to learn.
VARIOUS = (*DOCUMENTS, ((2, 3), (1, 0)), ((2, 0), (1, 3)), ((2, 3), (1, 1)))
SPELLED = [{}, {"soft_cap": 3.0, "scale": 0.7}]


def term_of(problem, shared=SHARED, **options):
    return problem.begun(build({"gold": options}, problem.setting(shared=shared), "objectives")["gold"])


def plain(problem, options):
    means = []
    for chunks in chunk_distributions(problem, options.merge):
        losses = [chunk_loss(*chunk, options) for chunk in chunks]
        if losses:
            means.append(sum(losses) / len(losses))
    return sum(means) / len(means)


def chunk_loss(student, teacher, options):
    mine, theirs = [], []
    for s, t in SHARED.tolist():
        mine.append(student[s])
        theirs.append(teacher[t])
    if options.rest == "event":
        mine.append(1 - sum(mine))
        theirs.append(1 - sum(theirs))
    else:
        mine, theirs = ([p.clamp_min(1e-8) for p in side] for side in (mine, theirs))
    total = 0
    for s, t in zip(mine, theirs, strict=True):
        if options.beta == 0:
            total = total + t * (t / s).log()
        elif options.beta == 1:
            total = total + s * (s / t).log()
        else:
            m = (1 - options.beta) * s + options.beta * t
            total = total + options.beta * t * (t / m).log() + (1 - options.beta) * s * (s / m).log()
    ours = [student[v] for v in range(STUDENT_VOCABULARY) if v not in SHARED[:, 0].tolist()]
    others = [teacher[v] for v in range(TEACHER_VOCABULARY) if v not in SHARED[:, 1].tolist()]
    ours, others = (sorted(side, key=lambda p: float(p.detach()), reverse=True) for side in (ours, others))
    zero = torch.zeros((), dtype=torch.float64)
    width = max(len(ours), len(others))
    ours, others = (side + [zero] * (width - len(side)) for side in (ours, others))
    k = width if options.k is None else min(options.k, width)
    unmatched = sum(abs(s - t) for s, t in zip(ours[:k], others[:k], strict=True))
    unmatched = unmatched + abs(sum(ours[k:], zero) - sum(others[k:], zero))
    return options.matched * total + options.unmatched * unmatched


@pytest.mark.parametrize("spelled", SPELLED, ids=["plain", "capped"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"merge": "observed", "beta": 1.0},
        {"beta": 0.3, "k": None},
        {"rest": "none", "beta": 0.5, "matched": 0.7, "unmatched": 0.3, "merge": "observed"},
        {"rest": "none", "k": 2},
        {"unmatched": 0.0},
        {"matched": 0.0, "k": 1},
    ],
)
def test_against_a_plain_loop(options, spelled):
    problem = chunked(TwoTokenizers(VARIOUS, **spelled))
    term = term_of(problem, **options)
    expected, loss = plain(problem, term.config), problem.value(term)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    problem.assert_same_gradients(loss, expected, term, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("merge", ["bayesian", "observed"])
def test_derivatives(merge):
    """Of the states of every position, whose own logits or scales they are."""
    problem = chunked(TwoTokenizers(VARIOUS))
    term = term_of(problem, merge=merge, beta=0.4)
    (gradient,) = torch.autograd.grad(problem.value(term), problem.hidden)
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        step = torch.randn(problem.hidden.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            above, below = (problem.value(term, hidden=problem.hidden + e * step) for e in (1e-6, -1e-6))
        assert float(above - below) / 2e-6 == pytest.approx(float((gradient * step).sum()), rel=1e-6)


def test_every_position_of_a_chunk_learns_and_no_other():
    problem = chunked(TwoTokenizers(VARIOUS))
    (gradient,) = torch.autograd.grad(problem.value(term_of(problem)), problem.hidden)
    inside = {place for a, b in problem.batch.chunks.student.tolist() for place in range(a, b)}
    assert len(inside) > len(problem.batch.chunks.student)
    learning = gradient[problem.batch.positions].any(1).nonzero().squeeze(1).tolist()
    assert learning == sorted(inside)
    assert not gradient[[n for n in range(len(gradient)) if n not in problem.batch.positions.tolist()]].any()


def test_the_student_learns_alone():
    problem = chunked(TwoTokenizers())
    term = term_of(problem)
    learning = {
        leaf for leaf, each in problem.gradients(problem.value(term), term).items() if each is not None and each.any()
    }
    assert learning == {"hidden", "head", "bias"}


@pytest.mark.parametrize(("merge", "expected"), [("bayesian", [0.03, 0.54, 0.03]), ("observed", [0.54, 0.27, 0.09])])
def test_the_oracle_of_merging(merge, expected):
    """Two positions, tokens 0 and 1 written: both ways agree on what was written."""
    p = torch.tensor([[0.6, 0.3, 0.1], [0.05, 0.9, 0.05]], dtype=torch.float64)
    written = torch.tensor([0, 1])
    side = Merged.of(torch.tensor([[0, 2]]), merge)
    scales = side.scales(p[side.others].gather(1, written[side.others, None]).squeeze(1).log())
    columns = Columns(torch.arange(3), torch.arange(0))
    for rest in ("event", "none"):
        events = Events.of(p[side.chosen].log(), scales, columns, GoldOptions(rest=rest))
        torch.testing.assert_close(events.matched[0, :3].exp(), torch.tensor(expected, dtype=torch.float64))
    whole = Events.of(p[side.chosen].log(), scales, columns, GoldOptions()).matched.exp()
    assert float(whole.sum()) == pytest.approx(1)
    assert float(whole[0, 3]) == pytest.approx(1 - sum(expected))


def test_the_oracle_of_chunks():
    """Byte ends [5, 12] and [3, 5, 12]: tokens [[0], [1]] and [[0, 1], [2]]."""
    ours, theirs = (
        Merged.of(torch.tensor([[0, 1], [1, 2]]), "bayesian"),
        Merged.of(torch.tensor([[0, 2], [2, 3]]), "bayesian"),
    )
    assert (ours.chosen.tolist(), ours.others.tolist()) == ([0, 1], [])
    assert (theirs.chosen.tolist(), theirs.others.tolist(), theirs.chunks.tolist()) == ([1, 2], [0], [0])
    late = Merged.of(torch.tensor([[0, 2], [2, 5]]), "observed")
    assert (late.chosen.tolist(), late.others.tolist(), late.chunks.tolist()) == ([0, 2], [1, 3, 4], [0, 1, 1])


def of_vocabulary(permutation):
    """A student and a teacher that say the same, whose ids differ."""
    problem = chunked(TwoTokenizers(((((2, 5)), (2, 5)), ((1, 3), (1, 3)))))
    student, teacher = problem.batch, problem.batch.teacher
    ids = permutation.argsort()
    head = problem.head
    problem.teacher_head = replace(
        problem.teacher_head,
        weight=head.weight.detach()[ids],
        bias=head.bias.detach()[ids],
        soft_cap=None,
        scale=None,
    )
    final = problem.hidden.detach()[student.positions]
    chunks = Chunks(student.chunks.student, student.chunks.student, student.chunks.rows)
    teacher = replace(teacher, final=final, targets=permutation[student.targets], logprob=None)
    problem.batch = replace(student, teacher=teacher, chunks=chunks)
    return problem


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("merge", ["bayesian", "observed"])
def test_a_student_that_says_what_the_teacher_says_is_at_no_distance_and_stays(merge, beta):
    permutation = torch.randperm(STUDENT_VOCABULARY, generator=torch.Generator().manual_seed(1))
    problem = of_vocabulary(permutation)
    pairs = torch.stack([torch.arange(STUDENT_VOCABULARY), permutation], 1)[:15]
    term = term_of(problem, pairs, merge=merge, beta=beta, unmatched=0.0)
    loss = problem.value(term)
    assert abs(float(loss.detach())) < 1e-12
    assert float(torch.autograd.grad(loss, problem.hidden)[0].abs().max()) < 1e-12
    assert abs(float(problem.value(term_of(problem, pairs, merge=merge, beta=beta)).detach())) < 1e-12


def test_without_all_else_as_an_event_it_is_no_divergence():
    """Its least is below 0, where all of the student's probability is on tokens in common."""
    student = torch.tensor([[0.8, 0.2, 1e-300]], dtype=torch.float64)
    teacher = torch.tensor([[0.4, 0.1, 0.5]], dtype=torch.float64)
    columns, none = Columns(torch.tensor([0, 1]), torch.tensor([2])), torch.zeros(1, dtype=torch.float64)
    values = {}
    for rest in ("none", "event"):
        options = GoldOptions(rest=rest)
        q, p = (Events.of(side.log(), none, columns, options).matched for side in (student, teacher))
        values[rest] = float((p.exp() * (p - q)).sum())
    assert values["none"] == pytest.approx(0.5 * math.log(0.5))
    assert values["event"] > 100


def test_log_probabilities_that_were_kept_are_taken():
    problem = chunked(TwoTokenizers(VARIOUS))
    term, batch = term_of(problem), problem.batch
    logits = problem.teacher_head.logits(batch.teacher.final)
    own = logits.log_softmax(1).gather(1, batch.teacher.targets[:, None]).squeeze(1)
    kept, other = (replace(batch, teacher=replace(batch.teacher, logprob=each.float())) for each in (own, 0 * own))
    with torch.no_grad():
        computed, of_kept, of_others = (problem.value(term, each) for each in (batch, kept, other))
    torch.testing.assert_close(of_kept, computed, rtol=1e-6, atol=0)
    assert float(of_others) != pytest.approx(float(computed), rel=1e-3)


def test_what_is_counted_and_asked_for():
    problem = chunked(TwoTokenizers(VARIOUS))
    term = term_of(problem)
    assert term.denominators(problem.batch).tolist() == [len(DOCUMENTS) + 1]
    assert term.needs() == Needs(teacher_final=True, output_matrix=True, logprob=True, chunks=True, shared=True)
    assert not term.needs().same_tokens


def test_nothing_to_compare_is_nothing():
    problem = chunked(TwoTokenizers((((2, 3), (1, 0)), ((2, 0), (1, 3)))))
    term = term_of(problem)
    loss, _ = problem.head(problem.hidden[:0], None, [term.work({4: problem.hidden}, problem.batch, 1.0)])
    assert float(loss.detach()) == 0
    assert not torch.autograd.grad(loss, problem.hidden)[0].any()


def test_without_gradient_the_value_is_the_same():
    problem = chunked(TwoTokenizers(VARIOUS))
    term = term_of(problem)
    with torch.no_grad():
        value = problem.value(term)
    torch.testing.assert_close(value, problem.value(term).detach(), rtol=0, atol=0)


def test_chunks_in_any_order():
    """Each with what it counts in its document's mean."""
    chunks = Chunks(
        torch.tensor([[0, 1], [1, 3], [4, 5], [5, 9]]), torch.tensor([[0, 2], [2, 3], [3, 4], [5, 8]]), pointers([3, 1])
    )
    some = ChunkBatch.of(chunks, "bayesian", torch.tensor([1, 3, 0]), torch.zeros(1))
    assert some.student.chosen.tolist() == [2, 8, 0]
    assert some.teacher.chosen.tolist() == [2, 7, 1]
    assert some.spans.tolist() == [[1, 3], [5, 9], [0, 1]]
    torch.testing.assert_close(some.weights, torch.tensor([1 / 3, 1, 1 / 3]))


def test_vocabularies_with_nothing_in_common_are_told_what_does_without():
    with pytest.raises(UsageError, match=r"no token in common.*`uld` with `alignment: chunks`.*--recipe uld"):
        term_of(chunked(TwoTokenizers()), torch.zeros(0, 2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"matched": 0, "unmatched": 0}, "nothing would be compared"),
        ({"beta": 1.5}, "`beta`"),
        ({"k": 0}, "`k`"),
        ({"merge": "first"}, "`merge`"),
        ({"rest": "all"}, "`rest`"),
    ],
)
def test_options_that_mean_nothing(options, message):
    with pytest.raises(UsageError, match=message):
        term_of(chunked(TwoTokenizers()), **options)
