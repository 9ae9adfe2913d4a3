"""Distributions by rank: the likeliest events' probabilities, and what all others have together.

With k likeliest of each side the distance of two is

    Σ_{v ≤ k} |sort(p)_v − sort(q)_v| + |r_p − r_q|,        r what the k leave of all that there is

which is at most r_p + r_q below that of all events, and never above it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Ranked:
    """Of each row, which need not add up to 1."""

    likeliest: Float[Tensor, "rows k"]  # falling
    rest: Float[Tensor, " rows"]  # what all others have together

    @classmethod
    def of(
        cls, logprobs: Float[Tensor, "rows events"], k: int | None, together: Float[Tensor, " rows"] | float = 1.0
    ) -> "Ranked":
        """The k likeliest, or all that there are, by their log-probabilities; `together`: what all probabilities add up to.
        Differentiable; ranks are constants."""
        count = logprobs.shape[1]
        likeliest = logprobs.topk(count if k is None else min(k, count), dim=1).values.exp()
        if likeliest.shape[1] == count:
            return cls(likeliest, torch.zeros_like(likeliest[:, :1]).sum(1))
        return cls(likeliest, together - likeliest.sum(1))

    @classmethod
    def stored(cls, likeliest: Float[Tensor, "rows k"]) -> "Ranked":
        """Of the likeliest events' probabilities, falling, rounded or not; the others have what is left of 1."""
        return cls(likeliest, (1 - likeliest.sum(1)).clamp_min(0))

    def scaled(self, factors: Float[Tensor, " rows"]) -> "Ranked":
        """Every probability times its row's factor."""
        return Ranked(self.likeliest * factors[:, None], self.rest * factors)

    def distance(self, other: "Ranked") -> Float[Tensor, " rows"]:
        """Rank by rank, and of what others have; the shorter of the two is filled up with zeros."""
        width = max(self.likeliest.shape[1], other.likeliest.shape[1])
        mine, theirs = (F.pad(each.likeliest, (0, width - each.likeliest.shape[1])) for each in (self, other))
        return (mine - theirs).abs().sum(1) + (self.rest - other.rest).abs()
