"""Losses on logits against plain float64 loops over tokens and vocabulary, written from the equations."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import UsageError
from schemas.training import PairConfig
from trainer.objectives.base import Logits, Needs, Setting
from trainer.objectives.cross_entropy import CrossEntropy
from trainer.objectives.divergence import (
    ForwardKL,
    ReverseKL,
    SkewedForwardKL,
    SkewedReverseKL,
    divergence,
    forward_kl,
    reverse_kl,
    skewed_forward_kl,
    skewed_reverse_kl,
)
from trainer.objectives.fdd import FeatureDynamics

ROUNDING = 2.0**-24
PAIRS = tuple(PairConfig(student=s, teacher=t, granularity="chunks") for s, t in ((2, 4), (3, 6), (4, 8)))
DIVERGENCES = {"fkl": ForwardKL, "rkl": ReverseKL, "sfkl": SkewedForwardKL, "srkl": SkewedReverseKL}


def term(kind, pairs=PAIRS, **options):
    return kind(kind.options.parse(options, "test"), Setting(pairs, student_size=8, teacher_size=8))


def normal(*shape, seed=0, scale=2.0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(scale).to(dtype)


# The equations, one number at a time. Distributions are lists of probabilities.


def softmax(row, temperature=1.0):
    top = max(row)
    powers = [math.exp((x - top) / temperature) for x in row]
    total = math.fsum(powers)
    return [x / total for x in powers]


def kl(a, b):
    return math.fsum(x * math.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)


def mix(share, a, b):
    return [share * x + (1 - share) * y for x, y in zip(a, b, strict=True)]


EQUATIONS = {
    "fkl": lambda p, q, _skew: kl(p, q),
    "rkl": lambda p, q, _skew: kl(q, p),
    "sfkl": lambda p, q, skew: kl(p, mix(skew, p, q)),
    "srkl": lambda p, q, skew: kl(q, mix(1 - skew, p, q)),
}


def slow(name, student, teacher, temperature=1.0, skew=0.1):
    size = min(student.shape[1], teacher.shape[1])
    return torch.tensor(
        [
            EQUATIONS[name](softmax(t[:size], temperature), softmax(s[:size], temperature), skew)
            for s, t in zip(student.tolist(), teacher.tolist(), strict=True)
        ],
        dtype=torch.float64,
    )


def slow_topk(name, student, indices, logprobs, skew=0.1):
    """Events: the k tokens, and all others as one."""
    found = []
    for row, kept, log_p in zip(student.tolist(), indices.tolist(), logprobs.tolist(), strict=True):
        everything = softmax(row)
        p = [math.exp(x) for x in log_p]
        q = [everything[token] for token in kept]
        if len(kept) < len(row):
            p.append(1 - math.fsum(p))
            q.append(math.fsum(x for token, x in enumerate(everything) if token not in kept))
        found.append(EQUATIONS[name](p, q, skew))
    return torch.tensor(found, dtype=torch.float64)


def slow_fdd(inner, teacher_inner, temperature, trajectory):
    """`inner`, `teacher_inner`: a matrix of logits for each pair of layers, lowest first."""
    found = []
    for position in range(len(inner[0])):
        students = [each[position].tolist() for each in inner]
        teachers = [each[position].tolist() for each in teacher_inner]
        first = math.fsum(
            kl(softmax(t, temperature), softmax(s, temperature)) for s, t in zip(students, teachers, strict=True)
        )
        second = []
        for layer in range(len(students) - 1):
            turn = []
            for side in (students, teachers):
                before, after = softmax(side[layer]), softmax(side[layer + 1])
                turn.append([math.log(y) - math.log(x) for x, y in zip(before, after, strict=True)])
            dot, left, right = (
                math.fsum(x * y for x, y in zip(a, b, strict=True))
                for a, b in ((turn[0], turn[1]), (turn[0], turn[0]), (turn[1], turn[1]))
            )
            second.append(1 - dot / math.sqrt(left * right))
        found.append(first / len(students) + (trajectory * math.fsum(second) / len(second) if second else 0))
    return torch.tensor(found, dtype=torch.float64)


def nothing(positions):
    return torch.zeros(positions, dtype=torch.int64)


def logits_of(student, teacher=None, **values):
    return Logits(student, values.pop("targets", nothing(len(student))), values.pop("inner", {}), teacher, **values)


def best(teacher, k):
    logprobs, indices = teacher.log_softmax(1).topk(k, dim=1)
    return {"topk_indices": indices, "topk_logprobs": logprobs}


def assert_derivative(function, at):
    """Finite differences in float64."""
    assert torch.autograd.gradcheck(function, (at.clone().requires_grad_(),), eps=1e-6, atol=1e-8, rtol=1e-6)


@st.composite
def problems(draw):
    """Logits of both sides, float64, in sizes and spreads of every kind."""
    positions, size, teacher_size = draw(st.integers(1, 4)), draw(st.integers(2, 12)), draw(st.integers(2, 12))
    seed, scale = draw(st.integers(0, 2**20)), draw(st.sampled_from([0.01, 1.0, 8.0]))
    return normal(positions, size, seed=seed, scale=scale), normal(positions, teacher_size, seed=seed + 1, scale=scale)


@settings(max_examples=40)
@given(problems(), st.sampled_from([1.0, 2.0, 0.5]), st.sampled_from([0.1, 0.5, 0.99]))
def test_divergences_are_their_equations(problem, temperature, skew):
    student, teacher = problem
    for name, kind in DIVERGENCES.items():
        skewed = {"skew": skew} if name.startswith("s") else {}
        objective = term(kind, temperature=temperature, **skewed)
        expected = slow(name, student, teacher, temperature, skew)
        found = objective.per_token(logits_of(student, teacher))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
        # float32: a log-probability is off by some roundings of the largest logit and of log V, a ratio by two of them
        largest = float(max(student.abs().max(), teacher.abs().max())) / temperature
        bound = 16 * ROUNDING * (largest + math.log(12) + 1)
        single = objective.per_token(logits_of(student.float(), teacher.float()))
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), expected, rtol=bound, atol=bound)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("size", "teacher_size"), [(9, 9), (9, 11), (11, 9)])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_derivatives_of_divergences(name, size, teacher_size, temperature):
    objective, teacher = term(DIVERGENCES[name], temperature=temperature), normal(3, teacher_size, seed=1)
    assert_derivative(lambda x: objective.per_token(logits_of(x, teacher)), normal(3, size))


@pytest.mark.parametrize(
    "rule",
    [forward_kl, reverse_kl, partial(skewed_forward_kl, skew=0.1), partial(skewed_reverse_kl, skew=0.1)],
    ids=list(DIVERGENCES),
)
def test_derivatives_by_log_probabilities(rule):
    """Each by itself, which a softmax behind them would partly hide."""
    log_p = normal(3, 9, seed=1).log_softmax(1)
    assert_derivative(lambda x: divergence(x, log_p, rule), normal(3, 9).log_softmax(1))


@pytest.mark.parametrize("k", [1, 3, 8, 9])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_topk_is_its_equation(name, k):
    student, teacher = normal(4, 9), normal(4, 9, seed=1)
    objective, kept = term(DIVERGENCES[name], source="topk"), best(teacher, k)
    expected = slow_topk(name, student, kept["topk_indices"], kept["topk_logprobs"])
    torch.testing.assert_close(objective.per_token(logits_of(student, **kept)), expected, rtol=1e-10, atol=1e-14)
    assert_derivative(lambda x: objective.per_token(logits_of(x, **kept)), student)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_all_of_topk_is_the_exact_divergence(name):
    student, teacher = normal(4, 9), normal(4, 9, seed=1)
    exact = term(DIVERGENCES[name]).per_token(logits_of(student, teacher))
    found = term(DIVERGENCES[name], source="topk").per_token(logits_of(student, **best(teacher, 9)))
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("over", [0.0, 1e-3])
def test_topk_that_leaves_nothing_or_less_is_finite(name, over):
    """As float16 rounds: the kept tokens alone add up to 1, or more. Then they are scaled to 1."""
    p = torch.tensor([[0.75, 0.25]]) + over
    student = normal(1, 6, dtype=torch.float32).requires_grad_()
    kept = {"topk_indices": torch.tensor([[4, 1]]), "topk_logprobs": p.log()}
    found = term(DIVERGENCES[name], source="topk").per_token(logits_of(student, **kept))
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert gradient.isfinite().all()
    # what is left is the least that float32 can tell from nothing, 2^-23
    left = torch.tensor([[math.log(2.0**-23)]])
    scaled = torch.cat([p.log(), left], 1).double().log_softmax(1)[:, :2]
    expected = slow_topk(name, student.detach().double(), kept["topk_indices"], scaled)
    torch.testing.assert_close(found.detach().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_topk_of_a_token_that_the_student_lacks(name):
    """It is left out, and the teacher's others share its probability."""
    student = normal(1, 5).requires_grad_()
    found = term(DIVERGENCES[name], source="topk").per_token(
        logits_of(
            student,
            topk_indices=torch.tensor([[7, 2, 0]]),
            topk_logprobs=torch.tensor([[0.5, 0.25, 0.125]], dtype=torch.float64).log(),
        )
    )
    kept = torch.tensor([[2, 0]]), torch.tensor([[0.5, 0.25]], dtype=torch.float64).log()
    torch.testing.assert_close(found.detach(), slow_topk(name, student.detach(), *kept), rtol=1e-10, atol=1e-14)
    assert torch.autograd.grad(found.sum(), student)[0].isfinite().all()


@pytest.mark.parametrize("source", ["final", "topk"])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_extreme_logits_are_finite(name, source):
    student = torch.tensor([[1e4, -1e4, 0, 0], [-1e4, 1e4, 0, 0], [1e4, 1e4, -1e4, -1e4], [0, 0, 0, 0.0]])
    teacher = torch.tensor([[-1e4, 1e4, 0, 0], [-1e4, 1e4, 0, 0], [-1e4, -1e4, 1e4, 1e4], [1e4, 0, 0, -1e4]])
    student.requires_grad_()
    found = term(DIVERGENCES[name], source=source).per_token(logits_of(student, teacher, **best(teacher, 2)))
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert found.isfinite().all()
    assert gradient.isfinite().all()
    # the others' probability counts as 2^-23 at least, and their logarithm is off by as much as 1e4
    assert float(found[1].detach()) == pytest.approx(0, abs=1e4 * 2.0**-23 if source == "topk" else 1e-30)
    if name.startswith("s"):
        torch.testing.assert_close(found[2].detach(), torch.tensor(math.log(10)), rtol=1e-5, atol=0)
    elif source == "final":
        assert float(found[2].detach()) == pytest.approx(2e4, rel=1e-4)


@pytest.mark.parametrize("name", ["fkl", "sfkl", "srkl"])
def test_tokens_that_the_teacher_masks(name):
    student, teacher = normal(3, 7), normal(3, 7, seed=1)
    teacher[:, 2] = -math.inf
    objective = term(DIVERGENCES[name])
    found = objective.per_token(logits_of(student, teacher))
    torch.testing.assert_close(found, slow(name, student, teacher), rtol=1e-10, atol=1e-14)
    assert_derivative(lambda x: objective.per_token(logits_of(x, teacher)), student)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_student_like_its_teacher_has_nothing_to_learn(name):
    student = normal(3, 50, dtype=torch.float32).requires_grad_()
    found = term(DIVERGENCES[name]).per_token(logits_of(student, student.detach().clone()))
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert float(found.detach().abs().max()) < 16 * ROUNDING
    assert float(gradient.abs().max()) < 16 * ROUNDING


def test_second_derivatives_are_refused():
    student = normal(2, 5).requires_grad_()
    found = term(SkewedReverseKL).per_token(logits_of(student, normal(2, 5, seed=1)))
    with pytest.raises(RuntimeError, match="differentiated only once"):
        torch.autograd.grad(found.sum(), student, create_graph=True)


def test_cross_entropy_is_its_equation():
    student, targets = normal(5, 9), torch.tensor([0, 8, 3, 3, 1])
    objective = term(CrossEntropy)
    expected = [-math.log(softmax(row)[target]) for row, target in zip(student.tolist(), targets.tolist(), strict=True)]
    found = objective.per_token(logits_of(student, targets=targets))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    assert_derivative(lambda x: objective.per_token(logits_of(x, targets=targets)), student)
    assert objective.needs() == Needs()


def layered(inner, teacher_inner):
    return logits_of(inner[0], inner=dict(zip((2, 3, 4), inner, strict=False)), teacher_inner=teacher_inner)


@pytest.mark.parametrize("size", [7, 9, 11])  # of the student's vocabulary; the teacher's is 9
@pytest.mark.parametrize("count", [1, 2, 3])
def test_fdd_is_its_equation(count, size):
    inner, teacher_inner = normal(count, 4, size), normal(count, 4, 9, seed=1)
    layers = [pair.model_dump() for pair in (*PAIRS[1:count], PAIRS[0])]  # in whatever order
    objective = term(FeatureDynamics, layers=layers, temperature=3, trajectory=0.7)
    teachers = {4 + 2 * place: each for place, each in enumerate(teacher_inner)}
    cut = min(size, 9)
    expected = slow_fdd(inner[..., :cut], teacher_inner[..., :cut], 3, 0.7)
    found = objective.per_token(layered(inner, teachers))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
    assert_derivative(lambda x: objective.per_token(layered(x, teachers)), inner)


def test_fdd_asks_for_its_layers():
    objective = term(FeatureDynamics)
    assert objective.config.temperature == 2
    assert objective.config.trajectory == 1
    assert objective.student_layers() == (2, 3, 4)
    assert objective.needs() == Needs({layer: frozenset({"position_states"}) for layer in (4, 6, 8)}, final=True)
    few = term(FeatureDynamics, layers=[PAIRS[1].model_dump()])
    assert few.student_layers() == (3,)
    assert set(few.needs().layers) == {6}


def test_fdd_of_equal_layers_is_finite():
    """Where layers do not differ there is no direction."""
    inner, teachers = normal(1, 4, 9, dtype=torch.float32).expand(3, 4, 9).clone(), normal(3, 4, 9, dtype=torch.float32)
    inner.requires_grad_()
    found = term(FeatureDynamics).per_token(layered(inner, dict(zip((4, 6, 8), teachers, strict=True))))
    (gradient,) = torch.autograd.grad(found.sum(), inner)
    assert found.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences_ask_for_their_source(name):
    assert term(DIVERGENCES[name]).needs() == Needs(final=True)
    assert term(DIVERGENCES[name], source="topk").needs() == Needs(topk=True)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (ForwardKL, {"skew": 0.1}, "unknown key `skew`"),
        (ForwardKL, {"source": "topk", "temperature": 2}, "take `source: final`"),
        (SkewedReverseKL, {"skew": 0}, "`skew`: input should be greater than 0"),
        (SkewedReverseKL, {"skew": 1}, "`skew`: input should be less than 1"),
        (ReverseKL, {"temperature": 0}, "`temperature`"),
        (FeatureDynamics, {"layers": []}, "`layers`"),
    ],
)
def test_options_that_make_no_sense(kind, options, message):
    with pytest.raises(UsageError, match=message):
        kind.options.parse(options, "test")
