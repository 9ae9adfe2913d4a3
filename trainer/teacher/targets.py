"""A teacher's signals joined with a student's tokens: the parts of a `Batch`, from tensors alone.

Signals from a cache and signals of a live teacher come through here alike, so what a loss sees of them is the same.
"""

from collections.abc import Collection

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from trainer.batches.batch import LayerTargets, SpanLayer
from trainer.batches.units import SharedUnits
from trainer.maths.geometry import covered
from trainer.maths.layer_signals import LayerSignals
from trainer.maths.ragged import normalize_rows, spread
from trainer.maths.spans import LearntSpans
from trainer.objectives.base import LayerNeed


class MissingState(ValueError):  # noqa: N818  # says what, as the others do
    """A token's state is needed and not there."""


def join_layer(
    signals: LayerSignals,
    shared: SharedUnits,
    needs: Collection[LayerNeed],
    tokens: int,
    positions: Int64[Tensor, " positions"],
    window: int | None = None,
) -> LayerTargets:
    """What the teacher says of one layer, for the units that both sides have; values stay on the signals' device.

    Weights add up to 1 over a document's remaining units. `window`: of the pairs of units that count. States belong to the
    tokens of both sides, which must then be the same: `tokens` of the batch, of which `needs` may want those covered by a
    unit (`states`) and those at `positions` (`position_states`). Raises ValueError if `signals` lack something of what is
    needed.
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
        pairs = shared.pairs_among(_present(signals.later, "pairs of the relations"), window)
        if pairs is not None:
            relations = relations[pairs.to(device, non_blocking=True)]
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
        later=shared.later(window),
        relations=relations,
        units=units,
        states=states,
        state_index=state_index,
        state_weights=state_weights,
        position_states=position_states,
    )


def learnt_spans(
    token_rows: Int64[Tensor, " pointers"],
    responses: Int[Tensor, "responses 2"],
    response_rows: Int64[Tensor, " pointers"],
    spans: Int64[Tensor, "spans 2"],
) -> LearntSpans:
    """Spans of a batch's tokens among those that are learnt: those in `responses`, each counted from its row's first."""
    shifted = responses.to(torch.int64) + spread(token_rows[:-1], response_rows)[:, None]
    return LearntSpans.of(covered(shifted, int(token_rows[-1])), token_rows, spans)


def span_layer(
    states: Float[Tensor, "learnt_tokens hidden"],
    attention: Float[Tensor, " learnt_tokens"] | None,
    learnt: LearntSpans,
    span_rows: Int64[Tensor, " pointers"],
) -> SpanLayer:
    """What a layer says of spans; on the states' device. `attention`: of the last query, None: all tokens weigh the same;
    `span_rows`: spans of each document."""
    weights = learnt.weights(attention, states.device)
    return SpanLayer(learnt.pool(states, weights), learnt.shares(weights, span_rows))


def _places(wanted: Tensor, there: Tensor | None, tokens: int) -> Tensor:
    """Where the wanted tokens stand among those that are there, rising; None: all."""
    if there is None:
        return wanted
    place = torch.full((tokens,), -1)
    place[there] = torch.arange(len(there))
    found = place[wanted]
    if bool((found < 0).any()):
        raise MissingState(f"the state of token {int(wanted[found < 0][0])} of the batch is needed and not there")
    return found


def _present(values: Tensor | None, what: str) -> Tensor:
    if values is None:
        raise ValueError(f"{what} are needed and not there")
    return values
