"""A folder being filled shard by shard: one writer at a time, every finished shard kept, the manifest last.

While a run is under way `OUT/.mta-prep/` holds `run.json` (what is being made, of what) and one receipt for every
finished shard. A receipt is written after the shard's file is on disk: a shard counts as finished once it has one.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import DatasetInfo, Features
from filelock import FileLock, Timeout

from pipeline.store import files
from schemas.errors import StateError
from schemas.manifest import FORMAT_VERSION, MANIFEST, ShardFile, is_finished

WORK = ".mta-prep"
REJECTED = "rejected.jsonl"
CONFIG = "config.yaml"
CARD = "README.md"
STATE = "state.json"
INFO = "dataset_info.json"
#: Rows in one Arrow record batch: the unit in which a reader maps a file.
BATCH_ROWS = 256


@dataclass(frozen=True)
class RowDigest:
    """Digests of one row: of every column, and of the columns that a teacher cache depends on."""

    whole: str
    teacher: str


@dataclass(frozen=True)
class ShardOutput:
    """What a shard function returns."""

    table: pa.Table
    digests: tuple[RowDigest, ...]
    stats: dict[str, Any] = field(default_factory=dict)  # nested counts
    rejected: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Receipt:
    """Proof that a shard is finished, with what the manifest needs of it."""

    shard: ShardFile
    stats: dict[str, Any]
    digests: tuple[RowDigest, ...]
    rejected: tuple[dict[str, Any], ...]

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(
            {
                "shard": self.shard.model_dump(),
                "stats": self.stats,
                "digests": [[digest.whole, digest.teacher] for digest in self.digests],
                "rejected": self.rejected,
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
            tuple(RowDigest(*pair) for pair in values["digests"]),
            tuple(values["rejected"]),
        )


def rows_in(receipt: Receipt) -> int:
    """Input rows of a finished shard."""
    return int(receipt.stats["rows_in"])


def shard_name(index: int, total: int) -> str:
    """As `datasets` names them."""
    return f"data-{index:05d}-of-{total:05d}.arrow"


def automatic_shard_rows(rows: int) -> int:
    """64 shards, of at least 100 rows (so that small corpora spread over workers) and at most 10,000 (memory)."""
    return min(10_000, max(100, -(-rows // 64)))


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


class Fingerprint:
    """One hash for all rows in order, wherever the borders of shards fall."""

    def __init__(self) -> None:
        self._total = hashlib.sha256(f"mta-prep rows v{FORMAT_VERSION}".encode())

    def update(self, digests: Iterable[str]) -> None:
        """Take in the next rows' digests."""
        for digest in digests:
            self._total.update(bytes.fromhex(digest))

    def hexdigest(self) -> str:
        """The hash so far."""
        return self._total.hexdigest()


class Workspace:
    """An output folder held by this process. Made by `workspace`."""

    def __init__(self, out: Path, shards: int) -> None:
        self.out = out
        self.work = out / WORK
        self.shards = shards

    def _receipt_path(self, index: int) -> Path:
        return self.work / f"{index:05d}.json"

    def publish(self, index: int, output: ShardOutput) -> int:
        """Write one shard, then its receipt; returns its number of input rows.

        Safe to call from worker processes: every shard has files of its own.
        """
        path = self.out / shard_name(index, self.shards)
        with files.published(path) as stream, pa.ipc.new_stream(stream, output.table.schema) as writer:
            writer.write_table(output.table, max_chunksize=BATCH_ROWS)
        shard = ShardFile(
            file=path.name, rows=output.table.num_rows, bytes=path.stat().st_size, sha256=files.sha256_of(path)
        )
        receipt = Receipt(shard, output.stats, output.digests, output.rejected)
        files.publish_text(self._receipt_path(index), receipt.to_json())
        return rows_in(receipt)

    def receipt(self, index: int) -> Receipt:
        """The receipt of a finished shard. Receipts stay on disk: they grow with the corpus."""
        return Receipt.from_json(self._receipt_path(index).read_text(encoding="utf-8"))

    def finished(self) -> dict[int, int]:
        """Shards that are done and whose files are as they were written, with their numbers of input rows."""
        done = {}
        for index in range(self.shards):
            if not self._receipt_path(index).exists():
                continue
            receipt = self.receipt(index)
            shard = self.out / receipt.shard.file
            if shard.exists() and files.sha256_of(shard) == receipt.shard.sha256:
                done[index] = rows_in(receipt)
        return done

    def seal(self, texts: dict[str, str], schema: pa.Schema, name: str, manifest: str) -> None:
        """Write everything that makes the folder a dataset, the manifest last, and drop the working folder."""
        self._write_dataset_files(schema, name)
        for file, text in texts.items():
            files.publish_text(self.out / file, text)
        files.publish_text(self.out / MANIFEST, manifest)
        shutil.rmtree(self.work)
        files.sync_folder(self.out)

    def _write_dataset_files(self, schema: pa.Schema, name: str) -> None:
        """`dataset_info.json` and `state.json`, as `datasets.load_from_disk` reads them."""
        info = DatasetInfo(features=Features.from_arrow_schema(schema), dataset_name="mta-prep")
        with files.published(self.out / INFO) as stream:
            info._dump_info(stream, pretty_print=True)
        state: dict[str, Any] = {
            "_data_files": [{"filename": shard_name(index, self.shards)} for index in range(self.shards)],
            "_fingerprint": name[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        files.publish_text(self.out / STATE, json.dumps(state, indent=2) + "\n")


def _ours(path: Path) -> bool:
    known = {MANIFEST, REJECTED, CONFIG, CARD, STATE, INFO, WORK}
    return path.name in known or path.match("data-*-of-*.arrow") or path.name.endswith(files.PARTIAL)


def _clear(out: Path) -> None:
    # the manifest first: from then on nobody takes the rest for a finished dataset
    (out / MANIFEST).unlink(missing_ok=True)
    for path in out.iterdir():
        if path.name == WORK:
            for inner in path.iterdir():
                if inner.name != "lock":
                    inner.unlink()
        elif _ours(path):
            path.unlink()


@contextmanager
def workspace(out: Path, record: dict[str, Any], shards: int, overwrite: bool) -> Iterator[Workspace | None]:
    """Hold `out` for a run described by `record`; yields None if that very run has already finished there.

    Raises `StateError` if another process is writing there, if the folder holds files that are not ours, or if it
    holds a run of other content (unless `overwrite`, which removes that one).
    """
    foreign = [path.name for path in sorted(out.iterdir()) if not _ours(path)] if out.is_dir() else []
    if out.exists() and not out.is_dir():
        raise StateError(f"{out} is a file; --out names a folder.")
    if foreign:
        raise StateError(
            f"{out} already holds other files ({', '.join(foreign[:3])}); choose an empty or a new folder."
        )
    work = out / WORK
    work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StateError(f"Another run is writing to {out}. Wait for it to end, or choose another folder.") from None
    try:
        if overwrite:
            _clear(out)
        if is_finished(out):
            if _finished_record(out) != _key(record):
                raise StateError(
                    f"{out} already holds a finished dataset of another run "
                    f"({_difference(out, record)}). Choose another folder, or pass --overwrite."
                )
            yield None
            return
        _claim(work, record)
        files.clear_partial(out)
        files.clear_partial(work)
        yield Workspace(out, shards)
    finally:
        lock.release()
        if work.is_dir() and not (work / "run.json").exists():
            shutil.rmtree(work)


def _key(record: dict[str, Any]) -> dict[str, Any]:
    """The record as JSON gives it back, so that what is compared is what was stored."""
    key: dict[str, Any] = json.loads(json.dumps(record))
    return key


def _finished_record(out: Path) -> dict[str, Any]:
    manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    return {name: manifest.get(name) for name in RECORDED}


#: Parts of a manifest that are known before the first row is prepared: what makes two runs the same run.
RECORDED = ("versions", "config", "inputs", "template", "tokenizers", "segmenter", "parser")


def _difference(out: Path, record: dict[str, Any]) -> str:
    lines = differences(_finished_record(out), _key(record))
    return "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more" if len(lines) > 3 else "")


def _claim(work: Path, record: dict[str, Any]) -> None:
    path = work / "run.json"
    if not path.exists():
        files.publish_text(path, json.dumps(_key(record), indent=1, ensure_ascii=False))
        return
    lines = differences(json.loads(path.read_text(encoding="utf-8")), _key(record))
    if lines:
        raise StateError(
            f"{work.parent} holds an unfinished run that differs: {'; '.join(lines[:3])}. "
            "Use the settings it was begun with, choose another folder, or pass --overwrite to begin anew."
        )
