"""AdamW's groups of parameters and their learning rates."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from schemas.training import OptimConfig


@dataclass(frozen=True)
class Role:
    """What a group of parameters learns with."""

    lr: float  # at its highest
    weight_decay: float


def optimizer(
    student: nn.Module, projectors: Iterable[nn.Parameter], config: OptimConfig, offloaded: bool, fused: bool = False
) -> tuple[torch.optim.Optimizer, list[Role]]:
    """AdamW, without weight decay for biases and norms; and the role of each of its groups.

    `offloaded`: its states live on the CPU beside a GPU, where DeepSpeed's own is faster. `fused`: a GPU has weights and
    states whole, and one kernel reads and writes them once.
    """
    projector_decay = config.weight_decay if config.projector_weight_decay is None else config.projector_weight_decay
    learning = [each for each in student.parameters() if each.requires_grad]
    groups = [
        ([each for each in learning if each.ndim >= 2], Role(config.lr, config.weight_decay)),
        ([each for each in learning if each.ndim < 2], Role(config.lr, 0.0)),
        (list(projectors), Role(config.projector_lr, projector_decay)),
    ]
    present = [(parameters, role) for parameters, role in groups if parameters]
    values = [{"params": parameters, "lr": role.lr, "weight_decay": role.weight_decay} for parameters, role in present]
    kind: Any = partial(torch.optim.AdamW, fused=True) if fused else torch.optim.AdamW
    if offloaded and torch.cuda.is_available():
        from deepspeed.ops.adam import DeepSpeedCPUAdam  # compiled when it is made

        kind = DeepSpeedCPUAdam
    return kind(values, betas=config.betas, eps=config.eps), [role for _, role in present]


def set_rates(groups: Sequence[dict[str, Any]], roles: Sequence[Role], factor: float) -> None:
    """Learning rates of a step. Everything a group has is set anew: universal checkpoints do not bring it all back."""
    for group, role in zip(groups, roles, strict=True):
        group["lr"] = role.lr * factor
        group["weight_decay"] = role.weight_decay


def rate(config: OptimConfig, step: int, steps: int) -> float:
    """The learning rate of a step (from 0) as a part of its highest: linear warm-up, then the schedule.

        cosine: f + (1 - f) (1 + cos(pi x)) / 2,   linear: 1 - (1 - f) x,   constant: 1

    where x is how much of what follows the warm-up is done and f is `final_lr`.
    """
    warmup = config.warmup if config.warmup >= 1 else config.warmup * steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = min((step - warmup) / max(steps - warmup, 1), 1.0)
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "linear":
        return 1 - (1 - config.final_lr) * done
    return config.final_lr + (1 - config.final_lr) * (1 + math.cos(math.pi * done)) / 2
