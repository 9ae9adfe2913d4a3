"""AdamW's groups and their learning rates: warm-up and the three schedules against their equations."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from schemas.training import OptimConfig
from trainer.engine.optimizer import Role, optimizer, rate, set_rates

SCHEDULES = ["cosine", "linear", "constant"]


def rates(steps, **values):
    config = OptimConfig(lr=1e-3, **values)
    return [rate(config, step, steps) for step in range(steps)]


def test_warm_up_rises_evenly_and_never_begins_at_nothing():
    assert rates(8, warmup=3, schedule="constant") == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_as_a_part_of_all_steps(schedule):
    assert rates(40, warmup=0.25, schedule=schedule) == rates(40, warmup=10, schedule=schedule)
    assert rates(40, warmup=0.0, schedule=schedule)[0] == 1


def test_schedules_are_their_equations():
    done = [step / 8 for step in range(8)]  # of what follows two steps of warm-up
    assert rates(10, warmup=2, schedule="linear", final_lr=0.2)[2:] == pytest.approx([1 - 0.8 * x for x in done])
    cosine = [0.2 + 0.4 * (1 + math.cos(math.pi * x)) for x in done]
    assert rates(10, warmup=2, schedule="cosine", final_lr=0.2)[2:] == pytest.approx(cosine)
    assert rates(10, warmup=2, schedule="constant", final_lr=0.2)[2:] == [1.0] * 8


@given(
    steps=st.integers(1, 200),
    warmup=st.one_of(st.integers(1, 300), st.floats(0, 0.99)),
    final=st.floats(0, 1),
    schedule=st.sampled_from(SCHEDULES),
)
def test_it_rises_to_one_and_falls_to_the_final_rate(steps, warmup, final, schedule):
    factors = rates(steps, warmup=warmup, schedule=schedule, final_lr=final)
    top = max(range(steps), key=factors.__getitem__)
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert all(0 < factor <= 1 for factor in factors[: top + 1])
    after = rate(OptimConfig(lr=1e-3, warmup=warmup, schedule=schedule, final_lr=final), steps + 300, steps)
    assert after == pytest.approx(1 if schedule == "constant" else final)
    assert all(factor >= min(final, *factors[: top + 1]) - 1e-12 for factor in factors)


def test_groups_and_their_rates():
    student, projectors = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)), [nn.Parameter(torch.ones(2, 2))]
    student[0].bias.requires_grad_(False)
    config = OptimConfig(lr=1e-3, projector_lr=5e-3, weight_decay=0.1)
    adam, roles = optimizer(student, projectors, config, offloaded=False)
    assert roles == [Role(1e-3, 0.1), Role(1e-3, 0.0), Role(5e-3, 0.1)]
    free = config.model_copy(update={"projector_weight_decay": 0.0})
    assert optimizer(student, projectors, free, offloaded=False)[1] == [*roles[:2], Role(5e-3, 0.0)]
    members = [[tuple(parameter.shape) for parameter in group["params"]] for group in adam.param_groups]
    assert members == [[(2, 3)], [(2,), (2,)], [(2, 2)]]  # what is frozen learns in none
    for group in adam.param_groups:  # as a universal checkpoint leaves it
        group["lr"], group["weight_decay"] = 7.0, 7.0
    set_rates(adam.param_groups, roles, 0.5)
    assert [(group["lr"], group["weight_decay"]) for group in adam.param_groups] == [
        (role.lr / 2, role.weight_decay) for role in roles
    ]


def test_fused_updates_are_the_same():
    def updated(fused):
        torch.manual_seed(0)
        student, projectors = nn.Linear(40, 30), [nn.Parameter(torch.randn(8, 8))]
        adam, _ = optimizer(student, projectors, OptimConfig(lr=1e-2), offloaded=False, fused=fused)
        for _ in range(3):
            loss = student(torch.randn(5, 40)).square().sum() + projectors[0].pow(3).sum()
            loss.backward()
            adam.step()
            adam.zero_grad()
        return torch.cat([each.detach().flatten() for each in (*student.parameters(), *projectors)])

    torch.testing.assert_close(updated(True), updated(False))


def test_there_are_no_empty_groups():
    _, roles = optimizer(nn.Linear(3, 2, bias=False), [], OptimConfig(lr=1e-3), offloaded=False)
    assert len(roles) == 1
