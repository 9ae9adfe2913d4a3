"""Reading a teacher cache: signals of any row and layer, off memory-mapped shards, nothing touched but what is asked for.

    from trainer.cache import TeacherCache
    cache = TeacherCache("cache")
    cache.layers                     # {24: "words", 36: "chunks", 48: "chunks"}
    cache.relations(0, 36)           # [K, K] cosines of the first row's chunks at layer 36
    cache.unit_index(0, 36)          # [K] which of the row's chunks those are

Everything comes as tensors on the CPU, in memory of their own, vectors and weights in float32. A shard is opened
when one of its rows is first asked for. A cache may be forked with shards open, and pickled: it opens them anew.
"""

import operator
import shlex
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float, Float32, Int32, Int64, Shaped
from safetensors import SafetensorError, safe_open
from torch import Tensor

from schemas import signals as names
from schemas.columns import Granularity
from schemas.config import CacheConfig, LayerConfig
from schemas.errors import StateError, UsageError
from schemas.manifest import OtherFile, ShardFile, read_cache_manifest
from schemas.signals import Along, Signal, layer_name, scale_name
from trainer.maths.quantization import decode
from trainer.maths.triangle import from_fixed_point, pair_rows, square

if TYPE_CHECKING:
    from trainer.models.head import Head


#: Of a row's elements, all.
EVERYTHING: Final = slice(None)


def command(config: CacheConfig) -> str:
    """The command for a cache of this dataset, teacher, layers, signals and limit, into a folder OTHER."""
    teacher = config.teacher
    words = ["mta-prep", "cache-teacher", config.dataset, "--teacher", teacher.model]
    optional = {
        "--teacher-revision": teacher.revision,
        "--gguf-file": teacher.gguf_file,
        "--dtype": None if teacher.dtype == "auto" else teacher.dtype,
        "--layers": ",".join(f"{each.layer}:{each.granularity}" for each in config.layers) or None,
        "--signals": ",".join(config.signals),
        "--state-tokens": None if config.state_tokens == "covered" else config.state_tokens,
        "--weights": None if config.weights == "centrality" else config.weights,
        "--limit": None if config.limit is None else str(config.limit),
    }
    for flag, value in optional.items():
        words += [] if value is None else [flag, value]
    return shlex.join([*words, "-o", "OTHER"])


class TeacherCache:
    """A finished cache. Rows are those of the dataset, from 0, in its order; layers are indices into `hidden_states`.

    Raises `StateError` for a folder that is unfinished or damaged as far as can be seen without reading it through
    (`mta-prep verify` does), and `UsageError`, naming the command that makes what is missing, for rows, layers and
    signals that it does not hold.
    """

    def __init__(self, path: str | Path) -> None:
        self.folder = Path(path)
        self.manifest = read_cache_manifest(self.folder)
        self.config = CacheConfig.parse(self.manifest.config, str(self.folder))
        self.layers: dict[int, Granularity] = {each.layer: each.granularity for each in self.config.layers}
        self._shards: dict[int, _Shard] = {}
        if sum(shard.rows for shard in self.manifest.shards) != self.manifest.rows:
            raise self._damaged("its shards do not add up to the rows of its manifest")
        self._require_whole(self.manifest.index.file, self.manifest.index)
        for shard in self.manifest.shards:
            self._require_whole(f"{names.SHARDS}/{shard.file}", shard)
        if self.manifest.head is not None:
            self._require_whole(self.manifest.head.file, self.manifest.head)

    def __reduce__(self) -> tuple[type["TeacherCache"], tuple[Path]]:
        return type(self), (self.folder,)

    def __len__(self) -> int:
        return self.manifest.rows

    @cached_property
    def index(self) -> pa.Table:
        """`index.arrow`, memory-mapped: a line a row, see `schemas.signals.index_schema`."""
        try:
            with pa.memory_map(str(self.folder / self.manifest.index.file)) as source:
                table: pa.Table = pa.ipc.open_file(source).read_all()
        except pa.ArrowInvalid as error:
            raise self._damaged(f"its index cannot be read ({error})") from None
        if not table.schema.equals(names.index_schema()) or len(table) != self.manifest.rows:
            raise self._damaged(f"its index does not list the {self.manifest.rows} rows of its manifest")
        return table

    @property
    def ids(self) -> list[str]:
        """Ids of all rows, made anew at every call; as an Arrow column without a copy: `index["id"]`."""
        found: list[str] = self.index["id"].to_pylist()
        return found

    def row_of(self, id: str) -> int:
        """The row with this id, the first if there are several. Looks through the ids: meant for people, not loops."""
        row: int = pc.index(self.index["id"], pa.scalar(id, pa.string())).as_py()
        if row < 0:
            raise UsageError(f"{self.folder} has no row with id {id!r}; {self._for_more_rows()}.")
        return row

    def unit_index(self, row: int, layer: int) -> Int64[Tensor, " units"]:
        """Which units of the layer's granularity have a teacher span: places in the dataset's column, rising."""
        return self._layer_values(row, layer, None, "unit_index", "units").to(torch.int64)

    def unit_weights(self, row: int, layer: int) -> Float32[Tensor, " units"]:
        """The teacher's weight of each of those units; they add up to 1 (if there are any)."""
        return self._layer_values(row, layer, None, "unit_weights", "units").clone()

    def triangle(self, row: int, layer: int) -> Float32[Tensor, " pairs"]:
        """Cosines of every pair of units, as a flat upper triangle (`trainer.maths.triangle`)."""
        return from_fixed_point(self._layer_values(row, layer, "relations", "relations", "pairs"))

    def triangles(self, rows: Sequence[int], layer: int) -> Float32[Tensor, " pairs"]:
        """Those of several rows, one after the other."""
        return from_fixed_point(
            torch.cat([self._layer_values(row, layer, "relations", "relations", "pairs") for row in rows])
        )

    def relations(self, row: int, layer: int) -> Float32[Tensor, "units units"]:
        """Cosines of every pair of units: symmetric, ones on the diagonal."""
        return square(self.triangle(row, layer), len(self.unit_index(row, layer)))

    def units(self, row: int, layer: int) -> Float32[Tensor, "units hidden"]:
        """Pooled vector of each unit."""
        return self._layer_vectors(row, layer, "units", "units")

    def state_index(self, row: int, layer: int) -> Int64[Tensor, " state_tokens"]:
        """Which of the row's teacher tokens have their states kept, rising."""
        if self.config.state_tokens == "all":
            return torch.arange(len(self.token_weights(row, layer)))
        return self._layer_values(row, layer, "states", "state_index", "states").to(torch.int64)

    def states(self, row: int, layer: int) -> Float32[Tensor, "state_tokens hidden"]:
        """Hidden states of those tokens."""
        return self._layer_vectors(row, layer, "states", "states")

    def token_weights(self, row: int, layer: int) -> Float32[Tensor, " state_tokens"]:
        """Weights of those tokens; those of all the row's tokens add up to 1."""
        return self._layer_values(row, layer, "states", "token_weights", "states").clone()

    def attention(self, row: int, layer: int) -> Float32[Tensor, " tokens"]:
        """What the last query of this layer pays each token, over its heads; adds up to 1."""
        return self._layer_values(row, layer, "attention", "attention", "tokens").clone()

    def final(self, row: int) -> Float32[Tensor, "tokens hidden"]:
        """Last hidden state of each token, after the final norm."""
        self._require_signal("final")
        shard, place = self._locate(row)
        return decode(*shard.vectors(names.FINAL, shard.pointers(names.ROW_POINTERS), place))

    def topk(self, row: int, part: slice = EVERYTHING) -> tuple[Int64[Tensor, "tokens k"], Float32[Tensor, "tokens k"]]:
        """The most likely next tokens after each token, or each of some, and their log-probabilities."""
        self._require_signal("topk")
        shard, place = self._locate(row)
        rows = shard.pointers(names.ROW_POINTERS)
        indices = shard.elements(names.TOPK_INDICES, rows, place)[part]
        return indices.to(torch.int64), shard.elements(names.TOPK_LOGPROBS, rows, place)[part].to(torch.float32)

    def vectors(
        self, row: int, signal: Signal, layer: int | None = None, part: slice = EVERYTHING
    ) -> Float[Tensor, "elements hidden"]:
        """`units` or `states` of a layer, or `final`, or some of them, with as little work as can be.

        Vectors without scales are views of the mapped file in the type that they are stored in, not to be written to;
        others are decoded to float32.
        """
        if layer is None:
            self._require_signal(signal)
            shard, place = self._locate(row)
            stored, scale = shard.vectors(names.FINAL, shard.pointers(names.ROW_POINTERS), place)
        else:
            self._require_layer(layer, signal)
            shard, place = self._locate(row)
            along: Along = "units" if signal == "units" else "states"
            stored, scale = shard.vectors(layer_name(layer, signal), self._pointers(shard, layer, along), place)
        return stored[part] if scale is None else decode(stored[part], scale[part])

    @cached_property
    def head(self) -> "Head":
        """The teacher's output matrix, memory-mapped, and what it does to its logits."""
        # imported here: data-loader workers that read no logits need no transformers
        from trainer.models.head import Head

        self._require_signal("final")
        entry, logits = self.manifest.head, self.manifest.logits
        if entry is None or logits is None:
            raise self._damaged("it holds final states but no output matrix")
        file = self._open(entry.file)
        bias = file.get_tensor("bias") if "bias" in file.keys() else None  # noqa: SIM118 (it is no mapping)
        return Head(file.get_tensor("weight"), bias, logits["soft_cap"], logits["scale"])

    def logits(self, row: int) -> Float32[Tensor, "tokens vocabulary"]:
        """The teacher's logits after each token, computed in the type of its output matrix, as the teacher does."""
        return self.head.logits(self.final(row)).to(torch.float32)

    def command(self, **changed: Any) -> str:
        """The command for a cache like this one but for what is `changed` (keys of `CacheConfig`)."""
        return command(self.config.model_copy(update=changed))

    def _layer_values(
        self, row: int, layer: int, signal: Signal | None, part: str, along: Along
    ) -> Shaped[Tensor, "elements ..."]:
        """A row's part of a tensor of a layer, still in the mapped file."""
        self._require_layer(layer, signal)
        shard, place = self._locate(row)
        return shard.elements(layer_name(layer, part), self._pointers(shard, layer, along), place)

    def _layer_vectors(self, row: int, layer: int, signal: Signal, along: Along) -> Float32[Tensor, "elements hidden"]:
        self._require_layer(layer, signal)
        shard, place = self._locate(row)
        return decode(*shard.vectors(layer_name(layer, signal), self._pointers(shard, layer, along), place))

    def _pointers(self, shard: "_Shard", layer: int, along: Along) -> Int64[Tensor, " pointers"]:
        if along == "tokens" or (along == "states" and self.config.state_tokens == "all"):
            return shard.pointers(names.ROW_POINTERS)
        if along == "pairs":
            return shard.pair_rows(layer)
        return shard.pointers(layer_name(layer, "unit_rows" if along == "units" else "state_rows"))

    @cached_property
    def _places(self) -> tuple[Int32[np.ndarray, " rows"], Int32[np.ndarray, " rows"]]:
        """Of every row of the cache: its shard, and its place there."""
        return self.index["shard"].to_numpy(), self.index["row"].to_numpy()

    def _locate(self, row: int) -> tuple["_Shard", int]:
        at = operator.index(row)
        if not 0 <= at < len(self):
            raise UsageError(f"{self.folder} has rows 0 to {len(self) - 1}, not {at}; {self._for_more_rows()}.")
        number, place = (int(column[at]) for column in self._places)
        shards = self.manifest.shards
        if not (0 <= number < len(shards) and 0 <= place < shards[number].rows):
            raise self._damaged(f"its index puts row {at} where its shards have none")
        if number not in self._shards:
            name = f"{names.SHARDS}/{shards[number].file}"
            shard = _Shard(name, self._open(name), self._damaged)
            if len(shard.pointers(names.ROW_POINTERS)) != shards[number].rows + 1:
                raise self._damaged(f"{name} does not hold the {shards[number].rows} rows of its manifest")
            self._shards[number] = shard
        return self._shards[number], place

    def _open(self, name: str) -> Any:  # safetensors has no types
        try:
            return safe_open(self.folder / name, "pt")
        except (OSError, SafetensorError) as error:
            raise self._damaged(f"{name} cannot be read ({error})") from None

    def _require_whole(self, name: str, entry: ShardFile | OtherFile) -> None:
        file = self.folder / name
        if not file.is_file():
            raise self._damaged(f"{name} is missing")
        if file.stat().st_size != entry.bytes:
            raise self._damaged(f"{name} has {file.stat().st_size} bytes, its manifest says {entry.bytes}")

    def _require_layer(self, layer: int, signal: Signal | None) -> None:
        if layer not in self.layers:
            have = ", ".join(f"{each} ({granularity})" for each, granularity in self.layers.items())
            near = min(self.layers, key=lambda each: abs(each - layer), default=None)
            wanted = LayerConfig(layer=max(layer, 0), granularity="chunks" if near is None else self.layers[near])
            command = self.command(layers=(*self.config.layers, wanted))
            raise UsageError(
                f"{self.folder} has {have or 'no layer'}, not layer {layer}; for one that has: `{command}`."
            )
        if signal is not None:
            self._require_signal(signal)

    def _require_signal(self, signal: Signal) -> None:
        if signal not in self.config.signals:
            command = self.command(signals=(*self.config.signals, signal))
            have = ", ".join(self.config.signals)
            raise UsageError(f"{self.folder} has {have}, not `{signal}`; for one that has: `{command}`.")

    def _for_more_rows(self) -> str:
        if self.config.limit is not None:
            return f"it was made with a limit of {self.config.limit}, for all rows: `{self.command(limit=None)}`"
        return f"it holds every row of the dataset it was made of, for another: `{self.command(dataset='DATASET')}`"

    def _damaged(self, what: str) -> StateError:
        return StateError(
            f"{self.folder} is damaged: {what}. `mta-prep verify` says what else is wrong; "
            f"`{self.command()}` makes a new one."
        )


class _Shard:
    """An open shard. Tensors are views of the mapped file: memory is used for what is then computed of them."""

    def __init__(self, name: str, file: Any, damaged: Callable[[str], StateError]) -> None:
        self._name = name
        self._damaged = damaged
        self._file = file
        self._names = frozenset(file.keys())
        self._tensors: dict[str, Tensor] = {}
        self._pair_rows: dict[int, Tensor] = {}

    def pointers(self, name: str) -> Int64[Tensor, " pointers"]:
        """Row pointers that lie in the file."""
        return self._tensor(name)

    def pair_rows(self, layer: int) -> Int64[Tensor, " pointers"]:
        """Row pointers of pairs, which follow from those of units."""
        if layer not in self._pair_rows:
            self._pair_rows[layer] = pair_rows(self._tensor(layer_name(layer, "unit_rows")))
        return self._pair_rows[layer]

    def elements(self, name: str, rows: Int64[Tensor, " pointers"], place: int) -> Shaped[Tensor, "elements ..."]:
        """A row's part of a tensor."""
        first, last = rows[place : place + 2].tolist()
        return self._tensor(name)[first:last]

    def vectors(
        self, name: str, rows: Int64[Tensor, " pointers"], place: int
    ) -> tuple[Shaped[Tensor, "elements hidden"], Float32[Tensor, " elements"] | None]:
        """A row's part of vectors, as stored, and their scales if they have any."""
        scale = scale_name(name)
        found = self.elements(name, rows, place)
        return found, self.elements(scale, rows, place) if scale in self._names else None

    def _tensor(self, name: str) -> Tensor:
        if name not in self._tensors:
            if name not in self._names:
                raise self._damaged(f"{self._name} has no {name}")
            self._tensors[name] = self._file.get_slice(name)[:]
        return self._tensors[name]
