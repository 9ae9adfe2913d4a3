"""Documents on which a way to run a model is tried before it is used: few, and past every length at which it may change.

What a model does may change with a document's length: behind a sliding window, a chunk of attention or of a state-space
scan, a number of keys that are kept. Configs name these lengths; a document that is longer than all of them shows
whether they are dealt with, and needs to run only as deep as the first layer of every kind.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from trainer.models.loading import LanguageModel
from trainer.models.packed_attention import QUERIES_AT_ONCE

#: How far hidden states of the probe may differ, relative to a token's norm: another order of sums, amplified by depth.
#: Attending to another document, or to padding, moves them by about their own size.
_TOLERANCE: Final = {torch.float64: 1e-6, torch.float32: 1e-3}
_TOLERANCE_HALF: Final = 0.1
#: Of documents that run through all layers: together in one batch, and alone.
SHORT: Final = ((9, 5, 9), (9,))
#: Tokens by which the long document is longer than what may change; and the one beside it.
BEYOND: Final = 3
BESIDE: Final = 5
#: How far to look where nobody says how long documents are.
FAR: Final = 1100
#: Keys of configs whose numbers are lengths at which something may change.
_LENGTHS: Final = re.compile(r"window|chunk|block_size|budget|topk|stride|compress")


@dataclass(frozen=True, eq=False)
class Probe:
    """A batch to try, and how deep."""

    documents: Sequence[Int64[np.ndarray, " _"]]
    deepest: int  # layers, from 0


def probes(model: LanguageModel, longest: int | None) -> list[Probe]:
    """Batches to try with documents of at most `longest` tokens to come; None: not known."""
    batches = [Probe(_documents(lengths, model.vocab_size), len(model.layers)) for lengths in SHORT]
    room = min(length for length in (longest or FAR, model.max_length) if length is not None)
    thresholds = [length for length in _thresholds(model.model.config.get_text_config(decoder=True)) if length < room]
    if thresholds:
        long = min(max(thresholds) + BEYOND, room)
        deepest = first_of_every_kind(model)
        batches += [Probe(_documents(lengths, model.vocab_size), deepest) for lengths in ((long,), (long, BESIDE))]
    return batches


def close(states: dict[int, Tensor], expected: dict[int, Tensor]) -> bool:
    """Whether every token's hidden states agree but for rounding; NaN is no matter of this comparison's."""
    for layer, state in expected.items():
        if states[layer].shape != state.shape:
            return False
        difference = torch.linalg.vector_norm((states[layer] - state).float(), dim=-1)
        bound = _TOLERANCE.get(state.dtype, _TOLERANCE_HALF) * torch.linalg.vector_norm(state.float(), dim=-1)
        if bool((difference > bound).any()):
            return False
    return True


def first_of_every_kind(model: LanguageModel) -> int:
    """The layer, from 1, by which one of every kind has been seen: kinds as the config calls them, and of equal modules."""
    config = model.model.config.get_text_config(decoder=True)
    names = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ()
    kinds: dict[Any, int] = {}
    for number, layer in enumerate(model.layers, 1):
        name = names[number - 1] if number <= len(names) else None
        kinds.setdefault((name, _build(layer)), number)
    return max(kinds.values())


def _build(layer: nn.Module) -> tuple[str, ...]:
    return tuple(type(module).__name__ for module in layer.modules())


def _documents(lengths: Sequence[int], vocabulary: int) -> list[Int64[np.ndarray, " _"]]:
    ids = np.arange(sum(lengths)) * 7 % vocabulary
    return np.split(ids, np.cumsum(lengths)[:-1])


def _thresholds(config: Any) -> list[int]:
    """Lengths at which the model may do something else, or we do."""
    named = (value for key, value in config.to_dict().items() if _LENGTHS.search(key))
    return [QUERIES_AT_ONCE, *(value for value in named if isinstance(value, int) and not isinstance(value, bool))]
