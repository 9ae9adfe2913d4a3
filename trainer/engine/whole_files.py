"""Files of a checkpoint: each written whole, with its checksum; and whether they are still what they were.

SHA256SUMS  a line a file, `sha256sum -c SHA256SUMS` reads it; written last, it says that a checkpoint is complete
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

from schemas.files import flush, sha256_of, write_text, written

SUMS: Final = "SHA256SUMS"
_HASH_LENGTH: Final = 64


class WholeFiles(TorchCheckpointEngine):  # type: ignore[misc]  # DeepSpeed has no types
    """How DeepSpeed writes its files: whole, on the disk, noting their checksums.

    Ranks wait for each other while a checkpoint is written, so what cannot be written is noted as well, and told when
    all of them are through (`checksums`).
    """

    def __init__(self) -> None:
        super().__init__()
        self._checksums: dict[Path, str] = {}
        self._problem: OSError | None = None

    def save(self, state_dict: Any, path: str) -> None:
        """Write a file."""
        file = Path(path)
        try:
            with written(file) as stream:
                torch.save(state_dict, stream)
            self._checksums[file] = sha256_of(file)
        except (OSError, RuntimeError) as error:
            self._problem = os_error(error)
            if self._problem is None:
                raise

    def checksums(self) -> dict[Path, str]:
        """Of the files that this rank has written. Raises the `OSError` of one that it could not."""
        if self._problem is not None:
            raise self._problem
        return self._checksums


def os_error(error: BaseException | None) -> OSError | None:
    """The operating system's error behind one of torch, which tells of where in its file it was."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def seal(folder: Path, checksums: Mapping[Path, str]) -> None:
    """Write the checksums of all files in a folder, and see that they are on the disk; those not known are computed."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for file in files:
        if file not in checksums:
            flush(file)
    sums = {file: checksums.get(file) or sha256_of(file) for file in files}
    write_text(folder / SUMS, "".join(f"{value}  {file.relative_to(folder)}\n" for file, value in sums.items()))


def sealed(folder: Path) -> dict[str, str]:
    """Checksums of the files of a folder, by their names there. Raises ValueError saying what is wrong with the list."""
    path = folder / SUMS
    if not path.is_file():
        raise ValueError(f"there is no {SUMS}")
    *lines, rest = path.read_bytes().decode("utf-8", "replace").split("\n")
    sums = {
        name: value for value, space, name in (line.partition("  ") for line in lines) if len(value) == _HASH_LENGTH
    }
    if not sums or len(sums) < len(lines) or rest:
        raise ValueError(f"{SUMS} is damaged")
    return sums


def problem(file: Path, checksum: str) -> str | None:
    """What is wrong with a file."""
    if not file.is_file():
        return f"{file.name} is missing"
    return None if sha256_of(file) == checksum else f"{file.name} is not what was written (its checksum differs)"


@contextmanager
def without_patterns(folder: Path) -> Iterator[Path]:
    """Another path to a folder: DeepSpeed takes brackets and the like in one for a pattern, and finds no files there."""
    with tempfile.TemporaryDirectory() as plain:
        link = Path(plain) / folder.name
        link.symlink_to(folder.resolve(), target_is_directory=True)
        yield link
