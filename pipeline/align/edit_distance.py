"""Tokens of two tokenizers aligned by what they spell: MinED (FuseLLM, Wan et al. 2024, arXiv 2401.10491).

x are the student's input tokens and x' the teacher's: those whose next token is learnt, of one document. A token is the bytes
that it spells, without spaces, by which tokenizers mark words; a special token spells nothing. d is the edit distance
(Levenshtein) of two tokens, and a path goes from both first tokens to both last ones:

    R_ij = d(x_i, x'_j) + min(R_{i−1,j−1}, R_{i,j−1}, R_{i−1,j})

Back from the last pair, of equal sums the step on both sides goes before that of the teacher, and that before the student's.
The student's token i has a partner j where the path has it with j alone.

Distances are those of a document's different tokens, each pair once; all in all 120 tokens of the student's take 0.7 ms. Of the
path's table, directions are held, a byte a cell, and no more than `CELLS` of them: of a longer document blocks of lines are
computed again on the way back.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from jaxtyping import Int8, Int32, Int64
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from pipeline.align.vocabulary import SideVocabulary
from schemas.columns import MISSING, Side
from trainer.maths.loops import Loops

#: Directions in memory at once.
CELLS: Final = 2**24
#: Cells of a document's whole table, at most: 65,536 tokens on both sides, a quarter of a minute.
MOST_CELLS: Final = 2**32
#: More than any sum of distances.
_FAR: Final = 2**60
_BOTH, _TEACHER, _STUDENT = 0, 1, 2


def bare(vocabulary: SideVocabulary) -> list[str]:
    """What each token spells without spaces, a character a byte; nothing for special tokens."""
    special = frozenset(vocabulary.special)
    return [
        "" if index in special else text.replace(b" ", b"").decode("latin-1")
        for index, text in enumerate(vocabulary.spelled)
    ]


class EditAlignment:
    """Of the tokens of two vocabularies. Pickles."""

    def __init__(self, student: Sequence[str], teacher: Sequence[str]) -> None:
        """`student`, `teacher`: what each token spells, as `bare` has it."""
        self._student = student
        self._teacher = teacher

    @classmethod
    def of(cls, sides: Mapping[Side, SideVocabulary]) -> "EditAlignment":
        """Of two vocabularies."""
        return cls(bare(sides["student"]), bare(sides["teacher"]))

    def partners(
        self, student: Int32[np.ndarray, " students"], teacher: Int32[np.ndarray, " teachers"]
    ) -> Int32[np.ndarray, " students"]:
        """Which of the teacher's tokens is the one that each of the student's has on the path; -1 where it has several.

        Where the teacher has none at all, so it is for all.
        """
        partners = np.full(len(student), MISSING, dtype=np.int32)
        if not len(student) or not len(teacher):
            return partners
        (ours, lines), (theirs, columns) = (np.unique(ids, return_inverse=True) for ids in (student, teacher))
        spelled = _spelled(self._student, ours), _spelled(self._teacher, theirs)
        distances = cdist(*spelled, scorer=Levenshtein.distance, dtype=np.int32)
        _align(distances, lines, columns, partners)
        return partners


def _spelled(vocabulary: Sequence[str], ids: Int32[np.ndarray, " tokens"]) -> list[str]:
    """What tokens spell; an id that is in no vocabulary spells nothing."""
    return [vocabulary[index] if index < len(vocabulary) else "" for index in ids.tolist()]


def _align(
    distances: Int32[np.ndarray, "ours theirs"],
    lines: Int64[np.ndarray, " lines"],
    columns: Int64[np.ndarray, " columns"],
    partners: Int32[np.ndarray, " lines"],
) -> None:
    """The partners of the lines, into `partners`; `lines` and `columns` say which of the distances is each cell's."""
    height, width = len(lines), len(columns)
    fill, walk = _LOOPS.for_work(height * width)
    stride = max(1, CELLS // width)
    starts = range(0, height, stride)
    sums = np.full(width + 1, _FAR, dtype=np.int64)
    sums[0] = 0
    directions = np.empty((min(stride, height), width), dtype=np.int8)
    before = []
    for start in starts:
        before.append(sums.copy())
        fill(distances, lines[start : start + stride], columns, sums, directions)
    column = np.array([width - 1])
    for start in reversed(starts):
        if start != starts[-1]:
            fill(distances, lines[start : start + stride], columns, before.pop(), directions)
        else:
            before.pop()
        walk(directions, column, partners[start : start + stride])


def _fill(
    distances: Int32[np.ndarray, "ours theirs"],
    lines: Int64[np.ndarray, " lines"],
    columns: Int64[np.ndarray, " columns"],
    sums: Int64[np.ndarray, " columns_and_one"],
    directions: Int8[np.ndarray, "most_lines columns"],
) -> None:
    """Where the path to each cell of some lines comes from. `sums` are those of the line before, with what is beside its
    first, and in the end those of the last line."""
    for line in range(len(lines)):
        both, teacher = sums[0], _FAR
        sums[0] = _FAR
        for column in range(len(columns)):
            student = sums[column + 1]
            least, direction = both, _BOTH
            if teacher < least:
                least, direction = teacher, _TEACHER
            if student < least:
                least, direction = student, _STUDENT
            directions[line, column] = direction
            both = student
            teacher = least + distances[lines[line], columns[column]]
            sums[column + 1] = teacher


def _walk(
    directions: Int8[np.ndarray, "most_lines columns"],
    column: Int64[np.ndarray, " one"],
    partners: Int32[np.ndarray, " lines"],
) -> None:
    """The path back through some lines, from the last one's `column` on, and in the end the column before the first."""
    line, at = len(partners) - 1, column[0]
    while line >= 0:
        several = False
        while directions[line, at] == _TEACHER:
            several = True
            at -= 1
        if not several:
            partners[line] = at
        if directions[line, at] == _BOTH:
            at -= 1
        line -= 1
    column[0] = at


#: Work are the cells of a table; so many are interpreted in a tenth of a second.
_LOOPS: Final = Loops(_fill, _walk, patience=2**18)
