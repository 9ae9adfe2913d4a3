"""`manifest.json`: what a finished folder is, made of what, in which files. Written last; without it a folder is unfinished.

Nothing in it depends on dates, worker counts or where the folder lies, so two runs of one config write the same bytes.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, StringConstraints, ValidationError

from schemas.config import Strict
from schemas.errors import StateError

MANIFEST: Final = "manifest.json"
DATASET_FORMAT: Final = "mta-prep/dataset"
CACHE_FORMAT: Final = "mta-prep/teacher-cache"
FORMAT_VERSION: Final = 1

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


def is_finished(folder: Path) -> bool:
    """Whether `folder` holds a finished dataset or cache."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished dataset; raises `StateError` where there is none or it is not ours."""
    path = folder / MANIFEST
    if not path.is_file():
        if not folder.exists():
            raise StateError(f"There is no folder {folder}.")
        raise StateError(
            f"{folder} has no {MANIFEST}: it is no prepared dataset, or its run has not finished "
            "(run the same `mta-prep parse` command again to go on)."
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values.get("format_version") if isinstance(values, dict) else None
        if isinstance(values, dict) and values.get("format") == DATASET_FORMAT and version != FORMAT_VERSION:
            raise StateError(
                f"{path} is of format version {version}, this mta-prep reads version {FORMAT_VERSION}: "
                "prepare the dataset again, or install the version of mta-prep that the manifest names."
            )
        return Manifest.model_validate(values)
    except (UnicodeDecodeError, json.JSONDecodeError, ValidationError) as error:
        first = " ".join(str(error).split())[:160]
        raise StateError(f"{path} is damaged or not a dataset manifest ({first}).") from None


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
