"""Spans of a batch's positions: what of them is in some positions, and where positions may be parted without cutting one."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from trainer.maths.geometry import covered


@dataclass(frozen=True)
class PositionSpans:
    """Rising, none over another; on the CPU."""

    spans: Int64[Tensor, "spans 2"]  # [start, end) among positions

    @classmethod
    def single(cls, positions: Int64[Tensor, " spans"]) -> "PositionSpans":
        """Of one position each."""
        return cls(torch.stack([positions, positions + 1], 1))

    def edges(self, positions: int) -> list[int]:
        """Every edge of so many positions but those inside of a span."""
        starts, ends = self.spans.unbind(1)
        inner = torch.stack([starts + 1, ends], 1)[ends > starts + 1]
        return (~covered(inner, positions + 1)).nonzero().squeeze(1).tolist()

    def among(self, rows: slice) -> slice:
        """Which of them are in some positions, which cut none."""
        return slice(*np.searchsorted(self._starts, [rows.start, rows.stop]).tolist())

    @cached_property
    def _starts(self) -> Int64[np.ndarray, " spans"]:
        starts: Int64[np.ndarray, " spans"] = self.spans[:, 0].numpy()
        return starts
