"""`manifest.json`: what a finished folder is, made of what, in which files. Written last; without it a folder is unfinished.

Nothing in it depends on dates, worker counts or where the folder lies, so two runs of one config write the same bytes.
What is read of it beyond its first level is checked as well (`schemas.records`), whoever changed it.
"""

import json
import shlex
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

from pydantic import AfterValidator, Field, StringConstraints, ValidationError
from pydantic_core import from_json

from schemas import files
from schemas.config import Strict
from schemas.errors import StateError
from schemas.problems import worded
from schemas.records import CacheRecord, Count, DatasetRecord, Sha256
from schemas.signals import SHARDS

MANIFEST: Final = "manifest.json"
#: The resolved config, beside it.
CONFIG: Final = "config.yaml"
DATASET_FORMAT: Final = "mta-prep/dataset"
CACHE_FORMAT: Final = "mta-prep/teacher-cache"
#: What this version writes and reads.
DATASET_VERSION: Final = 2
CACHE_VERSION: Final = 3
#: Of a tokenizer's identity, what says nothing of the tokens that it gives.
_NAMES: Final = frozenset({"name", "revision"})
#: Characters told of what is wrong with a manifest.
_TOLD: Final = 200

#: A bare file name: no folder, no way out of the folder it stands in.
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
Counts = dict[str, Any]  # nested mappings of reason to number


class InputFile(Strict):
    """One input as it was read."""

    name: str
    bytes: Count
    sha256: Sha256
    rows: Count


class ShardFile(Strict):
    """One published file."""

    file: FileName
    rows: Count
    bytes: Count
    sha256: Sha256

    def problem(self, folder: Path, content: bool = False) -> str | None:
        """What is wrong with it in `folder`; see `files.problem`."""
        return files.problem(folder / self.file, self.bytes, self.sha256 if content else None)


class OtherFile(Strict):
    """One published file that is no shard."""

    file: FileName
    bytes: Count
    sha256: Sha256

    def problem(self, folder: Path, content: bool = False) -> str | None:
        """What is wrong with it in `folder`; see `files.problem`."""
        return files.problem(folder / self.file, self.bytes, self.sha256 if content else None)


def _each_once(shards: tuple[ShardFile, ...]) -> tuple[ShardFile, ...]:
    if len({shard.file for shard in shards}) < len(shards):
        raise ValueError("two shards are in one file")
    return shards


Shards = Annotated[tuple[ShardFile, ...], Field(min_length=1), AfterValidator(_each_once)]


class Sealed(Strict):
    """What is written last."""

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


class Manifest(Sealed):
    """Identity, counts and files of a prepared dataset."""

    format: str = DATASET_FORMAT
    format_version: int = DATASET_VERSION
    fingerprint: Sha256
    teacher_fingerprint: Sha256
    versions: dict[str, str]
    config: dict[str, Any]
    inputs: tuple[InputFile, ...]
    template: dict[str, Any]
    tokenizers: dict[str, dict[str, Any]]
    segmenter: dict[str, Any]
    parser: dict[str, Any]
    rows_in: Count
    rows_out: Count
    rejected: dict[str, Count]  # rows that could not be used, by reason; kept in rejected.jsonl
    dropped: dict[str, Count]  # rows left out by the config's own rules, by reason
    counts: Counts = Field(default_factory=dict)
    vocabulary: OtherFile | None = None  # both sides' tokens (`schemas.vocabulary`); older datasets have none
    shards: Shards

    @property
    def files(self) -> list[ShardFile | OtherFile]:
        """Every file that it has the checksum of."""
        return [*self.shards, *([] if self.vocabulary is None else [self.vocabulary])]

    def vocabulary_problem(self, folder: Path) -> str | None:
        """What is wrong with the file of both sides' tokens, its checksum included; None: nothing, or there is none."""
        problem = None if self.vocabulary is None else self.vocabulary.problem(folder, content=True)
        return None if self.vocabulary is None or problem is None else f"{self.vocabulary.file} {problem}"


def same_tokens(manifest: Manifest) -> bool:
    """Whether teacher and student of a dataset have the same tokens, limits included."""
    teacher, student = (
        {key: value for key, value in manifest.tokenizers[side].items() if key not in _NAMES}
        for side in ("teacher", "student")
    )
    return teacher == student


def is_finished(folder: Path) -> bool:
    """Whether `folder` holds a finished dataset or cache."""
    return (folder / MANIFEST).is_file()


class CacheManifest(Sealed):
    """Identity, shapes and files of a teacher cache."""

    format: str = CACHE_FORMAT
    format_version: int = CACHE_VERSION
    teacher_fingerprint: Sha256  # of the dataset: texts, units and the teacher's tokens
    versions: dict[str, str]
    config: dict[str, Any]  # CacheConfig, resolved
    teacher: dict[str, Any]  # name, revision, sha256 of the weights, architecture, depth, hidden and vocabulary size
    logits: dict[str, Any] | None  # with `final`: `soft_cap`, `scale`; what the model does behind its output matrix
    #: with `final`: `kind` of the norm behind its last layer, or `none` that is known, and `epsilon`; older caches say nothing
    norm: dict[str, Any] | None = None
    rows: Count
    tokens: Count
    counts: Counts = Field(default_factory=dict)  # units per layer, units without a teacher span
    index: OtherFile
    head: OtherFile | None
    embeddings: OtherFile | None = None  # with `embeddings`, but where they are tied
    tied_embeddings: bool = False  # with `embeddings` and `final`: whether they are the output matrix in `head`
    shards: Shards

    @cached_property
    def files(self) -> dict[str, ShardFile | OtherFile]:
        """Every file, by its name from the cache's folder on."""
        others = [each for each in (self.index, self.head, self.embeddings) if each is not None]
        return {each.file: each for each in others} | {f"{SHARDS}/{each.file}": each for each in self.shards}


AnyManifest = TypeVar("AnyManifest", Manifest, CacheManifest)
_VERSIONS: Final = {DATASET_FORMAT: DATASET_VERSION, CACHE_FORMAT: CACHE_VERSION}
#: What a format's folders are called, and the commands that make them.
MADE_BY: Final = {
    DATASET_FORMAT: ("prepared dataset", "mta-prep parse"),
    CACHE_FORMAT: ("teacher cache", "mta-prep cache-teacher"),
}


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished dataset; raises `StateError` where there is none or it is not ours."""
    return _read(folder, DATASET_FORMAT, Manifest, DatasetRecord)


def read_cache_manifest(folder: Path) -> CacheManifest:
    """The manifest of a finished teacher cache; raises `StateError` where there is none or it is not ours."""
    return _read(folder, CACHE_FORMAT, CacheManifest, CacheRecord)


def require_there(folder: Path) -> None:
    """Raises `StateError` where there is nothing of this name."""
    if not folder.exists():
        raise StateError(f"There is no folder {folder}.")


def format_of(folder: Path) -> str | None:
    """What a finished folder's manifest says it is; raises `StateError` where there is no manifest."""
    if not is_finished(folder):
        require_there(folder)
        raise StateError(
            f"{folder} has no {MANIFEST}: it is no prepared dataset and no teacher cache, or its run has not finished "
            "(run the same command again to go on)."
        )
    name = _value((folder / MANIFEST).read_bytes(), "format")
    return name if isinstance(name, str) else None


def _value(text: bytes, key: str) -> Any:
    """A key's value at a manifest's first level, whatever else is in it; None if there is none."""
    try:
        values = from_json(text)
    except ValueError:
        return None
    return values.get(key) if isinstance(values, dict) else None


def _read(
    folder: Path, wanted: str, model: type[AnyManifest], record: type[DatasetRecord] | type[CacheRecord]
) -> AnyManifest:
    path = folder / MANIFEST
    what, command = MADE_BY[wanted]
    if not path.is_file():
        require_there(folder)
        raise StateError(
            f"{folder} has no {MANIFEST}: it is no {what}, or its run has not finished "
            f"(run the same `{command}` command again to go on)."
        )
    text = path.read_bytes()
    name, version = _value(text, "format"), _value(text, "format_version")
    if isinstance(name, str) and name != wanted and name in MADE_BY:
        raise StateError(f"{folder} is a {MADE_BY[name][0]}, not a {what}; `{command}` makes those.")
    if name != wanted:
        raise StateError(f"{path} is damaged or not the manifest of a {what} (its format is not {wanted!r}).")
    if version != _VERSIONS[wanted]:
        again = shlex.join([*MADE_BY[wanted][1].split(), "--config", str(folder / CONFIG), "-o", "OTHER"])
        raise StateError(
            f"{path} is of format version {version}, this mta-prep reads version {_VERSIONS[wanted]}: make it anew with "
            f"`{again}`, or install the version of mta-prep that the manifest names."
        )
    try:
        manifest = model.model_validate_json(text, strict=True)
        record.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise StateError(f"{path} is damaged or not the manifest of a {what} ({_first_problem(error)}).") from None
    return manifest


def _first_problem(error: ValidationError) -> str:
    """`rows: input should be a valid integer, got 'many'`."""
    problem = error.errors()[0]
    place = ".".join(map(str, problem["loc"]))
    value = problem["input"]
    got = f", got {value!r}" if isinstance(value, str | int | float | None) else ""
    return f"{place + ': ' if place else ''}{worded(problem)}{got}"[:_TOLD]
