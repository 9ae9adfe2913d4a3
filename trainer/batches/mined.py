"""MinED's alignment as batches have it: of a dataset's column the positions at which both sides have the same input token."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int32, Int64

from schemas.columns import MISSING
from trainer.batches.lists import index_of


@dataclass(frozen=True)
class Inputs:
    """One side's tokens of some documents, and those of them before a learnt one."""

    ids: Int32[np.ndarray, " tokens"]
    rows: Int64[np.ndarray, " pointers"]  # tokens of each document
    positions: Int64[np.ndarray, " positions"]  # places among the tokens, rising
    position_rows: Int64[np.ndarray, " pointers"]  # how many each document has


def mined_pairs(
    partners: Int32[np.ndarray, " partners"],
    partner_rows: Int64[np.ndarray, " pointers"],
    student: Inputs,
    teacher: Inputs,
) -> Int64[np.ndarray, "pairs 2"]:
    """Positions of the student, rising, and of the teacher that the column aligns.

    `partners`: of each of the student's positions the teacher's token, counted from its document's first, or -1. Raises
    ValueError if there are more or fewer, or tokens of the teacher's that are at none of its positions.
    """
    if not np.array_equal(partner_rows, student.position_rows):
        raise ValueError("is not that of its tokens")
    aligned = np.flatnonzero(partners != MISSING)
    document = np.repeat(np.arange(len(partner_rows) - 1), np.diff(partner_rows))[aligned]
    tokens = partners[aligned] + teacher.rows[document]
    theirs = index_of(teacher.positions, tokens)
    outside = (tokens < teacher.rows[document]) | (tokens >= teacher.rows[document + 1])
    if (outside | (theirs < 0)).any():
        raise ValueError("has tokens that are before no learnt one")
    return np.stack([aligned, theirs], axis=1)


def same_inputs(
    pairs: Int64[np.ndarray, "pairs 2"],
    student: Inputs,
    teacher: Inputs,
    taken_for: Int64[np.ndarray, " teacher_vocabulary"],
) -> Bool[np.ndarray, " pairs"]:
    """At which pairs both sides have the same token; `taken_for`: of the teacher's tokens the student's, or -1."""
    ours, theirs = student.positions[pairs[:, 0]], teacher.positions[pairs[:, 1]]
    same: Bool[np.ndarray, " pairs"] = taken_for[teacher.ids[theirs]] == student.ids[ours]
    return same


def same_prefixes(
    pairs: Int64[np.ndarray, "pairs 2"],
    student: Inputs,
    teacher: Inputs,
    read: Int64[np.ndarray, " tokens"],
    read_by_teacher: Int64[np.ndarray, " teacher_tokens"],
) -> Bool[np.ndarray, " pairs"]:
    """At which pairs both sides have read the same; `read…`: before each token (`trainer.maths.alignment.prefix_keys`)."""
    ours = read[student.positions[pairs[:, 0]] + 1]
    same: Bool[np.ndarray, " pairs"] = (ours != MISSING) & (ours == read_by_teacher[teacher.positions[pairs[:, 1]] + 1])
    return same
