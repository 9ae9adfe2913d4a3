"""Divergences between two distributions over events, each as a rule: its value, and its derivative by log q.

On matrices as wide as a vocabulary what costs is the passes over memory, of which a rule needs half as many as differentiating
step by step; hence also the operations in place. What each is, and where it comes from: `trainer.objectives.divergence`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor

#: A logarithm as good as −∞: its exponential is 0; but 0 times it is 0, and its difference from itself.
LOG_ZERO: Final = -1e30
#: A ratio counts as e^80 at most. Beyond, the event's smaller probability, and all that it adds, is below e^-80.
_FAR: Final = 80.0
#: How many of the likeliest tokens are looked at first for those that have half of the probability.
_LIKELIEST_AT_FIRST: Final = 64

Rule = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # log q, log p -> divergence, its derivative by log q
Name = Literal["fkl", "rkl", "sfkl", "srkl", "akl", "js", "tvd"]


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


def forward_kl(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p ‖ q) = Σ p (log p − log q)."""
    p = log_p.exp()
    log_ratio = (log_p - log_q).clamp_(min=LOG_ZERO)
    return torch.linalg.vecdot(p, log_ratio), p.neg_()


def reverse_kl(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """KL(q ‖ p) = Σ q (log q − log p)."""
    q = log_q.exp()
    log_ratio = (log_q - log_p).clamp_(max=-LOG_ZERO)
    return torch.linalg.vecdot(q, log_ratio), log_ratio.add_(1).mul_(q)


def skewed_forward_kl(log_q: Tensor, log_p: Tensor, skew: float) -> tuple[Tensor, Tensor]:
    """KL(p ‖ m) = −Σ p log(m/p), m = λp + (1 − λ)q."""
    p = log_p.exp()
    ratio = (log_q - log_p).clamp_(max=_FAR).exp_()
    mixture = torch.add(ratio.new_full((), skew), ratio, alpha=1 - skew)  # m/p
    value = -torch.linalg.vecdot(p, mixture.log())
    return value, ratio.mul_(p).div_(mixture).mul_(skew - 1)


def skewed_reverse_kl(log_q: Tensor, log_p: Tensor, skew: float, detach_mixture: bool = False) -> tuple[Tensor, Tensor]:
    """KL(q ‖ m) = −Σ q log(m/q), m = (1 − λ)p + λq, which may be a constant."""
    q = log_q.exp()
    weight = q.new_full((), skew)
    mixture = (log_p - log_q).clamp_(max=_FAR).exp_()
    mixture = torch.add(weight, mixture, alpha=1 - skew)  # m/q
    log_mixture = mixture.log()
    value = -torch.linalg.vecdot(q, log_mixture)
    # q (1 − log(m/q) − λq/m), of which the last is of the mixture
    change = log_mixture if detach_mixture else log_mixture.addcdiv_(weight, mixture)
    return value, torch.addcmul(q, q, change, value=-1)


def adaptive_kl(log_q: Tensor, log_p: Tensor, rest: bool = False) -> tuple[Tensor, Tensor]:
    """(g_h KL(p ‖ q) + g_t KL(q ‖ p)) / (g_h + g_t), where g_h and g_t are constants; KL(p ‖ q) where both are 0.

    With `rest`, the last event is all others together, each of them less likely than every one before.
    """
    forward, by_forward = forward_kl(log_q, log_p)
    reverse, by_reverse = reverse_kl(log_q, log_p)
    p = log_p.exp()
    gaps = (p - log_q.exp()).abs_()
    if rest:
        p[:, -1] = -1
    share = in_head(p).mul_(gaps).sum(1) / gaps.sum(1)
    share = torch.where(share.isfinite(), share, 1.0)
    value = torch.lerp(reverse, forward, share)
    return value, torch.lerp(by_reverse, by_forward, share[:, None])


def in_head(p: Float[Tensor, "positions events"]) -> Float[Tensor, "positions events"]:
    """1 for the fewest likeliest events that together have half of the probability, 0 for others.

    Of events that are exactly as likely as the last of them each has a share: what is linear in the head is then the mean
    over all orders that they could be taken in.
    """
    count = _LIKELIEST_AT_FIRST
    while True:
        best = p.topk(min(count, p.shape[1]), dim=1).values
        mass = best.cumsum(1)
        if best.shape[1] == p.shape[1] or bool((mass[:, -1] >= 0.5).all()):
            break
        count *= 8
    size = 1 + (mass[:, :-1] < 0.5).sum(1, keepdim=True)
    last = best.gather(1, size - 1)
    above, equal = p > last, p == last
    shares = (size - above.sum(1, keepdim=True)) / equal.sum(1, keepdim=True)
    return torch.where(equal, shares.to(p), above.to(p))


def jensen_shannon(log_q: Tensor, log_p: Tensor, skew: float) -> tuple[Tensor, Tensor]:
    """λ KL(p ‖ m) + (1 − λ) KL(q ‖ m), m = λp + (1 − λ)q."""
    log_ratio = (log_q - log_p).clamp_(-_FAR, _FAR)
    from_p = torch.add(log_ratio.new_full((), skew), log_ratio.exp(), alpha=1 - skew).log_()  # log(m/p)
    by_q = (log_ratio - from_p).mul_(log_q.exp()).mul_(1 - skew)  # (1 − λ) q log(q/m)
    value = by_q.sum(1).sub_(torch.linalg.vecdot(log_p.exp(), from_p), alpha=skew)
    return value, by_q


def total_variation(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """½ Σ |p − q|."""
    q = log_q.exp()
    difference = q - log_p.exp()
    value = difference.abs().sum(1).mul_(0.5)
    return value, difference.sign_().mul_(q).mul_(0.5)


#: λ where none is given, of those that have one.
SKEWS: Final[Mapping[str, float]] = {"sfkl": 0.1, "srkl": 0.1, "js": 0.5}
_RULES: Final[Mapping[Name, Callable[..., tuple[Tensor, Tensor]]]] = {
    "fkl": forward_kl,
    "rkl": reverse_kl,
    "sfkl": skewed_forward_kl,
    "srkl": skewed_reverse_kl,
    "akl": adaptive_kl,
    "js": jensen_shannon,
    "tvd": total_variation,
}


def rule_of(name: Name, skew: float | None = None) -> Rule:
    """By name; `skew` is λ."""
    if name not in SKEWS:
        return _RULES[name]
    return partial(_RULES[name], skew=SKEWS[name] if skew is None else skew)
