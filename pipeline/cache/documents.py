"""The teacher's side of a prepared dataset: token ids and units with their token spans, in memory-mapped slices of rows."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Int32, Int64
from torch import Tensor

from pipeline.cache.shard import LearntRows, ShardRows, layer_rows
from pipeline.dataset.columns import ragged
from schemas.columns import Granularity, side_column
from schemas.config import LayerConfig
from schemas.dataset import damaged, tables
from schemas.manifest import Manifest, ShardFile
from schemas.signals import StateTokens
from trainer.batches.units import learnt_tokens
from trainer.maths.geometry import Units, units_with_span
from trainer.maths.ragged import pointers, spread


@dataclass(frozen=True)
class Rows:
    """Some neighbouring rows."""

    ids: list[str]
    tokens: Int32[np.ndarray, " tokens"]
    token_rows: Int64[Tensor, " pointers"]
    units: dict[Granularity, tuple[Int32[Tensor, "units 2"], Int64[Tensor, " _"]]]  # teacher spans, pointers
    learnt: Bool[Tensor, " tokens"] | None  # whether a token is learnt, or just before one that is; None: not asked for

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        found: list[int] = self.token_rows.diff().tolist()
        return found

    def documents(self, members: Sequence[int]) -> list[Int32[np.ndarray, " _"]]:
        """Token ids of these rows."""
        starts = self.token_rows.tolist()
        return [self.tokens[starts[row] : starts[row + 1]] for row in members]

    def batch_learnt(self, members: Sequence[int]) -> Bool[Tensor, " _"] | None:
        """`learnt` of the tokens of these rows."""
        if self.learnt is None:
            return None
        starts = self.token_rows.tolist()
        return torch.cat([self.learnt[starts[row] : starts[row + 1]] for row in members])

    def batch_units(self, name: Granularity, members: Sequence[int]) -> Units:
        """The units of these rows that have a span, in the tokens of the batch."""
        spans, rows = self.units[name]
        bounds = rows.tolist()
        chosen = torch.tensor(members, dtype=torch.int64)
        mine = torch.cat([spans[bounds[row] : bounds[row + 1]] for row in members])
        return units_with_span(mine, pointers(rows.diff()[chosen]), pointers(self.token_rows.diff()[chosen]))

    def shard(self, layers: Collection[LayerConfig], state_tokens: StateTokens | None, window: int | None) -> ShardRows:
        """What a cache's shard of these rows is made of; `state_tokens`: None where no states are kept; `window`: of pairs."""
        learnt = None if self.learnt is None else LearntRows.of(self.learnt, self.token_rows)
        # each layer its own, though some are equal: safetensors refuses tensors that share memory
        found = {
            each.layer: layer_rows(*self.units[each.granularity], self.token_rows, state_tokens, learnt, window)
            for each in layers
        }
        return ShardRows(self.ids, self.token_rows, found, learnt)


@dataclass(frozen=True)
class TeacherSide:
    """A prepared dataset, or its first rows."""

    folder: Path
    shards: tuple[ShardFile, ...]
    rows: int

    @classmethod
    def of(cls, folder: Path, manifest: Manifest, limit: int | None) -> "TeacherSide":
        """The dataset, or its first `limit` rows."""
        return cls(folder, manifest.shards, min(manifest.rows_out, limit or manifest.rows_out))

    def tables(self, columns: Sequence[str], first: int = 0, last: int | None = None) -> Iterator[pa.Table]:
        """Columns of rows [first, last), in parts that lie in one file."""
        return tables(self.folder, self.shards, columns, first, self.rows if last is None else last)

    def token_ids(self) -> Int64[np.ndarray, " ids"]:
        """The token ids that occur, rising."""
        occurs = np.zeros(0, dtype=bool)
        for table in self.tables([side_column("teacher", "input_ids")]):
            ids, _ = ragged(table.column(0))
            occurs = np.append(occurs, np.zeros(max(int(ids.max(initial=-1)) + 1 - len(occurs), 0), dtype=bool))
            occurs[ids] = True
        return np.flatnonzero(occurs)

    def read(self, granularities: Collection[Granularity], first: int, last: int, *, response_only: bool) -> Rows:
        """Rows [first, last). `response_only`: with what is learnt of them. Raises `DamagedError` for spans that leave their
        row."""
        names = {name: side_column("teacher", name) for name in granularities}
        responses = [side_column("teacher", "responses")] if response_only else []
        columns = ["id", side_column("teacher", "input_ids"), *responses, *names.values()]
        table = pa.concat_tables(self.tables(columns, first, last))
        tokens, token_rows = ragged(table.column(columns[1]))
        units = {}
        for name, column in names.items():
            spans, rows = ragged(table.column(column))
            units[name] = torch.from_numpy(spans), torch.from_numpy(rows)
        rows_of_tokens = torch.from_numpy(token_rows)
        learnt = self._learnt(table, rows_of_tokens) if response_only else None
        return Rows(table.column("id").to_pylist(), tokens, rows_of_tokens, units, learnt)

    def _learnt(self, table: pa.Table, token_rows: Int64[Tensor, " pointers"]) -> Bool[Tensor, " tokens"]:
        name = side_column("teacher", "responses")
        spans, span_rows = map(torch.from_numpy, ragged(table.column(name)))
        start, end = spans.unbind(1)
        if bool(((start < 0) | (start >= end) | (end > spread(token_rows.diff(), span_rows))).any()):
            raise damaged(self.folder, f"its column `{name}` has spans outside of their rows")
        return learnt_tokens(token_rows, spans, span_rows)

    def parts(self, granularities: Collection[Granularity], *, response_only: bool) -> Iterator[Rows]:
        """All rows, a file of the dataset at a time."""
        first = 0
        for shard in self.shards:
            last = min(first + shard.rows, self.rows)
            if first < last:
                yield self.read(granularities, first, last, response_only=response_only)
            first = last
