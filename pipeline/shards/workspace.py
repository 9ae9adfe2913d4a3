"""A folder being filled shard by shard: one run at a time, every finished shard kept, the manifest last.

While a run is under way `OUT/.mta-prep/` holds `run.json` (what is being made, of what) and one receipt for every
finished shard. A receipt is written after the shard's file is on disk: a shard counts as finished once it has one.
What kind of folder it is, a `Layout` says.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

from filelock import FileLock, Timeout

from schemas import files
from schemas.errors import StateError
from schemas.files import flush
from schemas.manifest import MANIFEST, OtherFile, ShardFile, is_finished

WORK = ".mta-prep"
RUN = "run.json"
LOCK = "lock"
CONFIG = "config.yaml"
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


@dataclass(frozen=True)
class Receipt:
    """Proof that a shard is finished, with what the manifest needs of it."""

    shard: ShardFile
    stats: dict[str, Any]
    details: dict[str, Any]
    others: tuple[OtherFile, ...] = ()

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(
            {
                "shard": self.shard.model_dump(),
                "stats": self.stats,
                "details": self.details,
                "others": [other.model_dump() for other in self.others],
            },
            ensure_ascii=False,
        )

    @classmethod
    def from_json(cls, text: str) -> "Receipt":
        """Inverse of `to_json`."""
        values = json.loads(text)
        return cls(
            ShardFile.model_validate(values["shard"]),
            values["stats"],
            values["details"],
            tuple(OtherFile.model_validate(other) for other in values["others"]),
        )


@dataclass(frozen=True)
class Workspace:
    """An output folder held by this run. Made by `workspace`."""

    out: Path
    layout: Layout
    shards: int
    work: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "work", self.out / WORK)

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
        receipt = Receipt(shard, output.stats, output.details, tuple(others))
        files.write_text(self._receipt_path(index), receipt.to_json())

    def _publish(self, path: Path, write: Callable[[IO[bytes]], None]) -> tuple[int, str]:
        with files.written(path) as stream:
            write(stream)
        return path.stat().st_size, files.sha256_of(path)

    def _receipt_path(self, index: int) -> Path:
        return self.work / f"{index:05d}.json"

    def receipt(self, index: int) -> Receipt:
        """The receipt of a finished shard. Receipts stay on disk: they grow with the corpus."""
        return Receipt.from_json(self._receipt_path(index).read_text(encoding="utf-8"))

    def has_receipt(self, index: int) -> bool:
        """Whether this shard is finished, once `finished` has been called."""
        return self._receipt_path(index).exists()

    def finished(self) -> set[int]:
        """Shards that are done; their files are read through.

        Receipts of shards whose files are no longer as they were written are thrown away.
        """
        done = set()
        for index in range(self.shards):
            if not self.has_receipt(index):
                continue
            receipt = self.receipt(index)
            written = [(self.out / self.layout.shard(index, self.shards), receipt.shard.sha256)]
            written += [(self.out / other.file, other.sha256) for other in receipt.others]
            if all(path.exists() and files.sha256_of(path) == sha256 for path, sha256 in written):
                done.add(index)
            else:
                self._receipt_path(index).unlink()
        return done

    def seal(self, texts: Mapping[str, str], manifest: str) -> None:
        """Write the folder's texts, the manifest last, and drop the working folder."""
        for file, text in texts.items():
            files.write_text(self.out / file, text)
        files.write_text(self.out / MANIFEST, manifest)
        shutil.rmtree(self.work)
        flush(self.out)

    def abandon(self) -> None:
        """Remove the shards and what says that this run was begun, so that any other may be; other files stay."""
        for index in range(self.shards):
            (self.out / self.layout.shard(index, self.shards)).unlink(missing_ok=True)
            self._receipt_path(index).unlink(missing_ok=True)
        (self.work / RUN).unlink()


def differences(old: Any, new: Any, place: str = "") -> list[str]:
    """Where two run records differ, as `place: was …, is now …`."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in dict.fromkeys([*old, *new])
            for line in differences(old.get(key), new.get(key), f"{place}.{key}" if place else str(key))
        ]
    if old == new:
        return []
    return [f"`{place}` was {json.dumps(old, ensure_ascii=False)}, is now {json.dumps(new, ensure_ascii=False)}"]


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
    holds a run of other content (unless `overwrite`, which removes that one).
    """
    if out.exists() and not out.is_dir():
        raise StateError(f"{out} is a file; --out names a folder.")
    _, foreign = layout.ours(out)
    if foreign:
        raise StateError(
            f"{out} already holds other files ({', '.join(foreign[:3])}); choose an empty or a new folder."
        )
    work = out / WORK
    work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StateError(f"Another run is writing to {out}. Wait for it to end, or choose another folder.") from None
    try:
        if overwrite:
            _clear(out, layout.ours(out)[0])
        if is_finished(out):
            require_same_run(out, layout, record)
            yield None
            return
        claim(work, record)
        for place in (out, (out / layout.shards).parent, work):
            place.mkdir(exist_ok=True)
            files.clear_partial(place)
        yield Workspace(out, layout, shards)
    finally:
        lock.release()
        if work.is_dir() and not (work / RUN).exists():
            shutil.rmtree(work)


def require_same_run(out: Path, layout: Layout, record: dict[str, Any]) -> None:
    """Raises `StateError` unless the finished folder `out` was made by this very run."""
    manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    lines = differences({name: manifest.get(name) for name in layout.recorded}, _key(record))
    if lines:
        told = "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more" if len(lines) > 3 else "")
        raise StateError(
            f"{out} already holds a finished {layout.name} of another run "
            f"({told}). Choose another folder, or pass --overwrite."
        )


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
    lines = differences(json.loads(path.read_text(encoding="utf-8")), _key(record))
    if lines:
        raise StateError(
            f"{work.parent} holds an unfinished run that differs: {'; '.join(lines[:3])}. "
            "Use the settings it was begun with, choose another folder, or pass --overwrite to begin anew."
        )
