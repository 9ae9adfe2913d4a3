"""Characters of texts as arrays: code points, white space, bytes in UTF-8."""

from typing import Final

import numpy as np
from jaxtyping import Bool, Int64, UInt32

_LAST_SPACE: Final = 0x3000  # no code point beyond it is white space
_SPACE: Final[Bool[np.ndarray, " points"]] = np.array([chr(point).isspace() for point in range(_LAST_SPACE + 2)])


def code_points(text: str) -> UInt32[np.ndarray, " characters"]:
    """The text as an array; raises `UnicodeEncodeError` for unpaired surrogates."""
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)


def is_space(points: UInt32[np.ndarray, " characters"]) -> Bool[np.ndarray, " characters"]:
    """`str.isspace` of every code point."""
    blank: Bool[np.ndarray, " characters"] = _SPACE[np.minimum(points, _LAST_SPACE + 1)]
    return blank


def utf8_widths(points: UInt32[np.ndarray, " characters"]) -> Int64[np.ndarray, " characters"]:
    """Bytes of every code point in UTF-8."""
    return 1 + (points > 0x7F).astype(np.int64) + (points > 0x7FF) + (points > 0xFFFF)
