"""A shard of a teacher cache, open: the elements of its rows, ragged along pointers that are checked before they are followed.

Numbers come as arrays or as tensors, as the one who opens it asks for; with arrays, torch is not imported.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from jaxtyping import Int64

from schemas import signals as names
from schemas.config import CacheConfig
from schemas.errors import DamagedError
from schemas.signals import Along, tensor_name
from trainer.maths.pairs import pair_count

#: By what a tensor is ragged: which tensor has the pointers.
_POINTERS: Final[dict[Along, str]] = {
    "tokens": names.ROW_POINTERS,
    "learnt": names.LEARNT_ROWS,
    "units": "unit_rows",
    "states": "state_rows",
}
#: Types of arrays, as safetensors names them; those of vectors that are stored in bf16 or fp8 are none.
_ARRAYS: Final = {
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
    "F16": np.float16,
    "F32": np.float32,
}


class Shard:
    """An open shard. Tensors are views of the mapped file, arrays are read row by row.

    Pointers are checked when they are first followed, and a tensor against them when it is first read.
    """

    def __init__(
        self,
        name: str,
        file: Any,  # safetensors has no types
        rows: int,
        config: CacheConfig,
        mapped: bool,
        damaged: Callable[[str], DamagedError],
    ) -> None:
        """`mapped`: whether a slice of the file is a view of it, as tensors are."""
        self._name = name
        self._file = file
        self._rows = rows
        self._shared = shared_pointers(config)
        self._window = config.window
        self._mapped = mapped
        self._damaged = damaged
        self._names = frozenset(file.keys())
        self._parts: dict[str, Any] = {}
        self._pointers: dict[tuple[Along, int | None], Int64[np.ndarray, " pointers"]] = {}

    def pointers(self, along: Along, layer: int | None) -> Int64[np.ndarray, " pointers"]:
        """Row pointers of what is ragged along tokens, learnt tokens, units, pairs or states."""
        along = self._shared.get(along, along)
        if along in ("tokens", "learnt"):
            layer = None
        if (along, layer) not in self._pointers:
            self._pointers[along, layer] = self._read_pointers(along, layer)
        return self._pointers[along, layer]

    def elements(self, name: str, along: Along, layer: int | None, place: int) -> Any:
        """A row's part of a tensor."""
        rows = self.pointers(along, layer)
        if name not in self._parts:
            part = self._part(name)
            shape = part.get_shape()
            elements = shape[0] if shape else None
            if elements != int(rows[-1]):
                raise self._damaged(f"{self._name} has {elements} elements of {name}, its pointers say {int(rows[-1])}")
            self._parts[name] = part[:] if self._mapped else part
        first, last = rows[place : place + 2].tolist()
        return self._parts[name][first:last] if self._mapped else self._array(name, first, last)

    def _array(self, name: str, first: int, last: int) -> Any:
        part = self._parts[name]
        kind = _ARRAYS.get(part.get_dtype())
        if kind is None:
            raise self._damaged(f"{self._name}: {name} is of {part.get_dtype()}, which no array is")
        if first == last:  # safetensors refuses to cut nothing from behind the last element
            return np.zeros((0, *part.get_shape()[1:]), dtype=kind)
        return part[first:last]

    def _read_pointers(self, along: Along, layer: int | None) -> Int64[np.ndarray, " pointers"]:
        if along == "pairs":
            counts = pair_count(np.diff(self.pointers("units", layer)), self._window)
            return np.concatenate([np.zeros(1, dtype=np.int64), counts.cumsum()])
        name = tensor_name(_POINTERS[along], layer)
        part = self._part(name)
        if part.get_dtype() != "I64" or part.get_shape() != [self._rows + 1]:
            raise self._damaged(f"{self._name} does not hold the {self._rows} rows of its manifest")
        rows = np.asarray(part[:])
        if rows[0] != 0 or (rows[1:] < rows[:-1]).any():
            raise self._damaged(f"{self._name}: {name}: row pointers must begin at 0 and never fall")
        return rows

    def _part(self, name: str) -> Any:
        if name not in self._names:
            raise self._damaged(f"{self._name} has no {name}")
        return self._file.get_slice(name)


def shared_pointers(config: CacheConfig) -> Mapping[Along, Along]:
    """What is ragged along other pointers than its own: of what is kept of all tokens, the tokens'."""
    learnt: Along = "learnt" if config.response_only else "tokens"
    shared: dict[Along, Along] = {"learnt": learnt}
    return shared | ({"states": learnt} if config.state_tokens == "all" else {})
