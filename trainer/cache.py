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
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float, Float32, Int32, Int64, Shaped
from safetensors import SafetensorError, safe_open
from torch import Tensor

from schemas import arrow, commands
from schemas import signals as names
from schemas.columns import Granularity
from schemas.config import CacheConfig, LayerConfig
from schemas.errors import DamagedError, UsageError
from schemas.manifest import read_cache_manifest
from schemas.signals import PARTS, Along, Scalar, Signal, scale_name, tensor_name
from trainer.maths.quantization import DTYPES, TOP, decode
from trainer.maths.ragged import check_pointers
from trainer.maths.triangle import from_fixed_point, pair_rows, square
from trainer.models.embeddings import Embeddings
from trainer.models.final_norm import FinalNorm
from trainer.models.head import SCALAR_TYPES, Head

#: By what a tensor is ragged: which tensor has the pointers.
_POINTERS: Final[dict[Along, str]] = {
    "tokens": names.ROW_POINTERS,
    "learnt": names.LEARNT_ROWS,
    "units": "unit_rows",
    "states": "state_rows",
}
#: Of a row's elements, all.
EVERYTHING: Final = slice(None)


class TeacherCache:
    """A finished cache. Rows are those of the dataset, from 0, in its order; layers are indices into `hidden_states`.

    Raises `StateError` for a folder that is unfinished or damaged as far as can be seen without reading it through: sizes,
    the checksums of the index and the output matrix, and the structure of whatever is read. Values of shards are taken at
    their word, unless `verify` is given, which compares every checksum first. Raises `UsageError`, naming the command that
    makes what is missing, for rows, layers and signals that it does not hold.
    """

    def __init__(self, path: str | Path, verify: bool = False) -> None:
        self._open_folder(Path(path))
        self._require_checksums([*self.manifest.files] if verify else [self.manifest.index.file])

    def _open_folder(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_cache_manifest(folder)
        self.config = CacheConfig.parse(self.manifest.config, str(folder))
        self.layers: dict[int, Granularity] = {each.layer: each.granularity for each in self.config.layers}
        self._shards: dict[int, _Shard] = {}
        if sum(shard.rows for shard in self.manifest.shards) != self.manifest.rows:
            raise self.damaged("its shards do not add up to the rows of its manifest")
        for name, entry in self.manifest.files.items():
            problem = entry.problem((folder / name).parent)
            if problem is not None:
                raise self.damaged(f"{name} {problem}")

    # pickled for other processes, which need not compare checksums once more
    def __getstate__(self) -> Path:
        return self.folder

    def __setstate__(self, folder: Path) -> None:
        self._open_folder(folder)

    def __len__(self) -> int:
        return self.manifest.rows

    def _repr_html_(self) -> str:
        """What it holds, as notebooks show it."""
        from schemas.console import size  # here, since training shows nothing
        from schemas.html import number, summary

        manifest, teacher = self.manifest, self.manifest.teacher
        layers = [f"{layer}: {granularity}" for layer, granularity in self.layers.items()]
        figures = [
            (number(manifest.rows), "rows"),
            (number(manifest.tokens), "teacher tokens"),
            (size(sum(file.bytes for file in manifest.files.values())), "in all"),
        ]
        facts = [
            ("Teacher", f"{teacher['name']}: {teacher['architecture']}, {teacher['depth']} layers"),
            ("Layers", ", ".join(layers) or "none"),
            ("Signals", ", ".join(self.config.signals)),
            ("Dataset", self.config.dataset),
        ]
        return summary("Teacher cache", str(self.folder), figures, facts)

    @cached_property
    def index(self) -> pa.Table:
        """`index.arrow`, memory-mapped: a line a row, see `schemas.signals.index_schema`."""
        try:
            table = arrow.table(self.folder / self.manifest.index.file)
        except pa.ArrowInvalid as error:
            raise self.damaged(f"its index cannot be read ({error})") from None
        if not table.schema.equals(names.index_schema()) or len(table) != self.manifest.rows:
            raise self.damaged(f"its index does not list the {self.manifest.rows} rows of its manifest")
        return table

    @property
    def ids(self) -> list[str]:
        """Ids of all rows, made anew at every call; as an Arrow column without a copy: `index["id"]`."""
        ids: list[str] = self.index["id"].to_pylist()
        return ids

    def row_of(self, id: str) -> int:
        """The row with this id, the first if there are several. Looks through the ids: meant for people, not loops."""
        row: int = pc.index(self.index["id"], pa.scalar(id, pa.string())).as_py()
        if row < 0:
            raise UsageError(f"{self.folder} has no row with id {id!r}; {self._for_more_rows()}.")
        return row

    def unit_index(self, row: int, layer: int) -> Int64[Tensor, " units"]:
        """Which units of the layer's granularity have a teacher span: places in the dataset's column, rising."""
        return self._values(row, "unit_index", layer).to(torch.int64)

    def unit_weights(self, row: int, layer: int) -> Float32[Tensor, " units"]:
        """The teacher's weight of each of those units; they add up to 1 (if there are any)."""
        return self._values(row, "unit_weights", layer).clone()

    def triangle(self, row: int, layer: int) -> Float32[Tensor, " pairs"]:
        """Cosines of every pair of units, as a flat upper triangle (`trainer.maths.triangle`), of a long document a band."""
        return self.triangles([row], layer)

    def triangles(self, rows: Sequence[int], layer: int) -> Float32[Tensor, " pairs"]:
        """Those of several rows, one after the other."""
        return from_fixed_point(torch.cat([self._values(row, "relations", layer) for row in rows]))

    def relations(self, row: int, layer: int) -> Float32[Tensor, "units units"]:
        """Cosines of every pair of units: symmetric, ones on the diagonal, NaN where a long document has no pair."""
        return square(self.triangle(row, layer), len(self.unit_index(row, layer)), self.config.window)

    def units(self, row: int, layer: int) -> Float32[Tensor, "units hidden"]:
        """Pooled vector of each unit."""
        return decode(*self._stored(row, "units", layer))

    def learnt_index(self, row: int) -> Int64[Tensor, " kept_tokens"]:
        """Which of the row's teacher tokens have their `states`, `final` and what is of the next token kept, rising: with
        `response_only` those that are learnt and the one before each, else all."""
        if not self.config.response_only:
            return torch.arange(self._tokens(row))
        return self._token_index(row, names.LEARNT_INDEX)

    def parts_of(self, row: int, spans: Int64[Tensor, "spans 2"]) -> list[slice]:
        """Where spans of a row's teacher tokens stand among those of `learnt_index`; all of their tokens must be there."""
        if self.config.response_only:
            places = torch.searchsorted(self.learnt_index(row), spans.contiguous())
            if not torch.equal(places.diff(dim=1), spans.diff(dim=1)):  # rising numbers, as many as there are
                raise self.damaged(f"it lacks tokens of row {row} that the dataset says are learnt")
            spans = places
        return [slice(first, last) for first, last in spans.tolist()]

    def state_index(self, row: int, layer: int) -> Int64[Tensor, " state_tokens"]:
        """Which of the row's teacher tokens have their states kept, rising."""
        if self.config.state_tokens == "all":
            return self.learnt_index(row)
        return self._token_index(row, "state_index", layer)

    def _token_index(self, row: int, part: str, layer: int | None = None) -> Int64[Tensor, " kept_tokens"]:
        index = self._values(row, part, layer).to(torch.int64)
        if len(index) and (int(index[0]) < 0 or int(index[-1]) >= self._tokens(row) or bool((index.diff() <= 0).any())):
            raise self.damaged(f"its {tensor_name(part, layer)} names tokens that row {row} does not have")
        return index

    def states(self, row: int, layer: int) -> Float32[Tensor, "state_tokens hidden"]:
        """Hidden states of those tokens."""
        return decode(*self._stored(row, "states", layer))

    def token_weights(self, row: int, layer: int) -> Float32[Tensor, " state_tokens"]:
        """Weights of those tokens; those of all the row's tokens add up to 1."""
        return self._values(row, "token_weights", layer).clone()

    def attention(self, row: int, layer: int) -> Float32[Tensor, " tokens"]:
        """What the last query of this layer pays each token, over its heads; adds up to 1."""
        return self._values(row, "attention", layer).clone()

    def final(self, row: int) -> Float32[Tensor, "kept_tokens hidden"]:
        """Last hidden state of each token of `learnt_index`, after the final norm."""
        return decode(*self._stored(row, "final"))

    def topk(
        self, row: int, part: slice = EVERYTHING
    ) -> tuple[Int64[Tensor, "kept_tokens k"], Float32[Tensor, "kept_tokens k"]]:
        """The most likely next tokens after each token of `learnt_index`, or each of some, and their log-probabilities."""
        indices = self._values(row, names.TOPK_INDICES)[part]
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < self.manifest.teacher["vocabulary"]:
            raise self.damaged(f"the likeliest tokens of row {row} are beyond the vocabulary")
        logprobs = self._values(row, names.TOPK_LOGPROBS)[part]
        return indices.to(torch.int64), logprobs.to(torch.float32, copy=True)

    def sorted(self, row: int, part: slice = EVERYTHING) -> Float32[Tensor, "kept_tokens most"]:
        """Probabilities of the likeliest next tokens after each token of `learnt_index`, or each of some; falling."""
        values = self._values(row, names.SORTED)
        if values.dtype != torch.float16 or values.shape[1:] != (self.config.sorted,):
            raise self.damaged(f"its sorted probabilities are {values.dtype} {tuple(values.shape)}")
        return values[part].to(torch.float32, copy=True)

    @property
    def most_sorted(self) -> int:
        """How many of the likeliest tokens' probabilities it has of each distribution; 0: none."""
        if "sorted" in self.config.signals:
            return self.config.sorted
        return self.config.topk if "topk" in self.config.signals else 0

    def entropy(self, row: int) -> Float32[Tensor, " kept_tokens"]:
        """Of the next token after each token of `learnt_index`, by the teacher, in nats."""
        return self._scalar(row, "entropy")

    def argmax(self, row: int) -> Int64[Tensor, " kept_tokens"]:
        """The likeliest next token after each token of `learnt_index`."""
        return self._scalar(row, "argmax").to(torch.int64)

    def logprob(self, row: int) -> Float32[Tensor, " kept_tokens"]:
        """The log-probability of the row's own next token after each token of `learnt_index`; 0 behind the row's last."""
        return self._scalar(row, "logprob")

    def _scalar(self, row: int, name: Scalar) -> Shaped[Tensor, " kept_tokens"]:
        values = self._values(row, name)
        if values.dtype != SCALAR_TYPES[name] or values.ndim != 1:
            raise self.damaged(f"its {name} are {values.dtype} {tuple(values.shape)}")
        if name == "argmax" and bool(((values < 0) | (values >= self.manifest.teacher["vocabulary"])).any()):
            raise self.damaged(f"the likeliest tokens of row {row} are beyond the vocabulary")
        return values.clone()

    def vectors(
        self, row: int, signal: Signal, layer: int | None = None, part: slice = EVERYTHING
    ) -> Float[Tensor, "elements hidden"]:
        """`units` or `states` of a layer, or `final`, or some of them, with as little work as can be.

        Vectors without scales are views of the mapped file in the type that they are stored in, not to be written to;
        others are decoded to float32.
        """
        stored, scale = self._stored(row, signal, layer)
        return stored[part] if scale is None else decode(stored[part], scale[part])

    @cached_property
    def head(self) -> Head:
        """The teacher's output matrix, memory-mapped, what it does to its logits, and its final norm, if that is known."""
        self._require_signal("final")
        entry, logits = self.manifest.head, self.manifest.logits
        assert entry is not None  # manifests are read so
        assert logits is not None
        self._require_checksums([entry.file])
        file = self._open_file(entry.file)
        names_there = frozenset(file.keys())
        bias, norm_weight, norm_bias = (
            file.get_tensor(name) if name in names_there else None
            for name in ("bias", names.NORM_WEIGHT, names.NORM_BIAS)
        )
        norm, kind = None, self.manifest.norm
        if kind is not None and self.knows_norm:
            norm = FinalNorm(kind["kind"], kind["epsilon"], norm_weight, norm_bias)
        return Head(file.get_tensor("weight"), bias, logits["soft_cap"], logits["scale"], norm)

    @property
    def knows_norm(self) -> bool:
        """Whether it holds the teacher's final norm, which older caches do not, nor those of a teacher without one."""
        return self.manifest.norm is not None and self.manifest.norm["kind"] != "none"

    @cached_property
    def embeddings(self) -> Embeddings:
        """The teacher's input embeddings, memory-mapped: of every token that the dataset has on the teacher's side."""
        self._require_signal("embeddings")
        if self.manifest.tied_embeddings:
            return Embeddings(self.head.weight)
        entry = self.manifest.embeddings
        assert entry is not None  # manifests are read so
        self._require_checksums([entry.file])
        file = self._open_file(entry.file)
        weight, ids = file.get_tensor("weight"), file.get_tensor("ids")
        if len(weight) != len(ids) or ids.dtype != torch.int64 or bool((ids.diff() <= 0).any()):
            raise self.damaged(f"{entry.file} does not say which tokens its rows are of")
        return Embeddings(weight, ids)

    def logits(self, row: int) -> Float32[Tensor, "kept_tokens vocabulary"]:
        """The teacher's logits after each token of `learnt_index`, computed in the type of its output matrix, as the teacher
        does."""
        return self.head.logits(self.final(row)).to(torch.float32)

    def command(self, **changed: Any) -> str:
        """The command for a cache like this one but for what is `changed` (keys of `CacheConfig`)."""
        return commands.cache_teacher(self.config.model_copy(update=changed), (self.folder, self.config))

    def _stored(
        self, row: int, signal: Signal, layer: int | None = None
    ) -> tuple[Shaped[Tensor, "elements hidden"], Float32[Tensor, " elements"] | None]:
        """A row's vectors in the mapped file, as they are stored, and their scales if their type has them."""
        depth = self.manifest.teacher["depth"]
        if signal == "states" and layer is not None and self.config.states_are_final(layer, depth):
            self._require_layer(layer, signal)
            return self._stored(row, "final")
        storage = getattr(self.config.storage, signal)
        values = self._values(row, signal, layer)
        if values.dtype != DTYPES[storage]:
            raise self.damaged(f"its {signal} are stored as {values.dtype}, its manifest says {storage}")
        return values, self._values(row, signal, layer, scales=True) if storage in TOP else None

    def _values(self, row: int, part: str, layer: int | None = None, scales: bool = False) -> Shaped[Tensor, "_ ..."]:
        """A row's part of a tensor (`schemas.signals.PARTS`), or of its scales, still in the mapped file."""
        kind = PARTS[part]
        if layer is not None:
            self._require_layer(layer, kind.signal)
        if kind.signal is not None:
            self._require_signal(kind.signal)
        shard, place = self._locate(row)
        name = tensor_name(part, layer)
        return shard.elements(scale_name(name) if scales else name, kind.along, layer, place)

    def _tokens(self, row: int) -> int:
        shard, place = self._locate(row)
        return int(shard.pointers("tokens", None)[place : place + 2].diff())

    @cached_property
    def _places(self) -> tuple[Int32[np.ndarray, " rows"], Int32[np.ndarray, " rows"]]:
        """Of every row of the cache: its shard, and its place there."""
        return self.index["shard"].to_numpy(), self.index["row"].to_numpy()

    def _locate(self, row: int) -> tuple["_Shard", int]:
        at = operator.index(row)
        if not 0 <= at < len(self):
            raise UsageError(f"{self.folder} has rows 0 to {len(self) - 1}, not {at}; {self._for_more_rows(at + 1)}.")
        number, place = (int(column[at]) for column in self._places)
        shards = self.manifest.shards
        if not (0 <= number < len(shards) and 0 <= place < shards[number].rows):
            raise self.damaged(f"its index puts row {at} where its shards have none")
        if number not in self._shards:
            name = f"{names.SHARDS}/{shards[number].file}"
            self._shards[number] = _Shard(
                name,
                self._open_file(name),
                shards[number].rows,
                _shared_pointers(self.config),
                self.config.window,
                self.damaged,
            )
        return self._shards[number], place

    def _open_file(self, name: str) -> Any:  # safetensors has no types
        try:
            return safe_open(self.folder / name, "pt")
        except (OSError, SafetensorError) as error:
            raise self.damaged(f"{name} cannot be read ({error})") from None

    def _require_checksums(self, files: Sequence[str]) -> None:
        for name in files:
            problem = self.manifest.files[name].problem((self.folder / name).parent, content=True)
            if problem is not None:
                raise self.damaged(f"{name} {problem}")

    def _require_layer(self, layer: int, signal: Signal | None) -> None:
        if layer in self.layers:
            return
        have = ", ".join(f"{each} ({granularity})" for each, granularity in self.layers.items())
        near = min(self.layers, key=lambda each: abs(each - layer), default=None)
        wanted = LayerConfig(layer=max(layer, 0), granularity="chunks" if near is None else self.layers[near])
        signals = dict.fromkeys((*self.config.signals, signal or "relations")) if near is None else self.config.signals
        command = self.command(layers=(*self.config.layers, wanted), signals=(*signals,))
        raise UsageError(f"{self.folder} has {have or 'no layer'}, not layer {layer}; for one that has: `{command}`.")

    def _require_signal(self, signal: Signal) -> None:
        if signal not in self.config.signals:
            command = self.command(signals=(*self.config.signals, signal))
            have = ", ".join(self.config.signals)
            raise UsageError(f"{self.folder} has {have}, not `{signal}`; for one that has: `{command}`.")

    def _for_more_rows(self, rows: int | None = None) -> str:
        if self.config.limit is not None:
            more = self.command(limit=rows or 2 * self.config.limit)
            return f"it was made with a limit of {self.config.limit}, for more rows: `{more}`"
        return (
            "it holds every row of the dataset that it was made of; for a cache of another dataset: "
            f"`{self.command(dataset='DATASET')}`"
        )

    def damaged(self, what: str) -> DamagedError:
        """What to raise where it is not as it was written."""
        return DamagedError(self.folder, what, self.command())


def _shared_pointers(config: CacheConfig) -> dict[Along, Along]:
    """What is ragged along other pointers than its own: of what is kept of all tokens, the tokens'."""
    learnt: Along = "learnt" if config.response_only else "tokens"
    shared: dict[Along, Along] = {"learnt": learnt}
    return shared | ({"states": learnt} if config.state_tokens == "all" else {})


class _Shard:
    """An open shard. Tensors are views of the mapped file: memory is used for what is then computed of them.

    Pointers are checked when they are first followed, and a tensor against them when it is first read.
    """

    def __init__(
        self,
        name: str,
        file: Any,
        rows: int,
        shared: Mapping[Along, Along],
        window: int | None,
        damaged: Callable[[str], DamagedError],
    ) -> None:
        """`shared`: as `_shared_pointers` has it; `window`: of pairs."""
        self._name = name
        self._file = file
        self._rows = rows
        self._shared = shared
        self._window = window
        self._damaged = damaged
        self._names = frozenset(file.keys())
        self._tensors: dict[str, Tensor] = {}
        self._pointers: dict[tuple[Along, int | None], Tensor] = {}

    def pointers(self, along: Along, layer: int | None) -> Int64[Tensor, " pointers"]:
        """Row pointers of what is ragged along tokens, learnt tokens, units, pairs or states."""
        along = self._shared.get(along, along)
        if along in ("tokens", "learnt"):
            layer = None
        if (along, layer) not in self._pointers:
            self._pointers[along, layer] = self._read_pointers(along, layer)
        return self._pointers[along, layer]

    def elements(self, name: str, along: Along, layer: int | None, place: int) -> Shaped[Tensor, "elements ..."]:
        """A row's part of a tensor."""
        rows = self.pointers(along, layer)
        if name not in self._tensors:
            tensor = self._tensor(name)
            if len(tensor) != int(rows[-1]):
                raise self._damaged(
                    f"{self._name} has {len(tensor)} elements of {name}, its pointers say {int(rows[-1])}"
                )
            self._tensors[name] = tensor
        first, last = rows[place : place + 2].tolist()
        return self._tensors[name][first:last]

    def _read_pointers(self, along: Along, layer: int | None) -> Int64[Tensor, " pointers"]:
        if along == "pairs":
            return pair_rows(self.pointers("units", layer), self._window)
        name = _POINTERS[along]
        rows = self._tensor(tensor_name(name, layer))
        if rows.dtype != torch.int64 or rows.shape != (self._rows + 1,):
            raise self._damaged(f"{self._name} does not hold the {self._rows} rows of its manifest")
        try:
            check_pointers(rows)
        except ValueError as error:
            raise self._damaged(f"{self._name}: {tensor_name(name, layer)}: {error}") from None
        return rows

    def _tensor(self, name: str) -> Tensor:
        if name not in self._names:
            raise self._damaged(f"{self._name} has no {name}")
        tensor: Tensor = self._file.get_slice(name)[:]
        return tensor
