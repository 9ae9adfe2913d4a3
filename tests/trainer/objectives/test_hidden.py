"""Hidden alignment against plain loops over its equation, by finite differences, on ragged and degenerate batches."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import UsageError
from schemas.training import PairConfig
from trainer.batches.batch import Batch, LayerTargets
from trainer.maths.ragged import pointers
from trainer.objectives.base import Setting
from trainer.objectives.hidden import HiddenAlignment, HiddenOptions

STUDENT, TEACHER = 4, 6  # hidden sizes
PAIRS = (
    PairConfig(student=1, teacher=3, granularity="words"),
    PairConfig(student=4, teacher=8, granularity="chunks"),
)
LEVELS = ["token", "unit"]


@dataclass
class Document:
    hidden: torch.Tensor  # [tokens, STUDENT] float64
    spans: list[tuple[int, int]]
    weights: list[float]  # ω
    units: torch.Tensor  # [units, TEACHER], the teacher's
    covered: list[int]  # tokens that some unit covers
    states: torch.Tensor  # [covered, TEACHER], the teacher's
    state_weights: list[float]


def document(tokens, spans, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    covered = sorted({token for start, end in spans for token in range(start, end)})
    omega, of_tokens = random(len(spans)).abs() + 0.05, random(tokens).abs() + 0.05
    return Document(
        hidden=random(tokens, STUDENT),
        spans=spans,
        weights=(omega / omega.sum()).tolist(),
        units=random(len(spans), TEACHER),
        covered=covered,
        states=random(len(covered), TEACHER),
        state_weights=(of_tokens / of_tokens.sum())[covered].tolist(),
    )


#: Nested and crossing spans, uncovered tokens; one unit; none; one token; no token at all.
DOCUMENTS = [
    document(7, [(0, 5), (1, 3), (2, 6)], seed=1),
    document(3, [(1, 2)], seed=2),
    document(2, [], seed=3),
    document(1, [(0, 1)], seed=4),
    document(0, [], seed=5),
]


@st.composite
def documents(draw):
    made = []
    for _ in range(draw(st.integers(0, 4))):
        tokens = draw(st.sampled_from([0, 1, 2, 3, 6, 9]))
        edge = st.tuples(st.integers(0, max(tokens - 1, 0)), st.integers(1, 4))
        edges = draw(st.lists(edge, max_size=5 if tokens else 0))
        spans = [(start, min(start + length, tokens)) for start, length in edges]
        made.append(document(tokens, spans, seed=draw(st.integers(0, 2**16))))
    return made


def vectors(rows, width):
    return torch.cat([torch.empty(0, width, dtype=torch.float64), *rows])


def targets_of(documents):
    token_rows = pointers([len(each.hidden) for each in documents]).tolist()
    spans = [
        [start + first, end + first]
        for each, first in zip(documents, token_rows, strict=False)
        for start, end in each.spans
    ]
    index = [token + first for each, first in zip(documents, token_rows, strict=False) for token in each.covered]
    return LayerTargets(
        spans=torch.tensor(spans, dtype=torch.int64).reshape(-1, 2),
        rows=pointers([len(each.spans) for each in documents]),
        weights=torch.tensor([weight for each in documents for weight in each.weights], dtype=torch.float64),
        units=vectors([each.units for each in documents], TEACHER),
        states=vectors([each.states for each in documents], TEACHER),
        state_index=torch.tensor(index, dtype=torch.int64),
        state_weights=torch.tensor([w for each in documents for w in each.state_weights], dtype=torch.float64),
    )


def batch_of(documents):
    rows = pointers([len(each.hidden) for each in documents])
    nothing, targets = torch.empty(0, dtype=torch.int64), targets_of(documents)
    ids = torch.zeros(int(rows[-1]), dtype=torch.int64)
    return Batch(
        torch.arange(len(documents)), ids, rows, nothing, torch.zeros_like(rows), nothing, {3: targets, 8: targets}
    )


def states_of(documents, dtype=torch.float64):
    """The upper layer is another one than the lower."""
    hidden = vectors([each.hidden for each in documents], STUDENT)
    return {layer: each.to(dtype).requires_grad_() for layer, each in ((1, hidden), (4, hidden.sin()))}


def term(dtype=torch.float64, student_weights="uniform", **options):
    torch.manual_seed(0)
    setting = Setting(PAIRS, STUDENT, TEACHER, student_weights)
    return HiddenAlignment(HiddenOptions.parse(options, "objectives.hidden"), setting).to(dtype)


def by_hand(documents, projector, level, upper):
    """Numerator and denominator of one layer, in Python floats."""
    matrix = projector.weight.tolist()
    bias = [0.0] * TEACHER if projector.bias is None else projector.bias.tolist()
    above = below = 0.0
    for each in documents:
        hidden = (each.hidden.sin() if upper else each.hidden).tolist()
        if level == "token":
            sides = [(hidden[token], *at) for token, *at in zip(each.covered, each.states.tolist(), strict=True)]
            weights = each.state_weights
        else:
            # uniform weights: a unit is the mean of its tokens
            means = [
                [sum(x) / (end - start) for x in zip(*hidden[start:end], strict=True)] for start, end in each.spans
            ]
            sides, weights = list(zip(means, each.units.tolist(), strict=True)), each.weights
        for (ours, theirs), weight in zip(sides, weights, strict=True):
            mapped = [
                sum(w * x for w, x in zip(row, ours, strict=True)) + b for row, b in zip(matrix, bias, strict=True)
            ]
            dot = sum(x * y for x, y in zip(mapped, theirs, strict=True))
            norms = math.sqrt(sum(x * x for x in mapped)) * math.sqrt(sum(y * y for y in theirs))
            above += weight * (1 - dot / norms)
            below += weight
    return above, below


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("level", LEVELS)
def test_each_part_is_what_the_equation_says(level, bias):
    objective = term(level=level, bias=bias)
    assert [projector.bias is not None for projector in objective.projectors] == [bias, bias]
    parts = objective(states_of(DOCUMENTS), batch_of(DOCUMENTS)).tolist()
    below = objective.denominators(batch_of(DOCUMENTS))
    assert (below.dtype, below.device.type) == (torch.float64, "cpu")
    for place, projector in enumerate(objective.projectors):
        want = by_hand(DOCUMENTS, projector, level, upper=place == 1)
        assert (parts[place], float(below[place])) == pytest.approx(want, rel=1e-12)
    assert parts[0] != pytest.approx(parts[1], rel=0.01)


@pytest.mark.parametrize("level", LEVELS)
def test_gradients_are_those_of_finite_differences(level):
    batch, objective, states = batch_of(DOCUMENTS), term(level=level), states_of(DOCUMENTS)

    def parts(low, high, *_):
        return objective({1: low, 4: high}, batch)

    assert torch.autograd.gradcheck(parts, (states[1], states[4], *objective.parameters()))


def test_a_units_states_are_weighted_by_centrality():
    """Three tokens of which two agree: the unit leans towards them."""
    one = document(3, [(0, 3)])
    one.hidden[:] = torch.tensor([[3.0, -3, 0, 0], [3.0, -3, 0.1, 0], [0, 0.1, 3, -3]])
    plain, central = (
        term(level="unit", student_weights=kind)(states_of([one]), batch_of([one]))
        for kind in ("uniform", "centrality")
    )
    assert not torch.allclose(plain, central, rtol=1e-3)


@given(made=documents(), level=st.sampled_from(LEVELS), kind=st.sampled_from(["uniform", "centrality"]))
@settings(max_examples=40)
def test_a_batch_is_the_sum_of_its_documents(made, level, kind):
    objective = term(level=level, student_weights=kind)
    everything = tuple(objective.parameters())
    states = states_of(made)
    whole = objective(states, batch_of(made))
    gradients = torch.autograd.grad(whole.sum(), (*everything, states[1]))
    assert all(bool(each.isfinite().all()) for each in gradients)
    total, below = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    summed = [torch.zeros_like(each) for each in everything]
    inputs = [torch.empty(0, STUDENT, dtype=torch.float64)]
    for one in made:
        alone = states_of([one])
        parts = objective(alone, batch_of([one]))
        found = torch.autograd.grad(parts.sum(), (*everything, alone[1]))
        summed = [a + b for a, b in zip(summed, found, strict=False)]
        inputs.append(found[-1])
        total, below = total + parts.detach(), below + objective.denominators(batch_of([one]))
    for got, want in zip((whole.detach(), *gradients), (total, *summed, torch.cat(inputs)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(objective.denominators(batch_of(made)), below, rtol=1e-14, atol=0)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("few", [[], [document(0, [])], [document(4, [])] * 2], ids=["nothing", "no token", "no units"])
def test_without_units_every_projector_still_gets_a_gradient(few, level):
    objective, states = term(level=level), states_of(few)
    parts = objective(states, batch_of(few))
    parts.sum().backward()
    assert parts.tolist() == objective.denominators(batch_of(few)).tolist() == [0, 0]
    for each in (*objective.parameters(), *states.values()):
        assert torch.equal(each.grad, torch.zeros_like(each))


@pytest.mark.parametrize("level", LEVELS)
def test_zero_vectors_are_finite(level):
    one = document(3, [(0, 1), (1, 3)])
    one.hidden[:] = 0
    one.states[1] = 0
    one.units[0] = 0
    for bias in (True, False):
        objective, states = term(level=level, bias=bias), states_of([one])
        parts = objective(states, batch_of([one]))
        parts.sum().backward()
        assert bool(parts.isfinite().all())
        assert all(bool(each.grad.isfinite().all()) for each in (*objective.parameters(), *states.values()))
        if not bias:  # nothing is mapped to nothing, whose cosine is 0
            assert torch.allclose(parts.detach(), objective.denominators(batch_of([one])))


@pytest.mark.parametrize("level", LEVELS)
def test_a_student_that_maps_onto_the_teacher_has_no_loss(level):
    objective, states = term(level=level, bias=False), states_of(DOCUMENTS)
    batch = batch_of(DOCUMENTS)
    layers = dict(batch.layers)
    for pair, projector in zip(PAIRS, objective.projectors, strict=True):
        hidden = states[pair.student].detach()
        mean = [hidden[start:end].mean(0) for start, end in layers[pair.teacher].spans.tolist()]
        layers[pair.teacher] = replace(
            layers[pair.teacher],
            states=(3 * projector(hidden)).detach()[layers[pair.teacher].state_index],
            units=(0.2 * projector(torch.stack(mean))).detach(),
        )
    parts = objective(states, replace(batch, layers=layers))
    parts.sum().backward()
    assert parts.tolist() == pytest.approx([0, 0], abs=1e-14)
    assert all(float(each.grad.abs().max()) < 1e-13 for each in (*objective.parameters(), *states.values()))


def test_only_tokens_of_the_index_matter():
    states, batch, objective = states_of(DOCUMENTS), batch_of(DOCUMENTS), term()
    parts = objective(states, batch)
    (gradient,) = torch.autograd.grad(parts.sum(), states[1])
    touched = torch.zeros(len(gradient), dtype=torch.bool)
    touched[batch.layers[3].state_index] = True
    assert bool((gradient[touched] != 0).any(1).all())
    assert not bool(gradient[~touched].any())
    assert not bool(touched.all())


@pytest.mark.parametrize("level", LEVELS)
def test_half_precision_projects_in_the_parameters_type_and_compares_in_float32(level):
    states = states_of(DOCUMENTS, torch.bfloat16)
    exact = term(level=level)({layer: each.double() for layer, each in states.items()}, batch_of(DOCUMENTS))
    mixed = term(torch.float32, level=level)(states, batch_of(DOCUMENTS))
    # rounding of the float32 products alone; in bfloat16 it would be some thousandths
    assert mixed.tolist() == pytest.approx(exact.tolist(), rel=1e-5)
    half = term(torch.bfloat16, level=level)
    seen = []
    for projector in half.projectors:
        projector.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].dtype, output.detach())))
    parts = half(states, batch_of(DOCUMENTS))
    targets = targets_of(DOCUMENTS)
    theirs, weights = (targets.states, targets.state_weights) if level == "token" else (targets.units, targets.weights)
    for (given_type, projected), part in zip(seen, parts.tolist(), strict=True):
        assert given_type == projected.dtype == torch.bfloat16
        cosines = torch.cosine_similarity(projected.double(), theirs, dim=1)
        assert part == pytest.approx(float((weights * (1 - cosines)).sum()), rel=1e-6)
    parts.sum().backward()
    assert all(each.grad.dtype == torch.bfloat16 for each in (*half.parameters(), *states.values()))


def test_layers_are_averaged_or_added():
    parts = torch.tensor([1.0, 3.0])
    assert float(term().combined(parts)) == 2
    assert float(term(reduce="sum").combined(parts)) == 4


def test_it_says_what_it_needs():
    tokens, units = term(), term(level="unit", layers=[PAIRS[1].model_dump()])
    assert tokens.needs().layers == {3: frozenset({"states"}), 8: frozenset({"states"})}
    assert tokens.needs().same_tokens
    assert tokens.needs().instead == "`level: unit`"
    assert units.needs().layers == {8: frozenset({"units"})}
    assert not units.needs().same_tokens
    assert (tokens.student_layers(), units.student_layers()) == ((1, 4), (4,))
    assert [tuple(each.shape) for each in units.parameters()] == [(TEACHER, STUDENT), (TEACHER,)]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"level": "word"}, "`level`"), ({"reduces": "sum"}, "did you mean `reduce`"), ({"layers": []}, "`layers`")],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        term(**options)


def test_last_layers_of_another_size_have_projectors_of_that_size():
    setting = Setting(PAIRS, STUDENT, TEACHER, student_last=(4, 3), teacher_last=(8, 5))
    term = HiddenAlignment(HiddenOptions(), setting)
    assert [each.weight.shape for each in term.projectors] == [(TEACHER, STUDENT), (5, 3)]
