"""Vectors to the numbers on disk, and back.

| type | a vector comes back within, per element |
|---|---|
| `fp32` | nothing, for vectors of float32 or less |
| `bf16` | 2^-8 of the element, or 2^-134 if that is more |
| `fp16` | 2^-11 of the element, or 2^-25 if that is more |
| `fp8` (e4m3) | 2^-4 of the element, or 2^-10 · scale if that is more; scale = largest magnitude of the vector / 448 |
| `int8` | scale / 2; scale = largest magnitude of the vector / 127 |

Beside that stands one rounding to float32 of what comes back. A scale is at least 2^-126, so that it keeps its
precision: vectors smaller than that lose some of theirs, and a vector of zeros stays one. What a type cannot hold, be
it too large, infinite or NaN, is refused by `refuse_unstorable`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor

from schemas.errors import UserError
from schemas.signals import BYTES, STORED, TOP, Number, Storage

#: What each type of number is in torch.
TYPES: Final[dict[Number, torch.dtype]] = {number: getattr(torch, number) for number in BYTES}
#: What vectors are stored as.
DTYPES: Final[dict[Storage, torch.dtype]] = {storage: TYPES[number] for storage, number in STORED.items()}
#: The smallest normal float32.
SMALLEST_SCALE: Final = 2.0**-126


@dataclass(frozen=True)
class Encoded:
    """Vectors as they are stored."""

    stored: Shaped[Tensor, "vectors hidden"]
    scale: Float32[Tensor, " vectors"] | None  # of fp8 and int8
    peak: Float32[Tensor, " vectors"]  # largest magnitude of each, NaN or infinite if any of its elements is


def encode(values: Float[Tensor, "vectors hidden"], storage: Storage) -> Encoded:
    """`values` in the type of `storage`, on their own device, without waiting for it.

    Nothing is refused here: hand `peak` to `refuse_unstorable`, wherever that no longer holds anything up.
    """
    peak: Tensor = torch.linalg.vector_norm(values, ord=torch.inf, dim=1).to(torch.float32)
    if storage not in TOP:
        return Encoded(values.to(DTYPES[storage]), None, peak)
    scale = (peak / TOP[storage]).clamp_min(SMALLEST_SCALE)
    scaled = values.to(torch.float32) / scale[:, None]
    return Encoded((scaled.round_() if storage == "int8" else scaled).to(DTYPES[storage]), scale, peak)


def refuse_unstorable(peak: Float32[Tensor, " vectors"], storage: Storage, where: Callable[[int], str]) -> None:
    """Raises UserError for the first vector that is NaN, infinite or too large; `where(i)` says which vector i is."""
    # what the largest element comes back as
    largest = peak / TOP[storage] * TOP[storage] if storage in TOP else peak.to(DTYPES[storage]).to(torch.float32)
    wrong = ~largest.isfinite()
    if not bool(wrong.any()):
        return
    vector = int(wrong.nonzero()[0])
    found = float(peak[vector])
    if not math.isfinite(found):
        raise UserError(not_finite(where(vector)))
    raise UserError(
        f"{where(vector)}: values up to {found:.4g}, more than {storage} can hold; store them as bf16 or fp32."
    )


def not_finite(where: str) -> str:
    """What to tell of NaN or infinite values."""
    return f"{where}: the teacher gives NaN or infinite values; run it in float32 or bfloat16, or leave the row out."


def decode(
    stored: Shaped[Tensor, "vectors hidden"], scale: Float32[Tensor, " vectors"] | None
) -> Float32[Tensor, "vectors hidden"]:
    """The vectors that `encode` stored, in memory of their own; `scale` for fp8 and int8."""
    values = stored.to(torch.float32, copy=True)
    return values if scale is None else values.mul_(scale[:, None])
