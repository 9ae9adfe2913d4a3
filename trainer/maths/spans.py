"""Spans of learnt text pooled by weights of their tokens (SRA, arXiv 2605.01205).

    w_t = a_t / Σ a over the document's learnt tokens         a: the last query's attention, or the same for all
    C_k = Σ_{t∈k} w_t H_t / max(Σ_{t∈k} w_t, 1e-5)
    ω_k = Σ_{t∈k} w_t, divided by its sum over the document's spans

Weights have no gradient. Tokens are flat with row pointers (`trainer.maths.ragged`), of a batch or of what is learnt of one.
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from trainer.maths.geometry import span_tokens, unit_weights, weighted_sums
from trainer.maths.ragged import at_least_float32, normalize_rows, select, spread, sum_rows

#: What the weights of a span count as at least.
WEIGHT_EPSILON: Final = 1e-5


@dataclass(frozen=True)
class LearntSpans:
    """Spans in a batch's learnt tokens alone; all on the CPU."""

    tokens: Int64[Tensor, " learnt_tokens"]  # which of the batch's those are, rising
    rows: Int64[Tensor, " pointers"]  # of each document
    spans: Int64[Tensor, "spans 2"]  # [start, end) among them

    @classmethod
    def of(
        cls, learnt: Bool[Tensor, " tokens"], rows: Int64[Tensor, " pointers"], spans: Int64[Tensor, "spans 2"]
    ) -> "LearntSpans":
        """Of spans in the tokens of the batch, which are learnt. Raises ValueError for one of which a token is not."""
        tokens, learnt_rows = select(learnt, rows)
        places = torch.searchsorted(tokens, spans.contiguous())
        if not torch.equal(places.diff(dim=1), spans.diff(dim=1)):
            raise ValueError("a span holds a token that is not learnt")
        return cls(tokens, learnt_rows, places)

    def weights(self, attention: Float[Tensor, " learnt_tokens"]) -> Float[Tensor, " learnt_tokens"]:
        """w: attention to each learnt token, adding up to 1 in a document."""
        return normalize_rows(attention.detach(), self.rows)


def pool_spans(
    hidden: Float[Tensor, "tokens hidden"], weights: Float[Tensor, " tokens"], spans: Int64[Tensor, "spans 2"]
) -> Float[Tensor, "spans hidden"]:
    """C of each span, at least in float32; differentiable in `hidden`. A span without any weight is zero."""
    rows, token = span_tokens(spans, len(hidden), hidden.device)
    states = at_least_float32(hidden)
    weight = weights.detach().to(states.dtype)[token]
    shares = weight / spread(sum_rows(weight, rows).clamp_min(WEIGHT_EPSILON), rows)
    return weighted_sums(states, token, shares, rows)


def span_weights(
    weights: Float[Tensor, " tokens"], spans: Int64[Tensor, "spans 2"], rows: Int64[Tensor, " pointers"]
) -> Float[Tensor, " spans"]:
    """ω of each span; `rows`: spans of each document."""
    return unit_weights(weights.detach(), spans, rows)
