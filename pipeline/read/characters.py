"""Kinds of characters that decide where a word or a token may end, and that Python has no name for.

Joining characters form one with the character before them: combining marks, joiners, emoji modifiers and tags. Invisible
ones are the other format and control characters that are no white space, such as the zero-width space, the byte order
mark and the soft hyphen.
"""

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

#: What lies between is ideographs and private use.
_ASSIGNED: Final = (*range(0x20000), *range(0xE0000, 0xE1000))
_CATEGORIES: Final = dict(zip(_ASSIGNED, map(unicodedata.category, map(chr, _ASSIGNED)), strict=True))
_JOINING: Final = {0x200C, 0x200D, *range(0x1F3FB, 0x1F400), *range(0xE0020, 0xE0080)} | {
    point for point, category in _CATEGORIES.items() if category[0] == "M"
}
_INVISIBLE: Final = {
    point for point, category in _CATEGORIES.items() if category in ("Cf", "Cc") and not chr(point).isspace()
} - _JOINING


def _ranges(points: Iterable[int]) -> str:
    """The inside of a character class of a regular expression."""
    ordered, members = sorted(points), set(points)
    first = [point for point in ordered if point - 1 not in members]
    last = [point for point in ordered if point + 1 not in members]
    return "".join(f"{re.escape(chr(a))}-{re.escape(chr(b))}" for a, b in zip(first, last, strict=True))


JOINING: Final = _ranges(_JOINING)
INVISIBLE: Final = _ranges(_INVISIBLE)
#: A character with all that joins it, so that cutting between matches is usually safe. After Hangul its vowel and final
#: jamo join too, and after half-width kana their sound marks.
CLUSTER: Final = re.compile(
    rf"(?:[\u1100-\u115f\uac00-\ud7a3][\u1160-\u11ff]+|[\uff66-\uff9d][\uff9e\uff9f]|.)[{JOINING}]*", re.DOTALL
)
