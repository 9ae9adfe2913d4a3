"""Which line breaks inside a paragraph an editor made, and a sentence goes on over.

Text that was wrapped is known by its shape: every line is as long as it could be, so that the first word of the next one
would not have fitted. Verse, addresses, lists without marks and code hardly ever look so, least of all over several long
lines; and where they do, their lines begin with capitals, or hold what prose does not. Tuned on the embedded sample,
wrapped and as it is; see `docs/log.md`.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

#: Columns below which a paragraph's longest line says nothing: verse is so narrow, wrapped prose rarely.
NARROWEST: Final = 45
_WORD: Final = re.compile(r"\S+")
_OPENING: Final = "\"'“‘«([{*_¿¡"
#: What code has and prose has not.
_CODE: Final = re.compile(r"[{}<>|\\=]|\(\)|^(?:#|//|\$ )")
#: White space that sets columns: a tab, or several spaces that do not follow the end of a sentence.
_COLUMNS: Final = re.compile(r"(?<![.!?:…\"'”’)])\s{2,}|\t")
#: A label or key at the beginning of a line.
_LABEL: Final = re.compile(r"\w[\w ]{0,24}(?::|-|=)\s")
_SENTENCE_END: Final = re.compile(r"[.!?…:][\"'”’»)\]*_]*$")


class Line(NamedTuple):
    """A line of a text, without its break and without white space at its edges."""

    start: int  # character offset of the body
    indent: int  # characters of white space before it
    body: str

    @property
    def width(self) -> int:
        """Columns up to the end of the body."""
        return self.indent + len(self.body)

    @property
    def initial(self) -> str:
        """The first character behind opening quotes and brackets."""
        return self.body.lstrip(_OPENING)[:1]


def wrapped(lines: Sequence[Line]) -> list[bool]:
    """For each break between two neighbouring lines of one paragraph, whether it was made by wrapping."""
    joined = [False] * (len(lines) - 1)
    longest = max((line.width for line in lines), default=0)
    if longest < NARROWEST or not _is_prose(lines):
        return joined
    full = [one.width + 1 + len(_first_word(other)) > longest for one, other in pairwise(lines)]
    first = 0
    while first < len(full):
        last = first
        while last < len(full) and full[last]:
            last += 1
        if _goes_on(lines[first : last + 1], alone=len(lines) == 2):
            joined[first:last] = [True] * (last - first)
        first = last + 1
    return joined


def _first_word(line: Line) -> str:
    word = _WORD.match(line.body)
    return word[0] if word else ""


def _is_prose(lines: Sequence[Line]) -> bool:
    if any(_CODE.search(line.body) or _COLUMNS.search(line.body) for line in lines):
        return False
    closed = sum(line.body.endswith(";") for line in lines)
    labelled = sum(_LABEL.match(line.body) is not None for line in lines)
    return not (closed > 1 and 2 * closed >= len(lines)) and not (labelled > 1 and 2 * labelled >= len(lines))


def _goes_on(run: Sequence[Line], alone: bool) -> bool:
    """Whether full lines, all but the last, are one text: equally indented, mostly going on in lower case.

    Two lines are enough only if they are the whole paragraph and no sentence ends between them.
    """
    following = run[1:]
    lower, upper = (sum(test(line.initial) for line in following) for test in (str.islower, str.isupper))
    if not lower or 2 * lower < upper or len({line.indent for line in following}) > 1:
        return False
    return len(following) > 1 or (alone and not _SENTENCE_END.search(run[0].body))
