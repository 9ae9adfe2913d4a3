"""A folder to a repository on the Hub: its files first, then one commit that makes all of them visible together.

What has been transferred before an interruption is not transferred again: the Hub knows files by what is in them. Nobody
ever sees half of a push, and who pushes over somebody else's commit is told.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline.hub.card import Licences, pushed_card
from pipeline.hub.contents import Contents
from schemas import console
from schemas.dataset import open_shard
from schemas.errors import UsageError, one_line
from schemas.hub import CALLED, CARD, LISTING, HubName, Listing, PushedFile
from trainer.hub.client import own_progress, told
from trainer.hub.pulling import Snapshot
from trainer.hub.restoring import ParquetFile, read_parquet, write_parquet

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd


#: Files that are sent at once.
_AT_ONCE: Final = 4
#: What the Hub itself puts into a new repository, and people write.
_NOT_PUSHED: Final = frozenset({".gitattributes", CARD})


@dataclass(frozen=True)
class Pushed:
    """What is on the Hub now."""

    name: HubName
    commit: str
    files: int
    bytes: int


def push(contents: Contents, name: HubName, licences: Licences, *, private: bool, quiet: bool) -> Pushed:
    """Fill a repository, which is made if there is none; one that holds the same kind of thing is brought up to date.

    Raises `UsageError` for licences that are not stated, or a repository that holds something else; `StateError` if the
    folder is damaged or the repository changes meanwhile; `ResourceError` if the Hub refuses or cannot be reached.
    """
    card = pushed_card(_card_in(contents.folder), contents, name, licences)
    with tempfile.TemporaryDirectory(prefix="mta-prep-push-") as folder, own_progress():
        _require_card(card, name, contents)
        transfer = _Transfer(contents, name, Path(folder), quiet)
        before = transfer.repository(private)
        return transfer.commit(before, transfer.send(), card)


def _card_in(folder: Path) -> str:
    """The card of a folder; an empty one where there is none. Raises `UsageError` for one that is no text."""
    path = folder / CARD
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 (byte {error.start + 1}). Save it as that.") from None


def _require_card(card: str, name: HubName, contents: Contents) -> None:
    """Raises `UsageError` if the Hub would refuse the card, which else would be found out when all is transferred."""
    import huggingface_hub

    try:
        with told(str(name), write=True):
            huggingface_hub.RepoCard(card).validate(repo_type=name.type)
    except ValueError as error:
        raise UsageError(
            f"The Hub refuses the card of {contents.folder} ({one_line(error)}). Mend its {CARD}."
        ) from None


@dataclass(frozen=True)
class _Before:
    """What a repository held before."""

    commit: str
    pushed: frozenset[str]


@dataclass
class _Transfer:
    contents: Contents
    name: HubName
    folder: Path  # for Parquet files, and what is fetched
    quiet: bool

    def repository(self, private: bool) -> _Before:
        """The repository as it is, new or of this kind. Raises `UsageError` if it holds something else."""
        import huggingface_hub

        api = huggingface_hub.HfApi()
        repository: dict[str, Any] = {"repo_id": self.name.id, "repo_type": self.name.type}
        with told(str(self.name), write=True):
            api.create_repo(**repository, private=private or None, exist_ok=True)
            if self.name.revision is not None:
                api.create_branch(**repository, branch=self.name.revision, exist_ok=True)
            info = api.repo_info(**repository, revision=self.name.revision)
            present = {*api.list_repo_files(**repository, revision=info.sha)}
        if private and not info.private:
            raise UsageError(
                f"{self.name} is there already and is public: --private makes new ones private. Choose another name, or make "
                "it private on its page on the Hub."
            )
        if LISTING not in present:
            if others := sorted(present - _NOT_PUSHED):
                raise UsageError(
                    f"{self.name} holds other files, which mta-prep did not push ({', '.join(others[:3])}). Choose another name."
                )
            return _Before(str(info.sha), frozenset())
        snapshot = Snapshot(self.name, str(info.sha))
        listing = snapshot.listing()
        if listing.kind != self.contents.kind:
            raise UsageError(
                f"{self.name} holds {CALLED[listing.kind]}, and {self.contents.folder} is {CALLED[self.contents.kind]}. "
                "Choose another name."
            )
        return _Before(snapshot.commit, frozenset(present & {file.name for file in listing.files}))

    def send(self) -> list["CommitOperationAdd"]:
        """Transfer all files but the card; nobody sees them yet."""
        total = sum(source.shard.bytes for source in self.contents.parquet)
        total += sum((self.contents.folder / file).stat().st_size for file in self.contents.copied)
        sent: list[CommitOperationAdd] = []
        with console.byte_progress("Pushing", total, self.quiet) as progress:
            for group in _groups([*self.contents.parquet, *self.contents.copied], _AT_ONCE):
                additions = [self._addition(source) for source in group]
                with told(str(self.name), write=True):
                    self._preupload(additions)
                for source, addition in zip(group, additions, strict=True):
                    if isinstance(source, ParquetFile) and addition.path_or_fileobj == b"":  # it is there now
                        self._parquet_path(source).unlink()
                    progress.advance(
                        source.shard.bytes if isinstance(source, ParquetFile) else addition.upload_info.size
                    )
                sent += additions
        return sent

    def commit(self, before: _Before, sent: Sequence["CommitOperationAdd"], card: str) -> Pushed:
        """Make what was sent visible, and remove what an earlier push had and this one has not."""
        import huggingface_hub
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        pushed = tuple(
            PushedFile(
                name=addition.path_in_repo, bytes=addition.upload_info.size, sha256=addition.upload_info.sha256.hex()
            )
            for addition in sent
        )
        versions = {name: version(name) for name in ("mta-prep", "pyarrow")}
        listing = Listing(kind=self.contents.kind, versions=versions, files=pushed)
        texts = {CARD: card, LISTING: listing.to_json()}
        gone = sorted(before.pushed - {file.name for file in pushed})
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *sent,
            *(CommitOperationAdd(name, text.encode()) for name, text in texts.items()),
            *(CommitOperationDelete(name) for name in gone),
        ]
        with told(str(self.name), write=True):
            made = huggingface_hub.HfApi().create_commit(
                self.name.id,
                operations,
                repo_type=self.name.type,
                revision=self.name.revision,
                parent_commit=before.commit,
                commit_message=f"Push {CALLED[self.contents.kind]}",
            )
        return Pushed(self.name, str(made.oid), len(pushed), sum(file.bytes for file in pushed))

    def _preupload(self, additions: list["CommitOperationAdd"]) -> None:
        import huggingface_hub

        huggingface_hub.HfApi().preupload_lfs_files(
            self.name.id,
            additions,
            repo_type=self.name.type,
            revision=self.name.revision,
            num_threads=_AT_ONCE,
        )

    def _addition(self, source: ParquetFile | str) -> "CommitOperationAdd":
        from huggingface_hub import CommitOperationAdd

        if isinstance(source, ParquetFile):
            table = open_shard(self.contents.folder, source.shard, content=True)
            path = self._parquet_path(source)
            write_parquet(table, path)
            assert read_parquet(path, source).equals(table)
            addition = CommitOperationAdd(source.name, str(path))
        else:
            addition = CommitOperationAdd(source, str(self.contents.folder / source))
        sha256 = addition.upload_info.sha256.hex()  # kept by it, also when it has forgotten where the file is
        sealed = None if isinstance(source, ParquetFile) else self.contents.sealed.get(source)
        if sealed is not None and sealed.sha256 != sha256:
            raise self.contents.damaged(f"{source} has another checksum than its manifest says")
        return addition

    def _parquet_path(self, source: ParquetFile) -> Path:
        return self.folder / source.name.replace("/", "-")


def _groups(sources: list[ParquetFile | str], size: int) -> Iterator[list[ParquetFile | str]]:
    for first in range(0, len(sources), size):
        yield sources[first : first + size]
