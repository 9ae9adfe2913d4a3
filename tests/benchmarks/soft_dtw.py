"""What soft-DTW costs: forward and backward, the compiled loop against anti-diagonals that torch differentiates, by turns.

    python tests/benchmarks/soft_dtw.py [--documents N] [--tokens N] [--rounds N] [--threads N] [--json]

Six tables a document, as DWA-KD's term has them: two spaces, in each one of both sides and one of either side with itself.
The usual way pads the tables and takes a softmin over stacked predecessors for each anti-diagonal, all tables at once.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Annotated

import torch
import typer
from torch import Tensor

from pipeline.bench import machine
from trainer.maths.soft_dtw import soft_dtw

GAMMA = 2.0
TABLES = 6  # of a document


def by_autograd(costs: Tensor) -> Tensor:
    """Soft-DTW of padded costs [tables, n, m] in plain torch operations."""
    tables, n, m = costs.shape
    infinite = costs.new_full((tables, 1), torch.inf)
    before = torch.cat([costs.new_zeros(tables, 1), infinite.expand(-1, n)], 1)  # by line, the border first
    last = infinite.expand(-1, n + 1)
    for k in range(n + m - 1):
        first, end = max(0, k - m + 1), min(n, k + 1)
        line = torch.arange(first, end)
        predecessors = torch.stack([before[:, first:end], last[:, first:end], last[:, first + 1 : end + 1]])
        cells = costs[:, line, k - line] - GAMMA * torch.logsumexp(-predecessors / GAMMA, 0)
        before, last = last, torch.cat([infinite.expand(-1, first + 1), cells, infinite.expand(-1, n - end)], 1)
    return last[:, n]


def seconds(compute: Callable[[Tensor], Tensor], costs: Tensor) -> tuple[float, Tensor]:
    """How long value and gradient take, and the gradient."""
    costs = costs.clone().requires_grad_()
    began = time.perf_counter()
    compute(costs).sum().backward()
    assert costs.grad is not None
    return time.perf_counter() - began, costs.grad


def main(
    documents: Annotated[int, typer.Option(min=1)] = 8,
    tokens: Annotated[int, typer.Option(min=1, help="on either side")] = 128,
    rounds: Annotated[int, typer.Option(min=1)] = 7,
    threads: Annotated[int | None, typer.Option(min=1, help="else as many as torch takes")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Milliseconds of both ways, and their ratio."""
    torch.set_num_threads(threads or torch.get_num_threads())
    tables = TABLES * documents
    costs = torch.rand(tables, tokens, tokens, generator=torch.Generator().manual_seed(0))
    sizes = torch.full((tables, 2), tokens)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "compiled": lambda costs: soft_dtw(costs.flatten(), sizes, GAMMA),
        "by autograd": by_autograd,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    gradients = {}
    for number in range(rounds + 1):
        for name, compute in ways.items():
            taken, gradients[name] = seconds(compute, costs)
            if number:  # the first compiles
                times[name].append(taken)
    torch.testing.assert_close(*gradients.values(), rtol=1e-3, atol=1e-4)
    ratios = [other / one for one, other in zip(times["compiled"], times["by autograd"], strict=True)]
    milliseconds = {f"{name}, ms": round(1000 * median(values), 2) for name, values in times.items()}
    result = {"tables": tables, "cells": costs.numel(), "threads": torch.get_num_threads(), **milliseconds}
    machine.report(
        {**result, "ratio": round(median(ratios), 2), "ratios": [round(ratio, 2) for ratio in ratios]}, as_json
    )


if __name__ == "__main__":
    typer.run(main)
