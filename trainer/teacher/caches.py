"""Caches of one teacher, checked against the dataset and against each other."""

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from schemas import commands
from schemas.columns import Granularity
from schemas.config import CacheConfig, ModelConfig
from schemas.errors import UsageError
from schemas.signals import RECIPES, WINDOW, Signal
from trainer.batches.documents import Documents
from trainer.cache import TeacherCache


class Caches:
    """Caches of one teacher, made of the texts, units and teacher tokens that the dataset has."""

    def __init__(
        self, folders: Sequence[str | Path], documents: Documents, verify: bool = False, key: str = "data"
    ) -> None:
        """`key`: where the config has the dataset, for messages.

        Raises `UsageError` for caches of another dataset or of different teachers; `StateError` as `TeacherCache`.
        """
        self.documents = documents
        self.key = key
        self.caches = tuple(TeacherCache(folder, verify) for folder in folders)
        for cache in self.caches:
            self._require_match(cache)
        for cache in self.caches[1:]:
            self.require_same_teacher(cache)

    @property
    def layers(self) -> dict[int, Granularity]:
        """Teacher layers that are there, lowest first, and their units: those of the first cache that has the layer."""
        found: dict[int, Granularity] = {}
        for cache in self.caches:
            found = {**cache.layers, **found}
        return dict(sorted(found.items()))

    def has(self, layer: int, signals: Iterable[Signal]) -> bool:
        """Whether each of the signals is in a cache that has the layer, in the units that it has in `layers`."""
        caches = [cache for cache in self.caches if cache.layers.get(layer) == self.layers.get(layer)]
        return all(any(signal in cache.config.signals for cache in caches) for signal in signals)

    @property
    def teacher(self) -> dict[str, Any]:
        """Who the teacher is, as manifests tell: `depth`, `hidden_size`, `vocabulary`, `sha256`, …

        Raises `UsageError` if there is no cache.
        """
        if not self.caches:
            raise UsageError(
                f"The terms of this config need a teacher, and `{self.key}.caches` names no cache; make one: "
                f"`{shlex.join(['mta-prep', 'cache-teacher', str(self.documents.folder), '--teacher'])} MODEL -o CACHE`."
            )
        return self.caches[0].manifest.teacher

    def command(self, recipe: str, teacher: ModelConfig | None = None) -> str:
        """The command for a cache of the dataset that has a recipe's signals, and what the first cache has, if there is one.

        `teacher`: whose it is where there is none.
        """
        folder, signals = str(self.documents.folder), RECIPES[recipe]
        if self.caches:
            first = self.caches[0]
            return first.command(dataset=folder, signals=(*dict.fromkeys((*first.config.signals, *signals)),))
        teacher = ModelConfig(model="MODEL") if teacher is None else teacher
        wanted = CacheConfig(dataset=folder, teacher=teacher, signals=signals, window=WINDOW, response_only=True)
        return commands.cache_teacher(wanted)

    @property
    def rows(self) -> int:
        """The first rows, that the dataset (up to its limit) and every cache have."""
        return min([self.documents.rows, *(len(cache) for cache in self.caches)])

    def _require_match(self, cache: TeacherCache) -> None:
        documents = self.documents
        mine, theirs = documents.manifest.teacher_fingerprint, cache.manifest.teacher_fingerprint
        right = f"for one of this dataset: `{cache.command(dataset=str(documents.folder))}`."
        if mine != theirs:
            raise UsageError(
                f"{cache.folder} is a cache of another dataset than {documents.folder} ({cache.config.dataset} as it was "
                f"then): texts, units or the teacher's tokens differ (teacher fingerprint {theirs[:16]}, the dataset's is "
                f"{mine[:16]}); {right}"
            )
        shared = min(len(cache), documents.rows)
        same = pc.equal(documents.ids.slice(0, shared), cache.index["id"].slice(0, shared))
        row = pc.index(same, False).as_py()
        if row >= 0:
            ids = [str(each[row]) for each in (cache.index["id"], documents.ids)]
            raise UsageError(
                f"Row {row} of {cache.folder} is {ids[0]!r}, in {documents.folder} it is {ids[1]!r}; {right}"
            )
        if documents.limit is not None and documents.rows > len(cache):
            raise UsageError(
                f"`{self.key}.limit` asks for {documents.rows} rows, and {cache.folder} holds only the first {len(cache)}; set "
                f"`{self.key}.limit: {len(cache)}`, or make a cache of as many: `{cache.command(limit=documents.rows)}`."
            )

    def require_same_teacher(self, cache: TeacherCache) -> None:
        """Raises `UsageError` for a cache of another teacher than that of the first one here."""
        first = self.caches[0]
        names = [each.manifest.config["teacher"]["model"] for each in (first, cache)]
        if first.manifest.teacher["sha256"] != cache.manifest.teacher["sha256"]:
            changed = cache.config.model_dump(exclude={"teacher", "layers", "storage", "limit"})
            rows = len(cache) if first.config.limit is not None else cache.config.limit
            command = first.command(**changed, layers=cache.config.layers, storage=cache.config.storage, limit=rows)
            raise UsageError(
                f"{first.folder} and {cache.folder} are of different teachers ({names[0]} and {names[1]}: their weights "
                f"differ), and a run has one; for what the second holds, of the first's teacher: `{command}`."
            )
