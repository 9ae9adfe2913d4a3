"""What of a folder is pushed, by the kind of folder."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from pipeline.dataset.shards import LAYOUT
from pipeline.parse.places import WEIGHTS
from schemas.errors import StateError, UsageError
from schemas.hub import CALLED, CARD, KINDS, LISTING, PLAIN, Kind, PlainPath
from schemas.manifest import (
    CONFIG,
    MANIFEST,
    OtherFile,
    ShardFile,
    format_of,
    read_cache_manifest,
    read_manifest,
)
from schemas.saved_dataset import INFO, STATE
from schemas.training import EXPORTED
from trainer.hub.restoring import ParquetFile, parquet_files

_PATH: Final = TypeAdapter(PlainPath)


@dataclass(frozen=True)
class Contents:
    """A folder as it is pushed."""

    kind: Kind
    folder: Path
    copied: tuple[str, ...]  # files that go there as they are, from the folder on; without the card
    parquet: tuple[ParquetFile, ...] = ()  # made of shards
    sealed: Mapping[str, ShardFile | OtherFile] = field(default_factory=dict)  # those whose checksum the manifest has
    left_out: tuple[str, ...] = ()  # other files in the folder

    def damaged(self, what: str) -> StateError:
        """What to raise for a folder that is not as it was written."""
        again = shlex.join(["mta-prep", "verify", str(self.folder)])
        return StateError(f"{self.folder} is damaged, so it is not pushed: {what}. `{again}` says what else is wrong.")


def contents_of(folder: Path) -> Contents:
    """What of a folder is pushed. Raises `StateError` if it is unfinished or damaged, `UsageError` if it is nothing that
    can be pushed, or holds what can run code."""
    if not folder.is_dir():
        raise StateError(f"There is no folder {folder}.")
    if (folder / MANIFEST).is_file():
        return _sealed(folder)
    if (folder / EXPORTED).is_file():
        return _model(folder, "student", "model.safetensors")
    if (folder / WEIGHTS).is_file():
        return _model(folder, "parser", WEIGHTS)
    if (folder / "student" / EXPORTED).is_file():
        raise UsageError(f"{folder} is a run's folder; its student is in {folder / 'student'}: push that.")
    raise UsageError(
        f"{folder} has neither {MANIFEST}, nor {EXPORTED}, nor {WEIGHTS}: it is no finished dataset or cache, no exported "
        "student and no parser."
    )


def _sealed(folder: Path) -> Contents:
    kind = KINDS.get(format_of(folder) or "")
    if kind == "teacher-cache":
        sealed = read_cache_manifest(folder).files
        return _checked(Contents(kind, folder, (MANIFEST, CONFIG, *sealed), sealed=sealed))
    manifest = read_manifest(folder)
    optional = sorted(name for name in LAYOUT.files - {STATE, INFO} if (folder / name).is_file())
    sealed = {file.file: file for file in manifest.files if file not in manifest.shards}
    copied = tuple(dict.fromkeys([MANIFEST, CONFIG, *sealed, *optional]))
    return _checked(Contents("dataset", folder, copied, parquet_files(manifest), sealed))


def _model(folder: Path, kind: Kind, weights: str) -> Contents:
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    copied = [name for name in names if name not in (CARD, LISTING)]
    for name in copied:
        try:
            _PATH.validate_python(name)
        except ValidationError:
            raise UsageError(
                f"{folder} holds {name}, which is not pushed: only files in {', '.join(sorted(PLAIN))} are, and at most one "
                f"folder deep, since these run no code where they are read. Move it out of the folder."
            ) from None
    if not any(name.endswith(".safetensors") for name in copied):
        raise UsageError(f"{folder} is not the folder of {CALLED[kind]}: it has no weights in safetensors ({weights}).")
    return Contents(kind, folder, tuple(copied))


def _checked(contents: Contents) -> Contents:
    """The same with what else is in the folder; raises `StateError` where something lacks or has another size."""
    folder = contents.folder
    for name in contents.copied:
        file = contents.sealed.get(name)
        path = folder / name
        problem = file.problem(path.parent) if file else None if path.is_file() else "is missing"
        if problem is not None:
            raise contents.damaged(f"{name} {problem}")
    known = {*contents.copied, STATE, INFO, CARD, LISTING, *(source.shard.file for source in contents.parquet)}
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    return replace(contents, left_out=tuple(name for name in names if name not in known))
