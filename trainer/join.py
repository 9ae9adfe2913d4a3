"""A teacher's signals joined with a student's tokens: the parts of a `Batch`, from tensors alone.

Signals from a cache and signals of a live teacher come through here alike, so what a loss sees of them is the same.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int, Int64
from torch import Tensor

from trainer.batch import LayerTargets
from trainer.geometry import Units, covered, units_with_span
from trainer.objectives.base import LayerNeed
from trainer.ragged import normalize_rows, pointers, select, spread
from trainer.signals import LayerSignals
from trainer.triangle import pair_rows, select_pairs


@dataclass(frozen=True)
class SharedUnits:
    """Units of one granularity, of some documents: the teacher's, and which of them the student has as well; on the CPU."""

    teacher: Units  # that the teacher has a span of; spans in the teacher's tokens of the batch
    kept: Int64[Tensor, " units"]  # which of those both have, rising
    spans: Int64[Tensor, "units 2"]  # the student's spans of these, in the student's tokens of the batch
    rows: Int64[Tensor, " pointers"]  # of these, of each document

    @cached_property
    def pairs(self) -> Int64[Tensor, " pairs"]:
        """Which of the teacher's pairs of units are of units that both have."""
        before, count = self.teacher.rows.diff(), self.rows.diff()
        bounds = pair_rows(self.teacher.rows)
        keep = torch.ones(int(bounds[-1]), dtype=torch.bool)
        # most documents keep all, which costs nothing; the others' pairs are looked for
        for document in (count < before).nonzero().flatten().tolist():
            mine = self.kept[self.rows[document] : self.rows[document + 1]] - self.teacher.rows[document]
            pairs = keep[bounds[document] : bounds[document + 1]]
            pairs.zero_()
            pairs[select_pairs(mine, pointers([int(before[document])]))] = True
        return keep.nonzero().squeeze(1)


def shared_units(
    unit_rows: Int64[Tensor, " pointers"],
    teacher_spans: Int[Tensor, "all_units 2"],
    teacher_tokens: Int64[Tensor, " pointers"],
    student_spans: Int[Tensor, "all_units 2"],
    student_tokens: Int64[Tensor, " pointers"],
) -> SharedUnits:
    """The units with a faithful span on both sides; spans as a dataset holds them, [-1, -1) for none.

    `unit_rows`: all units of each document; `teacher_tokens`, `student_tokens`: pointers of its tokens on either side.
    """
    teacher = units_with_span(teacher_spans, unit_rows, teacher_tokens)
    student = units_with_span(student_spans, unit_rows, student_tokens)
    of_teacher, of_student = (torch.zeros(len(teacher_spans), dtype=torch.bool) for _ in range(2))
    of_teacher[teacher.index] = True
    of_student[student.index] = True
    kept, rows = select(of_student[teacher.index], teacher.rows)
    return SharedUnits(teacher, kept, student.spans[of_teacher[student.index]], rows)


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


def join_layer(
    signals: LayerSignals,
    shared: SharedUnits,
    needs: Collection[LayerNeed],
    tokens: int,
    positions: Int64[Tensor, " positions"],
) -> LayerTargets:
    """What the teacher says of one layer, for the units that both sides have; values stay on the signals' device.

    Weights add up to 1 over a document's remaining units. States belong to the tokens of both sides, which must then
    be the same: `tokens` of the batch, of which `needs` may want those covered by a unit (`states`) and those at
    `positions` (`position_states`). Raises ValueError if `signals` lack something of what is needed.
    """
    device = signals.unit_weights.device
    kept = shared.kept.to(device, non_blocking=True)
    if len(signals.unit_weights) != len(shared.teacher.index):
        raise ValueError(f"weights of {len(signals.unit_weights)} units, but {len(shared.teacher.index)} have a span")
    weights = normalize_rows(signals.unit_weights[kept], shared.rows)
    relations = units = states = state_index = state_weights = position_states = None
    if "relations" in needs:
        relations = _present(signals.relations, "relations")
        if len(kept) < len(shared.teacher.index):
            relations = relations[shared.pairs.to(device, non_blocking=True)]
    if "units" in needs:
        units = _present(signals.units, "units")[kept]
    if "states" in needs:
        state_index = covered(shared.spans, tokens).nonzero().squeeze(1)
        place = _places(state_index, signals.state_index, tokens).to(device, non_blocking=True)
        states = _present(signals.states, "states")[place]
        state_weights = _present(signals.token_weights, "token weights")[place]
    if "position_states" in needs:
        place = _places(positions, signals.state_index, tokens).to(device, non_blocking=True)
        position_states = _present(signals.states, "states")[place]
    return LayerTargets(
        spans=shared.spans,
        rows=shared.rows,
        weights=weights,
        relations=relations,
        units=units,
        states=states,
        state_index=state_index,
        state_weights=state_weights,
        position_states=position_states,
    )


def _places(wanted: Tensor, there: Tensor | None, tokens: int) -> Tensor:
    """Where the wanted tokens stand among those that are there, rising; None: all."""
    if there is None:
        return wanted
    place = torch.full((tokens,), -1)
    place[there] = torch.arange(len(there))
    found = place[wanted]
    if bool((found < 0).any()):
        raise ValueError(f"the state of token {int(wanted[found < 0][0])} of the batch is needed and not there")
    return found


def _present(values: Tensor | None, what: str) -> Tensor:
    if values is None:
        raise ValueError(f"{what} are needed and not there")
    return values
