"""A name on the Hub in place of a folder: a copy on this machine, fetched once.

Copies lie where the Hub's client keeps what libraries make of its files, one for each commit:

    ASSETS/mta-prep/hub/datasets--OWNER--NAME/  COMMIT/…  refs/REVISION (the commit that it was last)  .lock
"""

from functools import cache
from pathlib import Path
from typing import Final
from urllib.parse import quote

from schemas import files
from schemas.errors import UsageError
from schemas.hub import HubName, hub_name, is_hub_name

_REFS: Final = "refs"


@cache
def local_folder(name: str) -> Path:
    """The folder that a name means: itself, or a copy of a dataset or cache on the Hub, which is fetched if there is none.

    A revision is looked up once in a process. Of several processes one fetches, and the others wait. Where the Hub cannot
    be asked, the last copy of the revision serves. Raises `UserError` and its kin as `trainer.hub.pulling.pull` does.
    """
    if not is_hub_name(name):
        return Path(name)
    source = hub_name(name)
    if source.type == "model":
        raise UsageError(f"{name} is a model; datasets and caches are named like hf://datasets/OWNER/NAME.")
    return _copy(source.at("dataset"))


def folder_here(name: str) -> Path | None:
    """The same of this machine alone: None for what is on the Hub and has no copy here."""
    if not is_hub_name(name):
        return Path(name)
    source = hub_name(name).at("dataset")
    note = _note(_place(source), source)
    known = note.read_text(encoding="ascii") if note.is_file() else ""
    folder = _place(source) / known
    return folder if known and folder.is_dir() else None


def is_copy(folder: Path) -> bool:
    """Whether a folder is a copy of what is on the Hub, beside which nothing else belongs."""
    return folder.parent.parent == _store()


def _store() -> Path:
    import huggingface_hub

    return huggingface_hub.cached_assets_path("mta-prep", "hub").parent


def _copy(name: HubName) -> Path:
    from filelock import FileLock

    from trainer.hub.client import own_progress
    from trainer.hub.pulling import Snapshot, pull_commit

    place = _place(name)
    files.make_folder(place)
    with FileLock(place / ".lock"), own_progress():
        commit = _commit(name)
        folder = place / commit
        if not folder.exists():
            pull_commit(Snapshot(name, commit), folder, quiet=False)
    return folder


def _place(name: HubName) -> Path:
    """Where copies of a repository lie."""
    return _store() / f"{name.type}s--{name.id.replace('/', '--')}"


def _note(place: Path, name: HubName) -> Path:
    """Where the commit is noted that a revision was last; a file's name, whatever the revision is called."""
    return place / _REFS / f"{quote(name.revision or 'main', safe='')}.txt"


def _commit(name: HubName) -> str:
    """The commit of a revision, noted for when the Hub cannot be asked."""
    from trainer.hub.client import UnreachableError, commit_of

    note = _note(_place(name), name)
    try:
        commit = commit_of(name)
    except UnreachableError:
        folder = folder_here(str(name))
        if folder is None:
            raise
        return folder.name
    note.parent.mkdir(exist_ok=True)
    files.write_text(note, commit)
    return commit
