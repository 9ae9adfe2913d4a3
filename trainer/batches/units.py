"""Units and positions that both sides of a batch have: from arrays of a dataset alone."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor

from schemas.columns import MISSING
from trainer.maths.geometry import covered
from trainer.maths.ragged import check_pointers, pointers, select, spread
from trainer.maths.triangle import later_of, later_units, select_pairs


@dataclass(frozen=True)
class SharedUnits:
    """Units of one granularity, of some documents, that both sides have a span of; on the CPU."""

    spans: Int64[Tensor, "units 2"]  # the student's, in the tokens of the batch
    rows: Int64[Tensor, " pointers"]  # of each document
    kept: Int64[Tensor, " units"]  # which they are of the units that the teacher has a span of, rising
    teacher_rows: Int64[Tensor, " pointers"]  # of those

    def later(self, window: int | None) -> Int64[Tensor, " units"]:
        """Which pairs of them count (`trainer.maths.triangle`)."""
        if window not in self._later:
            self._later[window] = later_of(self.kept, later_units(self.teacher_rows, window))
        return self._later[window]

    def pairs_among(self, later: Int64[Tensor, " teacher_units"], window: int | None) -> Int64[Tensor, " pairs"] | None:
        """Where the pairs that count stand among pairs of all of the teacher's units, `later`; None: they are all of those.

        Raises ValueError where some are not among them.
        """
        wanted = self.later(window)
        if len(wanted) == len(later) and torch.equal(wanted, later):
            return None
        return select_pairs(self.kept, later, wanted)

    @cached_property
    def _later(self) -> dict[int | None, Int64[Tensor, " units"]]:
        return {}


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


def before_tokens(spans: Int[Tensor, "spans 2"]) -> Int64[Tensor, "spans 2"]:
    """The tokens before each token of some spans, as spans too; what is before a span's own first token may be in another.

    Nothing comes before a document's first token, so a span from 0 gives one token less than it holds, and [0, 1) an empty
    one.
    """
    return (spans.to(torch.int64) - 1).clamp_min(0)


def positions_of(
    rows: Int64[Tensor, " pointers"], spans: Int[Tensor, "spans 2"], span_rows: Int64[Tensor, " _"]
) -> tuple[Int64[Tensor, " positions"], Int64[Tensor, " pointers"]]:
    """The tokens before each token of every document's spans, as places among the batch's tokens, rising; and how many each
    document has, as pointers.

    `rows`: tokens of each document; `spans`: each counted from its document's first token, rising and disjoint;
    `span_rows`: how many each document has.
    """
    check_pointers(span_rows, len(spans))
    first, last = before_tokens(spans).unbind(1)
    bounds = pointers(last - first)
    shift = spread(spread(rows[:-1], span_rows) + first - bounds[:-1], bounds)
    return shift + torch.arange(len(shift)), bounds[span_rows]


def learnt_tokens(
    rows: Int64[Tensor, " pointers"], spans: Int[Tensor, "spans 2"], span_rows: Int64[Tensor, " _"]
) -> Bool[Tensor, " tokens"]:
    """Of each of the batch's tokens, whether it is in a span or just before one: what losses on what is learnt look at.

    Arguments as of `positions_of`.
    """
    check_pointers(span_rows, len(spans))
    wider = torch.stack([before_tokens(spans)[:, 0], spans[:, 1].to(torch.int64)], dim=1)
    return covered(wider + spread(rows[:-1], span_rows)[:, None], int(rows[-1]))
