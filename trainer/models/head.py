"""Last hidden states to logits, some positions at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int32
from torch import Tensor

#: Logits that are in memory at once: 64 MiB of them in float32.
LOGITS_AT_ONCE: Final = 2**24


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

    def to(self, device: torch.device) -> "Head":
        """The same on a device."""
        return replace(self, weight=self.weight.to(device), bias=None if self.bias is None else self.bias.to(device))

    def portions(self, positions: int, matrices: int = 1) -> Iterator[slice]:
        """Positions in order, so many at a time that `matrices` of their logits are `LOGITS_AT_ONCE` at most."""
        return slices(0, positions, LOGITS_AT_ONCE // (len(self.weight) * matrices))


def slices(first: int, end: int, size: int) -> Iterator[slice]:
    """[first, end) in order, `size` at a time, or one by one."""
    size = max(1, size)
    return (slice(start, min(start + size, end)) for start in range(first, end, size))


def likeliest(
    head: Head, final: Float[Tensor, "tokens hidden"], count: int
) -> tuple[Int32[Tensor, "tokens k"], Float32[Tensor, "tokens k"]]:
    """The `count` likeliest next tokens at each position and their log-probabilities, best first, in float32.

    Some tokens at a time, so that logits of a whole batch never exist.
    """
    indices = torch.empty(len(final), count, dtype=torch.int32, device=final.device)
    values = torch.empty(len(final), count, device=final.device)
    for part in head.portions(len(final)):
        logits = head.logits(final[part]).float()
        best = logits.topk(count, dim=1)
        indices[part] = best.indices.to(torch.int32)
        values[part] = best.values - logits.logsumexp(1, keepdim=True)
    return indices, values
