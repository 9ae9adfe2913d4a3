"""What a cache's shard holds, by name: types, shapes and so bytes of its tensors, from how much there is. Without torch."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from schemas import signals as names
from schemas.config import StorageConfig
from schemas.signals import (
    BYTES,
    PARTS,
    PROBABILITIES,
    SCALAR_NUMBERS,
    STORED,
    TOP,
    Number,
    Part,
    Signal,
    StateTokens,
    Storage,
    scale_name,
    tensor_name,
)


@dataclass(frozen=True)
class LayerCounts:
    """How much of one layer a shard holds, or a dataset."""

    units: int  # that have a teacher span
    pairs: int
    state_tokens: int  # 0 where no states are kept

    def __add__(self, other: "LayerCounts") -> "LayerCounts":
        return LayerCounts(self.units + other.units, self.pairs + other.pairs, self.state_tokens + other.state_tokens)


@dataclass(frozen=True)
class Counts:
    """How much a shard holds, or a dataset: those of its parts added up (of the same layers)."""

    rows: int
    tokens: int
    learnt: int  # tokens of which `final` and its kin are kept: those learnt and the one before each, or all
    layers: Mapping[int, LayerCounts]

    def __add__(self, other: "Counts") -> "Counts":
        layers = {layer: mine + other.layers[layer] for layer, mine in self.layers.items()}
        return Counts(self.rows + other.rows, self.tokens + other.tokens, self.learnt + other.learnt, layers)


@dataclass(frozen=True)
class Spec:
    """One tensor of a shard."""

    number: Number
    shape: tuple[int, ...]
    layer: int | None
    part: Part
    storage: Storage | None = None  # of vectors

    @property
    def bytes(self) -> int:
        """Of its values."""
        return math.prod(self.shape) * BYTES[self.number]

    @property
    def element_bytes(self) -> int:
        """What one more element along `part.along` takes."""
        return math.prod(self.shape[1:]) * BYTES[self.number]


def specs(
    counts: Counts,
    signals: Collection[Signal],
    storage: StorageConfig,
    state_tokens: StateTokens,
    width: Callable[[int | None], int],
    topk: int,
    response_only: bool = False,
    states_of_final: int | None = None,
    most: int = 0,
) -> dict[str, Spec]:
    """Name to tensor, for every tensor of a shard that holds this much; their bytes are the file's but for its header.

    `width`: features of the teacher's hidden states at a layer, or of its last ones (None); `topk`: tokens kept of each
    distribution; `most`: probabilities of each; `states_of_final`: the layer whose states are those of `final`, and not kept
    again.
    """
    found: dict[str, Spec] = {}

    def add(name: str, number: Number, elements: int, layer: int | None = None, *, columns: int | None = None) -> None:
        part = PARTS[name]
        if part.signal is None or part.signal in signals:
            shape = (elements,) if columns is None else (elements, columns)
            found[tensor_name(name, layer)] = Spec(number, shape, layer, part)

    def add_vectors(name: str, kind: Storage, elements: int, layer: int | None = None) -> None:
        part = PARTS[name]
        if part.signal in signals:
            whole = tensor_name(name, layer)
            found[whole] = Spec(STORED[kind], (elements, width(layer)), layer, part, kind)
            if kind in TOP:
                found[scale_name(whole)] = Spec("float32", (elements,), layer, part, kind)

    add(names.ROW_POINTERS, "int64", counts.rows + 1)
    if response_only:
        add(names.LEARNT_ROWS, "int64", counts.rows + 1)
        add(names.LEARNT_INDEX, "int32", counts.learnt)
    for layer, of in counts.layers.items():
        add("unit_rows", "int64", counts.rows + 1, layer)
        add("unit_index", "int32", of.units, layer)
        add("unit_weights", "float32", of.units, layer)
        add("relations", "int16", of.pairs, layer)
        add("token_weights", "float32", of.state_tokens, layer)
        if state_tokens == "covered":
            add("state_rows", "int64", counts.rows + 1, layer)
            add("state_index", "int32", of.state_tokens, layer)
        add("attention", "float32", counts.tokens, layer)
        add_vectors("units", storage.units, of.units, layer)
        if layer != states_of_final:
            add_vectors("states", storage.states, of.state_tokens, layer)
    add_vectors(names.FINAL, storage.final, counts.learnt)
    add(names.TOPK_INDICES, "int32", counts.learnt, columns=topk)
    add(names.TOPK_LOGPROBS, PROBABILITIES, counts.learnt, columns=topk)
    add(names.SORTED, PROBABILITIES, counts.learnt, columns=most)
    for name in names.SCALARS:
        add(name, SCALAR_NUMBERS[name], counts.learnt)
    return found
