"""Units that both sides have, and the teacher's signals of them, against plain loops."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.batches.units import learnt_tokens, positions_of, shared_units
from trainer.maths.layer_signals import LayerSignals
from trainer.maths.ragged import pointers
from trainer.maths.triangle import later_units
from trainer.teacher.targets import join_layer


@given(data=st.data())
@settings(max_examples=40)
def test_shared_units_and_join_against_plain_loops(data):
    """Any pattern of missing spans: documents without units, units on one side only, none in common."""
    documents = data.draw(st.integers(1, 4))
    tokens = [data.draw(st.integers(1, 6)) for _ in range(documents)]
    counts = [data.draw(st.integers(0, 5)) for _ in range(documents)]
    missing = st.sampled_from([True, False, False])
    teacher, student, expected_spans, kept, kept_rows = [], [], [], [], []
    start = 0
    for length, count in zip(tokens, counts, strict=True):
        both = 0
        for _ in range(count):
            a, b = sorted(data.draw(st.lists(st.integers(0, length), min_size=2, max_size=2, unique=True)))
            sides = [[-1, -1] if data.draw(missing) else [a, b] for _ in range(2)]
            teacher.append(sides[0])
            student.append(sides[1])
            if sides == [[a, b], [a, b]]:
                kept.append(len(teacher) - 1)
                expected_spans.append([start + a, start + b])
                both += 1
        kept_rows.append(both)
        start += length
    rows = pointers(tokens)
    spans = [torch.tensor(each, dtype=torch.int32).reshape(-1, 2) for each in (teacher, student)]
    shared = shared_units(pointers(counts), *spans, rows)
    assert shared.spans.tolist() == expected_spans
    assert shared.rows.diff().tolist() == kept_rows
    of_teacher = [unit for unit, span in enumerate(teacher) if span != [-1, -1]]
    document = [d for d, count in enumerate(counts) for _ in range(count)]
    values = {unit: 1.0 + unit for unit in of_teacher}
    triangle = [(a, b) for i, a in enumerate(of_teacher) for b in of_teacher[i + 1 :] if document[a] == document[b]]
    signals = LayerSignals(
        unit_weights=torch.tensor([values[unit] for unit in of_teacher]),
        relations=torch.tensor([100.0 * a + b for a, b in triangle]),
        later=later_units(shared.teacher_rows),
        units=torch.tensor([[values[unit], -1.0] for unit in of_teacher]).reshape(-1, 2),
        states=torch.arange(2.0 * sum(tokens)).reshape(-1, 2),
        token_weights=torch.arange(float(sum(tokens))),
    )
    positions = torch.arange(0, sum(tokens), 2)
    found = join_layer(signals, shared, {"relations", "units", "states", "position_states"}, sum(tokens), positions)
    totals = [sum(values[unit] for unit in kept if document[unit] == d) for d in range(documents)]
    np.testing.assert_allclose(found.weights, [values[unit] / totals[document[unit]] for unit in kept], rtol=1e-6)
    assert found.relations.tolist() == [100.0 * a + b for a, b in triangle if a in kept and b in kept]
    assert found.units[:, 0].tolist() == [values[unit] for unit in kept]
    inside = sorted({token for a, b in expected_spans for token in range(a, b)})
    assert found.state_index.tolist() == inside
    assert found.states[:, 0].tolist() == [2.0 * token for token in inside]
    assert found.state_weights.tolist() == inside
    assert found.position_states[:, 0].tolist() == [2.0 * token for token in positions.tolist()]


@given(data=st.data())
@settings(max_examples=60)
def test_positions_and_learnt_tokens_against_a_plain_loop(data):
    """Any spans: from a first token on, one right behind another, of one token; rows without any."""
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    spans, counts, positions, position_counts, learnt = [], [], [], [], []
    start = 0
    for length in lengths:
        edges = sorted(data.draw(st.lists(st.integers(0, length), max_size=6, unique=True)))
        joins = data.draw(st.lists(st.booleans(), min_size=len(edges), max_size=len(edges)))
        mine = [[a, b] for number, (a, b) in enumerate(itertools.pairwise(edges)) if joins[number] or number % 2 == 0]
        spans += mine
        counts.append(len(mine))
        tokens = {token for a, b in mine for token in range(a, b)}
        mine = [start + token - 1 for token in sorted(tokens) if token > 0]
        positions += mine
        position_counts.append(len(mine))
        learnt += [token in tokens or token + 1 in tokens for token in range(length)]
        start += length
    ragged = pointers(lengths), torch.tensor(spans, dtype=torch.int32).reshape(-1, 2), pointers(counts)
    assert [part.tolist() for part in positions_of(*ragged)] == [positions, pointers(position_counts).tolist()]
    assert learnt_tokens(*ragged).tolist() == learnt


def test_join_refuses_what_is_not_there():
    shared = shared_units(pointers([1]), torch.tensor([[0, 2]]), torch.tensor([[0, 2]]), pointers([3]))
    none = torch.zeros(0, dtype=torch.int64)
    signals = LayerSignals(torch.ones(1))
    for need in ("relations", "units", "states", "position_states"):
        with pytest.raises(ValueError, match="needed and not there"):
            join_layer(signals, shared, {need}, 3, none)
    with pytest.raises(ValueError, match="weights of 2 units, but 1 have"):
        join_layer(LayerSignals(torch.ones(2)), shared, (), 3, none)
    states = LayerSignals(
        torch.ones(1), states=torch.ones(1, 2), token_weights=torch.ones(1), state_index=torch.tensor([1])
    )
    with pytest.raises(ValueError, match="state of token 0"):
        join_layer(states, shared, {"states"}, 3, none)
