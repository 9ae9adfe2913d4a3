"""A micro-batch: documents as the student reads them, and what its losses need of the teacher, for the units both have.

All values are flat over the documents, with row pointers (`trainer.maths.ragged`). Structure (pointers, spans, indices) stays
on the CPU, values go to the device; `Batch.to` knows which is which.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, TypeVar

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor


@dataclass(frozen=True)
class LayerTargets:
    """The teacher's side of one layer. Units are those of the layer's granularity that both sides have a span of."""

    spans: Int64[Tensor, "units 2"]  # the student's, [start, end) in the tokens of the batch; CPU
    rows: Int64[Tensor, " pointers"]  # units of each document; CPU
    weights: Float[Tensor, " units"]  # ω, adding up to 1 in each document that has units
    relations: Float[Tensor, " pairs"] | None = None  # cosines, flat upper triangles (`trainer.maths.triangle`)
    units: Float[Tensor, "units teacher_hidden"] | None = None
    states: Float[Tensor, "states teacher_hidden"] | None = None
    state_index: Int64[Tensor, " states"] | None = None  # with `states`: places among the batch's tokens; CPU
    state_weights: Float[Tensor, " states"] | None = None  # with `states`: centrality, out of a document's 1
    #: states at `Batch.positions`, for losses on logits of inner layers
    position_states: Float[Tensor, "positions teacher_hidden"] | None = None


@dataclass(frozen=True)
class Batch:
    """Some documents."""

    documents: Int64[Tensor, " documents"]  # rows of the dataset; CPU
    ids: Int64[Tensor, " tokens"]  # the student's; CPU until `to`
    rows: Int64[Tensor, " pointers"]  # tokens of each document; CPU
    positions: Int64[Tensor, " positions"]  # tokens whose next one belongs to the response; CPU until `to`
    targets: Int64[Tensor, " positions"]  # those next ones
    layers: Mapping[int, LayerTargets] = field(default_factory=dict)  # by teacher layer
    final: Float[Tensor, "positions teacher_hidden"] | None = None  # the teacher's last states at `positions`
    topk_indices: Int64[Tensor, "positions k"] | None = None
    topk_logprobs: Float32[Tensor, "positions k"] | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """Its values on a device."""
        layers = {layer: _moved(each, device) for layer, each in self.layers.items()}
        return replace(_moved(self, device), layers=layers)


#: what stays on the CPU
_STRUCTURE: Final = frozenset({"documents", "rows", "spans", "state_index"})


Part = TypeVar("Part", LayerTargets, Batch)


def _moved(part: Part, device: torch.device | str) -> Part:
    values: dict[str, Any] = {
        each.name: value.to(device, non_blocking=True)
        for each in fields(part)
        if isinstance(value := getattr(part, each.name), Tensor) and each.name not in _STRUCTURE
    }
    return replace(part, **values)
