"""Files that are whole or absent: temp file, flush, fsync, rename, fsync folder."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

#: Suffix of files being written; a leftover belongs to nobody and is cleared at the next start.
PARTIAL = ".partial"


@contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """A binary stream whose content appears at `path` only once it is complete and on disk."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    flush(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with written(path) as stream:
        stream.write(text.encode("utf-8"))


def sha256_of(path: Path) -> str:
    """Checksum of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def clear_partial(folder: Path) -> None:
    """Remove what an interrupted writer left in `folder`."""
    for leftover in folder.glob(f"*{PARTIAL}"):
        leftover.unlink()


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's entries (a rename in it, say), are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
