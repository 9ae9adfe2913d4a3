"""A file of responses as `mta-prep generate` leaves it, and what lies beside it.

    responses.jsonl           rows as `mta-prep parse` reads them
    responses.jsonl.json      who made them, how, and of what: written last
    responses.jsonl.rejected  rows left out, each with its reason, one JSON object a line; only if there are any

While a run is under way there is `responses.jsonl.unfinished`, a folder, and none of the others.
"""

from pathlib import Path
from typing import Any, Final

from pydantic import Field, ValidationError

from schemas import files
from schemas.errors import StateError
from schemas.manifest import Counts, InputFile, Sealed
from schemas.records import Count, Sha256

RESPONSES_FORMAT: Final = "mta-prep/responses"
#: What this version writes and reads.
RESPONSES_VERSION: Final = 1


class ResponsesManifest(Sealed):
    """Identity, counts and checksum of a file of responses."""

    format: str = RESPONSES_FORMAT
    format_version: int = RESPONSES_VERSION
    versions: dict[str, str]
    config: dict[str, Any]  # GenerateConfig, resolved
    inputs: tuple[InputFile, ...]
    model: dict[str, Any]  # name, revision, sha256 of the weights and of the tokenizer
    template: dict[str, Any] | None  # of conversations
    stop: tuple[str, ...]  # tokens that end a response
    rows_in: Count
    rows_out: Count
    rejected: dict[str, Count]  # rows that could not be asked or whose response could not be used, by reason
    dropped: dict[str, Count]  # rows left out by the config's own rules, by reason
    counts: Counts = Field(default_factory=dict)
    bytes: Count
    sha256: Sha256

    def problem(self, file: Path) -> str | None:
        """What is wrong with the file; see `files.problem`."""
        return files.problem(file, self.bytes, self.sha256)


def manifest_of(file: Path) -> Path:
    """Where a file's manifest lies."""
    return file.with_name(f"{file.name}.json")


def rejected_of(file: Path) -> Path:
    """Where the rows left out lie."""
    return file.with_name(f"{file.name}.rejected")


def work_of(file: Path) -> Path:
    """The folder of a run under way."""
    return file.with_name(f"{file.name}.unfinished")


def read_responses_manifest(file: Path) -> ResponsesManifest:
    """The manifest of a finished file of responses. Raises `StateError` where there is none or it is not ours."""
    path = manifest_of(file)
    try:
        manifest = ResponsesManifest.model_validate_json(path.read_bytes(), strict=True)
    except FileNotFoundError:
        raise StateError(f"There is no {path}, so {file} is no finished file of `mta-prep generate`.") from None
    except ValidationError:
        manifest = None
    if manifest is None or (manifest.format, manifest.format_version) != (RESPONSES_FORMAT, RESPONSES_VERSION):
        raise StateError(
            f"{path} is damaged or not the manifest of a file of `mta-prep generate`; choose another --out."
        )
    return manifest
