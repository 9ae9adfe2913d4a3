"""The student's output head, and losses on its logits, in which no matrix of all logits ever exists.

Logits are the largest thing in a training step: 1,000 positions of a vocabulary of 49,152 are 200 MB in float32, and a
loss needs several such matrices. Here positions are taken some at a time (`trainer.models.head.LOGITS_AT_ONCE`):

1. their logits, and the teacher's, by one matrix product each;
2. every loss and its derivative by the logits, a few rows at a time where that keeps them in the processor's cache;
   derivatives take the place of the logits they belong to;
3. from those the gradients of hidden states, weight and bias, added up in float32.

All of it happens in the forward pass. What is kept for the backward pass are finished gradients, no larger than what
they are gradients of, which it multiplies by the gradient of the loss.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from trainer.batches.batch import Batch
from trainer.maths.ragged import at_least_float32
from trainer.models.head import Head, slices
from trainer.objectives.base import LogitObjective, Logits

#: Logits whose losses are computed at once on a CPU: a dozen float32 matrices of 2 MiB stay in its cache, those of 64 MiB
#: do not, which costs half as much again. Other devices take all the logits there are.
_IN_CACHE: Final = 2**19
#: In float16, factors of losses are scaled so that the largest is this, until the backward pass: derivatives of a loss by
#: a logit are then held from 2^-32 to 2^7, however small the factors, to which the scale of the loss comes only later.
_FLOAT16_SCALE: Final = 2.0**8
#: Factors below this are 0, and cannot be scaled.
_NO_FACTOR: Final = 1e-30


@dataclass(frozen=True)
class LogitWork:
    """Losses to compute on some positions, and what they need besides the student's last hidden states there.

    A loss is the sum over positions; `factors` are what each is multiplied by. Teacher's values are constants.
    """

    objectives: Sequence[LogitObjective]  # without parameters of their own: those would get no gradient
    factors: Sequence[float | Float[Tensor, ""]]  # weight / denominator of each
    targets: Int64[Tensor, " positions"]
    inner: Mapping[int, Float[Tensor, "positions hidden"]] = field(default_factory=dict)  # by student layer
    last: int | None = None  # a student layer, too: the one whose states are the last hidden states
    teacher: Head | None = None  # with `final` or `position_states`
    final: Float[Tensor, "positions teacher_hidden"] | None = None
    position_states: Mapping[int, Float[Tensor, "positions teacher_hidden"]] = field(default_factory=dict)
    topk_indices: Int64[Tensor, "positions k"] | None = None
    topk_logprobs: Float[Tensor, "positions k"] | None = None

    @classmethod
    def of(
        cls,
        batch: Batch,
        states: Mapping[int, Float[Tensor, "tokens hidden"]],
        objectives: Sequence[LogitObjective],
        factors: Sequence[float | Float[Tensor, ""]],
        teacher: Head | None,
    ) -> "LogitWork":
        """For a batch at its `positions`, no more than the objectives need. `states`: by student layer, the last one's
        always among them."""
        needs = [each.needs() for each in objectives]
        last = max(states)
        layers = sorted({layer for each in objectives for layer in each.student_layers()} - {last})
        position_states = {}
        for layer in sorted(
            {layer for each in needs for layer, kinds in each.layers.items() if "position_states" in kinds}
        ):
            found = batch.layers[layer].position_states
            assert found is not None
            position_states[layer] = found
        topk = any(each.topk for each in needs)
        return cls(
            objectives=objectives,
            factors=factors,
            targets=batch.targets,
            inner={layer: states[layer].index_select(0, batch.positions) for layer in layers},
            last=last,
            teacher=teacher,
            final=batch.final if any(each.final for each in needs) else None,
            position_states=position_states,
            topk_indices=batch.topk_indices if topk else None,
            topk_logprobs=batch.topk_logprobs if topk else None,
        )


class OutputHead(nn.Linear):
    """A language model's output matrix that can also compute losses. Its parameters and state dict are the linear layer's.

    `soft_cap` and `scale` are what the model does to logits behind it (`trainer.models.head.Head`).
    """

    soft_cap: float | None = None
    scale: float | None = None

    @classmethod
    def around(cls, linear: nn.Linear, soft_cap: float | None, scale: float | None) -> "OutputHead":
        """In place of `linear`, whose parameters it takes over: tied ones stay tied."""
        head = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        head.weight, head.bias = linear.weight, linear.bias
        head.soft_cap, head.scale = soft_cap, scale
        return head.train(linear.training)

    def forward(  # type: ignore[override]  # a linear layer to whoever gives it no work
        self, hidden: Float[Tensor, "*batch hidden"], work: LogitWork | None = None
    ) -> Float[Tensor, "*batch vocabulary"] | tuple[Float[Tensor, ""], Float[Tensor, " objectives"]]:
        """Raw logits, to which the model does the rest; or, with `work`, the loss and its terms' values.

        `hidden` is then [positions, hidden]. The loss is Σ_i factor_i · value_i, with gradients to `hidden`, `inner`,
        weight and bias, as far as they require them; differentiable once. Values, one an objective, are
        Σ_positions per_token, without gradient. Logits are computed in the weight's dtype, losses at least in float32,
        also under autocast. To be called as a module, since ZeRO-3 has its weight only then.
        """
        if work is None:
            return super().forward(hidden)
        found: tuple[Tensor, Tensor] = _Losses.apply(  # type: ignore[no-untyped-call]
            work, self, torch.is_grad_enabled(), self.weight, self.bias, hidden, *work.inner.values()
        )
        return found


class _Losses(torch.autograd.Function):
    """(loss, values) of a `LogitWork`."""

    @staticmethod
    def forward(
        ctx: Any,
        work: LogitWork,
        module: OutputHead,
        training: bool,
        weight: Tensor,
        bias: Tensor | None,
        *states: Tensor,
    ) -> tuple[Tensor, Tensor]:
        head = Head(weight, bias, module.soft_cap, module.scale)
        gradients = [
            torch.zeros_like(each, dtype=_exact(weight.dtype)) if each is not None and training and wanted else None
            for each, wanted in zip((weight, bias, *states), ctx.needs_input_grad[3:], strict=True)
        ]
        factors = torch.stack(
            [torch.as_tensor(each, dtype=_exact(weight.dtype), device=weight.device) for each in work.factors]
        )
        scale = torch.ones_like(factors[0])
        if weight.dtype == torch.float16:
            scale = _FLOAT16_SCALE / factors.abs().amax().clamp_min(_NO_FACTOR)
        with torch.autocast(weight.device.type, enabled=False):
            values = _accumulate(work, head, states, factors * scale, gradients)
            loss = factors @ values
        ctx.scale, ctx.gradients = scale, gradients
        ctx.dtypes = [each if each is None else each.dtype for each in (weight, bias, *states)]
        ctx.mark_non_differentiable(values)
        return loss, values

    @staticmethod
    def backward(ctx: Any, by_loss: Tensor, _by_values: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("losses on logits can be differentiated only once: no `create_graph`")
        # in place: a step has the most in memory now, and the weight's gradient is large
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradients of losses on logits were handed out before; compute the losses again")
        factor = by_loss / ctx.scale
        found = [
            None if each is None else each.mul_(factor).to(dtype)
            for each, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return None, None, None, *found


def _accumulate(
    work: LogitWork,
    head: Head,
    states: Sequence[Float[Tensor, "positions hidden"]],
    factors: Float[Tensor, " objectives"],
    gradients: Sequence[Float[Tensor, "..."] | None],
) -> Float[Tensor, " objectives"]:
    """The sum of each loss; `gradients` (of weight, bias and each of `states`; None: not wanted) are added to."""
    by_weight, by_bias, *by_states = gradients
    training = any(each is not None for each in gradients)
    values = torch.zeros_like(factors)
    count, vocabulary = len(states[0]), len(head.weight)
    in_cache = _IN_CACHE // vocabulary if head.weight.device.type == "cpu" else count
    for part in head.portions(count, len(states)):
        hidden = [each[part].detach().to(head.weight.dtype) for each in states]
        raw = [F.linear(each, head.weight, head.bias) for each in hidden]
        final, inner = _teachers(work, part)
        for rows in slices(part.start, part.stop, in_cache):
            within = slice(rows.start - part.start, rows.stop - part.start)
            leaves = [each[within].detach().requires_grad_(training) for each in raw]
            with torch.set_grad_enabled(training):
                student = [at_least_float32(head.after(each)) for each in leaves]
                logits = Logits(
                    student=student[0],
                    targets=work.targets[rows],
                    inner=dict(zip(work.inner, student[1:], strict=True))
                    | ({} if work.last is None else {work.last: student[0]}),
                    teacher=None if final is None else at_least_float32(final[within]),
                    teacher_inner={layer: at_least_float32(each[within]) for layer, each in inner.items()},
                    topk_indices=None if work.topk_indices is None else work.topk_indices[rows],
                    topk_logprobs=None if work.topk_logprobs is None else work.topk_logprobs[rows],
                )
                sums = torch.stack([each.per_token(logits).sum() for each in work.objectives])
                loss = factors @ sums
            values += sums.detach()
            if training:
                derivatives = torch.autograd.grad(loss, leaves, materialize_grads=True)
                for each, derivative in zip(raw, derivatives, strict=True):
                    each[within] = derivative
        if not training:
            continue
        for derivative, state, by_state in zip(raw, hidden, by_states, strict=True):
            if by_state is not None:
                by_state[part] = _product(derivative, head.weight)
            if by_weight is not None:
                _add_product(by_weight, derivative.t(), state)
            if by_bias is not None:
                by_bias += derivative.sum(0, dtype=by_bias.dtype)
    return values


def _teachers(work: LogitWork, part: slice) -> tuple[Tensor | None, dict[int, Tensor]]:
    """The teacher's logits at some positions: last ones, and by teacher layer."""
    if work.teacher is None:
        return None, {}
    final = None if work.final is None else work.teacher.logits(work.final[part])
    return final, {layer: work.teacher.logits(each[part]) for layer, each in work.position_states.items()}


def _exact(dtype: torch.dtype) -> torch.dtype:
    """What sums are in (`trainer.maths.ragged.at_least_float32`)."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _product(left: Float[Tensor, "n k"], right: Float[Tensor, "k m"]) -> Float[Tensor, "n m"]:
    """left · right, of which nothing is rounded to half precision, where float16 might not hold it."""
    if _exact(left.dtype) == left.dtype:
        return left @ right
    if left.device.type == "cuda":
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def _add_product(total: Float[Tensor, "n m"], left: Float[Tensor, "n k"], right: Float[Tensor, "k m"]) -> None:
    """total += left · right"""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += _product(left, right)
