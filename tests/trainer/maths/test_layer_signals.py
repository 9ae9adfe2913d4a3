"""Signals of a batch against the signals of its documents, one by one, and against plain loops."""

import pytest
import torch

from trainer.maths.geometry import centrality_weights, pool, relations, unit_weights
from trainer.maths.layer_signals import layer_signals
from trainer.maths.ragged import pointers

LENGTHS = [5, 1, 9, 1, 4]
#: of each document, counted from its first token; the second has none, the fourth its only token, the last nested ones
SPANS = [[(0, 2), (3, 5)], [], [(0, 1), (1, 4), (2, 3), (6, 9)], [(0, 1)], [(0, 4), (1, 3), (1, 3)]]
ALL = frozenset({"relations", "units", "states"})


def batch(documents, spans=SPANS):
    """Hidden states and flat spans of some of the documents."""
    torch.manual_seed(0)
    hidden = [torch.randn(length, 16) for length in LENGTHS]
    rows = pointers([LENGTHS[d] for d in documents])
    flat = [(a + int(rows[i]), b + int(rows[i])) for i, d in enumerate(documents) for a, b in spans[d]]
    unit_rows = pointers([len(spans[d]) for d in documents])
    states = torch.cat([hidden[d] for d in documents])
    return states, rows, torch.tensor(flat, dtype=torch.int64).reshape(-1, 2), unit_rows


def fields(signals):
    return {name: getattr(signals, name) for name in signals.__dataclass_fields__ if getattr(signals, name) is not None}


@pytest.mark.parametrize(
    ("want", "there"),
    [
        (set(), set()),
        ({"relations"}, {"relations", "later"}),
        ({"units"}, {"units"}),
        ({"states"}, {"states", "token_weights", "state_rows", "state_index"}),
        ({"final", "topk", "attention"}, set()),
        (ALL, {"relations", "later", "units", "states", "token_weights", "state_rows", "state_index"}),
    ],
)
def test_only_what_is_wanted(want, there):
    signals = layer_signals(*batch(range(5)), frozenset(want), "covered", "centrality")
    assert fields(signals).keys() == there | {"unit_weights"}


def test_values_are_those_of_the_geometry():
    hidden, rows, spans, unit_rows = batch(range(5))
    signals = layer_signals(hidden, rows, spans, unit_rows, ALL, "all", "centrality")
    weights = centrality_weights(hidden, rows)
    pooled = pool(hidden, weights, spans)
    assert torch.equal(signals.token_weights, weights)
    assert torch.equal(signals.units, pooled)
    assert torch.equal(signals.relations, relations(pooled, unit_rows))
    assert torch.equal(signals.unit_weights, unit_weights(weights, spans, unit_rows))
    assert torch.equal(signals.states, hidden)
    assert torch.equal(signals.state_rows, rows)
    assert signals.state_index is None


def test_covered_states_are_those_of_tokens_in_some_unit():
    hidden, rows, spans, unit_rows = batch(range(5))
    signals = layer_signals(hidden, rows, spans, unit_rows, {"states"}, "covered", "centrality")
    kept = sorted({token for start, end in spans.tolist() for token in range(start, end)})
    assert signals.state_index.tolist() == kept
    assert torch.equal(signals.states, hidden[kept])
    # out of a document that adds up to 1, not made to
    assert torch.equal(signals.token_weights, centrality_weights(hidden, rows)[kept])
    per_row = [len({token for start, end in spans for token in range(start, end)}) for spans in SPANS]
    assert signals.state_rows.diff().tolist() == per_row


@pytest.mark.parametrize("state_tokens", ["covered", "all"])
@pytest.mark.parametrize("weights", ["centrality", "uniform"])
def test_a_document_is_the_same_alone_and_in_any_company(state_tokens, weights):
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1]):
        together = layer_signals(*batch(order), ALL, state_tokens, weights)
        parts = [layer_signals(*batch([d]), ALL, state_tokens, weights) for d in order]
        for name in ("unit_weights", "relations", "units", "states", "token_weights"):
            alone = torch.cat([getattr(part, name) for part in parts])
            # float32 sums of at most 16 products, in another order
            torch.testing.assert_close(getattr(together, name), alone, rtol=16 * 2**-23, atol=16 * 2**-23)


def test_uniform_weights():
    hidden, rows, spans, unit_rows = batch(range(5))
    signals = layer_signals(hidden, rows, spans, unit_rows, ALL, "all", "uniform")
    assert signals.token_weights.tolist() == [pytest.approx(1 / n, rel=2**-23) for n in LENGTHS for _ in range(n)]
    start, end = spans[0].tolist()
    torch.testing.assert_close(signals.units[0], hidden[start:end].mean(0))


def test_documents_without_units():
    empty = [[] for _ in SPANS]
    signals = layer_signals(*batch([0, 1], empty), ALL, "covered", "centrality")
    for name in ("unit_weights", "relations", "units", "states", "token_weights", "state_index"):
        assert len(getattr(signals, name)) == 0
    assert signals.state_rows.tolist() == [0, 0, 0]


def test_states_keep_the_models_type_and_weights_do_not():
    hidden, rows, spans, unit_rows = batch(range(5))
    hidden = hidden.to(torch.bfloat16).requires_grad_()
    signals = layer_signals(hidden, rows, spans, unit_rows, ALL, "covered", "centrality")
    assert signals.states.dtype == torch.bfloat16
    for name in ("unit_weights", "relations", "units", "token_weights"):
        assert getattr(signals, name).dtype == torch.float32
    assert not any(value.requires_grad for value in fields(signals).values())
