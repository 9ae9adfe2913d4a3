"""A teacher's signals joined with a student's tokens: the parts of a `Batch`, from tensors alone.

Signals from a cache and signals of a live teacher come through here alike, so what a loss sees of them is the same.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int, Int64
from torch import Tensor

from schemas.columns import MISSING
from trainer.batch import LayerTargets
from trainer.geometry import covered
from trainer.objectives.base import LayerNeed
from trainer.ragged import check_pointers, normalize_rows, pointers, select, spread
from trainer.signals import LayerSignals
from trainer.triangle import pair_rows, select_pairs


@dataclass(frozen=True)
class SharedUnits:
    """Units of one granularity, of some documents, that both sides have a span of; on the CPU."""

    spans: Int64[Tensor, "units 2"]  # the student's, in the tokens of the batch
    rows: Int64[Tensor, " pointers"]  # of each document
    kept: Int64[Tensor, " units"]  # which they are of the units that the teacher has a span of, rising
    teacher_rows: Int64[Tensor, " pointers"]  # of those

    @cached_property
    def pairs(self) -> Int64[Tensor, " pairs"]:
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
    units_before = int(shared.teacher_rows[-1])
    if len(signals.unit_weights) != units_before:
        raise ValueError(f"weights of {len(signals.unit_weights)} units, but {units_before} have a span")
    weights = normalize_rows(signals.unit_weights[kept], shared.rows)
    relations = units = states = state_index = state_weights = position_states = None
    if "relations" in needs:
        relations = _present(signals.relations, "relations")
        if len(kept) < units_before:
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
