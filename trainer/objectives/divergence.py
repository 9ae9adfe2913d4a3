"""Divergences between the teacher's distribution p of the next token and the student's q, at each position.

    fkl     KL(p ‖ q)                     Hinton et al. 2015, arXiv 1503.02531
    rkl     KL(q ‖ p)                     MiniLLM, Gu et al. 2024, arXiv 2306.08543
    sfkl    KL(p ‖ λp + (1 − λ)q)         DistiLLM, Ko et al. 2024, arXiv 2402.03898
    srkl    KL(q ‖ (1 − λ)p + λq)         the same; λ is `skew`
    akl     (g_h KL(p ‖ q) + g_t KL(q ‖ p)) / (g_h + g_t)         Wu et al. 2024, arXiv 2404.02657
    js      λ KL(p ‖ m) + (1 − λ) KL(q ‖ m), m = λp + (1 − λ)q    f-DISTILL, Wen et al. 2023, arXiv 2307.15190
    tvd     ½ Σ |p − q|                                           the same

In `akl`, the head are the fewest likeliest tokens of p that together have half of the probability, the tail all others; g_h and
g_t are Σ |p − q| over each, as constants. Of tokens that are exactly as likely as the head's last, each is in it by its share.
In `js`, λ is ½ by default; DistiLLM's is `skew: 0.1`. In `srkl` with `detach_mixture`, m is a constant, as DistiLLM-2 (Ko et al.
2025, arXiv 2503.07067) has it.

A term is the mean over response tokens. With `reduce: document` it is the mean over documents of their tokens' means, so that
a long response counts no more than a short one.

`temperature` divides the logits of both sides. The loss is not multiplied by its square, by which Hinton keeps its weight
against another loss: that is what `weight` is for. p comes from one of two sources:

    final   the teacher's last states through its output matrix: exact. Output matrices for the same tokens may be padded
            to different sizes: both distributions are cut to the smaller one, and renormalised
    topk    the likeliest tokens keep their probabilities, all others are one event with the rest, on both sides: exact
            when all are kept. A token that the student's matrix lacks is cut, and the others are renormalised. The others are
            in the tail of `akl`, all of them, unless the k have less than half of the probability: then all in its head

Where p is 0, as with tokens that a teacher masks, all but `rkl` and `akl` are finite, and those are merely huge.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from trainer.batches.batch import Batch
from trainer.maths.divergence import (
    LOG_ZERO,
    SKEWS,
    adaptive_kl,
    divergence,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    skewed_forward_kl,
    skewed_reverse_kl,
    total_variation,
)
from trainer.maths.ragged import at_least_float32, normalize_rows
from trainer.objectives.base import Aside, LogitObjective, Logits, Needs, Options


class DivergenceOptions(Options):
    """Options of `fkl`, `rkl`, `akl` and `tvd`."""

    source: Literal["final", "topk"] = "final"
    temperature: float = Field(default=1.0, gt=0)
    reduce: Literal["token", "document"] = "token"  # mean over all tokens, or over documents of theirs

    @model_validator(mode="after")
    def _known(self) -> "DivergenceOptions":
        if self.source == "topk" and self.temperature != 1:
            raise ValueError("`source: topk` has log-probabilities at `temperature` 1 only; take `source: final`")
        return self


class SkewedOptions(DivergenceOptions):
    """Options of `sfkl`."""

    skew: float = Field(default=SKEWS["sfkl"], gt=0, lt=1)  # λ


class SkewedReverseOptions(DivergenceOptions):
    """Options of `srkl`."""

    skew: float = Field(default=SKEWS["srkl"], gt=0, lt=1)  # λ
    detach_mixture: bool = False  # no gradient through m


class JensenShannonOptions(DivergenceOptions):
    """Options of `js`."""

    skew: float = Field(default=SKEWS["js"], gt=0, lt=1)  # λ


class Divergence(LogitObjective):
    """A divergence of q and p over events: every token, or k of them and the rest."""

    options: ClassVar[type[Options]] = DivergenceOptions
    rule: ClassVar[Callable[..., tuple[Tensor, Tensor]]]  # of log q, log p, and `arguments`

    @property
    def arguments(self) -> dict[str, Any]:
        """What the rule takes besides."""
        return {}

    def needs(self) -> Needs:
        """The source of p."""
        return Needs(final=self.config.source == "final", topk=self.config.source == "topk")

    def denominators(self, batch: Batch) -> Float[Tensor, " parts"]:
        """The number of response tokens, or of documents that have any."""
        if self.config.reduce == "token":
            return super().denominators(batch)
        return torch.tensor([int((batch.position_rows.diff() > 0).sum())], dtype=torch.float64)

    def aside(self, states: Mapping[int, Float[Tensor, "tokens hidden"]], batch: Batch) -> Aside | None:
        """With `reduce: document`, each position's share in its document's mean."""
        if self.config.reduce == "token":
            return None
        ones = at_least_float32(states[max(states)].new_ones(len(batch.positions)))
        return Aside(at_positions={"shares": normalize_rows(ones, batch.position_rows)})

    def per_token(self, logits: Logits) -> Float[Tensor, " positions"]:
        """The divergence at each position, times its share where documents are averaged."""
        losses = self._losses(logits)
        return losses if self.config.reduce == "token" else losses * logits.at_positions[self]["shares"]

    def _losses(self, logits: Logits) -> Float[Tensor, " positions"]:
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
        return divergence(log_q, log_p, partial(type(self).rule, **self.arguments))


class SkewedDivergence(Divergence):
    """A divergence from a mixture of q and p: at most log 1/λ."""

    options: ClassVar[type[Options]] = SkewedOptions

    @property
    def arguments(self) -> dict[str, Any]:
        """λ"""
        return {"skew": self.config.skew}


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
    student = F.pad(logits.student, (0, 1), value=LOG_ZERO)
    log_q = student.gather(1, index)
    likeliest = logits.topk_logprobs.to(log_q)
    log_p = likeliest.masked_fill(missing, LOG_ZERO)
    if count < size:
        others = student.scatter(1, index, LOG_ZERO).logsumexp(1, keepdim=True)
        left = 1 - likeliest.exp().sum(1, keepdim=True)
        log_q = torch.cat([log_q, others], 1)
        log_p = torch.cat([log_p, left.clamp_min(torch.finfo(left.dtype).eps).log()], 1)
    return log_q.log_softmax(1), log_p.log_softmax(1)


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

    options: ClassVar[type[Options]] = SkewedReverseOptions
    rule = staticmethod(skewed_reverse_kl)

    @property
    def arguments(self) -> dict[str, Any]:
        """λ, and whether the mixture is a constant."""
        return {**super().arguments, "detach_mixture": self.config.detach_mixture}


class AdaptiveKL(Divergence):
    """KL(p ‖ q) and KL(q ‖ p), by how far q is from p in the head of p, and in its tail."""

    rule = staticmethod(adaptive_kl)

    @property
    def arguments(self) -> dict[str, Any]:
        """Whether the last event is all others."""
        return {"rest": self.config.source == "topk"}


class JensenShannon(SkewedDivergence):
    """λ KL(p ‖ m) + (1 − λ) KL(q ‖ m), m = λp + (1 − λ)q: at most log 2."""

    options: ClassVar[type[Options]] = JensenShannonOptions
    rule = staticmethod(jensen_shannon)


class TotalVariation(Divergence):
    """½ Σ |p − q|: at most 1."""

    rule = staticmethod(total_variation)
