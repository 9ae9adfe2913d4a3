"""A model's input embeddings: token ids to vectors."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class Embeddings:
    """A matrix of token embeddings, or some of its rows; in the model's dtype.

    A lookup and no more: what a model's own embedding module does besides (Gemma multiplies by the root of its hidden
    size) is not in it. Methods that compare directions, or divide by a scale of the embeddings, do not see it.
    """

    weight: Float[Tensor, "rows size"]
    ids: Int64[Tensor, " rows"] | None = None  # whose rows these are, rising; None: row i is token i's

    def __call__(self, ids: Int64[Tensor, " tokens"]) -> Float[Tensor, "tokens size"]:
        """Of each token, its row. `ids` are where the matrix is.

        Raises ValueError for a token that has none. To know that of an accelerator would be to wait for it: there the vector
        of such a token is not a number, which ends a run.
        """
        rows = ids if self.ids is None else torch.searchsorted(self.ids, ids)
        there = (rows >= 0) & (rows < len(self.weight))
        if self.ids is not None and len(self.ids):
            there &= self.ids[rows.clamp_max(len(self.ids) - 1)] == ids
        if ids.device.type != "cpu":
            vectors = self.weight[rows.clamp(0, len(self.weight) - 1)]
            return vectors.masked_fill(~there[:, None], torch.nan)
        if not bool(there.all()):
            raise ValueError(f"token {int(ids[~there][0])} has no row in the {len(self.weight)} rows of the embeddings")
        return self.weight[rows]

    def to(self, device: torch.device) -> "Embeddings":
        """The same on a device."""
        return replace(self, weight=self.weight.to(device), ids=None if self.ids is None else self.ids.to(device))

    def of(self, ids: Int64[Tensor, " some"]) -> "Embeddings":
        """Those of some tokens alone, given rising, each once. Raises ValueError for a token that has no row."""
        return Embeddings(self(ids), ids)
