"""Divergences between the teacher's distribution p of the next token and the student's q, at each position.

    fkl     KL(p ‖ q)                     Hinton et al. 2015, arXiv 1503.02531
    rkl     KL(q ‖ p)                     MiniLLM, Gu et al. 2024, arXiv 2306.08543
    sfkl    KL(p ‖ λp + (1 − λ)q)         DistiLLM, Ko et al. 2024, arXiv 2402.03898
    srkl    KL(q ‖ (1 − λ)p + λq)         the same; λ is `skew`

`temperature` divides the logits of both sides. The loss is not multiplied by its square, by which Hinton keeps its weight
against another loss: that is what `weight` is for. p comes from one of two sources:

    final   the teacher's last states through its output matrix: exact. Output matrices for the same tokens may be padded
            to different sizes: both distributions are cut to the smaller one, and renormalised
    topk    the likeliest tokens keep their probabilities, all others are one event with the rest, on both sides: exact
            when all are kept. A token that the student's matrix lacks is cut, and the others are renormalised

Where p is 0, as with tokens that a teacher masks, all but `rkl` are finite, and that is merely huge.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Final, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from trainer.objectives.base import LogitObjective, Logits, Needs, Options

#: A logarithm as good as −∞: its exponential is 0; but 0 times it is 0, and its difference from itself.
_LOG_ZERO: Final = -1e30
#: A ratio counts as e^80 at most. Beyond, the event's smaller probability, and all that it adds, is below e^-80.
_FAR: Final = 80.0

Rule = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # log q, log p -> divergence, its derivative by log q


class DivergenceOptions(Options):
    """Options of `fkl` and `rkl`."""

    source: Literal["final", "topk"] = "final"
    temperature: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _known(self) -> "DivergenceOptions":
        if self.source == "topk" and self.temperature != 1:
            raise ValueError("`source: topk` has log-probabilities at `temperature` 1 only; take `source: final`")
        return self


class SkewedOptions(DivergenceOptions):
    """Options of `sfkl` and `srkl`."""

    skew: float = Field(default=0.1, gt=0, lt=1)  # λ


class Divergence(LogitObjective):
    """A divergence of q and p over events: every token, or k of them and the rest."""

    options: ClassVar[type[Options]] = DivergenceOptions
    rule: ClassVar[Callable[..., tuple[Tensor, Tensor]]]  # of log q, log p, and λ where there is one

    def needs(self) -> Needs:
        """The source of p."""
        return Needs(final=self.config.source == "final", topk=self.config.source == "topk")

    def per_token(self, logits: Logits) -> Float[Tensor, " positions"]:
        """The divergence at each position."""
        if self.config.source == "topk":
            return self.divergence(*topk_events(logits))
        assert logits.teacher is not None
        if self.config.temperature == 1 and logits.student.shape[1] <= logits.teacher.shape[1]:
            log_q = logits.student_logprobs  # which other terms may have computed
            return self.divergence(log_q, logits.teacher[:, : log_q.shape[1]].log_softmax(1))
        return self.divergence(*common_events(logits.student, logits.teacher, self.config.temperature))

    def divergence(
        self, log_q: Float[Tensor, "positions events"], log_p: Float[Tensor, "positions events"]
    ) -> Float[Tensor, " positions"]:
        """Of log-probabilities."""
        return divergence(log_q, log_p, type(self).rule)


class SkewedDivergence(Divergence):
    """A divergence from a mixture of q and p: at most log 1/λ."""

    options: ClassVar[type[Options]] = SkewedOptions

    def divergence(
        self, log_q: Float[Tensor, "positions events"], log_p: Float[Tensor, "positions events"]
    ) -> Float[Tensor, " positions"]:
        """Of log-probabilities."""
        return divergence(log_q, log_p, partial(type(self).rule, skew=self.config.skew))


def common_events(
    student: Float[Tensor, "positions vocabulary"],
    teacher: Float[Tensor, "positions teacher_vocabulary"],
    temperature: float = 1.0,
) -> tuple[Float[Tensor, "positions events"], Float[Tensor, "positions events"]]:
    """log q and log p of the tokens that both have logits of, at a temperature."""
    size = min(student.shape[1], teacher.shape[1])
    log_q, log_p = ((each[:, :size] / temperature).log_softmax(1) for each in (student, teacher))
    return log_q, log_p


def topk_events(
    logits: Logits,
) -> tuple[Float[Tensor, "positions events"], Float[Tensor, "positions events"]]:
    """log q and log p of the teacher's k likeliest tokens and of all others together.

    Of the others p knows what the k leave of 1, as far as that can be told: at least the rounding error of 1.
    """
    assert logits.topk_indices is not None
    assert logits.topk_logprobs is not None
    size, count = logits.student.shape[1], logits.topk_indices.shape[1]
    missing = logits.topk_indices >= size
    index = logits.topk_indices.clamp_max(size)
    # a place more, for tokens that the student lacks
    student = F.pad(logits.student, (0, 1), value=_LOG_ZERO)
    log_q = student.gather(1, index)
    likeliest = logits.topk_logprobs.to(log_q)
    log_p = likeliest.masked_fill(missing, _LOG_ZERO)
    if count < size:
        others = student.scatter(1, index, _LOG_ZERO).logsumexp(1, keepdim=True)
        left = 1 - likeliest.exp().sum(1, keepdim=True)
        log_q = torch.cat([log_q, others], 1)
        log_p = torch.cat([log_p, left.clamp_min(torch.finfo(left.dtype).eps).log()], 1)
    return log_q.log_softmax(1), log_p.log_softmax(1)


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_q: Tensor, log_p: Tensor, rule: Rule) -> Tensor:
        value, derivative = rule(log_q, log_p)
        ctx.save_for_backward(derivative)
        return value

    @staticmethod
    def backward(ctx: Any, by_value: Tensor) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError("divergences can be differentiated only once: no `create_graph`")
        (derivative,) = ctx.saved_tensors
        return derivative * by_value[:, None], None, None


def divergence(
    log_q: Float[Tensor, "positions events"], log_p: Float[Tensor, "positions events"], rule: Rule
) -> Float[Tensor, " positions"]:
    """The divergence that a rule gives, differentiable in log q; p is constant."""
    value: Tensor = _Divergence.apply(log_q, log_p, rule)  # type: ignore[no-untyped-call]
    return value


# Rules: each with its derivative by log q. On matrices as wide as a vocabulary what costs is the passes over memory, of
# which this needs half as many as differentiating step by step; hence also the operations in place.


def forward_kl(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p ‖ q) = Σ p (log p − log q)."""
    p = log_p.exp()
    log_ratio = (log_p - log_q).clamp_(min=_LOG_ZERO)
    return torch.linalg.vecdot(p, log_ratio), p.neg_()


def reverse_kl(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """KL(q ‖ p) = Σ q (log q − log p)."""
    q = log_q.exp()
    log_ratio = (log_q - log_p).clamp_(max=-_LOG_ZERO)
    return torch.linalg.vecdot(q, log_ratio), log_ratio.add_(1).mul_(q)


def skewed_forward_kl(log_q: Tensor, log_p: Tensor, skew: float) -> tuple[Tensor, Tensor]:
    """KL(p ‖ m) = −Σ p log(m/p), m = λp + (1 − λ)q."""
    p = log_p.exp()
    ratio = (log_q - log_p).clamp_(max=_FAR).exp_()
    mixture = torch.add(ratio.new_full((), skew), ratio, alpha=1 - skew)  # m/p
    value = -torch.linalg.vecdot(p, mixture.log())
    return value, ratio.mul_(p).div_(mixture).mul_(skew - 1)


def skewed_reverse_kl(log_q: Tensor, log_p: Tensor, skew: float) -> tuple[Tensor, Tensor]:
    """KL(q ‖ m) = −Σ q log(m/q), m = (1 − λ)p + λq."""
    q = log_q.exp()
    weight = q.new_full((), skew)
    mixture = (log_p - log_q).clamp_(max=_FAR).exp_()
    mixture = torch.add(weight, mixture, alpha=1 - skew)  # m/q
    log_mixture = mixture.log()
    value = -torch.linalg.vecdot(q, log_mixture)
    # q (1 − log(m/q) − λq/m)
    return value, torch.addcmul(q, q, log_mixture.addcdiv_(weight, mixture), value=-1)


class ForwardKL(Divergence):
    """KL(p ‖ q): q has to give probability wherever p does."""

    rule = staticmethod(forward_kl)


class ReverseKL(Divergence):
    """KL(q ‖ p): q must not give probability where p gives none."""

    rule = staticmethod(reverse_kl)


class SkewedForwardKL(SkewedDivergence):
    """KL(p ‖ λp + (1 − λ)q)."""

    rule = staticmethod(skewed_forward_kl)


class SkewedReverseKL(SkewedDivergence):
    """KL(q ‖ (1 − λ)p + λq)."""

    rule = staticmethod(skewed_reverse_kl)
