"""A cache shard's tensors: what its rows hold, and batches packed into it in any order.

For the writer: `ShardRows` once a shard, from the dataset alone; `specs` (`pipeline.cache.specs`) for the bytes it will
have; then of each batch `pack` on the teacher's device, which waits for nothing, `Packed.map` to bring it to the CPU however
suits, and `ShardTensors.place`, which refuses what is NaN, infinite or too large by the row's id and the layer. Once all rows
are placed, `ShardTensors.tensors` is what goes into the safetensors file.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int, Int32, Int64, Shaped
from torch import Tensor

from pipeline.cache.specs import Counts, LayerCounts, Spec
from schemas import signals as names
from schemas.config import StorageConfig
from schemas.errors import UserError
from schemas.signals import PROBABILITIES, Along, Scalar, StateTokens, Storage, scale_name, tensor_name
from trainer.maths.geometry import units_with_span
from trainer.maths.layer_signals import LayerSignals, kept_states
from trainer.maths.quantization import TYPES, encode, not_finite, refuse_unstorable
from trainer.maths.ragged import check_pointers, pointers, select, spread
from trainer.maths.triangle import pair_rows, to_fixed_point


@dataclass(frozen=True)
class LayerRows:
    """Which units and tokens of a shard's rows one layer holds; all on the CPU."""

    unit_rows: Int64[Tensor, " pointers"]
    unit_index: Int32[Tensor, " units"]  # which of the row's units
    state_rows: Int64[Tensor, " pointers"] | None  # pointers of kept tokens; None: no states
    state_index: (
        Int32[Tensor, " state_tokens"] | None
    )  # which of the row's tokens; None: no states, or of all there are
    window: int | None = None  # of pairs of units

    @property
    def pair_rows(self) -> Int64[Tensor, " pointers"]:
        """Pointers of the pairs of units."""
        return pair_rows(self.unit_rows, self.window)

    def counts(self) -> LayerCounts:
        """Totals."""
        states = 0 if self.state_rows is None else int(self.state_rows[-1])
        return LayerCounts(len(self.unit_index), int(self.pair_rows[-1]), states)


def layer_rows(
    spans: Int[Tensor, "all_units 2"],
    unit_rows: Int64[Tensor, " pointers"],
    token_rows: Int64[Tensor, " _"],
    state_tokens: StateTokens | None,
    learnt: "LearntRows | None" = None,
    window: int | None = None,
) -> LayerRows:
    """One layer's part of a shard, from the dataset: spans as its `teacher_{granularity}` column has them.

    `unit_rows`: pointers of all units of the shard's rows, those without a span too; `token_rows`: of their tokens.
    `state_tokens`: None where no states are kept; `learnt`: None where those of all tokens may be; `window`: of pairs of
    units. Raises ValueError for a span that is empty or leaves its row.
    """
    units = units_with_span(spans, unit_rows, token_rows)
    unit_index = (units.index - spread(unit_rows[:-1], units.rows)).to(torch.int32)
    if state_tokens != "covered":
        every = token_rows if learnt is None else learnt.rows
        return LayerRows(units.rows, unit_index, every if state_tokens == "all" else None, None, window)
    keep = kept_states(units.spans, int(token_rows[-1]), state_tokens, None if learnt is None else learnt.tokens)
    assert keep is not None
    state_index, state_rows = _within_rows(keep, token_rows)
    return LayerRows(units.rows, unit_index, state_rows, state_index, window)


@dataclass(frozen=True)
class LearntRows:
    """Which tokens of a shard's rows are learnt, or just before one that is; all on the CPU."""

    tokens: Bool[Tensor, " tokens"]
    rows: Int64[Tensor, " pointers"]
    index: Int32[Tensor, " learnt_tokens"]  # which of the row's tokens

    @classmethod
    def of(cls, tokens: Bool[Tensor, " tokens"], token_rows: Int64[Tensor, " pointers"]) -> "LearntRows":
        """Of a mask of the shard's tokens."""
        index, rows = _within_rows(tokens, token_rows)
        return cls(tokens, rows, index)


def _within_rows(
    keep: Bool[Tensor, " tokens"], token_rows: Int64[Tensor, " pointers"]
) -> tuple[Int32[Tensor, " kept"], Int64[Tensor, " pointers"]]:
    """Which tokens of their own row those to keep are, and row pointers of them."""
    kept, rows = select(keep, token_rows)
    return (kept - spread(token_rows[:-1], rows)).to(torch.int32), rows


@dataclass(frozen=True)
class ShardRows:
    """Everything about a shard that is known without a teacher; all on the CPU."""

    ids: Sequence[str]  # of the rows, in the dataset's order; for messages
    token_rows: Int64[Tensor, " pointers"]
    layers: Mapping[int, LayerRows]
    learnt: LearntRows | None = None  # None: all tokens count as learnt

    def counts(self) -> Counts:
        """Totals."""
        layers = {layer: rows.counts() for layer, rows in self.layers.items()}
        learnt = self.pointers(None, "learnt")
        return Counts(len(self.token_rows) - 1, int(self.token_rows[-1]), int(learnt[-1]), layers)

    def structure(self) -> dict[str, Tensor]:
        """The tensors that no teacher has a say in, by name."""
        found: dict[str, Tensor] = {names.ROW_POINTERS: self.token_rows}
        if self.learnt is not None:
            found |= {names.LEARNT_ROWS: self.learnt.rows, names.LEARNT_INDEX: self.learnt.index}
        for layer, rows in self.layers.items():
            found[tensor_name("unit_rows", layer)] = rows.unit_rows
            found[tensor_name("unit_index", layer)] = rows.unit_index
            if rows.state_index is not None and rows.state_rows is not None:
                found[tensor_name("state_rows", layer)] = rows.state_rows
                found[tensor_name("state_index", layer)] = rows.state_index
        return found

    def pointers(self, layer: int | None, along: Along) -> Int64[Tensor, " pointers"]:
        """Row pointers of what is ragged along rows, tokens, learnt tokens, units, pairs or states."""
        if along == "rows":
            return torch.arange(len(self.token_rows))
        if along == "learnt" and self.learnt is not None:
            return self.learnt.rows
        if layer is None or along == "tokens":
            return self.token_rows
        rows = self.layers[layer]
        if along == "states":
            assert rows.state_rows is not None
            return rows.state_rows
        return rows.pair_rows if along == "pairs" else rows.unit_rows


@dataclass(frozen=True)
class Packed:
    """A batch's part of a shard, flat in the batch's order, vectors already in their storage type."""

    tensors: Mapping[str, Tensor]  # by their names in a shard; relations still in float32
    peaks: Mapping[str, Tensor]  # of vectors: the largest magnitude of each (`quantization.Encoded`)

    def map(self, copy: Callable[[Tensor], Tensor]) -> "Packed":
        """The same with `copy` done to every tensor, such as `lambda each: each.to("cpu", non_blocking=True)`."""
        return Packed(
            {name: copy(tensor) for name, tensor in self.tensors.items()},
            {name: copy(tensor) for name, tensor in self.peaks.items()},
        )


def pack(
    layers: Mapping[int, LayerSignals],
    storage: StorageConfig,
    *,
    attention: Mapping[int, Float[Tensor, " tokens"]],
    final: Float[Tensor, "learnt hidden"] | None,
    topk: tuple[Int32[Tensor, "learnt k"], Float[Tensor, "learnt k"]] | None,
    scalars: Mapping[Scalar, Shaped[Tensor, " learnt"]],
    falling: Float[Tensor, "learnt most"] | None = None,
    states_of_final: int | None = None,
) -> Packed:
    """Everything of a batch that goes into a shard, on the device where it is, without waiting for it.

    `falling`: probabilities of each distribution; `states_of_final`: as of `specs`.
    """
    tensors: dict[str, Tensor] = {}
    peaks: dict[str, Tensor] = {}

    def vectors(name: str, values: Tensor, kind: Storage) -> None:
        encoded = encode(values, kind)
        tensors[name], peaks[name] = encoded.stored, encoded.peak
        if encoded.scale is not None:
            tensors[scale_name(name)] = encoded.scale

    for layer, signals in layers.items():
        tensors[tensor_name("unit_weights", layer)] = signals.unit_weights.to(torch.float32)
        if signals.relations is not None:
            tensors[tensor_name("relations", layer)] = signals.relations.to(torch.float32)
        if signals.units is not None:
            vectors(tensor_name("units", layer), signals.units, storage.units)
        if signals.states is not None and signals.token_weights is not None:
            if layer != states_of_final:
                vectors(tensor_name("states", layer), signals.states, storage.states)
            tensors[tensor_name("token_weights", layer)] = signals.token_weights.to(torch.float32)
    for layer, weights in attention.items():
        tensors[tensor_name("attention", layer)] = weights.to(torch.float32)
    if final is not None:
        vectors(names.FINAL, final, storage.final)
    if topk is not None:
        tensors[names.TOPK_INDICES] = topk[0]
        tensors[names.TOPK_LOGPROBS] = topk[1].to(TYPES[PROBABILITIES])
    if falling is not None:
        tensors[names.SORTED] = falling.to(TYPES[PROBABILITIES])
    tensors |= {str(name): values for name, values in scalars.items()}
    return Packed(tensors, peaks)


class ShardTensors:
    """A shard being filled: its tensors are the same whatever the batches were and in whatever order they came."""

    def __init__(self, rows: ShardRows, expected: Mapping[str, Spec]) -> None:
        """`expected`: what `specs` says of `rows.counts()`."""
        self._rows = rows
        self._structure = rows.structure()
        self._specs = {name: spec for name, spec in expected.items() if not spec.part.structure}
        if expected.keys() - self._specs.keys() != self._structure.keys():
            raise ValueError(f"rows of {sorted(self._structure)}, but {sorted(expected)} are expected")
        self._values = {name: torch.empty(spec.shape, dtype=TYPES[spec.number]) for name, spec in self._specs.items()}
        kinds = {(spec.layer, spec.part.along) for spec in self._specs.values()}
        self._pointers = {kind: rows.pointers(*kind) for kind in kinds}
        self._placed = torch.zeros(len(rows.token_rows) - 1, dtype=torch.bool)

    def place(self, members: Sequence[int], packed: Packed) -> None:
        """Put a batch, now on the CPU, where its rows belong. `members`: which rows of the shard it is, in its order.

        Raises UserError naming row and layer of what cannot be stored; ValueError for a batch that does not fit.
        """
        if packed.tensors.keys() != self._specs.keys():
            raise ValueError(f"a batch of {sorted(packed.tensors)} in a shard of {sorted(self._specs)}")
        chosen = torch.as_tensor(members, dtype=torch.int64)
        batch = {kind: pointers(rows.diff()[chosen]) for kind, rows in self._pointers.items()}
        for name, spec in self._specs.items():
            kind = (spec.layer, spec.part.along)
            values = packed.tensors[name]
            check_pointers(batch[kind], len(values))
            if name in packed.peaks and spec.storage is not None:
                refuse_unstorable(packed.peaks[name], spec.storage, self._where(name, members, batch[kind]))
            else:
                self._refuse_not_finite(name, values, members, batch[kind])
            if spec.part.along == "pairs":
                values = to_fixed_point(values)
            target, starts = self._values[name], self._pointers[kind][chosen].tolist()
            if values.dtype != target.dtype or values.shape[1:] != target.shape[1:]:
                raise ValueError(f"{name} is {target.dtype} {tuple(target.shape)}, got {values.dtype} {values.shape}")
            # one copy of memory a row: faster than an index for rows of many bytes
            for start, (first, last) in zip(starts, pairwise(batch[kind].tolist()), strict=True):
                target[start : start + last - first] = values[first:last]
        self._placed[chosen] = True

    def tensors(self) -> dict[str, Tensor]:
        """All of the shard's tensors by name. Raises ValueError if rows are missing."""
        if not bool(self._placed.all()):
            raise ValueError(f"{int((~self._placed).sum())} rows of the shard were never placed")
        return {**self._structure, **self._values}

    def _where(self, name: str, members: Sequence[int], batch: Int64[Tensor, " pointers"]) -> Callable[[int], str]:
        def where(element: int) -> str:
            row = members[int(torch.searchsorted(batch, element, right=True)) - 1]
            spec = self._specs[name]
            layer = "" if spec.layer is None else f" of layer {spec.layer}"
            return f"Row {self._rows.ids[row]!r}, {spec.part.signal or 'weights'}{layer}"

        return where

    def _refuse_not_finite(
        self,
        name: str,
        values: Shaped[Tensor, "elements ..."],
        members: Sequence[int],
        batch: Int64[Tensor, " pointers"],
    ) -> None:
        # numbers of tokens are negative where what they were chosen by was not finite
        wrong = ~values.isfinite() if values.is_floating_point() else values < 0
        if bool(wrong.any()):
            element = int(wrong.nonzero()[0, 0])
            raise UserError(not_finite(self._where(name, members, batch)(element)))
