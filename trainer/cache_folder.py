"""The folder of a teacher cache: what its manifest and its index say, and what shards hold of a row, without torch.

`CacheFolder` gives arrays, of numbers that numpy has (all but vectors in bf16 and fp8); `trainer.cache.TeacherCache` gives
everything as tensors.
"""

import operator
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, Literal, TypeVar

import numpy as np
import pyarrow as pa
from jaxtyping import Int32
from safetensors import SafetensorError, safe_open

from schemas import arrow, commands
from schemas import signals as names
from schemas.columns import Granularity
from schemas.config import CacheConfig, LayerConfig
from schemas.errors import DamagedError, UsageError
from schemas.manifest import read_cache_manifest
from schemas.signals import PARTS, Signal, scale_name, tensor_name
from trainer.cache_shard import Shard

#: As safetensors calls whose numbers it gives.
ARRAYS: Final = "numpy"
TENSORS: Final = "pt"

#: What they come as.
Numbers = TypeVar("Numbers", bound=Any)


class CacheFolder(Generic[Numbers]):
    """A finished cache; rows, layers, and what is raised when, as of `trainer.cache.TeacherCache`."""

    #: Whose numbers they are.
    numbers: ClassVar[Literal["numpy", "pt"]] = ARRAYS

    def __init__(self, path: str | Path, verify: bool = False) -> None:
        self._open_folder(Path(path))
        self._require_checksums([*self.manifest.files] if verify else [self.manifest.index.file])

    def _open_folder(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_cache_manifest(folder)
        self.config = CacheConfig.parse(self.manifest.config, str(folder))
        self.layers: dict[int, Granularity] = {each.layer: each.granularity for each in self.config.layers}
        self._shards: dict[int, Shard] = {}
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
        whole = len(table) == self.manifest.rows and not any(column.null_count for column in table.columns)
        if not table.schema.equals(names.index_schema()) or not whole:
            raise self.damaged(f"its index does not list the {self.manifest.rows} rows of its manifest")
        return table

    @property
    def ids(self) -> list[str]:
        """Ids of all rows, made anew at every call; as an Arrow column without a copy: `index["id"]`."""
        ids: list[str] = self.index["id"].to_pylist()
        return ids

    def row_of(self, id: str) -> int:
        """The row with this id, the first if there are several. Looks through the ids: meant for people, not loops."""
        row = arrow.place_of(self.index["id"], id)
        if row is None:
            raise UsageError(f"{self.folder} has no row with id {id!r}; {self._for_more_rows()}.")
        return row

    def command(self, **changed: Any) -> str:
        """The command for a cache like this one but for what is `changed` (keys of `CacheConfig`)."""
        return commands.cache_teacher(self.config.model_copy(update=changed), (self.folder, self.config))

    def values(self, row: int, part: str, layer: int | None = None, scales: bool = False) -> Numbers:
        """A row's part of a tensor (`schemas.signals.PARTS`), or of its scales, as it is stored; a tensor is a view of the
        mapped file, not to be written to."""
        kind = PARTS[part]
        if layer is not None:
            self._require_layer(layer, kind.signal)
        if kind.signal is not None:
            self._require_signal(kind.signal)
        shard, place = self._locate(row)
        name = tensor_name(part, layer)
        elements: Numbers = shard.elements(scale_name(name) if scales else name, kind.along, layer, place)
        return elements

    def learnt_tokens(self, row: int) -> int:
        """How many of the row's teacher tokens have their `states`, `final` and what is of the next token kept."""
        return len(self.token_index(row, names.LEARNT_INDEX)) if self.config.response_only else self.tokens(row)

    def token_index(self, row: int, part: str, layer: int | None = None) -> Numbers:
        """A part that names tokens of the row, rising."""
        index = self.values(row, part, layer)
        outside = len(index) and (int(index[0]) < 0 or int(index[-1]) >= self.tokens(row))
        if outside or bool((index[1:] <= index[:-1]).any()):
            raise self.damaged(f"its {tensor_name(part, layer)} names tokens that row {row} does not have")
        return index

    def tokens(self, row: int) -> int:
        """Teacher tokens of the row."""
        shard, place = self._locate(row)
        first, last = shard.pointers("tokens", None)[place : place + 2].tolist()
        return int(last - first)

    @cached_property
    def _places(self) -> tuple[Int32[np.ndarray, " rows"], Int32[np.ndarray, " rows"]]:
        """Of every row of the cache: its shard, and its place there."""
        return arrow.numbers(self.index["shard"]), arrow.numbers(self.index["row"])

    def _locate(self, row: int) -> tuple[Shard, int]:
        at = operator.index(row)
        if not 0 <= at < len(self):
            raise UsageError(f"{self.folder} has rows 0 to {len(self) - 1}, not {at}; {self._for_more_rows(at + 1)}.")
        number, place = (int(column[at]) for column in self._places)
        shards = self.manifest.shards
        if not (0 <= number < len(shards) and 0 <= place < shards[number].rows):
            raise self.damaged(f"its index puts row {at} where its shards have none")
        if number not in self._shards:
            name = f"{names.SHARDS}/{shards[number].file}"
            mapped = self.numbers == TENSORS
            file = self._open_file(name)
            self._shards[number] = Shard(name, file, shards[number].rows, self.config, mapped, self.damaged)
        return self._shards[number], place

    def _open_file(self, name: str) -> Any:  # safetensors has no types
        try:
            return safe_open(self.folder / name, self.numbers)
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
