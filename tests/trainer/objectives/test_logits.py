"""Losses on logits against plain float64 loops over tokens and vocabulary, written from the equations."""

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import UsageError
from schemas.training import PairConfig
from trainer.maths.divergence import SKEWS, adaptive_kl, divergence, in_head, rule_of
from trainer.objectives.base import Logits, Needs, NormedLayers, Setting
from trainer.objectives.cross_entropy import CrossEntropy
from trainer.objectives.divergence import (
    AdaptiveKL,
    ForwardKL,
    JensenShannon,
    ReverseKL,
    SkewedForwardKL,
    SkewedReverseKL,
    TotalVariation,
)
from trainer.objectives.fdd import FeatureDynamics

ROUNDING = 2.0**-24
PAIRS = tuple(PairConfig(student=s, teacher=t, granularity="chunks") for s, t in ((2, 4), (3, 6), (4, 8)))
DIVERGENCES = {
    "fkl": ForwardKL,
    "rkl": ReverseKL,
    "sfkl": SkewedForwardKL,
    "srkl": SkewedReverseKL,
    "akl": AdaptiveKL,
    "js": JensenShannon,
    "tvd": TotalVariation,
}


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


def forward_share(p, q, rest):
    """g_h / (g_h + g_t) of `akl`: the tail are the least likely events with half of the probability at most; `rest`: whether the
    last event is all others together, each of them less likely than any of those before."""
    rising = sorted(range(len(p) - rest), key=lambda event: p[event])
    gaps, tail = [abs(x - y) for x, y in zip(p, q, strict=True)], []
    for event in ([len(p) - 1] if rest else []) + rising:
        if math.fsum(p[other] for other in [*tail, event]) > 0.5:
            break
        tail.append(event)
    whole = math.fsum(gaps)
    return 1 - math.fsum(gaps[event] for event in tail) / whole if whole else 1.0


def adaptive(p, q, rest):
    share = forward_share(p, q, rest)
    return share * kl(p, q) + (1 - share) * kl(q, p)


def jensen_shannon(p, q, skew):
    mixture = mix(skew, p, q)
    return skew * kl(p, mixture) + (1 - skew) * kl(q, mixture)


EQUATIONS = {  # of p, q, λ, and whether the last event is the rest
    "fkl": lambda p, q, _skew, _rest: kl(p, q),
    "rkl": lambda p, q, _skew, _rest: kl(q, p),
    "sfkl": lambda p, q, skew, _rest: kl(p, mix(skew, p, q)),
    "srkl": lambda p, q, skew, _rest: kl(q, mix(1 - skew, p, q)),
    "akl": lambda p, q, _skew, rest: adaptive(p, q, rest),
    "js": lambda p, q, skew, _rest: jensen_shannon(p, q, skew),
    "tvd": lambda p, q, _skew, _rest: math.fsum(abs(x - y) for x, y in zip(p, q, strict=True)) / 2,
}


def slow(name, student, teacher, temperature=1.0, skew=None):
    size = min(student.shape[1], teacher.shape[1])
    skew = SKEWS.get(name) if skew is None else skew
    return torch.tensor(
        [
            EQUATIONS[name](softmax(t[:size], temperature), softmax(s[:size], temperature), skew, False)
            for s, t in zip(student.tolist(), teacher.tolist(), strict=True)
        ],
        dtype=torch.float64,
    )


def events(student, indices, logprobs):
    """p and q at each position, of the k tokens and all others as one event; and whether there are others."""
    for row, kept, log_p in zip(student.tolist(), indices.tolist(), logprobs.tolist(), strict=True):
        everything = softmax(row)
        p = [math.exp(x) for x in log_p]
        q = [everything[token] for token in kept]
        rest = len(kept) < len(row)
        if rest:
            p.append(1 - math.fsum(p))
            q.append(math.fsum(x for token, x in enumerate(everything) if token not in kept))
        yield p, q, rest


def slow_topk(name, student, indices, logprobs):
    values = [EQUATIONS[name](p, q, SKEWS.get(name), rest) for p, q, rest in events(student, indices, logprobs)]
    return torch.tensor(values, dtype=torch.float64)


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


def assert_derivative_of(name, function, at, shares):
    """Of `function(name)`. What `akl` takes for constants, `shares`, finite differences do not: they are of its two parts."""
    if name != "akl":
        assert_derivative(function(name), at)
        return
    x = at.clone().requires_grad_()
    expected = shares @ function("fkl")(x) + (1 - shares) @ function("rkl")(x)
    found = [torch.autograd.grad(value, x)[0] for value in (function("akl")(x).sum(), expected)]
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-14)


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
        skewed = {"skew": skew} if name in SKEWS else {}
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
    student, teacher, cut = normal(3, size), normal(3, teacher_size, seed=1), min(size, teacher_size)
    shares = [
        forward_share(softmax(p[:cut], temperature), softmax(q[:cut], temperature), False)
        for p, q in zip(teacher.tolist(), student.tolist(), strict=True)
    ]

    def function(name):
        objective = term(DIVERGENCES[name], temperature=temperature)
        return lambda x: objective.per_token(logits_of(x, teacher))

    assert_derivative_of(name, function, student, torch.tensor(shares, dtype=torch.float64))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_derivatives_by_log_probabilities(name):
    """Each by itself, which a softmax behind them would partly hide."""
    log_p, log_q = normal(3, 9, seed=1).log_softmax(1), normal(3, 9).log_softmax(1)
    shares = [forward_share(p, q, False) for p, q in zip(log_p.exp().tolist(), log_q.exp().tolist(), strict=True)]
    assert_derivative_of(
        name,
        lambda name: lambda x: divergence(x, log_p, rule_of(name)),
        log_q,
        torch.tensor(shares, dtype=torch.float64),
    )


def test_divergences_of_the_oracle():
    p, q = torch.tensor([[0.6, 0.3, 0.1]]), torch.tensor([[0.2, 0.5, 0.3]])
    expected = {"fkl": 0.396058, "rkl": 0.365274, "akl": 0.380666, "js": 0.091121, "tvd": 0.4}
    for name, value in expected.items():
        assert float(divergence(q.log(), p.log(), rule_of(name))) == pytest.approx(value, abs=1e-6)
    # DistiLLM's: 0.9 KL(q ‖ m) + 0.1 KL(p ‖ m), m = 0.1p + 0.9q
    m = [0.24, 0.48, 0.28]
    skewed = 0.9 * kl([0.2, 0.5, 0.3], m) + 0.1 * kl([0.6, 0.3, 0.1], m)
    assert float(divergence(q.log(), p.log(), rule_of("js", 0.1))) == pytest.approx(skewed, abs=1e-6)


def test_akl_of_equally_likely_tokens_is_its_mean_over_their_orders():
    p, q = [0.3, 0.3, 0.3, 0.1], [0.1, 0.5, 0.15, 0.25]
    orders = [
        forward_share([x + 1e-9 * order.index(event) for event, x in enumerate(p)], q, False)
        for order in permutations(range(4))
    ]
    share = math.fsum(orders) / len(orders)
    found, _ = adaptive_kl(*(torch.tensor([each], dtype=torch.float64).log() for each in (q, p)))
    assert float(found) == pytest.approx(share * kl(p, q) + (1 - share) * kl(q, p), rel=1e-6)
    assert max(orders) - min(orders) > 0.05


def test_a_head_of_many_tokens():
    """Of a row without likely tokens beside one with a single one: as a sort finds it."""
    p = torch.cat([normal(3, 1000, scale=0.1), normal(3, 1000, scale=8.0, seed=1)]).softmax(1)
    order = p.sort(1, descending=True)
    before = order.values.cumsum(1) - order.values
    expected = torch.zeros_like(p).scatter(1, order.indices, (before < 0.5).to(p))
    assert torch.equal(in_head(p), expected)
    assert expected.sum(1).min() < 10
    assert expected.sum(1).max() > 400


@pytest.mark.parametrize("k", [1, 3, 8, 9])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_topk_is_its_equation(name, k):
    student, teacher = normal(4, 9), normal(4, 9, seed=1)
    kept = best(teacher, k)

    def function(name):
        objective = term(DIVERGENCES[name], source="topk")
        return lambda x: objective.per_token(logits_of(x, **kept))

    expected = slow_topk(name, student, kept["topk_indices"], kept["topk_logprobs"])
    torch.testing.assert_close(function(name)(student), expected, rtol=1e-10, atol=1e-14)
    shares = [forward_share(*of_row) for of_row in events(student, kept["topk_indices"], kept["topk_logprobs"])]
    assert_derivative_of(name, function, student, torch.tensor(shares, dtype=torch.float64))


def test_akl_of_topk_has_the_head_of_all_tokens():
    """The rest is likelier than some of the k, but each of its tokens is not."""
    teacher = torch.tensor([[0.35, 0.2, 0.05, 0.04, *[0.036] * 10]], dtype=torch.float64).log()
    student = normal(1, 14)
    p, q = teacher[0].exp().tolist(), softmax(student[0].tolist())
    gaps = [abs(x - y) for x, y in zip(p, q, strict=True)]
    rest = abs(math.fsum(p[4:]) - math.fsum(q[4:]))
    assert forward_share(p, q, False) == pytest.approx(sum(gaps[:2]) / sum(gaps), rel=1e-12)
    share = sum(gaps[:2]) / (sum(gaps[:4]) + rest)
    assert next(forward_share(*each) for each in events(student, *best(teacher, 4).values())) == pytest.approx(share)
    found = term(AdaptiveKL, source="topk").per_token(logits_of(student, **best(teacher, 4)))
    parts = [slow_topk(name, student, *best(teacher, 4).values()) for name in ("fkl", "rkl")]
    torch.testing.assert_close(found, share * parts[0] + (1 - share) * parts[1], rtol=1e-10, atol=0)


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
            topk_logprobs=torch.tensor([[0.5, 0.3, 0.1]], dtype=torch.float64).log(),
        )
    )
    kept = torch.tensor([[2, 0]]), torch.tensor([[0.6, 0.2]], dtype=torch.float64).log()
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
    bounds = {"sfkl": math.log(10), "srkl": math.log(10), "js": math.log(2), "tvd": 1.0}
    if name in bounds:
        torch.testing.assert_close(found[2].detach(), torch.tensor(bounds[name]), rtol=1e-5, atol=0)
    elif source == "final":
        assert float(found[2].detach()) == pytest.approx(2e4, rel=1e-4)


@pytest.mark.parametrize("name", ["fkl", "sfkl", "srkl", "js", "tvd"])
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


def test_mixtures_of_the_oracle():
    """p = [.5, .5], q = [.9, .1]."""
    log_p, log_q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    assert float(divergence(log_q, log_p, rule_of("sfkl", 0.1))) == pytest.approx(0.365321, abs=1e-6)
    assert float(divergence(log_q, log_p, rule_of("srkl", 0.1))) == pytest.approx(0.307137, abs=1e-6)


@pytest.mark.parametrize("source", ["final", "topk"])
def test_a_mixture_that_is_a_constant(source):
    """The same value; by a logit q (ln(q/m) − L), as finite differences have it of KL(q ‖ m) where m stays as it is."""
    student, teacher = normal(3, 6).requires_grad_(), normal(3, 6, seed=1)
    logits = logits_of(student, teacher, **best(teacher, 6))
    found, whole = (
        term(SkewedReverseKL, source=source, detach_mixture=wanted).per_token(logits) for wanted in (True, False)
    )
    assert torch.equal(found, whole)
    (gradient,) = torch.autograd.grad(found.sum(), student, retain_graph=True)
    for row, (s, t) in enumerate(zip(student.tolist(), teacher.tolist(), strict=True)):
        p, q = softmax(t), softmax(s)
        m = mix(0.9, p, q)
        expected = [x * (math.log(x / y) - kl(q, m)) for x, y in zip(q, m, strict=True)]
        assert gradient[row].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-14)
        for token in range(6):
            moved = [softmax([x + way * (each == token) for each, x in enumerate(s)]) for way in (1e-5, -1e-5)]
            slope = (kl(moved[0], m) - kl(moved[1], m)) / 2e-5
            assert float(gradient[row, token]) == pytest.approx(slope, rel=1e-6, abs=1e-9)
    assert not torch.allclose(gradient, torch.autograd.grad(whole.sum(), student)[0], rtol=1e-3)


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


@pytest.mark.parametrize("deepest", [False, True], ids=["inner", "and the last"])
def test_fdd_takes_inner_layers_behind_the_norm(deepest):
    """Those of a last layer have been there."""
    layers = {"student_last": (4, 8), "teacher_last": (8, 8)} if deepest else {}
    objective = FeatureDynamics(
        FeatureDynamics.options.parse({"norm": True}, "test"), Setting(PAIRS, student_size=8, teacher_size=8, **layers)
    )
    plain, teacher_plain = normal(3, 4, 9), normal(3, 4, 9, seed=1)
    normed, teacher_normed = normal(3, 4, 9, seed=2), normal(3, 4, 9, seed=3)
    inner = 2 if deepest else 3
    assert objective.normed == NormedLayers(frozenset((2, 3, 4)[:inner]), frozenset((4, 6, 8)[:inner]))
    assert objective.needs().norm
    expected = slow_fdd([*normed[:inner], *plain[inner:]], [*teacher_normed[:inner], *teacher_plain[inner:]], 2, 1)
    found = objective.per_token(
        logits_of(
            plain[0],
            inner=dict(zip((2, 3, 4), plain, strict=True)),
            teacher_inner=dict(zip((4, 6, 8), teacher_plain, strict=True)),
            normed=dict(zip((2, 3, 4), normed, strict=True)),
            teacher_normed=dict(zip((4, 6, 8), teacher_normed, strict=True)),
        )
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_fdd_of_last_layers_needs_no_norm():
    setting = Setting(PAIRS[2:], 8, 8, student_last=(4, 8), teacher_last=(8, 8))
    assert not FeatureDynamics(FeatureDynamics.options.parse({"norm": True}, "test"), setting).needs().norm


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
        (SkewedForwardKL, {"detach_mixture": True}, "unknown key `detach_mixture`"),
        (SkewedReverseKL, {"skew": 1}, "`skew`: input should be less than 1"),
        (ReverseKL, {"temperature": 0}, "`temperature`"),
        (AdaptiveKL, {"skew": 0.1}, "unknown key `skew`"),
        (JensenShannon, {"skew": 1.5}, "`skew`: input should be less than 1"),
        (TotalVariation, {"source": "topk", "temperature": 2}, "take `source: final`"),
        (FeatureDynamics, {"layers": []}, "`layers`"),
    ],
)
def test_options_that_make_no_sense(kind, options, message):
    with pytest.raises(UsageError, match=message):
        kind.options.parse(options, "test")
