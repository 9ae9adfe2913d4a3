"""How many pairs the units of a document make (`trainer.maths.triangle` says which): arithmetic, without torch."""

from typing import Any, Final, TypeVar

import numpy as np
from jaxtyping import Float32, Int16, Int64

#: A cosine of 1 in fixed point.
ONE: Final = 32767

Numbers = TypeVar("Numbers", bound=Any)


def pair_count(units: Numbers, window: int | None) -> Numbers:
    """Of documents of so many units, an int, an array or a tensor of them; `window`: of pairs, None for all."""
    whole: Numbers = units * (units - 1) // 2
    if window is None:
        return whole
    in_band = units > 2 * window
    banded: Numbers = whole + in_band * ((window - 1) * units - window * (window - 1) // 2 - whole)
    return banded


def later_in_document(units: int, window: int | None) -> Int64[np.ndarray, " units"]:
    """`triangle.later_units` of one document: with how many of those behind it each unit makes a pair."""
    behind = np.arange(units - 1, -1, -1, dtype=np.int64)
    return behind if window is None or units <= 2 * window else np.minimum(behind, window - 1)


def cosines_of(stored: Int16[np.ndarray, " pairs"]) -> Float32[np.ndarray, " pairs"]:
    """`triangle.from_fixed_point` of an array."""
    return (stored.astype(np.float64) / ONE).astype(np.float32)
