"""Every function of the geometry against plain float64 loops over the equations, on ragged batches of every shape.

Tolerances are bounds on float32 rounding, worked out from the data (u = 2^-24): none is chosen.
"""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.maths.geometry import (
    centrality_weights,
    covered,
    pool,
    relations,
    uniform_weights,
    unit_weights,
    units_with_span,
)
from trainer.maths.ragged import (
    BUDGET,
    FREE_PADDING,
    flat_index,
    flatten,
    groups,
    normalize_rows,
    pointers,
    select,
    sum_rows,
)
from trainer.maths.triangle import (
    from_fixed_point,
    later_of,
    later_units,
    pair_rows,
    select_pairs,
    square,
    to_fixed_point,
    unit_pairs,
)

ROUNDING = 2.0**-24
FEWER = settings(max_examples=40)  # where the loops, or all the functions at once, take their time
Matrix = list[list[float]]


@dataclass
class Document:
    hidden: torch.Tensor  # [tokens, d] float32
    spans: list[tuple[int, int]]  # of all units, (-1, -1) where there is none


@dataclass
class Batch:
    documents: list[Document]
    features: int
    budget: int

    @property
    def hidden(self):
        return torch.cat([torch.empty(0, self.features), *(document.hidden for document in self.documents)])

    @property
    def rows(self):
        return pointers([len(document.hidden) for document in self.documents])

    @property
    def all_units(self):
        return pointers([len(document.spans) for document in self.documents])

    @property
    def spans(self):
        every = [span for document in self.documents for span in document.spans]
        return torch.tensor(every, dtype=torch.int32).reshape(-1, 2)

    @property
    def units(self):
        return units_with_span(self.spans, self.all_units, self.rows)


@st.composite
def batches(draw, max_documents=5):
    features = draw(st.integers(3, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    scale = draw(st.sampled_from([1e-3, 1.0, 30.0]))
    documents = []
    for _ in range(draw(st.integers(0, max_documents))):
        tokens = draw(st.sampled_from([0, 1, 2, 3, 5, 9, 17]))
        span = st.tuples(st.integers(0, max(tokens - 1, 0)), st.integers(1, 9)).map(
            lambda edge, tokens=tokens: (edge[0], min(edge[0] + edge[1], tokens))
        )
        spans = draw(st.lists(st.one_of(span, st.just((-1, -1))) if tokens else st.just((-1, -1)), max_size=7))
        if spans and draw(st.booleans()):
            spans.append(spans[0])  # a duplicate
        documents.append(Document(torch.randn(tokens, features, generator=generator) * scale, spans))
    return Batch(documents, features, draw(st.sampled_from([1, 200, BUDGET])))


# The equations, one number at a time.


def dot(x: list[float], y: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(x, y, strict=True))


def slow_centrality(states: Matrix) -> tuple[list[float], float]:
    """The weights of one document, and a bound on the relative error of float32 for them."""
    count, d = len(states), len(states[0]) if states else 0
    if count == 1:
        return [1.0], 0.0
    scaled, error = [], 0.0
    for state in states:
        mean = math.fsum(state) / d
        std = math.sqrt(math.fsum((x - mean) ** 2 for x in state) / (d - 1))
        scaled.append([x / (std + 1e-5) for x in state])
        error = max(error, (d + 4) * ROUNDING * (1 + max(map(abs, state)) / std))
    weights = [0.0] * count
    for s in range(count):
        score = [dot(scaled[s], scaled[t]) / math.sqrt(d) for t in range(count)]
        score[s] = -math.inf
        top = max(score)
        total = math.fsum(math.exp(x - top) for x in score)
        for t in range(count):
            weights[t] += math.exp(score[t] - top) / total / count
    longest = max((dot(x, x) for x in scaled), default=0.0)
    in_score = longest / math.sqrt(max(d, 1)) * (2 * error + (d + 8) * ROUNDING)
    return weights, math.expm1(2 * in_score) + (2 * count + 10) * ROUNDING


def slow_pool(states: Matrix, weights: list[float], span: tuple[int, int]) -> list[float]:
    total = math.fsum(weights[slice(*span)])
    return [
        math.fsum(weights[t] * states[t][f] for t in range(*span)) / total
        for f in range(len(states[0]) if states else 0)
    ]


def slow_cosines(units: Matrix) -> list[float]:
    """The upper triangle, row by row."""
    norm = [max(math.sqrt(dot(x, x)), 1e-8) for x in units]
    return [dot(units[i], units[j]) / norm[i] / norm[j] for i in range(len(units)) for j in range(i + 1, len(units))]


def slow_unit_weights(weights: list[float], spans: list[tuple[int, int]]) -> list[float]:
    mass = [math.fsum(weights[slice(*span)]) for span in spans]
    return [each / math.fsum(mass) for each in mass]


def close(got: torch.Tensor, want: list, relative: float = 0.0, absolute: float = 0.0) -> None:
    expected = torch.tensor(want, dtype=torch.float64).reshape(got.shape)
    torch.testing.assert_close(got.to(torch.float64), expected, rtol=relative, atol=absolute)


def present(document: Document) -> list[tuple[int, int]]:
    return [span for span in document.spans if span != (-1, -1)]


@FEWER
@given(batches())
def test_centrality_is_the_equation(batch):
    weights = centrality_weights(batch.hidden, batch.rows, batch.budget)
    assert weights.dtype == torch.float32
    for document, got in zip(batch.documents, weights.split(batch.rows.diff().tolist()), strict=True):
        want, bound = slow_centrality(document.hidden.tolist())
        # what underflows in float32 is zero there
        close(got, want, relative=bound, absolute=2.0**-126)
        assert len(got) == 0 or abs(float(got.sum()) - 1) < (2 * len(got) + 10) * ROUNDING
    assert torch.equal(
        weights[batch.rows[:-1][batch.rows.diff() == 1]], torch.ones(int((batch.rows.diff() == 1).sum()))
    )


@FEWER
@given(batches())
def test_centrality_in_float64_is_the_equation_to_the_last_digits(batch):
    weights = centrality_weights(batch.hidden.double(), batch.rows, batch.budget)
    assert weights.dtype == torch.float64
    for document, got in zip(batch.documents, weights.split(batch.rows.diff().tolist()), strict=True):
        want, bound = slow_centrality(document.hidden.tolist())
        # the loop rounds too; expm1 of the bound is as good as linear once u is 2^-53
        close(got, want, relative=2 * math.log1p(bound) * 2.0**-29)


@given(batches())
def test_units_are_those_with_a_span(batch):
    units = batch.units
    flat, index, counts, place = [], [], [], 0
    for first, document in zip(batch.rows.tolist(), batch.documents, strict=False):
        for span in document.spans:
            if span != (-1, -1):
                flat.append([span[0] + first, span[1] + first])
                index.append(place)
            place += 1
        counts.append(len(present(document)))
    assert units.spans.tolist() == flat
    assert units.index.tolist() == index
    assert units.rows.tolist() == pointers(counts).tolist()
    inside = {token for start, end in flat for token in range(start, end)}
    assert covered(units.spans, len(batch.hidden)).nonzero().flatten().tolist() == sorted(inside)


@FEWER
@given(batches(), st.integers(0, 2**20))
def test_pooling_and_unit_weights_are_the_equations(batch, seed):
    units = batch.units
    weights = torch.rand(len(batch.hidden), generator=torch.Generator().manual_seed(seed)) + 2.0**-10
    pooled = pool(batch.hidden, weights, units.spans)
    shares = unit_weights(weights, units.spans, units.rows)
    assert pooled.shape == (len(units.spans), batch.features)
    per_document = units.rows.diff().tolist()
    token_weights = weights.split(batch.rows.diff().tolist())
    for document, own, got, share in zip(
        batch.documents, token_weights, pooled.split(per_document), shares.split(per_document), strict=True
    ):
        states, spans = document.hidden.tolist(), present(document)
        if not spans:
            continue
        longest = max(end - start for start, end in spans)
        largest = float(document.hidden.abs().max())
        want = [slow_pool(states, own.tolist(), span) for span in spans]
        close(got, want, absolute=(2 * longest + 6) * ROUNDING * largest)
        close(share, slow_unit_weights(own.tolist(), spans), relative=(longest + len(spans) + 6) * 2 * ROUNDING)


@FEWER
@given(batches())
def test_relations_are_the_equation(batch):
    units = batch.units
    pooled = pool(batch.hidden, uniform_weights(batch.rows), units.spans)
    cosines = relations(pooled, units.rows, budget=batch.budget)
    rows = pair_rows(units.rows)
    assert len(cosines) == int(rows[-1])
    assert bool((cosines.abs() <= 1).all())
    per_document = units.rows.diff().tolist()
    bound = (2 * batch.features + 10) * ROUNDING
    for count, own, got in zip(
        per_document, pooled.split(per_document), cosines.split(rows.diff().tolist()), strict=True
    ):
        want = slow_cosines(own.tolist())
        close(got, want, absolute=bound)
        matrix = square(got, count)
        assert torch.equal(matrix, matrix.T)
        assert torch.equal(matrix.diagonal(), torch.ones(count))
        assert matrix[tuple(torch.triu_indices(count, count, 1))].tolist() == got.tolist()


@FEWER
@given(batches())
def test_a_batch_is_its_documents_alone(batch):
    """Bit for bit where a sum's order cannot change, within float32 rounding where a matrix product's may."""
    units = batch.units
    weights = centrality_weights(batch.hidden, batch.rows, batch.budget)
    pooled = pool(batch.hidden, weights, units.spans)
    shares = unit_weights(weights, units.spans, units.rows)
    cosines = relations(pooled, units.rows, budget=batch.budget)
    first_token, first_unit, first_pair = batch.rows, units.rows, pair_rows(units.rows)
    for at, document in enumerate(batch.documents):
        alone = Batch([document], batch.features, BUDGET)
        tokens, own, couples = (
            slice(int(each[at]), int(each[at + 1])) for each in (first_token, first_unit, first_pair)
        )
        _, bound = slow_centrality(document.hidden.tolist())
        again = centrality_weights(alone.hidden, alone.rows)
        torch.testing.assert_close(again, weights[tokens], rtol=2 * bound, atol=2.0**-126)
        assert torch.equal(pool(alone.hidden, weights[tokens], alone.units.spans), pooled[own])
        assert torch.equal(unit_weights(weights[tokens], alone.units.spans, alone.units.rows), shares[own])
        product = (2 * batch.features + 10) * ROUNDING
        torch.testing.assert_close(relations(pooled[own], alone.units.rows), cosines[couples], rtol=0, atol=2 * product)


@FEWER
@given(batches(), st.randoms(use_true_random=False))
def test_the_order_of_documents_does_not_matter(batch, random):
    order = list(range(len(batch.documents)))
    random.shuffle(order)
    moved = Batch([batch.documents[at] for at in order], batch.features, batch.budget)

    def per_document(these):
        units = these.units
        weights = uniform_weights(these.rows)
        pooled = pool(these.hidden, weights, units.spans)
        return [
            centrality_weights(these.hidden, these.rows, these.budget).split(these.rows.diff().tolist()),
            pooled.split(units.rows.diff().tolist()),
            unit_weights(weights, units.spans, units.rows).split(units.rows.diff().tolist()),
            relations(pooled, units.rows, budget=these.budget).split(pair_rows(units.rows).diff().tolist()),
        ]

    bounds = [slow_centrality(document.hidden.tolist())[1] for document in batch.documents]
    here, there = per_document(batch), per_document(moved)
    for to, at in enumerate(order):
        torch.testing.assert_close(there[0][to], here[0][at], rtol=2 * bounds[at], atol=2.0**-126)
        assert torch.equal(there[1][to], here[1][at])
        assert torch.equal(there[2][to], here[2][at])
        product = (2 * batch.features + 10) * ROUNDING
        torch.testing.assert_close(there[3][to], here[3][at], rtol=0, atol=2 * product)


@FEWER
@given(batches(), st.data())
def test_nothing_leaks_from_one_document_to_another(batch, data):
    """A document full of NaN spoils itself and nothing else, not even a bit."""
    if not batch.documents:
        return
    bad = data.draw(st.integers(0, len(batch.documents) - 1))
    spoiled = batch.hidden
    spoiled[batch.rows[bad] : batch.rows[bad + 1]] = torch.nan
    units = batch.units

    def results(hidden):
        weights = centrality_weights(hidden, batch.rows, batch.budget)
        pooled = pool(hidden, weights, units.spans)
        return [
            (weights, batch.rows),
            (pooled, units.rows),
            (unit_weights(weights, units.spans, units.rows), units.rows),
            (relations(pooled, units.rows, budget=batch.budget), pair_rows(units.rows)),
        ]

    for (clean, rows), (dirty, _) in zip(results(batch.hidden), results(spoiled), strict=True):
        here = slice(int(rows[bad]), int(rows[bad + 1]))
        assert torch.equal(clean[: here.start], dirty[: here.start])
        assert torch.equal(clean[here.stop :], dirty[here.stop :])


@FEWER
@given(batches())
def test_the_structural_loss_of_a_batch_is_that_of_its_pairs(batch):
    """What dynamic structural alignment is made of adds up to its equation, with the units that both sides have."""
    units = batch.units
    teacher = batch.hidden.double()
    # another space, and no span for every third unit
    student = torch.randn(len(teacher), batch.features + 1, generator=torch.Generator().manual_seed(1)).double()
    weights = centrality_weights(teacher, batch.rows, batch.budget)
    teacher_side = relations(pool(teacher, weights, units.spans), units.rows, budget=batch.budget)
    omega = unit_weights(weights, units.spans, units.rows)

    both, rows = select(torch.arange(len(units.spans)) % 3 != 2, units.rows)
    share = normalize_rows(omega[both], rows)
    student_weights = centrality_weights(student, batch.rows, batch.budget)
    student_side = relations(pool(student, student_weights, units.spans[both]), rows, budget=batch.budget)
    left, right = unit_pairs(later_units(rows))
    weight = share[left] * share[right]
    gap = (student_side - teacher_side[pairs_among(both, units.rows)]).square()
    got = sum_rows(weight * gap, pair_rows(rows))

    unit = 0
    for at, document in enumerate(batch.documents):
        kept = []
        for span in present(document):
            if unit % 3 != 2:
                kept.append(span)
            unit += 1
        here = slice(int(batch.rows[at]), int(batch.rows[at + 1]))
        want = 0.0
        if kept:
            sides = []
            for states in (student[here].tolist(), teacher[here].tolist()):
                own, _ = slow_centrality(states)
                pooled = [slow_pool(states, own, span) for span in kept]
                sides.append((own, iter(slow_cosines(pooled))))
            shares = slow_unit_weights(sides[1][0], kept)
            for i in range(len(kept)):
                for j in range(i + 1, len(kept)):
                    want += shares[i] * shares[j] * (next(sides[0][1]) - next(sides[1][1])) ** 2
        assert float(got[at]) == pytest.approx(want, rel=1e-7, abs=1e-12)


def pairs_among(kept, rows, window=None):
    """Where the pairs of some units stand among those of all."""
    later = later_units(rows, window)
    return select_pairs(kept, later, later_of(kept, later))


@given(st.lists(st.lists(st.booleans(), max_size=8), max_size=6))
def test_pairs_stand_row_by_row_and_a_selection_keeps_their_order(masks):
    rows = pointers([len(mask) for mask in masks])
    want = [
        (i, j)
        for first, last in zip(rows.tolist(), rows[1:].tolist(), strict=False)
        for i in range(first, last)
        for j in range(i + 1, last)
    ]
    left, right = unit_pairs(later_units(rows))
    assert list(zip(left.tolist(), right.tolist(), strict=True)) == want
    assert pair_rows(rows).diff().tolist() == [len(mask) * (len(mask) - 1) // 2 for mask in masks]
    keep = torch.tensor([flag for mask in masks for flag in mask], dtype=torch.bool)
    kept, kept_rows = select(keep, rows)
    assert kept_rows.diff().tolist() == [sum(mask) for mask in masks]
    some = [want[place] for place in pairs_among(kept, rows).tolist()]
    assert some == [pair for pair in want if keep[pair[0]] and keep[pair[1]]]
    assert [(int(kept[i]), int(kept[j])) for i, j in zip(*unit_pairs(later_units(kept_rows)), strict=True)] == some


@given(
    st.lists(st.integers(0, 3000), max_size=60),
    st.integers(1, 5000),
    st.sampled_from([1, 2**16, BUDGET, 2**40]),
    st.sampled_from([None, 0, 2**28]),
)
def test_groups_hold_every_row_once_within_the_budget(lengths, features, budget, free):
    rows = pointers(lengths)
    found = groups(rows, features, budget, free_padding=free)
    members = [row for group in found for row in group.members.tolist()]
    assert sorted(members) == [row for row, length in enumerate(lengths) if length]
    for group in found:
        own = [lengths[row] for row in group.members.tolist()]
        assert group.lengths.tolist() == own
        assert group.starts.tolist() == rows[group.members].tolist()
        assert group.width == max(own)
        assert len(own) == 1 or len(own) * group.width * max(group.width, features) <= budget
        real = features * sum(length**2 for length in own)
        assert len(own) * group.width**2 * features - real <= max(real // 3, FREE_PADDING if free is None else free)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.booleans())
def test_a_padded_batch_becomes_flat(lengths, left_padded):
    width = max(lengths) + 1
    mask = torch.zeros(len(lengths), width, dtype=torch.int64)
    hidden = torch.randn(len(lengths), width, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    want = []
    for row, length in enumerate(lengths):
        own = slice(width - length, width) if left_padded else slice(0, length)
        mask[row, own] = 1
        want.append(hidden[row, own])
    index, rows = flat_index(mask)
    flat = flatten(hidden, index)
    assert torch.equal(flat, torch.cat(want))
    assert rows.diff().tolist() == lengths
    assert torch.equal(flat_index(mask.bool())[0], index)
    flat.sum().backward()
    assert torch.equal(hidden.grad, mask[:, :, None].expand_as(hidden).float())


@given(st.lists(st.floats(-1, 1, width=32)))
def test_fixed_point_is_within_half_a_step(cosines):
    given_ = torch.tensor(cosines, dtype=torch.float32)
    stored = to_fixed_point(given_)
    back = from_fixed_point(stored)
    assert bool(((back.double() - given_.double()).abs() <= 0.5 / 32767 + 2.0**-25).all())
    assert torch.equal(to_fixed_point(back), stored)
