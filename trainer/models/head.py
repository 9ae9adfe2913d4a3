"""Last hidden states to logits, some positions at a time."""

from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int32, Int64, Shaped
from torch import Tensor

from schemas.signals import SCALAR_NUMBERS, Scalar
from trainer.maths.quantization import TYPES
from trainer.models.final_norm import FinalNorm

#: Logits that are in memory at once: 64 MiB of them in float32.
LOGITS_AT_ONCE: Final = 2**24
SCALAR_TYPES: Final[Mapping[Scalar, torch.dtype]] = {name: TYPES[number] for name, number in SCALAR_NUMBERS.items()}


@dataclass(frozen=True)
class Head:
    """What turns last hidden states (after the final norm) into logits; on the model's device, in its dtype.

        logits = soft_cap · tanh((final · weightᵀ + bias) · scale / soft_cap)

    each part only where there is one. (No model of transformers applies the two the other way round.)
    """

    weight: Float[Tensor, "vocabulary hidden"]
    bias: Float[Tensor, " vocabulary"] | None = None
    soft_cap: float | None = None
    scale: float | None = None
    #: what states of inner layers go through on their way here; None: it is not known, or there is none
    norm: FinalNorm | None = None

    def logits(self, final: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens vocabulary"]:
        """Logits of last hidden states, in the weight's dtype."""
        raw = F.linear(final.to(self.weight.dtype), self.weight, self.bias)
        return self.after(raw)

    def after(self, raw: Float[Tensor, "*shape vocabulary"]) -> Float[Tensor, "*shape vocabulary"]:
        """Logits from the output matrix's own results."""
        if self.scale is not None:
            raw = raw * self.scale
        if self.soft_cap is not None:
            raw = torch.tanh(raw / self.soft_cap) * self.soft_cap
        return raw

    def of(self, tokens: Int64[Tensor, " tokens"]) -> "Head":
        """The same for some tokens alone, in their order; a copy. They may be on the CPU."""
        tokens = tokens.to(self.weight.device, non_blocking=True)
        bias = None if self.bias is None else self.bias[tokens]
        return replace(self, weight=self.weight[tokens], bias=bias)

    def to(self, device: torch.device) -> "Head":
        """The same on a device."""
        bias = None if self.bias is None else self.bias.to(device)
        norm = None if self.norm is None else self.norm.to(device)
        return replace(self, weight=self.weight.to(device), bias=bias, norm=norm)

    def portions(self, positions: int, matrices: int = 1, bounds: Sequence[int] | None = None) -> Iterator[slice]:
        """Positions in order, so many at a time that `matrices` of their logits are `LOGITS_AT_ONCE` at most; parted at
        `bounds` alone, if these are given (`parted`)."""
        return parted(0, positions, LOGITS_AT_ONCE // max(len(self.weight) * matrices, 1), bounds)


def slices(first: int, end: int, size: int) -> Iterator[slice]:
    """[first, end) in order, `size` at a time, or one by one."""
    size = max(1, size)
    return (slice(start, min(start + size, end)) for start in range(first, end, size))


def parted(first: int, end: int, size: int, bounds: Sequence[int] | None) -> Iterator[slice]:
    """As `slices`, but ending at `bounds` alone, rising, of which `end` is one: so many at a time, or what stands between two.

    None: anywhere.
    """
    if bounds is None:
        yield from slices(first, end, size)
        return
    while first < end:
        stop = bounds[bisect_right(bounds, min(first + size, end)) - 1]
        if stop <= first:
            stop = bounds[bisect_right(bounds, first)]
        yield slice(first, stop)
        first = stop


@dataclass(frozen=True)
class NextTokens:
    """What is kept of the distributions of the next token, at each position: what was asked for."""

    topk: tuple[Int32[Tensor, "tokens k"], Float32[Tensor, "tokens k"]] | None  # indices, log-probabilities, best first
    sorted: Float32[Tensor, "tokens most"] | None  # probabilities, falling
    scalars: Mapping[Scalar, Shaped[Tensor, " tokens"]]


def next_tokens(
    head: Head,
    final: Float[Tensor, "tokens hidden"],
    topk: int | None,
    scalars: Collection[Scalar],
    following: Int64[Tensor, " tokens"],
    most: int | None = None,
) -> NextTokens:
    """The `topk` likeliest next tokens and their log-probabilities, the probabilities of the `most` likeliest (of all, where
    there are fewer), and `scalars`; in float32, from one pass over the logits.

        entropy   -Σ_v p(v) ln p(v), in nats
        argmax    the v of the largest p(v), int32; -1 where the logits are not finite
        logprob   ln p(y) of y in `following`, the document's own next token; 0 where there is none, which is -1

    Some tokens at a time, so that logits of a whole batch never exist.
    """
    device = final.device
    indices = torch.empty(len(final), topk or 0, dtype=torch.int32, device=device)
    values = torch.empty(len(final), topk or 0, device=device)
    width = min(most or 0, len(head.weight))
    falling = torch.empty(len(final), width, device=device)
    kept = {name: torch.empty(len(final), dtype=SCALAR_TYPES[name], device=device) for name in scalars}
    following = following.to(device, non_blocking=True)
    for part in head.portions(len(final)):
        logits = head.logits(final[part]).float()
        total = logits.logsumexp(1, keepdim=True)
        if topk is not None or most is not None:
            best = logits.topk(max(topk or 0, width), dim=1)
            indices[part] = best.indices[:, : indices.shape[1]].to(torch.int32)
            values[part] = best.values[:, : indices.shape[1]] - total
            falling[part] = (best.values[:, :width] - total).exp_()
        if "argmax" in kept:
            kept["argmax"][part] = torch.where(total.squeeze(1).isfinite(), logits.argmax(1), -1).to(torch.int32)
        if "logprob" in kept:
            own = following[part]
            of_own = logits.gather(1, own[:, None].clamp_min(0)) - total
            kept["logprob"][part] = of_own.squeeze(1).masked_fill(own < 0, 0.0)
        if "entropy" in kept:
            kept["entropy"][part] = torch.special.entr((logits - total).exp_()).sum(1)
    return NextTokens(None if topk is None else (indices, values), None if most is None else falling, kept)
