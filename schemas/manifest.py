"""`manifest.json`: what a finished folder is, made of what, in which files. Written last; without it a folder is unfinished.

Nothing in it depends on dates, worker counts or where the folder lies, so two runs of one config write the same bytes.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

from pydantic import Field, StringConstraints, ValidationError

from schemas.config import Strict
from schemas.errors import StateError

MANIFEST: Final = "manifest.json"
DATASET_FORMAT: Final = "mta-prep/dataset"
CACHE_FORMAT: Final = "mta-prep/teacher-cache"
FORMAT_VERSION: Final = 1
#: Of a tokenizer's identity, what says nothing of the tokens that it gives.
_NAMES: Final = frozenset({"name", "revision"})

#: A bare file name: no folder, no way out of the folder it stands in.
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Counts = dict[str, Any]  # nested mappings of reason to number


class InputFile(Strict):
    """One input as it was read."""

    name: str
    bytes: int
    sha256: Sha256
    rows: int


class ShardFile(Strict):
    """One published file."""

    file: FileName
    rows: int
    bytes: int
    sha256: Sha256


class OtherFile(Strict):
    """One published file that is no shard."""

    file: FileName
    bytes: int
    sha256: Sha256


class Manifest(Strict):
    """Identity, counts and files of a prepared dataset."""

    format: str = DATASET_FORMAT
    format_version: int = FORMAT_VERSION
    fingerprint: Sha256
    teacher_fingerprint: Sha256
    versions: dict[str, str]
    config: dict[str, Any]
    inputs: tuple[InputFile, ...]
    template: dict[str, Any]
    tokenizers: dict[str, dict[str, Any]]
    segmenter: dict[str, Any]
    parser: dict[str, Any]
    rows_in: int
    rows_out: int
    rejected: dict[str, int]  # rows that could not be used, by reason; kept in rejected.jsonl
    dropped: dict[str, int]  # rows left out by the config's own rules, by reason
    counts: Counts = Field(default_factory=dict)
    shards: tuple[ShardFile, ...]

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


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


class CacheManifest(Strict):
    """Identity, shapes and files of a teacher cache."""

    format: str = CACHE_FORMAT
    format_version: int = FORMAT_VERSION
    teacher_fingerprint: Sha256  # of the dataset: texts, units and the teacher's tokens
    versions: dict[str, str]
    config: dict[str, Any]  # CacheConfig, resolved
    teacher: dict[str, Any]  # name, revision, sha256 of the weights, architecture, depth, hidden and vocabulary size
    logits: dict[str, Any] | None  # with `final`: `soft_cap`, `scale`; what the model does behind its output matrix
    rows: int
    tokens: int
    counts: Counts = Field(default_factory=dict)  # units per layer, units without a teacher span
    index: OtherFile
    head: OtherFile | None
    shards: tuple[ShardFile, ...]

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


AnyManifest = TypeVar("AnyManifest", Manifest, CacheManifest)
#: What a format's folders are called, and the commands that make them.
MADE_BY: Final = {
    DATASET_FORMAT: ("prepared dataset", "mta-prep parse"),
    CACHE_FORMAT: ("teacher cache", "mta-prep cache-teacher"),
}


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished dataset; raises `StateError` where there is none or it is not ours."""
    return _read(folder, DATASET_FORMAT, Manifest)


def read_cache_manifest(folder: Path) -> CacheManifest:
    """The manifest of a finished teacher cache; raises `StateError` where there is none or it is not ours."""
    return _read(folder, CACHE_FORMAT, CacheManifest)


def format_of(folder: Path) -> str | None:
    """What a finished folder's manifest says it is; raises `StateError` where there is no manifest."""
    if not is_finished(folder):
        raise StateError(
            f"{folder} has no {MANIFEST}: it is no prepared dataset and no teacher cache, or its run has not finished "
            "(run the same command again to go on)."
            if folder.exists()
            else f"There is no folder {folder}."
        )
    try:
        values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError):
        return None
    found = values.get("format") if isinstance(values, dict) else None
    return found if isinstance(found, str) else None


def _read(folder: Path, wanted: str, model: type[AnyManifest]) -> AnyManifest:
    path = folder / MANIFEST
    what, command = MADE_BY[wanted]
    if not path.is_file():
        if not folder.exists():
            raise StateError(f"There is no folder {folder}.")
        raise StateError(
            f"{folder} has no {MANIFEST}: it is no {what}, or its run has not finished "
            f"(run the same `{command}` command again to go on)."
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = values.get("format") if isinstance(values, dict) else None
        if found != wanted and found in MADE_BY:
            raise StateError(f"{folder} is a {MADE_BY[found][0]}, not a {what}; `{command}` makes those.")
        version = values.get("format_version") if isinstance(values, dict) else None
        if found == wanted and version != FORMAT_VERSION:
            raise StateError(
                f"{path} is of format version {version}, this mta-prep reads version {FORMAT_VERSION}: run "
                f"`{command}` again into a new folder, or install the version of mta-prep that the manifest names."
            )
        return model.model_validate(values)
    except (UnicodeDecodeError, json.JSONDecodeError, ValidationError) as error:
        first = " ".join(str(error).split())[:160]
        raise StateError(f"{path} is damaged or not the manifest of a {what} ({first}).") from None
