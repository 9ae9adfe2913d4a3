"""A batch's hidden states of one teacher layer to the signals that losses need: what the live teacher and a cache share."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from schemas.signals import Signal, StateTokens, Weights
from trainer.maths.geometry import centrality_weights, covered, pool, relations, uniform_weights, unit_weights
from trainer.maths.ragged import select
from trainer.maths.triangle import later_units


@dataclass(frozen=True)
class LayerSignals:
    """Signals of one layer for a batch of documents, flat; None for those not asked for.

    Weights, units and relations are float32 (float64 if the hidden states are), states are of the model's own type.
    Values are on the hidden states' device, structure (`later`, `state_rows`, `state_index`) on the CPU.
    """

    unit_weights: Float[Tensor, " units"]  # they add up to 1 in a document
    relations: Float[Tensor, " pairs"] | None = None  # triangles (`trainer.maths.triangle`)
    later: Int64[Tensor, " units"] | None = None  # with `relations`: which pairs they are of
    units: Float[Tensor, "units hidden"] | None = None
    states: Float[Tensor, "state_tokens hidden"] | None = None
    token_weights: Float[Tensor, " state_tokens"] | None = None  # with `states`: out of a document that adds up to 1
    state_rows: Int64[Tensor, " pointers"] | None = None  # with `states`: tokens of each document
    state_index: Int64[Tensor, " state_tokens"] | None = None  # their places among the batch's; None: all tokens


def kept_states(
    spans: Int64[Tensor, "units 2"], tokens: int, state_tokens: StateTokens, learnt: Bool[Tensor, " tokens"] | None
) -> Bool[Tensor, " tokens"] | None:
    """Of each token of the batch, whether its states are kept; None: all are. Arguments as of `layer_signals`."""
    if state_tokens == "all":
        return learnt
    of_units = covered(spans, tokens)
    return of_units if learnt is None else of_units & learnt


@torch.no_grad()
def layer_signals(
    hidden: Float[Tensor, "tokens hidden"],
    rows: Int64[Tensor, " pointers"],
    spans: Int64[Tensor, "units 2"],
    unit_rows: Int64[Tensor, " pointers"],
    want: Collection[Signal],
    state_tokens: StateTokens,
    weights: Weights,
    learnt: Bool[Tensor, " tokens"] | None = None,
    window: int | None = None,
) -> LayerSignals:
    """The signals in `want` (others than `relations`, `units` and `states` are no matter of this function's).

    `spans`: [start, end) in the tokens of the batch, as `geometry.units_with_span` gives them; `unit_rows`: units of
    each document. `state_tokens`: which states are kept, those that some unit covers or all; of those in `learnt` (on the
    CPU) alone, if that is given. `weights`: of tokens; `window`: of pairs of units (`trainer.maths.triangle`).
    """
    token = uniform_weights(rows, hidden.device) if weights == "uniform" else centrality_weights(hidden, rows)
    pooled = pool(hidden, token, spans) if {"relations", "units"} & set(want) else None
    states = token_weights = state_rows = state_index = None
    if "states" in want:
        states, token_weights, state_rows = hidden, token, rows
        keep = kept_states(spans, len(hidden), state_tokens, learnt)
        if keep is not None:
            state_index, state_rows = select(keep, rows)
            place = state_index.to(hidden.device, non_blocking=True)
            states, token_weights = hidden[place], token[place]
    cosines = later = None
    if pooled is not None and "relations" in want:
        later = later_units(unit_rows, window)
        cosines = relations(pooled, unit_rows, later)
    return LayerSignals(
        unit_weights=unit_weights(token, spans, unit_rows),
        relations=cosines,
        later=later,
        units=pooled if "units" in want else None,
        states=states,
        token_weights=token_weights,
        state_rows=state_rows,
        state_index=state_index,
    )
