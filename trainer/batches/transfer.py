"""Batches from one process to another in a single piece of memory.

Sent as they are, each of their tensors would be a file of shared memory of its own, opened, mapped and pinned one by one:
hundreds a step, beyond the open files that most systems allow.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import torch
from jaxtyping import UInt8
from torch import Tensor

from trainer.batches.batch import Batch, LayerTargets

#: Every tensor begins at a multiple of this many bytes: a line of a CPU's cache, and enough for any type.
ALIGNMENT: Final = 64

_Place = tuple[int | None, str]  # the layer, None for the batch itself; the field


@dataclass(frozen=True)
class Slot:
    """Where a tensor lies."""

    first: int  # byte
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Of its values."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class Parcel:
    """Batches, packed; made by `pack`."""

    buffer: UInt8[Tensor, " bytes"]
    contents: tuple[dict[_Place, Slot], ...]  # of each batch

    def pin_memory(self) -> "Parcel":
        """The same in page-locked memory, as torch's data loader asks for it."""
        return Parcel(self.buffer.pin_memory(), self.contents)

    def unpack(self) -> list[Batch]:
        """The batches; their tensors are views of the buffer."""
        return [self._batch(slots) for slots in self.contents]

    def _batch(self, slots: dict[_Place, Slot]) -> Batch:
        found: dict[int | None, dict[str, Any]] = {None: {}}
        for (layer, name), slot in slots.items():
            part = self.buffer[slot.first : slot.first + slot.bytes]
            found.setdefault(layer, {})[name] = part.view(slot.dtype).view(slot.shape)
        own = found.pop(None)
        return Batch(**own, layers={layer: LayerTargets(**each) for layer, each in found.items() if layer is not None})


def pack(batches: Sequence[Batch]) -> Parcel:
    """Copy batches, which are on the CPU, into one buffer."""
    contents = []
    copies: list[tuple[Slot, Tensor]] = []
    end = 0
    for batch in batches:
        slots: dict[_Place, Slot] = {}
        for place, tensor in _tensors(batch):
            slots[place] = slot = Slot(end, tuple(tensor.shape), tensor.dtype)
            copies.append((slot, tensor))
            end += -(-slot.bytes // ALIGNMENT) * ALIGNMENT
        contents.append(slots)
    buffer = torch.empty(end, dtype=torch.uint8)
    for slot, tensor in copies:
        buffer[slot.first : slot.first + slot.bytes].view(slot.dtype).view(slot.shape).copy_(tensor)
    return Parcel(buffer, tuple(contents))


def _tensors(batch: Batch) -> list[tuple[_Place, Tensor]]:
    parts: list[tuple[int | None, Batch | LayerTargets]] = [(None, batch), *batch.layers.items()]
    return [
        ((layer, each.name), value)
        for layer, part in parts
        for each in fields(part)
        if isinstance(value := getattr(part, each.name), Tensor)
    ]
