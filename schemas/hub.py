"""What lies on the Hub: how it is named, and the list of what was pushed, by which it is known and checked.

A repository that `mta-prep push` fills holds `mta-prep.json`, which names every file that was pushed with its size and
checksum. `mta-prep pull` takes these files, and no others, and takes none whose name leaves the folder or whose kind can
run code. The card alone is not in the list: people write on theirs on the Hub itself.
"""

import json
import re
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, ValidationError
from pydantic_core import from_json

from schemas.config import Strict
from schemas.errors import StateError, UsageError, quoted
from schemas.manifest import CACHE_FORMAT, DATASET_FORMAT
from schemas.records import Count, Sha256

Kind = Literal["dataset", "teacher-cache", "student", "parser"]
RepositoryType = Literal["dataset", "model"]

#: The list of what was pushed.
LISTING: Final = "mta-prep.json"
LISTING_FORMAT: Final = "mta-prep/pushed"
LISTING_VERSION: Final = 1
CARD: Final = "README.md"

#: In what kind of repository each lies, and what people call it.
REPOSITORY_TYPES: Final[dict[Kind, RepositoryType]] = {
    "dataset": "dataset",
    "teacher-cache": "dataset",
    "student": "model",
    "parser": "model",
}
CALLED: Final[dict[Kind, str]] = {
    "dataset": "a prepared dataset",
    "teacher-cache": "a teacher cache",
    "student": "a student",
    "parser": "a parser",
}
#: By the format that a manifest names.
KINDS: Final[dict[str, Kind]] = {DATASET_FORMAT: "dataset", CACHE_FORMAT: "teacher-cache"}
#: What files may end in: text, tables and tensors, none of which runs code when it is read.
PLAIN: Final = frozenset(
    {".json", ".jsonl", ".yaml", ".md", ".txt", ".jinja", ".model", ".arrow", ".parquet", ".safetensors"}
)

PREFIX: Final = "hf://"
_PART: Final = r"[A-Za-z0-9_][\w.-]*"
HUB_ID: Final = rf"{_PART}/{_PART}"
_NAME: Final = re.compile(
    rf"(?:{PREFIX}(?:(?P<type>dataset|model)s/)?)?(?P<id>(?!(?:dataset|model|space)s/){HUB_ID})(?:@(?P<revision>[^@\s]+))?",
    re.ASCII,
)
#: A file in the folder, or one folder below.
_PATH: Final = re.compile(rf"(?:{_PART}/)?{_PART}", re.ASCII)


@dataclass(frozen=True)
class HubName:
    """A repository on the Hub, `type` None where both kinds are meant, at a revision, None being its main branch."""

    id: str
    type: RepositoryType | None = None
    revision: str | None = None

    def __str__(self) -> str:
        kind = "" if self.type is None else f"{self.type}s/"
        return f"{PREFIX}{kind}{self.id}" + ("" if self.revision is None else f"@{self.revision}")

    def at(self, kind: RepositoryType) -> "HubName":
        """The same as one kind of repository."""
        return replace(self, type=kind)


def is_hub_name(name: str) -> bool:
    """Whether a name in place of a folder's means a repository on the Hub."""
    return name.startswith(PREFIX)


def hub_name(given: str) -> HubName:
    """`owner/name`, `owner/name@v1`, `hf://datasets/owner/name@v1`. Raises `UsageError` for what is none of these."""
    parts = _NAME.fullmatch(given)
    if parts is None:
        raise UsageError(
            f"{quoted(given)} is no name on the Hub; write OWNER/NAME, or {PREFIX}datasets/OWNER/NAME, each with @REVISION "
            "behind it if need be."
        )
    kind: RepositoryType | None = {"dataset": "dataset", "model": "model"}.get(parts["type"])  # type: ignore[assignment]
    return HubName(parts["id"], kind, parts["revision"])


def _inside(name: str) -> str:
    if _PATH.fullmatch(name) is None:
        raise ValueError(f"{quoted(name)} does not stay in its folder")
    if PurePosixPath(name).suffix not in PLAIN:
        raise ValueError(f"{quoted(name)} is of a kind that is not shared ({', '.join(sorted(PLAIN))} are)")
    return name


#: Of a file, from its folder on.
PlainPath = Annotated[str, AfterValidator(_inside)]


class PushedFile(Strict):
    """One file of a repository."""

    name: PlainPath
    bytes: Count
    sha256: Sha256


def _each_once(files: tuple[PushedFile, ...]) -> tuple[PushedFile, ...]:
    names = {file.name for file in files}
    if len(names) < len(files) or names & {LISTING, CARD}:
        raise ValueError("a file is named twice, or is not one to be listed")
    return files


class Listing(Strict):
    """What was pushed."""

    format: str = LISTING_FORMAT
    format_version: int = LISTING_VERSION
    kind: Kind
    versions: dict[str, str]  # of what wrote the files
    files: Annotated[tuple[PushedFile, ...], Field(min_length=1), AfterValidator(_each_once)]

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def read_listing(text: bytes, where: str) -> Listing:
    """The list of what was pushed. Raises `StateError`, beginning with `where`, if it is none that this version reads."""
    try:
        values = from_json(text)
        if isinstance(values, dict) and values.get("format_version", LISTING_VERSION) != LISTING_VERSION:
            raise StateError(
                f"{where} was pushed by another version of mta-prep (its {LISTING} is of version "
                f"{quoted(values['format_version'])}, this one reads {LISTING_VERSION}). Install that one."
            )
        listing = Listing.model_validate_json(text, strict=True)
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise StateError(f"Nothing is taken from {where}: in its {LISTING}, {problem}.") from None
    except ValueError:
        raise StateError(f"Nothing is taken from {where}: its {LISTING} is no JSON.") from None
    if listing.format != LISTING_FORMAT:
        raise StateError(f"Nothing is taken from {where}: its {LISTING} is not one of mta-prep's.")
    return listing
