"""What was pushed, fetched into a folder: every file checked, and the folder there when all of it is, or not at all.

Files are fetched into a hidden folder beside the target, which takes the target's name at the end. A pull that was
interrupted leaves it, and the next one goes on from what is whole in it.
"""

import shutil
import tempfile
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from schemas import cards, console, files
from schemas.errors import StateError, UsageError
from schemas.hub import CARD, LISTING, HubName, Kind, Listing, PushedFile, read_listing
from schemas.manifest import MANIFEST, Manifest, ShardFile, read_manifest
from trainer.hub import restoring
from trainer.hub.client import commit_of, existing, own_progress, told

#: Files that are fetched at once.
_AT_ONCE: Final = 4
#: In the hidden folder, where files are until they are checked.
_FETCHED: Final = ".fetched"


@dataclass(frozen=True)
class Pulled:
    """What is in the folder now."""

    name: HubName
    commit: str
    kind: Kind
    folder: Path
    bytes: int
    already: bool  # whether it was there before


@dataclass(frozen=True)
class Snapshot:
    """A repository at a commit, and what is said of it."""

    name: HubName
    commit: str

    def __str__(self) -> str:
        return f"{self.name} (commit {self.commit[:12]})"

    def fetch(self, file: str, folder: Path) -> Path | None:
        """One of its files, below `folder`; None if it has none of that name. Raises `UserError` and its kin."""
        import huggingface_hub
        from huggingface_hub import errors

        with told(f"{file} of {self}"):
            try:
                path = huggingface_hub.hf_hub_download(
                    self.name.id, file, repo_type=self.name.type, revision=self.commit, local_dir=folder
                )
            except errors.RemoteEntryNotFoundError:
                return None
        return Path(path)

    def fetch_checked(self, file: PushedFile, folder: Path) -> Path:
        """One that was pushed. Raises `StateError` also if it is not what was."""
        path = self.fetch(file.name, folder)
        if path is None:
            raise StateError(f"{self} lacks {file.name}, which was pushed. Ask its owner to push it again.")
        if files.problem(path, file.bytes, file.sha256) is not None:
            path.unlink()
            raise StateError(
                f"{file.name} of {self} is not what was pushed: it has another size or checksum than {LISTING} says, so it "
                "was changed on the Hub or damaged on the way. Run the same command again; if it says the same, pull an "
                "older revision, or ask its owner to push it again."
            )
        return path

    def listing(self) -> Listing:
        """What was pushed there. Raises `StateError` if nothing was, or it is none that can be taken."""
        with tempfile.TemporaryDirectory() as folder:
            path = self.fetch(LISTING, Path(folder))
            if path is None:
                raise StateError(
                    f"{self} has no {LISTING}: `mta-prep push` did not fill it. Fetch what it holds by the Hub's own tools."
                )
            return read_listing(path.read_bytes(), str(self))


def pull(name: HubName, out: Path, *, quiet: bool) -> Pulled:
    """Fetch a repository into the folder `out`; if that holds it already, it is read through.

    Raises `UsageError` for a folder that the caller stands in, which cannot give way to another; `StateError` if `out` holds
    something else or another pull into it is at work, or if the repository holds nothing that was pushed or anything that is
    not what was; `UserError` and `ResourceError` for what cannot be had.
    """
    if Path.cwd().is_relative_to(out.resolve()):
        raise UsageError(f"{out} is the folder you are in, or one around it; choose a new folder with -o.")
    if out.name == "..":
        out = out.resolve()  # for the names beside it
    name = existing(name)
    with _held(out), own_progress():
        return pull_commit(Snapshot(name, commit_of(name)), out, quiet=quiet)


def pull_commit(snapshot: Snapshot, out: Path, *, quiet: bool) -> Pulled:
    """The same of a commit, into a folder that nobody else writes to."""
    listing = snapshot.listing()
    already = _require_room(out, listing)
    if not already:
        part = out.with_name(f".{out.name}.pull")
        files.make_folder(part)
        files.clear_partial(part)
        _Fetching(snapshot, listing, part, quiet).run()
        _publish(part, out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return Pulled(snapshot.name, snapshot.commit, listing.kind, out, size, already)


class _Fetching:
    """One pull's files, from the Hub into their places."""

    def __init__(self, snapshot: Snapshot, listing: Listing, part: Path, quiet: bool) -> None:
        self.snapshot, self.listing, self.part, self.quiet = snapshot, listing, part, quiet

    def run(self) -> None:
        """All of them, the manifest last."""
        listed = {file.name: file for file in self.listing.files}
        last = listed.pop(MANIFEST, None)
        manifest: Manifest | None = None
        if self.listing.kind == "dataset":
            manifest = self._manifest(last)
        parquet = {} if manifest is None else {source.name: source for source in restoring.parquet_files(manifest)}
        if lacking := [name for name in parquet if name not in listed]:
            raise StateError(f"{self.snapshot} lacks {lacking[0]}, a shard that its {MANIFEST} names.")
        _remove_others(self.part, {*listed, *(source.shard.file for source in parquet.values())})
        shards: dict[str, ShardFile] = {}

        def place(file: PushedFile) -> int:
            if file.name in parquet:
                shards[file.name] = self._shard(file, parquet[file.name])
            else:
                self._file(file)
            return file.bytes

        total = sum(file.bytes for file in listed.values())
        with console.byte_progress("Pulling", total, self.quiet) as progress, ThreadPoolExecutor(_AT_ONCE) as pool:
            try:
                for size in pool.map(place, listed.values()):
                    progress.advance(size)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        self._card()
        if manifest is not None:
            restored = manifest.model_copy(update={"shards": tuple(shards[name] for name in parquet)})
            restoring.finish(restored, self.part)
            if restored != manifest:
                files.write_text(self.part / MANIFEST, restored.to_json())
                return
        if last is not None:
            self._file(last)

    def _manifest(self, file: PushedFile | None) -> Manifest:
        if file is None:
            raise StateError(f"{self.snapshot} lists no {MANIFEST}. Ask its owner to push it again.")
        fetched = self.snapshot.fetch_checked(file, self.part / _FETCHED)
        return read_manifest(fetched.parent)

    def _shard(self, file: PushedFile, source: restoring.ParquetFile) -> ShardFile:
        if source.shard.problem(self.part, content=True) is None:
            return source.shard  # an earlier pull had got so far
        fetched = self.snapshot.fetch_checked(file, self.part / _FETCHED)
        shard = restoring.restore(fetched, source, self.part)
        fetched.unlink()
        return shard

    def _file(self, file: PushedFile) -> None:
        target = self.part / file.name
        if _is_there(self.part, file):
            return
        fetched = self.snapshot.fetch_checked(file, self.part / _FETCHED)
        target.parent.mkdir(exist_ok=True)
        fetched.replace(target)
        files.flush(target)

    def _card(self) -> None:
        """The card, which may have been written on since; of a dataset with the files that it names here."""
        fetched = self.snapshot.fetch(CARD, self.part / _FETCHED)
        if fetched is None:
            return
        text = fetched.read_bytes().decode("utf-8", errors="replace")
        if self.listing.kind == "dataset":
            front, body = cards.parted(text)
            if "configs" in front:
                front["configs"] = [{"config_name": "default", "data_files": restoring.ARROW_FILES}]
            text = cards.joined(front, body)
        files.write_text(self.part / CARD, text)


def _require_room(out: Path, listing: Listing) -> bool:
    """Whether `out` holds what is listed already; raises `StateError` if it holds something else."""
    if not out.exists():
        return False
    if not out.is_dir():
        raise StateError(f"{out} is a file; choose a new folder with -o.")
    if not any(out.iterdir()):
        return False
    if not all(_is_there(out, file) for file in listing.files if not _is_parquet(file)):
        raise StateError(f"{out} already holds something else; choose a new folder with -o.")
    if listing.kind == "dataset":
        for shard in read_manifest(out).shards:
            if (problem := shard.problem(out, content=True)) is not None:
                raise StateError(
                    f"{out} is damaged: {shard.file} {problem}. Remove the folder, or choose a new one with -o."
                )
    return True


def _is_there(folder: Path, file: PushedFile) -> bool:
    return files.problem(folder / file.name, file.bytes, file.sha256) is None


def _is_parquet(file: PushedFile) -> bool:
    return file.name.endswith(".parquet")


def _remove_others(part: Path, names: Collection[str]) -> None:
    """What an interrupted pull of something else has left."""
    for path in part.rglob("*"):
        name = path.relative_to(part)
        if path.is_file() and name.parts[0] != _FETCHED and name.as_posix() not in names:
            path.unlink()


def _publish(part: Path, out: Path) -> None:
    """Give a complete folder its name."""
    shutil.rmtree(part / _FETCHED, ignore_errors=True)
    for path in [*(folder for folder in part.rglob("*") if folder.is_dir()), part]:
        files.flush(path)
    part.replace(out)  # an empty folder gives way
    files.flush(out.parent)


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """Keep other pulls out of a folder. Raises `StateError` if one is at work in it."""
    path = out.with_name(f".{out.name}.lock")
    files.make_folder(path.parent)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise StateError(f"Another pull into {out} is at work. Wait for it to end, or choose another folder.") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before others can have it: theirs would be removed
        lock.release()
