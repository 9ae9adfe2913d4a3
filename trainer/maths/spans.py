"""Spans of learnt text pooled by weights of their tokens (SRA, arXiv 2605.01205).

    w_t = a_t / Σ a over the document's learnt tokens         a: the last query's attention, or the same for all
    C_k = Σ_{t∈k} w_t H_t / Σ_{t∈k} w_t                       (`trainer.maths.geometry.pool`)
    ω_k = Σ_{t∈k} w_t, divided by its sum over the document's spans

Weights have no gradient. A span that is paid nothing, outside of the last query's sliding window, is the plain mean of its
tokens, and a document of which no learnt token is paid anything has equal weights. The published floor of 1e-5 under the
sum in C_k is left out: it would shrink spans that are paid little, and make zero vectors of those that are paid nothing.

Tokens are flat with row pointers (`trainer.maths.ragged`), of a batch or of what is learnt of one.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from trainer.maths.geometry import pool, uniform_weights, unit_weights
from trainer.maths.ragged import normalize_rows, select


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

    def weights(
        self, attention: Float[Tensor, " learnt_tokens"] | None, device: torch.device
    ) -> Float[Tensor, " learnt_tokens"]:
        """w of attention to each learnt token, or of None: all alike; adding up to 1 in a document."""
        if attention is None:
            return uniform_weights(self.rows, device)
        return normalize_rows(attention.detach(), self.rows)

    def pool(
        self, hidden: Float[Tensor, "learnt_tokens hidden"], weights: Float[Tensor, " learnt_tokens"]
    ) -> Float[Tensor, "spans hidden"]:
        """C of each span, at least in float32; differentiable in `hidden`."""
        return pool(hidden, weights.detach(), self.spans)

    def shares(
        self, weights: Float[Tensor, " learnt_tokens"], span_rows: Int64[Tensor, " _"]
    ) -> Float[Tensor, " spans"]:
        """ω of each span; `span_rows`: spans of each document."""
        return unit_weights(weights.detach(), self.spans, span_rows)
