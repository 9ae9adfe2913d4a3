"""Files that are whole or absent: temp file, flush, fsync, rename, fsync folder. And what is in them: checksums."""

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from schemas.errors import ResourceError

#: Suffix of files being written; a leftover belongs to nobody and is cleared at the next start.
PARTIAL = ".partial"


def make_folder(folder: Path) -> None:
    """Make a folder that somebody named, and those above it, unless they are there.

    Raises `ResourceError` where there cannot be one: below a file, in place of one or of a link to nowhere, among what
    the system shows as files; `OSError` for want of permission or room.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileNotFoundError, FileExistsError, NotADirectoryError) as error:
        raise ResourceError(f"There can be no folder {folder} ({error.strerror}); choose another place.") from None


@contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """A binary stream whose content appears at `path` only once it is complete and on disk; of several writers the last's."""
    # its own name for each writer: those on other machines, or in other containers, may have the same process number
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        with partial.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        try:
            partial.replace(path)
        except FileExistsError:  # some network file systems refuse a rename over a file; it is absent for a moment then
            path.unlink()
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


def problem(path: Path, size: int, sha256: str | None) -> str | None:
    """What is wrong with a file that was written with this many bytes and, unless None, this checksum: `is missing`, …"""
    if not path.is_file():
        return "is missing"
    found = path.stat().st_size
    if found != size:
        return f"has {found} bytes, its manifest says {size}"
    if sha256 is not None and sha256_of(path) != sha256:
        return "has another checksum than its manifest says"
    return None


def clear_partial(folder: Path) -> None:
    """Remove what an interrupted writer left in `folder`."""
    for leftover in folder.glob(f"*{PARTIAL}"):
        leftover.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's entries (a rename in it, say), are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
