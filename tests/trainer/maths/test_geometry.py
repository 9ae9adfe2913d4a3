"""The geometry: gradients, memory, extremes, storage types, and what it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F

from trainer.maths.geometry import (
    centrality_weights,
    covered,
    pool,
    relations,
    uniform_weights,
    unit_weights,
    units_with_span,
)
from trainer.maths.ragged import check_pointers, flat_index, flatten, normalize_rows, pointers, sum_rows
from trainer.maths.triangle import from_fixed_point, later_of, later_units, pair_rows, square, to_fixed_point

# Nested, crossing, repeated and single-token spans; documents of 6, 1, 0 and 3 tokens with 5, 1, 0 and 2 units.
ROWS = pointers([6, 1, 0, 3])
UNIT_ROWS = pointers([5, 1, 0, 2])
SPANS = torch.tensor([[0, 6], [1, 4], [1, 4], [3, 6], [2, 3], [6, 7], [7, 9], [8, 10]])


def random(*shape, seed=0, **options):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **options)


def dsa(hidden, weights, target):
    """A loss of the kind that the geometry is for."""
    cosines = relations(pool(hidden, weights, SPANS), UNIT_ROWS)
    return sum_rows((cosines - target).square(), pair_rows(UNIT_ROWS))


def test_two_tokens_share_all_attention_and_one_has_it():
    weights = centrality_weights(random(3, 4), pointers([2, 1]))
    assert weights.tolist() == [0.5, 0.5, 1.0]


def test_centrality_of_three_tokens_worked_out_by_hand():
    # std is 1 for each row of (±1, 0, ±1)-like features: unbiased, over d = 2 the std of (a, b) is |a - b| / √2
    hidden = torch.tensor([[math.sqrt(2), 0.0], [0.0, math.sqrt(2)], [math.sqrt(2), 0.0]], dtype=torch.float64)
    k = (1 / (1 + 1e-5)) ** 2 * 2 / math.sqrt(2)  # the score of equal tokens; of the others it is 0
    near = math.exp(k) / (math.exp(k) + 1)
    want = [(near + 0.5) / 3, 2 * (1 - near) / 3, (near + 0.5) / 3]
    assert centrality_weights(hidden, pointers([3])).tolist() == pytest.approx(want, rel=1e-12)


def test_centrality_has_no_gradient_and_leaves_its_input_alone():
    hidden = random(10, 4, requires_grad=True)
    before = hidden.detach().clone()
    assert not centrality_weights(hidden, ROWS).requires_grad
    assert torch.equal(hidden, before)


def test_centrality_stays_finite_where_scores_are_huge():
    hidden = random(10, 4) * 1e4
    hidden[2] = 5.0  # no deviation: divided by 1e-5 alone
    hidden[3] = 0.0
    weights = centrality_weights(hidden, ROWS)
    assert bool(weights.isfinite().all())
    assert sum_rows(weights, ROWS).tolist() == pytest.approx([1, 1, 0, 1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    hidden = random(10, 64).to(dtype)
    weights = centrality_weights(hidden, ROWS)
    assert weights.dtype == torch.float32
    assert torch.equal(weights, centrality_weights(hidden.float(), ROWS))
    pooled = pool(hidden, weights, SPANS)
    assert torch.equal(pooled, pool(hidden.float(), weights, SPANS))
    assert torch.equal(relations(pooled.to(dtype), UNIT_ROWS), relations(pooled.to(dtype).float(), UNIT_ROWS))
    assert unit_weights(weights.to(dtype), SPANS, UNIT_ROWS).dtype == torch.float32


def test_autocast_changes_nothing():
    hidden = random(10, 64)

    def results():
        weights = centrality_weights(hidden, ROWS)
        pooled = pool(hidden, weights, SPANS)
        return weights, pooled, unit_weights(weights, SPANS, UNIT_ROWS), relations(pooled, UNIT_ROWS)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = results()
    assert all(torch.equal(a, b) for a, b in zip(results(), cast, strict=True))


def test_gradients_are_those_of_finite_differences():
    hidden = random(10, 4, dtype=torch.float64, requires_grad=True)
    weights = (random(10, seed=1, dtype=torch.float64).abs() + 0.1).requires_grad_()
    target = random(int(pair_rows(UNIT_ROWS)[-1]), seed=2, dtype=torch.float64).tanh()
    assert torch.autograd.gradcheck(lambda h, w: pool(h, w, SPANS), (hidden, weights))
    assert torch.autograd.gradcheck(lambda w: unit_weights(w, SPANS, UNIT_ROWS), (weights,))
    assert torch.autograd.gradcheck(lambda w: normalize_rows(w, ROWS), (weights,))
    assert torch.autograd.gradcheck(lambda h: sum_rows(h, ROWS), (hidden,))
    units = random(8, 4, seed=3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u: relations(u, UNIT_ROWS), (units,))
    assert torch.autograd.gradcheck(lambda u: relations(u, UNIT_ROWS, budget=1), (units,))
    triangle = random(6, seed=4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: square(x, 4), (triangle,))
    assert torch.autograd.gradcheck(lambda h, w: dsa(h, w, target), (hidden, weights))


def test_gradients_reach_a_padded_batch():
    mask = torch.zeros(4, 7, dtype=torch.int64)
    for row, length in enumerate(ROWS.diff().tolist()):
        mask[row, :length] = 1
    index, rows = flat_index(mask)
    assert torch.equal(rows, ROWS)
    padded = random(4, 7, 4, dtype=torch.float64, requires_grad=True)
    target = torch.zeros(int(pair_rows(UNIT_ROWS)[-1]), dtype=torch.float64)
    weights = uniform_weights(rows)
    assert torch.autograd.gradcheck(lambda x: dsa(flatten(x, index), weights, target), (padded,))
    dsa(flatten(padded, index), weights, target).sum().backward()
    assert torch.equal(padded.grad[mask == 0], torch.zeros(int((mask == 0).sum()), 4, dtype=torch.float64))


def test_a_batch_without_padding_is_not_copied():
    hidden = random(2, 5, 3)
    index, _ = flat_index(torch.ones(2, 5, dtype=torch.bool))
    assert flatten(hidden, index).data_ptr() == hidden.data_ptr()


def test_the_same_batch_gives_the_same_bits():
    hidden = random(10, 64, requires_grad=True)
    target = torch.zeros(int(pair_rows(UNIT_ROWS)[-1]))
    gradients = []
    for _ in range(3):
        loss = dsa(hidden, centrality_weights(hidden, ROWS), target).sum()
        gradients.append((loss.detach(), *torch.autograd.grad(loss, hidden)))
    assert all(torch.equal(a, b) for later in gradients[1:] for a, b in zip(gradients[0], later, strict=True))


@pytest.mark.parametrize("documents", [64, 256])
def test_nothing_is_quadratic_in_the_batch(documents, largest_tensor):
    tokens, units, features, nesting = 24, 12, 16, 4
    rows, unit_rows = pointers([tokens] * documents), pointers([units * nesting] * documents)
    start = torch.arange(0, tokens, 2).repeat_interleave(nesting)
    inner = torch.stack([start, (start + torch.arange(1, nesting + 1).repeat(units)).clamp_max(tokens)], dim=1)
    hidden = random(tokens * documents, features, requires_grad=True)
    budget = 2**12
    with largest_tensor as largest:
        chosen = units_with_span(inner.repeat(documents, 1), unit_rows, rows)
        weights = centrality_weights(hidden, rows, budget)
        pooled = pool(hidden, weights, chosen.spans)
        cosines = relations(pooled, chosen.rows, budget=budget)
        unit_weights(weights, chosen.spans, chosen.rows)
        cosines.square().sum().backward()
    squares = documents * (units * nesting) ** 2  # all documents' own matrices, from which the triangles are taken
    assert largest.elements <= max(budget, hidden.numel(), pooled.numel(), squares) < len(hidden) ** 2 / 10


def test_centrality_keeps_to_its_budget(largest_tensor):
    rows = pointers([24] * 60 + [40])
    hidden = random(int(rows[-1]), 8)
    with largest_tensor as largest:
        centrality_weights(hidden, rows, budget=2000)
    assert len(hidden) < largest.elements <= 2000


def test_centrality_of_a_long_document_takes_memory_of_its_length(largest_tensor):
    """Some lines of its scores at a time, for the weights that all at once give, beside documents that are short."""
    rows = pointers([7, 300, 1])
    hidden = random(308, 6, dtype=torch.float64)
    with largest_tensor as largest:
        weights = centrality_weights(hidden, rows, budget=2000)
    assert largest.elements <= 2000 < 300**2
    torch.testing.assert_close(weights, centrality_weights(hidden, rows), rtol=1e-13, atol=0)
    assert torch.equal(weights[:7], centrality_weights(hidden[:7], pointers([7])))


def test_pooling_does_not_copy_a_token_for_each_of_its_units(largest_tensor):
    hidden = random(200, 64, requires_grad=True)
    spans = torch.tensor([[0, 200]] * 10)
    with largest_tensor as largest:
        pool(hidden, torch.ones(200), spans).sum().backward()
    assert largest.elements == hidden.numel() < 10 * 200 * 64


def test_pooling_does_not_lose_small_units_behind_large_ones():
    """Differences of prefix sums would lose this span altogether."""
    hidden = torch.full((2000, 1), 1e4)
    hidden[1500:1502] = 1e-2
    assert pool(hidden, torch.ones(2000), torch.tensor([[1500, 1502]])).tolist() == [[pytest.approx(1e-2, rel=2**-22)]]
    prefix = hidden.cumsum(0)
    assert float(prefix[1501, 0] - prefix[1499, 0]) == 0


def test_weights_that_add_up_to_nothing_count_alike():
    weights = torch.zeros(10)
    weights[4] = 1.0
    hidden = random(10, 4)
    pooled = pool(hidden, weights, SPANS)
    assert torch.equal(pooled[4], hidden[2])
    torch.testing.assert_close(pooled[6], hidden[7:9].mean(0))
    assert torch.equal(pooled[0], hidden[4])
    shares = unit_weights(weights, SPANS, UNIT_ROWS)
    assert shares.tolist() == [0.5, 0, 0, 0.5, 0, 1, 0.5, 0.5]
    tiny = torch.full((10,), 1e-42, requires_grad=True)
    again = pool(hidden, tiny, SPANS)
    torch.testing.assert_close(again, pool(hidden, torch.ones(10), SPANS))
    again.sum().backward()
    assert bool(tiny.grad.isfinite().all())


def test_relations_agree_with_cosine_similarity_and_survive_zero_vectors():
    units = random(5, 16, requires_grad=True)
    with torch.no_grad():
        units[2] = 0
        units[3] = units[1] * 7
        units[4] = -units[1]
    cosines = relations(units, pointers([5]))
    left, right = torch.triu_indices(5, 5, 1)
    torch.testing.assert_close(cosines, F.cosine_similarity(units[left], units[right]), rtol=0, atol=42 * 2.0**-24)
    matrix = square(cosines, 5)
    assert matrix[2].tolist() == [0, 0, 1, 0, 0]
    assert bool((cosines.abs() <= 1).all())
    cosines.sum().backward()
    assert bool(units.grad.isfinite().all())


def test_nothing_to_do_gives_nothing():
    none, no_spans = torch.empty(0, 4), torch.empty(0, 2, dtype=torch.int64)
    for rows in (pointers([]), pointers([0]), pointers([0, 0])):
        assert centrality_weights(none, rows).shape == (0,)
        assert pool(none, torch.empty(0), no_spans).shape == (0, 4)
        assert unit_weights(torch.empty(0), no_spans, rows).shape == (0,)
        assert relations(none, rows).shape == (0,)
        assert uniform_weights(rows).shape == (0,)
        assert sum_rows(torch.empty(0), rows).tolist() == [0] * (len(rows) - 1)
    assert relations(random(3, 4), pointers([1, 1, 1])).shape == (0,)
    assert square(torch.empty(0), 0).shape == (0, 0)
    assert square(torch.empty(0), 1).tolist() == [[1]]
    loss = relations(pool(random(4, 4, requires_grad=True), torch.ones(4), no_spans), pointers([0])).sum()
    loss.backward()


def test_every_fixed_point_number_survives_and_the_ends_are_exact():
    every = torch.arange(-32767, 32768, dtype=torch.int16)
    assert torch.equal(to_fixed_point(from_fixed_point(every)), every)
    assert from_fixed_point(to_fixed_point(torch.tensor([-1.0, 0.0, 1.0]))).tolist() == [-1, 0, 1]
    # halves go to the even neighbour
    assert to_fixed_point(torch.tensor([0.5, 1.5], dtype=torch.float64) / 32767).tolist() == [0, 2]


@pytest.mark.parametrize("cosine", [1.0001, -1.0001, math.nan, math.inf])
def test_fixed_point_refuses_what_is_no_cosine(cosine):
    with pytest.raises(ValueError, match=r"within \[-1, 1\]"):
        to_fixed_point(torch.tensor([0.0, cosine]))


@pytest.mark.parametrize(
    ("rows", "message"),
    [([], "one entry more"), ([1, 3], "begin at 0"), ([0, 2, 1, 3], "never fall"), ([0, 2], "end at 2")],
)
def test_bad_pointers_are_refused(rows, message):
    bad = torch.tensor(rows, dtype=torch.int64)
    hidden = random(3, 4)
    calls = [
        lambda: check_pointers(bad, 3),
        lambda: centrality_weights(hidden, bad),
        lambda: relations(hidden, bad),
        lambda: sum_rows(hidden, bad),
        lambda: unit_weights(torch.ones(3), torch.tensor([[0, 1]] * 3), bad),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("span", [(2, 2), (3, 1), (0, 4), (-1, 2), (-2, -2)])
def test_bad_spans_are_refused_by_name(span):
    spans = torch.tensor([[0, 1], span])
    with pytest.raises(ValueError, match=rf"unit 1 of the batch has span \[{span[0]}, {span[1]}\) in a document of 3"):
        units_with_span(spans, pointers([0, 2]), pointers([5, 3]))
    for call in (
        lambda: pool(random(3, 4), torch.ones(3), spans),
        lambda: unit_weights(torch.ones(3), spans, pointers([2])),
        lambda: covered(spans, 3),
    ):
        with pytest.raises(ValueError, match="3 tokens and no others"):
            call()


def test_other_inconsistencies_are_refused():
    with pytest.raises(ValueError, match="units of 1 documents, but tokens of 2"):
        units_with_span(torch.tensor([[0, 1]]), pointers([1]), pointers([1, 1]))
    with pytest.raises(ValueError, match="two features"):
        centrality_weights(torch.ones(3, 1), pointers([3]))
    with pytest.raises(ValueError, match="4 units have 6 pairs, got 5"):
        square(torch.zeros(5), 4)
    for kept in ([1, 1], [2, 1], [-1], [4]):
        with pytest.raises(ValueError, match="strictly rising places from 0 to 3"):
            later_of(torch.tensor(kept), later_units(pointers([4])))
    with pytest.raises(ValueError, match="belong on the CPU"):
        check_pointers(torch.empty(2, dtype=torch.int64, device="meta"))
    with pytest.raises(ValueError, match="belong on the CPU"):
        pool(random(3, 4), torch.ones(3), torch.empty(1, 2, dtype=torch.int64, device="meta"))
