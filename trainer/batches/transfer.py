"""Batches from one process to another in a single piece of memory.

Sent as they are, each of their tensors would be a file of shared memory of its own, opened, mapped and pinned one by one:
hundreds a step, beyond the open files that most systems allow.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import UInt8
from torch import Tensor

from trainer.batches.batch import Batch, Chunks, LayerTargets, Path, SpanLayer, SpanTargets, TeacherTokens, tensors
from trainer.maths.spans import LearntSpans

#: Every tensor begins at a multiple of this many bytes: a line of a CPU's cache, and enough for any type.
ALIGNMENT: Final = 64


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
    contents: tuple[dict[Path, Slot], ...]  # of each batch
    data: tuple[str, ...]  # which dataset each is of

    def pin_memory(self) -> "Parcel":
        """The same in page-locked memory, as torch's data loader asks for it."""
        return Parcel(self.buffer.pin_memory(), self.contents, self.data)

    def unpack(self) -> list[Batch]:
        """The batches; their tensors are views of the buffer."""
        return [self._batch(slots, data) for slots, data in zip(self.contents, self.data, strict=True)]

    def _batch(self, slots: dict[Path, Slot], data: str) -> Batch:
        parts: dict[Path, dict[str, Any]] = {(): {}}
        for (*outer, name), slot in slots.items():
            values = self.buffer[slot.first : slot.first + slot.bytes]
            parts.setdefault(tuple(outer), {})[str(name)] = values.view(slot.dtype).view(slot.shape)
        for path in sorted(filter(None, parts), key=len, reverse=True):  # what is part of others first
            part = _KINDS[tuple(each for each in path if isinstance(each, str))](**parts[path])
            if isinstance(path[-1], int):  # of a layer
                parts[path[:-2]].setdefault(str(path[-2]), {})[path[-1]] = part
            else:
                parts[path[:-1]][path[-1]] = part
        return Batch(**parts[()], data=data)


#: By the fields that lead there.
_KINDS: Final[dict[Path, Callable[..., Any]]] = {
    ("layers",): LayerTargets,
    ("teacher",): TeacherTokens,
    ("spans",): SpanTargets,
    ("spans", "student"): LearntSpans,
    ("spans", "layers"): SpanLayer,
    ("chunks",): Chunks,
}


def pack(batches: Sequence[Batch]) -> Parcel:
    """Copy batches, which are on the CPU, into one buffer."""
    contents = []
    copies: list[tuple[Slot, Tensor]] = []
    end = 0
    for batch in batches:
        slots: dict[Path, Slot] = {}
        for path, tensor in tensors(batch).items():
            slots[path] = slot = Slot(end, tuple(tensor.shape), tensor.dtype)
            copies.append((slot, tensor))
            end += -(-slot.bytes // ALIGNMENT) * ALIGNMENT
        contents.append(slots)
    buffer = torch.empty(end, dtype=torch.uint8)
    for slot, tensor in copies:
        buffer[slot.first : slot.first + slot.bytes].view(slot.dtype).view(slot.shape).copy_(tensor)
    return Parcel(buffer, tuple(contents), tuple(batch.data for batch in batches))
