"""Soft-DTW against the recursions of its paper written as loops, on ragged batches, table by table and by diagonals."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dtw import by_loops, plain_dtw
from trainer.maths.soft_dtw import by_diagonal, by_table, soft_dtw

ROADS = pytest.mark.parametrize("compute", [by_table, by_diagonal])
FEWER = settings(max_examples=30)


def batch(shapes, seed=0, scale=1.0, dtype=torch.float64):
    """Costs of tables, flat, with the tables' sizes."""
    sizes = torch.tensor(shapes, dtype=torch.int64).reshape(-1, 2)
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(int(sizes.prod(1).sum()), generator=generator, dtype=torch.float64).to(dtype) * scale, sizes


def tables(costs, sizes):
    return [part.reshape(size) for part, size in zip(costs.split(sizes.prod(1).tolist()), sizes.tolist(), strict=True)]


@ROADS
def test_two_by_two_by_hand(compute):
    costs = torch.tensor([0.0, 1, 1, 0], dtype=torch.float64)
    values, passing = compute(costs, torch.tensor([[2, 2]]), 1.0)
    assert values.item() == pytest.approx(-math.log(1 + 2 / math.e), abs=1e-15)
    assert values.item() == pytest.approx(-0.551445, abs=1e-6)
    assert passing.tolist() == pytest.approx([1, 0.211942, 0.211942, 1], abs=1e-6)
    assert compute(costs, torch.tensor([[2, 2]]), 1e-3)[0].item() == pytest.approx(0, abs=1e-12)


@ROADS
@pytest.mark.parametrize(("n", "m", "paths"), [(2, 2, 3), (2, 3, 5), (3, 2, 5), (3, 3, 13), (1, 7, 1)])
def test_without_costs_it_counts_paths(compute, n, m, paths):
    """Delannoy numbers."""
    values, _ = compute(torch.zeros(n * m, dtype=torch.float64), torch.tensor([[n, m]]), 0.7)
    assert values.item() == pytest.approx(-0.7 * math.log(paths), abs=1e-14)


shapes = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=5)


@ROADS
@FEWER
@given(shapes, st.sampled_from([0.05, 0.8, 2.0]), st.integers(0, 2**16))
def test_against_the_recursions(compute, shapes, gamma, seed):
    costs, sizes = batch(shapes, seed, scale=2)
    values, passing = compute(costs, sizes, gamma)
    for cost, value, own in zip(tables(costs, sizes), values, tables(passing, sizes), strict=True):
        expected, expected_passing = by_loops(cost, gamma)
        assert value.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)
        torch.testing.assert_close(own, torch.tensor(expected_passing, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@FEWER
@given(shapes, st.sampled_from([0.3, 2.0]), st.integers(0, 2**16))
def test_finite_differences(shapes, gamma, seed):
    costs, sizes = batch(shapes, seed)
    weights = torch.arange(1.0, len(sizes) + 1, dtype=torch.float64)
    costs.requires_grad_()
    (gradient,) = torch.autograd.grad((weights * soft_dtw(costs, sizes, gamma)).sum(), costs)
    step = 1e-5 * torch.eye(len(costs), dtype=torch.float64)
    moved = costs.detach() + torch.stack([step, -step])
    values = soft_dtw(moved.flatten(), sizes.repeat(2 * len(costs), 1), gamma).view(2, len(costs), -1)
    torch.testing.assert_close(gradient, (values[0] - values[1]) @ weights / 2e-5, rtol=0, atol=1e-8)


@ROADS
@FEWER
@given(shapes, st.integers(0, 2**16))
def test_a_batch_is_its_tables_alone(compute, shapes, seed):
    costs, sizes = batch(shapes, seed)
    alone = [compute(cost.flatten(), size[None], 0.8) for cost, size in zip(tables(costs, sizes), sizes, strict=True)]
    values, passing = compute(costs, sizes, 0.8)
    assert values.tolist() == [value.item() for value, _ in alone]
    assert passing.tolist() == torch.cat([own for _, own in alone]).tolist()


@ROADS
def test_the_order_of_tables_does_not_matter(compute):
    costs, sizes = batch([(3, 5), (1, 4), (6, 2), (4, 4)])
    values, passing = compute(costs, sizes, 2.0)
    order = [2, 0, 3, 1]
    parts = tables(costs, sizes)
    moved, moved_passing = compute(torch.cat([parts[table].flatten() for table in order]), sizes[order], 2.0)
    assert moved.tolist() == values[order].tolist()
    own = tables(passing, sizes)
    assert moved_passing.tolist() == torch.cat([own[table].flatten() for table in order]).tolist()


@ROADS
@FEWER
@given(shapes, st.integers(0, 2**16))
def test_without_temperature_it_is_plain_dtw(compute, shapes, seed):
    costs, sizes = batch(shapes, seed, scale=2)
    gamma = 1e-5
    values, _ = compute(costs, sizes, gamma)
    for cost, value in zip(tables(costs, sizes), values.tolist(), strict=True):
        n, m = cost.shape
        # at most γ times the logarithm of the number of paths below, each of at most n + m steps in three directions
        assert -gamma * (n + m) * math.log(3) - 1e-12 <= value - plain_dtw(cost) <= 1e-12


@ROADS
@FEWER
@given(shapes, st.integers(0, 2**16))
def test_paths_pass_every_line_and_column(compute, shapes, seed):
    costs, sizes = batch(shapes, seed)
    _, passing = compute(costs, sizes, 2.0)
    for own in tables(passing, sizes):
        assert own[0, 0].item() == pytest.approx(1)
        assert own[-1, -1].item() == 1
        assert min(own.sum(0).min().item(), own.sum(1).min().item()) > 1 - 1e-12
        assert own.max().item() < 1 + 1e-12


@ROADS
def test_long_tables_of_large_costs(compute):
    """Where exp(−R/γ) itself is far below any number: down to 1e-2600."""
    costs, sizes = batch([(150, 90), (3, 200)], scale=20)
    values, passing = compute(costs, sizes, 0.8)
    for cost, value, own in zip(tables(costs, sizes), values, tables(passing, sizes), strict=True):
        expected, expected_passing = by_loops(cost, 0.8)
        assert value.item() == pytest.approx(expected, rel=1e-12)
        torch.testing.assert_close(own, torch.tensor(expected_passing, dtype=torch.float64), rtol=1e-7, atol=1e-9)


def test_by_diagonals_in_float32():
    """As accelerators compute it: R is some hundreds, whose float32 is good to 3e-5, and so is E."""
    costs, sizes = batch([(128, 128), (97, 128), (5, 64)], scale=2, dtype=torch.float32)
    values, passing = by_diagonal(costs, sizes, 0.8)
    exact, exact_passing = by_table(costs.double(), sizes, 0.8)
    assert values.dtype == passing.dtype == torch.float32
    torch.testing.assert_close(values.double(), exact, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(passing.double(), exact_passing, rtol=0, atol=1e-4)


def test_on_the_cpu_float32_is_computed_in_float64():
    costs, sizes = batch([(60, 40), (33, 51)], scale=2, dtype=torch.float32)
    values, passing = by_table(costs, sizes, 0.8)
    exact, exact_passing = by_table(costs.double(), sizes, 0.8)
    assert values.tolist() == exact.float().tolist()
    assert passing.tolist() == exact_passing.float().tolist()


def test_diagonals_in_as_many_groups_as_the_budget_asks_for(largest_tensor):
    costs, sizes = batch([(9, 4), (2, 3), (0, 3), (4, 9), (12, 12)])
    whole = by_diagonal(costs, sizes, 2.0)
    with largest_tensor:
        parts = by_diagonal(costs, sizes, 2.0, budget=1)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other)
    assert largest_tensor.elements == 25 * 13  # the longest alone


@ROADS
def test_a_table_without_cells_gives_nothing(compute):
    costs, sizes = batch([(0, 3), (2, 2), (3, 0), (0, 0)])
    values, passing = compute(costs, sizes, 1.0)
    assert values.tolist() == [0, compute(costs, sizes[1:2], 1.0)[0].item(), 0, 0]
    assert len(passing) == 4
    values, passing = compute(costs[:0], sizes[:0], 1.0)
    assert len(values) == len(passing) == 0


def test_threads_change_nothing():
    costs, sizes = batch([(20, 30), (7, 9), (31, 8)], dtype=torch.float32)
    alone = by_table(costs, sizes, 2.0)
    count = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        together = by_table(costs, sizes, 2.0)
    finally:
        torch.set_num_threads(count)
    assert [each.tolist() for each in alone] == [each.tolist() for each in together]


def test_low_precision_comes_back_as_it_went_in():
    costs, sizes = batch([(4, 3), (2, 5)], dtype=torch.bfloat16)
    costs.requires_grad_()
    values = soft_dtw(costs, sizes, 2.0)
    values.sum().backward()
    assert (values.dtype, costs.grad.dtype) == (torch.float32, torch.bfloat16)


def test_it_is_differentiated_once():
    costs, sizes = batch([(2, 3)])
    value = soft_dtw(costs.requires_grad_(), sizes, 1.0).sum()
    with pytest.raises(RuntimeError, match="only once: no `create_graph`"):
        torch.autograd.grad(value, costs, create_graph=True)


def test_what_makes_no_sense_is_refused():
    costs, sizes = batch([(2, 3)])
    with pytest.raises(ValueError, match="end at 6, but there are 5 elements"):
        soft_dtw(costs[:5], sizes, 1.0)
    for gamma in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="positive temperature"):
            soft_dtw(costs, sizes, gamma)


def test_a_cost_that_is_no_number_makes_its_table_none():
    costs, sizes = batch([(2, 3), (2, 2)])
    costs[4] = math.nan
    values = soft_dtw(costs, sizes, 1.0)
    assert values[0].isnan()
    assert values[1].isfinite()
