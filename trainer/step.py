"""One optimizer step and one validation, over all ranks.

A step is the same whatever it is dealt to: denominators of its terms are added up over micro-batches and ranks before the
first of them is computed (`trainer.objectives.base`), and the random numbers of dropout follow from the step, the rank and
the micro-batch. So the number of steps done, and what DeepSpeed saves, is the whole state.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float64
from torch import Tensor

from schemas.errors import UserError
from schemas.training import TrainConfig
from trainer.batches.batch import Batch
from trainer.engine.optimizer import Role, rate, set_rates
from trainer.engine.ranks import together
from trainer.student.distiller import Distiller

Denominators = dict[str, Float64[Tensor, " parts"]]


@dataclass(frozen=True)
class Losses:
    """Of some documents, over all ranks."""

    total: float  # Σ weight · term
    terms: Mapping[str, float]  # not weighted

    def record(self, prefix: str = "") -> dict[str, float]:
        """As it is logged."""
        return {f"{prefix}loss": self.total} | {f"{prefix}{name}": value for name, value in self.terms.items()}

    def not_finite(self) -> str | None:
        """What of them is no finite number, for a person: the first term, or else their sum."""
        values = {f"the term `{name}`": value for name, value in self.terms.items()} | {"the loss": self.total}
        return next((f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)), None)


@dataclass(frozen=True)
class StepResult:
    """What an optimizer step gave, over all ranks."""

    losses: Losses
    lr: float  # the highest learning rate of the student's parameters
    grad_norm: float | None  # before clipping; not every ZeRO stage tells
    tokens: int  # of the student, that went through it
    stop: bool  # whether any rank was asked to stop

    def not_finite(self, scaled: bool) -> str | None:
        """What of it is no finite number; with a loss that is `scaled` a gradient may be, whose step is then left out."""
        if self.grad_norm is None or scaled or math.isfinite(self.grad_norm):
            return self.losses.not_finite()
        return self.losses.not_finite() or f"the norm of the gradient is {self.grad_norm}"


class Stepper:
    """The engine that learns, with what decides a step."""

    def __init__(self, engine: Any, roles: Sequence[Role], config: TrainConfig, steps: int) -> None:
        """`engine`: DeepSpeed's, around a `Distiller`; `roles`: of its optimizer's groups; `steps`: of the whole run."""
        self.engine = engine
        self._distiller: Distiller = engine.module
        self._roles = roles
        self._config = config
        self._steps = steps
        self._held_out: Denominators | None = None  # of the documents to validate on
        self._rank, self._ranks = dist.get_rank(), dist.get_world_size()

    def step(self, step: int, batches: Sequence[Batch], stop: bool) -> StepResult:
        """Optimizer step number `step`, from 0, on this rank's micro-batches; `stop`: whether this rank was asked to."""
        weights = self._weights(step / self._steps)
        self._distiller.begin_step(step, step / self._steps)
        factor = rate(self._config.optim, step, self._steps)
        set_rates(self.engine.optimizer.param_groups, self._roles, factor)
        counts = [float(sum(len(batch.ids) for batch in batches)), float(stop)]
        denominators, (tokens, stops) = self._denominators(batches, counts)
        values = torch.zeros(len(weights), device=self.engine.device)
        self.engine.train()
        for number, batch in enumerate(batches):
            self._seed(step, number)
            loss, terms = self.engine(batch.to(self.engine.device), denominators, weights)
            # DeepSpeed takes the mean over ranks, and shares of a step add up
            self.engine.backward(loss * self._ranks, scale_wrt_gas=False)
            self._update()
            values += terms
        norm = self.engine.get_global_grad_norm()
        return StepResult(
            losses=self._losses(values, weights),
            lr=self._config.optim.lr * factor,
            grad_norm=None if norm is None else float(norm),
            tokens=int(tokens),
            stop=stops > 0,
        )

    def _update(self) -> None:
        """DeepSpeed's step, which does nothing but at a step's last micro-batch. Raises UserError where fp16 cannot go on."""
        try:
            self.engine.step()
        except Exception as error:  # its own class for it, whatever the ZeRO stage
            if "loss scale" not in str(error):
                raise
            with together():
                raise UserError(
                    "The gradients are no finite numbers in float16, however small the loss is scaled; take "
                    "`precision: bf16` or `fp32` in another `out`, or with --overwrite."
                ) from error

    @torch.no_grad()
    def validate(self, portions: Callable[[], Iterable[Sequence[Batch]]]) -> Losses:
        """The loss, with its final weights, and its terms: a plain function of weights and documents.

        `portions`: this rank's documents, some at a time, of which no more are held; the same whenever it is called. Each
        gives them once, but twice the first time: for the denominators, which stay what they are, unless weights count.
        """
        if self._held_out is None or self._distiller.counts_by_model:
            self._held_out, _ = self._denominators((batch for batches in portions() for batch in batches), [])
        weights = self._weights(1.0)
        self._distiller.begin_validation()
        values = torch.zeros(len(weights), device=self.engine.device)
        self.engine.eval()
        for batches in portions():
            for batch in batches:
                _, terms = self.engine(batch.to(self.engine.device), self._held_out, weights)
                values += terms
        return self._losses(values, weights)

    def _weights(self, progress: float) -> dict[str, float]:
        return {name: term.config.weight_at(progress) for name, term in self._distiller.terms.items()}

    def _denominators(self, batches: Iterable[Batch], counts: Sequence[float]) -> tuple[Denominators, list[float]]:
        """Of every term over all micro-batches of all ranks; and other numbers added up over ranks on the way."""
        total: Denominators = {}
        for batch in batches:
            for name, own in self._distiller.denominators(batch).items():
                total[name] = total[name] + own if name in total else own
        flat = torch.cat([*total.values(), torch.tensor([*counts], dtype=torch.float64)])
        if self._ranks > 1:
            flat = flat.to(self.engine.device)
            dist.all_reduce(flat)
            flat = flat.cpu()
        *parts, rest = torch.split(flat, [*(len(each) for each in total.values()), len(counts)])
        return dict(zip(total, parts, strict=True)), rest.tolist()

    def _losses(self, values: Tensor, weights: Mapping[str, float]) -> Losses:
        """Of the terms' values on this rank."""
        if self._ranks > 1:
            dist.all_reduce(values)
        terms = dict(zip(weights, values.tolist(), strict=True))
        return Losses(sum(weights[name] * value for name, value in terms.items()), terms)

    def _seed(self, step: int, micro_batch: int) -> None:
        """Random numbers of dropout follow from where in the run they are drawn."""
        sequence = np.random.SeedSequence([self._config.seed, step, self._rank, micro_batch])
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]) >> 1)
