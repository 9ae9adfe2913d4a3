"""A folder being filled shard by shard: one run at a time, every finished shard kept, the manifest last.

While a run is under way `OUT/.mta-prep/` holds `run.json` (what is being made, of what) and one receipt for every
finished shard. A receipt is written after the shard's file is on disk: a shard counts as finished once it has one.
What kind of folder it is, a `Layout` says.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

from filelock import FileLock, Timeout
from pydantic import ValidationError

from schemas import files
from schemas.config import Strict
from schemas.errors import StateError
from schemas.files import flush, make_folder
from schemas.keys import differences
from schemas.manifest import CONFIG, MANIFEST, OtherFile, ShardFile, is_finished
from schemas.plain import json_object

WORK = ".mta-prep"
RUN = "run.json"
LOCK = "lock"
CARD = "README.md"


@dataclass(frozen=True)
class Layout:
    """What one kind of folder is called and holds."""

    name: str  # as a person calls it
    recorded: tuple[str, ...]  # parts of its manifest that are known before the first row: what makes two runs the same
    shard: Callable[[int, int], str]  # index, number of shards -> path of a shard
    shards: str  # glob of those paths
    files: frozenset[str]  # other files, besides the manifest, the config and the card

    def ours(self, out: Path) -> tuple[list[Path], list[str]]:
        """What `out` holds of this kind, and the names of everything else in it."""
        known = {MANIFEST, CONFIG, CARD, *self.files}
        mine, foreign = [], []
        folder = Path(self.shards).parent
        for path in sorted(entry for place in {out, out / folder} if place.is_dir() for entry in place.iterdir()):
            name = path.relative_to(out)
            if name in (Path(WORK), folder):
                continue
            if str(name) in known or name.match(self.shards) or path.name.endswith(files.PARTIAL):
                mine.append(path)
            else:
                foreign.append(str(name))
        return mine, foreign


@runtime_checkable
class Output(Protocol):
    """What a shard function returns."""

    @property
    def rows(self) -> int:
        """Rows in the shard."""
        ...

    @property
    def stats(self) -> dict[str, Any]:
        """Nested counts that add up over shards."""
        ...

    @property
    def details(self) -> dict[str, Any]:
        """Whatever else the manifest needs of it, as JSON values."""
        ...

    @property
    def others(self) -> Mapping[str, Callable[[IO[bytes]], None]]:
        """Files beside the shards that come with this one: name to what writes it."""
        ...

    def write(self, stream: IO[bytes]) -> None:
        """Write the shard's file."""
        ...


class Receipt(Strict):
    """Proof that a shard is finished, with what the manifest needs of it."""

    shard: ShardFile
    stats: dict[str, Any]
    details: dict[str, Any]
    others: tuple[OtherFile, ...] = ()


@dataclass(frozen=True)
class Workspace:
    """An output folder held by this run. Made by `workspace`."""

    out: Path
    layout: Layout
    shards: int

    @property
    def work(self) -> Path:
        """Where the run keeps what is gone when it has finished."""
        return self.out / WORK

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where anything is written."""
        return self.out, (self.out / self.layout.shards).parent, self.work

    def clear_partial(self) -> None:
        """Remove what writers have left that are no more."""
        for folder in self.folders:
            files.clear_partial(folder)

    def publish(self, index: int, output: Output) -> None:
        """Write one shard and the files that come with it, then its receipt.

        Safe to call from worker processes: every shard has files of its own.
        """
        others = []
        for name, write in output.others.items():
            size, sha256 = self._publish(self.out / name, write)
            others.append(OtherFile(file=name, bytes=size, sha256=sha256))
        path = self.out / self.layout.shard(index, self.shards)
        size, sha256 = self._publish(path, output.write)
        shard = ShardFile(file=path.name, rows=output.rows, bytes=size, sha256=sha256)
        receipt = Receipt(shard=shard, stats=output.stats, details=output.details, others=tuple(others))
        files.write_text(self._receipt_path(index), receipt.model_dump_json())

    def _publish(self, path: Path, write: Callable[[IO[bytes]], None]) -> tuple[int, str]:
        with files.written(path) as stream:
            write(stream)
        return path.stat().st_size, files.sha256_of(path)

    def _receipt_path(self, index: int) -> Path:
        return self.work / f"{index:05d}.json"

    def receipt(self, index: int) -> Receipt:
        """The receipt of a finished shard. Receipts stay on disk: they grow with the corpus."""
        return Receipt.model_validate_json(self._receipt_path(index).read_bytes())

    def has_receipt(self, index: int) -> bool:
        """Whether this shard is finished, once `finished` has been called."""
        return self._receipt_path(index).exists()

    def finished(self) -> set[int]:
        """Shards that are done: each file is there, of its size, and is read through if its time is not before its receipt's.

        Receipts that cannot be read, or of shards whose files are no longer as they were written, are thrown away.
        """
        done = set()
        for index in filter(self.has_receipt, range(self.shards)):
            if self._is_true(index):
                done.add(index)
            else:
                self._receipt_path(index).unlink()
        return done

    def _is_true(self, index: int) -> bool:
        """Whether what a shard's receipt says is there is there."""
        try:
            receipt = self.receipt(index)
        except ValidationError:
            return False
        written = self._receipt_path(index).stat().st_mtime_ns
        folder = (self.out / self.layout.shard(index, self.shards)).parent
        parts: list[tuple[ShardFile | OtherFile, Path]] = [(receipt.shard, folder)]
        parts += [(other, self.out) for other in receipt.others]
        return not any(
            part.problem(place) or (_may_be_newer(place / part.file, written) and part.problem(place, content=True))
            for part, place in parts
        )

    def seal(self, texts: Mapping[str, str], manifest: str) -> None:
        """Write the folder's texts, the manifest last, and drop the working folder."""
        for file, text in texts.items():
            files.write_text(self.out / file, text)
        files.write_text(self.out / MANIFEST, manifest)
        shutil.rmtree(self.work)
        flush(self.out)

    def forget_unless_begun(self) -> None:
        """Where no shard is finished, remove what says that this run was begun, so that any other may be."""
        if not any(map(self.has_receipt, range(self.shards))):
            (self.work / RUN).unlink(missing_ok=True)

    def abandon(self) -> None:
        """Remove the shards and what says that this run was begun, so that any other may be; other files stay."""
        for index in range(self.shards):
            (self.out / self.layout.shard(index, self.shards)).unlink(missing_ok=True)
            self._receipt_path(index).unlink(missing_ok=True)
        (self.work / RUN).unlink()


def _may_be_newer(path: Path, moment: int) -> bool:
    """Whether a file may have been written after a time in nanoseconds: a shard's is on the disk before its receipt is begun.

    The same time may be one: some file systems tell whole seconds.
    """
    return path.stat().st_mtime_ns >= moment


def _told(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Where two run records differ, as `place` was …, is now …."""

    def shown(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False)

    return [f"`{key}` was {shown(before)}, is now {shown(now)}" for key, before, now in differences(old, new)]


def _clear(out: Path, mine: list[Path]) -> None:
    # the manifest first: from then on nobody takes the rest for a finished folder
    (out / MANIFEST).unlink(missing_ok=True)
    for path in mine:
        path.unlink(missing_ok=True)
    for inner in (out / WORK).iterdir():
        if not inner.name.startswith(LOCK):
            inner.unlink()


@contextmanager
def workspace(
    out: Path, layout: Layout, record: dict[str, Any], shards: int, overwrite: bool
) -> Iterator[Workspace | None]:
    """Hold `out` for a run described by `record`; yields None if that very run has already finished there.

    Raises `StateError` if another run is writing there, if the folder holds files that are not ours, or if it
    holds a run of other content (unless `overwrite`, which removes that one); as `schemas.files.make_folder` does where
    there can be no folder.
    """
    if out.exists() and not out.is_dir():
        raise StateError(f"{out} is a file; --out names a folder.")
    _, foreign = layout.ours(out)
    if foreign:
        raise StateError(f"{out} already holds other files ({', '.join(foreign[:3])}); choose an empty or a new --out.")
    work, new = out / WORK, not out.exists()
    make_folder(out)
    work.mkdir(exist_ok=True)
    lock = FileLock(work / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StateError(f"Another run is writing to {out}. Wait for it to end, or choose another --out.") from None
    try:
        if overwrite:
            _clear(out, layout.ours(out)[0])
        if is_finished(out):
            require_same_run(out, layout, record)
            yield None
            return
        claim(work, record)
        space = Workspace(out, layout, shards)
        for folder in space.folders:
            folder.mkdir(exist_ok=True)
        space.clear_partial()
        yield space
    finally:
        lock.release()
        if work.is_dir() and not (work / RUN).exists():
            shutil.rmtree(work)
        if new and out.is_dir() and not any(out.iterdir()):
            out.rmdir()


def require_same_run(out: Path, layout: Layout, record: dict[str, Any], path: Path | None = None) -> None:
    """Raises `StateError` unless what is finished at `out` was made by this very run. `path`: of its manifest, if not in it."""
    manifest = _record_in(path or out / MANIFEST)
    lines = _told({name: manifest.get(name) for name in layout.recorded}, _key(record))
    if lines:
        told = "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more" if len(lines) > 3 else "")
        raise StateError(
            f"{out} already holds a finished {layout.name} of another run "
            f"({told}). Choose another --out, or pass --overwrite."
        )


def _record_in(path: Path) -> dict[str, Any]:
    """What an earlier run noted of itself."""
    record = json_object(path.read_bytes())
    if record is None:
        raise StateError(f"{path} is damaged. Choose another --out, or pass --overwrite to begin anew.")
    return record


def _key(record: dict[str, Any]) -> dict[str, Any]:
    """The record as JSON gives it back, so that what is compared is what was stored."""
    key: dict[str, Any] = json.loads(json.dumps(record))
    return key


def claim(work: Path, record: dict[str, Any]) -> None:
    """Note what is being made; raises `StateError` if that is something else already."""
    path = work / RUN
    if not path.exists():
        files.write_text(path, json.dumps(_key(record), indent=1, ensure_ascii=False))
        return
    lines = _told(_record_in(path), _key(record))
    if lines:
        raise StateError(
            f"{work.parent} holds an unfinished run that differs: {'; '.join(lines[:3])}. "
            "Use the settings it was begun with, choose another --out, or pass --overwrite to begin anew."
        )
