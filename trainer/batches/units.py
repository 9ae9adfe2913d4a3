"""Units and positions that both sides of a batch have: from arrays of a dataset alone."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int, Int64
from torch import Tensor

from schemas.columns import MISSING
from trainer.maths.ragged import check_pointers, pointers, select, spread
from trainer.maths.triangle import pair_rows, select_pairs


@dataclass(frozen=True)
class SharedUnits:
    """Units of one granularity, of some documents, that both sides have a span of; on the CPU."""

    spans: Int64[Tensor, "units 2"]  # the student's, in the tokens of the batch
    rows: Int64[Tensor, " pointers"]  # of each document
    kept: Int64[Tensor, " units"]  # which they are of the units that the teacher has a span of, rising
    teacher_rows: Int64[Tensor, " pointers"]  # of those

    @cached_property
    def unit_pairs(self) -> Int64[Tensor, " pairs"]:
        """Which of the teacher's pairs of units are of units that both have."""
        before, count = self.teacher_rows.diff(), self.rows.diff()
        bounds = pair_rows(self.teacher_rows)
        keep = torch.ones(int(bounds[-1]), dtype=torch.bool)
        # most documents keep all, which costs nothing; the others' pairs are looked for
        for document in (count < before).nonzero().flatten().tolist():
            mine = self.kept[self.rows[document] : self.rows[document + 1]] - self.teacher_rows[document]
            pairs = keep[bounds[document] : bounds[document + 1]]
            pairs.zero_()
            pairs[select_pairs(mine, pointers([int(before[document])]))] = True
        return keep.nonzero().squeeze(1)


def shared_units(
    unit_rows: Int64[Tensor, " pointers"],
    teacher_spans: Int[Tensor, "all_units 2"],
    student_spans: Int[Tensor, "all_units 2"],
    token_rows: Int64[Tensor, " _"],
) -> SharedUnits:
    """The units with a faithful span on both sides; spans as a dataset holds them, [-1, -1) for none.

    `unit_rows`: all units of each document; `token_rows`: its student tokens.
    """
    check_pointers(unit_rows, len(teacher_spans))
    of_teacher, of_student = (spans[:, 0] != MISSING for spans in (teacher_spans, student_spans))
    index, rows = select(of_teacher & of_student, unit_rows)
    kept = of_student[of_teacher].nonzero().squeeze(1)
    _, teacher_rows = select(of_teacher, unit_rows)
    spans = student_spans[index] + spread(token_rows[:-1], rows)[:, None]
    return SharedUnits(spans, rows, kept, teacher_rows)


def before_response(
    rows: Int64[Tensor, " pointers"], response_start: Int64[Tensor, " documents"]
) -> tuple[Int64[Tensor, " documents"], Int64[Tensor, " documents"]]:
    """Of each document the tokens [first, last), counted from its own first one, whose next token is of the response.

    `rows`: tokens of each document; `response_start`: its first response token, 0 for plain text, whose first token
    nothing predicts. first = last where there are none.
    """
    first = (response_start - 1).clamp_min(0)
    return first, torch.maximum(rows.diff() - 1, first)


def positions_of(
    rows: Int64[Tensor, " pointers"], first: Int64[Tensor, " documents"], last: Int64[Tensor, " documents"]
) -> Int64[Tensor, " positions"]:
    """The tokens [first, last) of every document, as places among the batch's."""
    found = pointers(last - first)
    shift = spread(rows[:-1] + first - found[:-1], found)
    return shift + torch.arange(len(shift))
