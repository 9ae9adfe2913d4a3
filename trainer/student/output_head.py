"""The student's output head, and losses on its logits (`trainer.models.row_losses`).

A loss is computed with its gradients in the forward pass, which the backward pass multiplies by the gradient of the loss.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate as running_total
from itertools import pairwise
from typing import Any, Final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from trainer.batches.batch import Batch
from trainer.maths.ragged import at_least_float32
from trainer.models.head import Head
from trainer.models.row_losses import Evaluate, Gradients, RowWork, Stream, accumulate, exact
from trainer.objectives.base import Aside, LogitObjective, Logits, Rider

#: In float16, factors of losses are scaled so that the largest is this, until the backward pass: derivatives of a loss by
#: a logit are then held from 2^-32 to 2^7, however small the factors, to which the scale of the loss comes only later.
_FLOAT16_SCALE: Final = 2.0**8
#: Factors below this are 0, and cannot be scaled.
_NO_FACTOR: Final = 1e-30


@dataclass(frozen=True)
class LogitWork:
    """Losses to compute at the batch's positions (protocol: `trainer.models.row_losses.RowWork`).

    Teacher's values are constants.
    """

    objectives: Sequence[LogitObjective]  # their own parameters get gradients through `asides` alone
    factors: Sequence[float | Float[Tensor, ""]]  # weight / denominator of each
    targets: Int64[Tensor, " positions"]
    inner: Mapping[int, Float[Tensor, "positions hidden"]] = field(default_factory=dict)  # by student layer
    last: int | None = None  # a student layer, too: the one whose states are the last hidden states
    teacher: Head | None = None  # with `final` or `position_states`
    final: Float[Tensor, "positions teacher_hidden"] | None = None
    position_states: Mapping[int, Float[Tensor, "positions teacher_hidden"]] = field(default_factory=dict)
    #: those of layers that are wanted behind the final norm: the student's, which have been there, and the teacher's, not yet
    normed: Mapping[int, Float[Tensor, "positions hidden"]] = field(default_factory=dict)
    states_to_norm: Mapping[int, Float[Tensor, "positions teacher_hidden"]] = field(default_factory=dict)
    topk_indices: Int64[Tensor, "positions k"] | None = None
    topk_logprobs: Float[Tensor, "positions k"] | None = None
    asides: Mapping[LogitObjective, Aside] = field(default_factory=dict)  # of objectives that have one
    hidden: Float[Tensor, "positions hidden"] | None = None  # the student's last states: given when the head is called
    riders: Sequence[Rider] = ()  # losses of others on the logits that are here; they have the last of `factors`
    columns: None = None

    @classmethod
    def of(
        cls,
        batch: Batch,
        states: Mapping[int, Float[Tensor, "tokens hidden"]],
        objectives: Sequence[LogitObjective],
        factors: Sequence[float | Float[Tensor, ""]],
        teacher: Head | None,
        asides: Mapping[LogitObjective, Aside] | None = None,
        norm: Callable[[Tensor], Tensor] | None = None,
        riders: Sequence[Rider] = (),
    ) -> "LogitWork":
        """For a batch at its `positions`, no more than the objectives need. `states`: by student layer, the last one's
        always among them; `norm`: the student's final one, where an objective asks for it."""
        needs = [each.needs() for each in objectives]
        last = max(states)

        def at_positions(layers: Iterable[int]) -> dict[int, Tensor]:
            return {layer: states[layer].index_select(0, batch.positions) for layer in sorted(layers)}

        def of_teacher(layers: Iterable[int]) -> dict[int, Tensor]:
            targets = {layer: batch.layers[layer].position_states for layer in sorted(layers)}
            return {layer: each for layer, each in targets.items() if each is not None}

        plain = {layer for each in objectives for layer in {*each.student_layers()} - each.normed.student}
        teacher_plain = {
            layer
            for each, wanted in zip(objectives, needs, strict=True)
            for layer, kinds in wanted.layers.items()
            if "position_states" in kinds and layer not in each.normed.teacher
        }
        normed = at_positions({layer for each in objectives for layer in each.normed.student})
        if normed:
            assert norm is not None
            normed = {layer: norm(each) for layer, each in normed.items()}
        topk = any(each.topk for each in needs)
        return cls(
            objectives=objectives,
            factors=(*factors, *(each.factor for each in riders)),
            targets=batch.targets,
            inner=at_positions(plain - {last}),
            last=last,
            teacher=teacher,
            final=batch.final if any(each.final for each in needs) else None,
            position_states=of_teacher(teacher_plain),
            normed=normed,
            states_to_norm=of_teacher({layer for each in objectives for layer in each.normed.teacher}),
            topk_indices=batch.topk_indices if topk else None,
            topk_logprobs=batch.topk_logprobs if topk else None,
            asides=asides or {},
            riders=riders,
        )

    @cached_property
    def bounds(self) -> list[int] | None:
        """Those that all riders have."""
        bounds = [{*each.bounds} for each in self.riders if each.bounds is not None]
        return sorted(set.intersection(*bounds)) if bounds else None

    @property
    def _projected(self) -> dict[LogitObjective, Float[Tensor, "positions hidden"]]:
        """Rows of other origin that go through the matrix as well."""
        return {term: aside.projected for term, aside in self.asides.items() if aside.projected is not None}

    def streams(self) -> list[Stream]:
        """Last states, those of inner layers, and projected rows, to which the matrix is a constant without its bias."""
        assert self.hidden is not None
        own = [Stream(rows) for rows in (self.hidden, *self.inner.values(), *self.normed.values())]
        return own + [Stream(rows, own=False, bias=False) for rows in self._projected.values()]

    def prepared(self, head: Head) -> "LogitWork":
        """With the weights of positions that depend on all of them."""
        assert self.hidden is not None
        if not any(aside.weighed is not None for aside in self.asides.values()):
            return self
        asides = {
            term: aside
            if aside.weighed is None
            else replace(aside, at_positions={**aside.at_positions, "weights": aside.weighed(head, self.hidden)})
            for term, aside in self.asides.items()
        }
        return replace(self, asides=asides)

    def portion(self, part: slice) -> Evaluate:
        """Each objective's `per_token`, added up."""
        final, inner, normed = _teachers(self, part)
        along = [each.portion(part) for each in self.riders]

        def evaluate(student: Sequence[Tensor], rows: slice, within: slice) -> Tensor:
            streams = iter(student)
            last = next(streams)
            logits = Logits(
                student=last,
                targets=self.targets[rows],
                # each takes its own from the streams, in their order
                inner={layer: next(streams) for layer in self.inner} | ({} if self.last is None else {self.last: last}),
                normed={layer: next(streams) for layer in self.normed},
                projected={term: next(streams) for term in self._projected},
                teacher=None if final is None else at_least_float32(final[within]),
                teacher_inner={layer: at_least_float32(each[within]) for layer, each in inner.items()},
                teacher_normed={layer: at_least_float32(each[within]) for layer, each in normed.items()},
                topk_indices=None if self.topk_indices is None else self.topk_indices[rows],
                topk_logprobs=None if self.topk_logprobs is None else self.topk_logprobs[rows],
                at_positions={
                    term: {name: values[rows] for name, values in aside.at_positions.items()}
                    for term, aside in self.asides.items()
                },
            )
            sums = [each.per_token(logits).sum() for each in self.objectives]
            return torch.stack([*sums, *(loss(logits, rows, within) for loss in along)])

        return evaluate


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

    def product(
        self, columns: Int64[Tensor, " tokens"], values: Float[Tensor, "tokens columns"]
    ) -> Float[Tensor, "hidden columns"]:
        """Wᵀ · values, W the matrix at some tokens; without gradient. Through the module's hooks, as ZeRO-3 needs it."""
        product: Tensor = self(values, columns=columns)
        return product

    def forward(  # type: ignore[override]  # a linear layer to whoever gives it no work
        self,
        hidden: Float[Tensor, "*batch hidden"],
        work: LogitWork | None = None,
        others: Sequence[RowWork] = (),
        columns: Int64[Tensor, " tokens"] | None = None,
    ) -> Tensor | tuple[Float[Tensor, ""], Float[Tensor, " losses"]]:
        """Raw logits, to which the model does the rest; with work, the loss and the values of its terms; with `columns`
        what `product` gives.

        With `work`, `hidden` is [positions, hidden]; `others` bring their own rows. The loss is Σ_i factor_i · value_i, with
        gradients to all rows, weight and bias, as far as they require them; differentiable once. Values, one for each
        objective and rider of `work`, then those of `others`, are sums over rows, without gradient. Logits are computed in the
        weight's dtype, losses at least in float32, also under autocast. To be called as a module, since ZeRO-3 has its
        weight only then.
        """
        if columns is not None:
            with torch.no_grad():
                return self.weight[columns].t().to(hidden.dtype) @ hidden
        if work is None and not others:
            return super().forward(hidden)
        works = [*([] if work is None or not work.objectives else [replace(work, hidden=hidden)]), *others]
        rows = [stream.rows for each in works for stream in each.streams()]
        losses: tuple[Tensor, Tensor] = _Losses.apply(  # type: ignore[no-untyped-call]
            works, self, torch.is_grad_enabled(), self.weight, self.bias, *rows
        )
        return losses


class _Losses(torch.autograd.Function):
    """(loss, values) of some works."""

    @staticmethod
    def forward(
        ctx: Any,
        works: Sequence[RowWork],
        module: OutputHead,
        training: bool,
        weight: Tensor,
        bias: Tensor | None,
        *rows: Tensor,
    ) -> tuple[Tensor, Tensor]:
        head = Head(weight, bias, module.soft_cap, module.scale)
        gradients = [
            torch.zeros_like(each, dtype=exact(weight.dtype)) if each is not None and training and wanted else None
            for each, wanted in zip((weight, bias, *rows), ctx.needs_input_grad[3:], strict=True)
        ]
        factors = [_numbers(work.factors, weight) for work in works]
        scale = torch.ones((), dtype=exact(weight.dtype), device=weight.device)
        if weight.dtype == torch.float16:
            scale = _FLOAT16_SCALE / torch.cat(factors).abs().amax().clamp_min(_NO_FACTOR)
        bounds = [0, *running_total(len(work.streams()) for work in works)]
        by_weight, by_bias, *by_rows = gradients
        values = []
        with torch.autocast(weight.device.type, enabled=False):
            for work, own, (first, end) in zip(works, factors, pairwise(bounds), strict=True):
                wanted = Gradients(by_weight, by_bias, by_rows[first:end])
                values.append(accumulate(work.prepared(head), head, own * scale, wanted))
            sums = torch.cat(values)
            loss = torch.cat(factors) @ sums
        ctx.scale, ctx.gradients = scale, gradients
        ctx.dtypes = [each if each is None else each.dtype for each in (weight, bias, *rows)]
        ctx.mark_non_differentiable(sums)
        return loss, sums

    @staticmethod
    def backward(ctx: Any, by_loss: Tensor, _by_values: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("losses on logits can be differentiated only once: no `create_graph`")
        # in place: a step has the most in memory now, and the weight's gradient is large
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradients of losses on logits were handed out before; compute the losses again")
        factor = by_loss / ctx.scale
        scaled = [
            None if each is None else each.mul_(factor).to(dtype)
            for each, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return None, None, None, *scaled


def _numbers(factors: Sequence[float | Float[Tensor, ""]], like: Tensor) -> Float[Tensor, " losses"]:
    """As a tensor where the logits are."""
    return torch.stack([torch.as_tensor(each, dtype=exact(like.dtype), device=like.device) for each in factors])


def _teachers(work: LogitWork, part: slice) -> tuple[Tensor | None, dict[int, Tensor], dict[int, Tensor]]:
    """The teacher's logits at some positions: last ones; by teacher layer; and behind its final norm, likewise."""
    head = work.teacher
    if head is None:
        return None, {}, {}
    final = None if work.final is None else head.logits(work.final[part])
    inner = {layer: head.logits(each[part]) for layer, each in work.position_states.items()}
    if not work.states_to_norm:
        return final, inner, {}
    assert head.norm is not None
    return final, inner, {layer: head.logits(head.norm(each[part])) for layer, each in work.states_to_norm.items()}
