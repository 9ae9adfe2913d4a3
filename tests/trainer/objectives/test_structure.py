"""Structural alignment against plain loops over its equations, by finite differences, on ragged and degenerate batches."""

import itertools
import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import UsageError
from schemas.training import PairConfig
from trainer.batches.batch import Batch, LayerTargets
from trainer.maths.geometry import relations
from trainer.maths.ragged import pointers
from trainer.maths.triangle import later_units, square
from trainer.objectives.base import Setting
from trainer.objectives.rkd import angle_numerator
from trainer.objectives.structure import StructuralAlignment, StructureOptions, product_total, row_kl_numerator

STUDENT, TEACHER = 5, 7  # hidden sizes
STUDENT_LAYER, TEACHER_LAYER = 2, 6
PAIR = PairConfig(student=STUDENT_LAYER, teacher=TEACHER_LAYER, granularity="chunks")
METRICS = ["cosine", "distance", "angle", "row_kl"]


@dataclass
class Document:
    hidden: torch.Tensor  # [tokens, STUDENT] float64
    spans: list[tuple[int, int]]
    weights: list[float]  # ω
    units: torch.Tensor  # [units, TEACHER] float64, the teacher's
    near: set[tuple[int, int]] | None = None  # pairs that count; None: all
    later: list[int] | None = None  # the same as the code has it


def document(tokens, spans, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, STUDENT, generator=generator, dtype=torch.float64)
    units = torch.randn(len(spans), TEACHER, generator=generator, dtype=torch.float64)
    weights = torch.rand(len(spans), generator=generator, dtype=torch.float64) + 0.05
    return Document(hidden, spans, (weights / weights.sum()).tolist(), units)


#: Nested, crossing and single-token spans; two units; one; none; one token; no token at all.
DOCUMENTS = [
    document(6, [(0, 6), (1, 4), (3, 5), (2, 3)], seed=1),
    document(3, [(0, 1), (1, 3)], seed=2),
    document(4, [(1, 3)], seed=3),
    document(2, [], seed=4),
    document(1, [(0, 1)], seed=5),
    document(0, [], seed=6),
    document(5, [(0, 2), (1, 4), (4, 5)], seed=7),
]


@st.composite
def documents(draw):
    made = []
    for _ in range(draw(st.integers(0, 4))):
        tokens = draw(st.sampled_from([0, 1, 2, 3, 6, 9]))
        edge = st.tuples(st.integers(0, max(tokens - 1, 0)), st.integers(1, 4))
        edges = draw(st.lists(edge, max_size=6 if tokens else 0))
        spans = [(start, min(start + length, tokens)) for start, length in edges]
        made.append(document(tokens, spans, seed=draw(st.integers(0, 2**16))))
    return made


def batch_of(documents):
    token_rows = pointers([len(each.hidden) for each in documents])
    rows = pointers([len(each.spans) for each in documents])
    spans = [
        [start + int(first), end + int(first)]
        for each, first in zip(documents, token_rows[:-1], strict=True)
        for start, end in each.spans
    ]
    units = torch.cat([torch.empty(0, TEACHER, dtype=torch.float64), *(each.units for each in documents)])
    every = [range(len(each.units) - 1, -1, -1) if each.later is None else each.later for each in documents]
    later = torch.tensor([count for counts in every for count in counts], dtype=torch.int64)
    targets = LayerTargets(
        spans=torch.tensor(spans, dtype=torch.int64).reshape(-1, 2),
        rows=rows,
        later=later,
        weights=torch.tensor([weight for each in documents for weight in each.weights], dtype=torch.float64),
        relations=relations(units, rows, later),
        units=units,
    )
    nothing = torch.empty(0, dtype=torch.int64)
    ids = torch.zeros(int(token_rows[-1]), dtype=torch.int64)
    return Batch(
        torch.arange(len(documents)),
        ids,
        token_rows,
        nothing,
        torch.zeros_like(token_rows),
        nothing,
        {TEACHER_LAYER: targets},
    )


def states_of(documents, dtype=torch.float64):
    hidden = torch.cat([torch.empty(0, STUDENT, dtype=torch.float64), *(each.hidden for each in documents)])
    return hidden.to(dtype).requires_grad_()


def term(student_weights="uniform", **options):
    setting = Setting((PAIR,), STUDENT, TEACHER, student_weights)
    return StructuralAlignment(StructureOptions.parse(options, "objectives.dsa"), setting)


def numerator(objective, documents, hidden=None):
    hidden = states_of(documents) if hidden is None else hidden
    return objective({STUDENT_LAYER: hidden}, batch_of(documents))[0]


def value(objective, documents, hidden=None):
    return numerator(objective, documents, hidden).item()


def denominator(objective, documents):
    return float(objective.denominators(batch_of(documents))[0])


# The equations, one document at a time, in lists of Python floats.


def inner(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def minus(a, b):
    return [x - y for x, y in zip(a, b, strict=True)]


def cosine(a, b):
    return inner(a, b) / math.sqrt(inner(a, a) * inner(b, b))


def token_weights(hidden, kind):
    tokens = len(hidden)
    if kind == "uniform" or tokens == 1:
        return [1 / tokens] * tokens
    scaled = []
    for state in hidden:
        mean = sum(state) / len(state)
        std = math.sqrt(sum((x - mean) ** 2 for x in state) / (len(state) - 1))
        scaled.append([x / (std + 1e-5) for x in state])
    weights = [0.0] * tokens
    for s in range(tokens):
        scores = {t: inner(scaled[s], scaled[t]) / math.sqrt(len(hidden[0])) for t in range(tokens) if t != s}
        total = sum(math.exp(score) for score in scores.values())
        for t, score in scores.items():
            weights[t] += math.exp(score) / total / tokens
    return weights


def pooled(each, kind):
    hidden = each.hidden.tolist()
    weights = token_weights(hidden, kind) if hidden else []
    units = []
    for start, end in each.spans:
        share = sum(weights[start:end])
        units.append([sum(weights[t] * hidden[t][f] for t in range(start, end)) / share for f in range(STUDENT)])
    return units


def relative_distances(units, near):
    distance = {(i, j): math.sqrt(inner(minus(units[i], units[j]), minus(units[i], units[j]))) for i, j in near}
    mean = sum(distance.values()) / len(distance) if distance else 1
    return {pair: value / mean for pair, value in distance.items()}


def softmax_row(units, i, near, temperature):
    powers = {j: math.exp(cosine(units[i], units[j]) / temperature) for j in range(len(units)) if (i, j) in near}
    return {j: power / sum(powers.values()) for j, power in powers.items()}


def by_hand(documents, metric, kind="uniform", temperature=1.0):
    """Numerator and denominator of a batch."""
    above = below = 0.0
    for each in documents:
        ours, theirs, omega = pooled(each, kind), each.units.tolist(), each.weights
        count = len(omega)
        near = set(itertools.permutations(range(count), 2)) if each.near is None else each.near
        if metric == "cosine":
            for i, j in near:
                above += omega[i] * omega[j] * (cosine(ours[i], ours[j]) - cosine(theirs[i], theirs[j])) ** 2
                below += omega[i] * omega[j]
        elif metric == "distance":
            a, b = relative_distances(ours, near), relative_distances(theirs, near)
            for i, j in a:
                above += omega[i] * omega[j] * (a[i, j] - b[i, j]) ** 2
                below += omega[i] * omega[j]
        elif metric == "angle":
            for i, j, k in itertools.permutations(range(count), 3):
                if not {(i, j), (j, k), (i, k)} <= near:
                    continue
                a, b = (cosine(minus(u[i], u[j]), minus(u[k], u[j])) for u in (ours, theirs))
                above += omega[i] * omega[j] * omega[k] * (a - b) ** 2
                below += omega[i] * omega[j] * omega[k]
        else:
            for i in {i for i, _ in near}:
                p, q = softmax_row(theirs, i, near, temperature), softmax_row(ours, i, near, temperature)
                above += omega[i] * sum(p[j] * math.log(p[j] / q[j]) for j in p)
                below += omega[i]
    return above, below


@pytest.mark.parametrize("kind", ["centrality", "uniform"])
@pytest.mark.parametrize("metric", METRICS)
def test_a_part_is_what_the_equation_says(metric, kind):
    objective = term(kind, metric=metric)
    above, below = by_hand(DOCUMENTS, metric, kind)
    # uniform weights are float32, but equal in a document, so they cancel: everything is float64
    assert value(objective, DOCUMENTS) == pytest.approx(above, rel=1e-12)
    assert denominator(objective, DOCUMENTS) == pytest.approx(below, rel=1e-14)
    assert above > 1e-3


def cut(each, window, kept=None):
    """A document whose units stood at the places `kept` (rising) among those that the teacher has a span of."""
    places = list(range(len(each.spans))) if kept is None else kept
    long = len(each.spans) > 2 * window
    near = {(i, j) for i, a in enumerate(places) for j, b in enumerate(places) if 0 < abs(a - b) < window or not long}
    near = {(i, j) for i, j in near if i != j}
    later = [sum((i, j) in near for j in range(i + 1, len(places))) for i in range(len(places))]
    return Document(
        each.hidden,
        [each.spans[place] for place in places],
        [each.weights[place] for place in places],
        each.units[places],
        near,
        later,
    )


#: Ten units, cut to bands: all kept; some gone, in one place so many that pairs are further apart than the window; none left
#: that are near enough; and documents that are short enough to be whole.
LONG = document(12, [(t, t + 1 + t % 3) for t in range(10)], seed=11)
CUT = [
    cut(LONG, 3),
    DOCUMENTS[0],
    cut(LONG, 4, [0, 1, 2, 6, 7, 8, 9]),
    cut(LONG, 2, [0, 2, 4, 9]),
    cut(LONG, 2, [0, 5, 6]),
    cut(DOCUMENTS[0], 2),
    cut(LONG, 5),
]


@pytest.mark.parametrize("metric", METRICS)
def test_a_long_documents_pairs_are_those_within_the_window(metric):
    objective = term("centrality", metric=metric)
    above, below = by_hand(CUT, metric, "centrality")
    assert value(objective, CUT) == pytest.approx(above, rel=1e-11)
    assert denominator(objective, CUT) == pytest.approx(below, rel=1e-14)
    alone = [by_hand([each], metric, "centrality") for each in CUT]
    for each, (own, own_below) in zip(CUT, alone, strict=True):
        assert value(objective, [each]) == pytest.approx(own, rel=1e-11, abs=1e-15)
        assert denominator(objective, [each]) == pytest.approx(own_below, rel=1e-14)
    assert denominator(term(metric=metric, reduce="sum"), CUT) == sum(own_below > 0 for _, own_below in alone)
    assert sum(own_below > 0 for _, own_below in alone) == {"angle": 5}.get(metric, 6)
    hidden, batch = states_of(CUT), batch_of(CUT)
    objective = term(metric=metric)
    assert torch.autograd.gradcheck(lambda states: objective({STUDENT_LAYER: states}, batch), (hidden,), fast_mode=True)


@pytest.mark.parametrize("metric", METRICS)
def test_a_window_as_wide_as_a_document_changes_nothing(metric):
    objective = term("centrality", metric=metric)
    whole, windowed = [LONG, *DOCUMENTS], [cut(LONG, 5), *DOCUMENTS]
    assert cut(LONG, 10).near == cut(LONG, 5).near == set(itertools.permutations(range(10), 2))
    assert value(objective, whole) == value(objective, windowed)
    assert denominator(objective, whole) == denominator(objective, windowed)


@pytest.mark.parametrize("temperature", [0.01, 0.3, 20.0])
def test_the_temperature_of_rows(temperature):
    objective = term(metric="row_kl", temperature=temperature)
    above, _ = by_hand(DOCUMENTS, "row_kl", temperature=temperature)
    # at 20 the KL is about a ten-thousandth of the terms that cancel in it
    assert value(objective, DOCUMENTS) == pytest.approx(above, rel=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_a_sum_over_pairs_is_a_mean_over_documents(metric):
    objective = term(metric=metric, reduce="sum")
    counted = [each for each in DOCUMENTS if len(each.spans) >= (3 if metric == "angle" else 2)]
    assert denominator(objective, DOCUMENTS) == len(counted) == (2 if metric == "angle" else 3)
    each = [by_hand([one], metric)[0] for one in counted]
    assert value(objective, DOCUMENTS) / len(counted) == pytest.approx(sum(each) / len(each), rel=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_gradients_are_those_of_finite_differences(metric):
    batch = batch_of(DOCUMENTS)
    objective = term(metric=metric)
    assert torch.autograd.gradcheck(lambda hidden: objective({STUDENT_LAYER: hidden}, batch), (states_of(DOCUMENTS),))


def test_token_weights_are_constants_to_the_gradient():
    """The gradient through units pooled with centrality is that with the same weights held fixed."""
    batch, hidden = batch_of(DOCUMENTS[:1]), states_of(DOCUMENTS[:1])
    (got,) = torch.autograd.grad(term("centrality")({STUDENT_LAYER: hidden}, batch)[0], hidden)
    fixed = torch.tensor(token_weights(DOCUMENTS[0].hidden.tolist(), "centrality"), dtype=torch.float64)
    units = [fixed[a:b] @ hidden[a:b] / fixed[a:b].sum() for a, b in DOCUMENTS[0].spans]
    targets = batch.layers[TEACHER_LAYER]
    loss = sum(
        targets.weights[i]
        * targets.weights[j]
        * (torch.cosine_similarity(units[i], units[j], dim=0) - cosine(*DOCUMENTS[0].units[[i, j]].tolist())) ** 2
        for i, j in itertools.permutations(range(len(units)), 2)
    )
    (want,) = torch.autograd.grad(loss, hidden)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-14)


@given(made=documents(), metric=st.sampled_from(METRICS), reduce=st.sampled_from(["mean", "sum"]))
@settings(max_examples=40)
def test_a_batch_is_the_sum_of_its_documents(made, metric, reduce):
    objective = term("centrality", metric=metric, reduce=reduce)
    hidden = states_of(made)
    whole = numerator(objective, made, hidden)
    alone = [numerator(objective, [each]) for each in made]
    assert whole.item() == pytest.approx(math.fsum(each.item() for each in alone), rel=1e-9, abs=1e-12)
    total = math.fsum(denominator(objective, [each]) for each in made)
    assert denominator(objective, made) == pytest.approx(total, rel=1e-14)
    (gradient,) = torch.autograd.grad(whole, hidden)
    assert bool(gradient.isfinite().all())
    for each, part in zip(made, gradient.split([len(each.hidden) for each in made]), strict=True):
        own = states_of([each])
        (want,) = torch.autograd.grad(numerator(objective, [each], own), own)
        torch.testing.assert_close(part, want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "few",
    [[], [document(1, [(0, 1)])], [document(3, [])], [document(0, []), document(2, [])], [document(4, [(0, 2)])] * 2],
    ids=["no document", "one token", "no units", "no units at all", "one unit each"],
)
def test_without_enough_units_it_is_nothing(few, metric, dtype):
    objective, hidden = term("centrality", metric=metric), states_of(few, dtype)
    loss = numerator(objective, few, hidden)
    loss.backward()
    assert loss.item() == 0
    assert denominator(objective, few) == 0
    assert denominator(term(metric=metric, reduce="sum"), few) == 0
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))


def test_two_units_have_no_angle_and_only_one_relative_distance():
    two = [document(4, [(0, 2), (1, 4)])]
    assert value(term(metric="angle"), two) == denominator(term(metric="angle"), two) == 0
    assert value(term(metric="distance"), two) == pytest.approx(0, abs=1e-30)
    assert denominator(term(metric="distance"), two) > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("case", ["zero token", "all zero", "equal units", "all units equal", "equal teacher units"])
def test_degenerate_units_are_finite(case, metric, dtype):
    each = document(5, [(0, 2), (2, 3), (0, 2), (3, 5)])
    if case == "zero token":
        each.hidden[2] = 0
    elif case == "all zero":
        each.hidden[:] = 0
    elif case == "all units equal":
        each.hidden[:] = each.hidden[0].clone()
    elif case == "equal teacher units":
        each.units[2] = each.units[0]
    hidden = states_of([each], dtype)
    loss = numerator(term("centrality", metric=metric), [each], hidden)
    loss.backward()
    assert bool(loss.isfinite())
    assert bool(hidden.grad.isfinite().all())
    if metric in {"distance", "angle"} and case in {"all zero", "all units equal"}:
        assert float(hidden.grad.abs().max()) == 0  # no distance has a direction


@pytest.mark.parametrize("metric", ["distance", "angle"])
def test_nearly_equal_units_far_from_the_origin(metric):
    """Differences of a millionth of the length, of numbers that float32 holds exactly, against the loop."""
    each = document(6, [(t, t + 1) for t in range(6)], seed=8)
    steps = torch.randint(-8, 9, (6, STUDENT), generator=torch.Generator().manual_seed(0))
    each.hidden = 1024 + steps / 1024
    above, _ = by_hand([replace(each, hidden=each.hidden.to(torch.float64))], metric)
    got = numerator(term(metric=metric), [each], each.hidden.to(torch.float32).requires_grad_())
    assert got.item() == pytest.approx(above, rel=1e-5)


def test_rows_that_hardly_differ():
    """float32 cosines a thousandth apart: the KL is some 1e-7, as large as the rounding of float32 logarithms."""
    generator = torch.Generator().manual_seed(0)
    theirs = 0.9 + 0.1 * torch.rand(6, generator=generator)
    ours = theirs + 1e-3 * torch.rand(6, generator=generator)
    want = 0.0
    for i in range(4):
        p, q = ([math.exp(square(each.double(), 4)[i, j]) for j in range(4) if j != i] for each in (theirs, ours))
        want += sum(a / sum(p) * math.log(a / sum(p) / (b / sum(q))) for a, b in zip(p, q, strict=True)) / 4
    got = row_kl_numerator(ours, theirs, torch.full((4,), 0.25), later_units(pointers([4])), 1.0)
    assert want < 1e-6
    assert got.item() == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_a_student_with_the_teachers_geometry_has_no_loss(metric):
    spans = [(0, 3), (1, 2), (2, 5), (5, 6)]
    each = document(6, spans, seed=9)
    ours = torch.tensor(pooled(each, "centrality"), dtype=torch.float64)
    objective = term("centrality", metric=metric)
    batch = batch_of([each])
    same = replace(batch.layers[TEACHER_LAYER], units=ours, relations=relations(ours, batch.layers[TEACHER_LAYER].rows))
    hidden = states_of([each])
    loss = objective({STUDENT_LAYER: hidden}, replace(batch, layers={TEACHER_LAYER: same}))[0]
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert loss.item() == pytest.approx(0, abs=1e-24 if metric != "row_kl" else 1e-15)
    assert float(gradient.abs().max()) < 1e-10
    assert value(objective, [each]) > 1e-3  # with the real teacher's


@pytest.mark.parametrize("metric", METRICS)
def test_the_scale_of_states_says_nothing(metric):
    hidden, objective = states_of(DOCUMENTS), term(metric=metric)
    assert value(objective, DOCUMENTS, 64 * hidden) == pytest.approx(value(objective, DOCUMENTS, hidden), rel=1e-12)


@pytest.mark.parametrize("metric", ["distance", "angle"])
def test_distances_and_angles_know_no_origin_and_cosines_do(metric):
    hidden = states_of(DOCUMENTS)
    near = value(term(metric=metric), DOCUMENTS, hidden)
    assert value(term(metric=metric), DOCUMENTS, hidden + 3) == pytest.approx(near, rel=1e-9)
    there = value(term(), DOCUMENTS, hidden + 3)
    assert there != pytest.approx(value(term(), DOCUMENTS, hidden), rel=0.1)


@pytest.mark.parametrize("metric", METRICS)
def test_half_precision_is_computed_in_float32(metric):
    hidden, objective = states_of(DOCUMENTS, torch.bfloat16), term("centrality", metric=metric)
    half = numerator(objective, DOCUMENTS, hidden)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(numerator(objective, DOCUMENTS, hidden), half)
    assert torch.equal(numerator(objective, DOCUMENTS, hidden.float()), half)
    assert half.item() == pytest.approx(value(objective, DOCUMENTS, hidden.double()), rel=1e-4)


def test_small_weights_are_not_lost():
    """Two units, one of which weighs 1e-20: (Σω)² − Σω² would be 0."""
    weights = torch.tensor([1.0, 1e-20])
    two = pointers([2]), later_units(pointers([2]))
    assert float(product_total(weights, *two, 2, 2)) == pytest.approx(2e-20, rel=1e-7)
    assert float(product_total(weights, *two, 3, 3)) == 0


def test_angles_are_the_same_in_any_number_of_portions():
    each = [document(9, [(t, t + 2) for t in range(8)], seed=seed) for seed in range(3)]
    units = torch.cat([torch.tensor(pooled(one, "uniform"), dtype=torch.float64) for one in each]).requires_grad_()
    targets = batch_of(each).layers[TEACHER_LAYER]
    found = []
    for budget in (1, 3 * 8**2, 2**23):  # a document and vertex at a time; all documents, a vertex at a time; all
        loss = angle_numerator(units, targets.units, targets.weights, targets.rows, later_units(targets.rows), budget)
        found.append((loss.detach(), *torch.autograd.grad(loss, units)))
    for later in found[1:]:
        torch.testing.assert_close(later, found[0], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("metric", METRICS)
def test_nothing_is_quadratic_in_the_batch(metric, largest_tensor):
    count, units = 200, 4
    made = [document(8, [(t, t + 2) for t in range(units)], seed=seed) for seed in range(count)]
    batch, hidden = batch_of(made), states_of(made)
    with largest_tensor as largest:
        objective = term(metric=metric)
        objective.denominators(batch)
        objective({STUDENT_LAYER: hidden}, batch).sum().backward()
    assert largest.elements <= max(hidden.numel(), count * units**3) < (count * units) ** 2 / 10


def test_angles_keep_to_their_budget(largest_tensor):
    each = document(60, [(t, t + 1) for t in range(60)])
    units = torch.randn(60, 64, requires_grad=True)
    with largest_tensor as largest:
        weights, rows = torch.tensor(each.weights), pointers([60])
        angle_numerator(units, each.units.float(), weights, rows, later_units(rows), budget=4 * 60**2).backward()
    assert largest.elements <= 4 * 60**2 < 60**3


def test_each_pair_of_layers_is_a_part():
    low = PairConfig(student=1, teacher=3, granularity="words")
    objective = term(layers=[low.model_dump(), PAIR.model_dump()])
    assert objective.student_layers() == (1, STUDENT_LAYER)
    assert objective.needs().layers == {3: frozenset({"relations"}), TEACHER_LAYER: frozenset({"relations"})}
    assert not objective.needs().same_tokens
    first, second = DOCUMENTS[:2], DOCUMENTS[:1]
    one, other = batch_of(first), batch_of([second[0], document(3, [])])
    batch = replace(one, layers={3: one.layers[TEACHER_LAYER], TEACHER_LAYER: other.layers[TEACHER_LAYER]})
    hidden = states_of(first)
    parts = objective({1: hidden, STUDENT_LAYER: 2 * hidden + 1}, batch)
    assert parts[0].item() == value(term(), first, hidden)
    assert parts[1].item() == pytest.approx(value(term(), second, 2 * states_of(second) + 1), rel=1e-12)
    below = objective.denominators(batch)
    assert below.tolist() == [denominator(term(), first), denominator(term(), second)]
    assert objective.combined(parts / below).item() == pytest.approx(sum((parts / below).tolist()) / 2)


@pytest.mark.parametrize("metric", METRICS)
def test_it_says_what_it_needs(metric):
    need = "relations" if metric in {"cosine", "row_kl"} else "units"
    assert term(metric=metric).needs().layers == {TEACHER_LAYER: frozenset({need})}
    assert term(metric=metric).needs().windows == {256}
    assert term(metric=metric, window=None).needs().windows == {None}
    assert not list(term(metric=metric).parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "cosin"}, "`metric`"),
        ({"reduce": "median"}, "`reduce`"),
        ({"metrics": "cosine"}, "did you mean `metric`"),
        ({"temperature": 2}, "row_kl"),
        ({"metric": "row_kl", "temperature": 0}, "`temperature`"),
        ({"layers": []}, "`layers`"),
        ({"window": 1}, "`window`"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        term(**options)
