"""Checkpoints: whole or not there, the newest and the best kept, resumable on any number of ranks.

    checkpoints/step-00000200/  deepspeed/ (its own files: weights, optimizer, loss scale)  state.json (written last)

A checkpoint is written under a hidden name, flushed to the disk, and renamed when all of it is there; whatever else lies
in the folder is no checkpoint. DeepSpeed's files are pickles: resume from your own only.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch.distributed as dist

from schemas.errors import ResourceError, StateError
from schemas.files import flush

FOLDER: Final = "checkpoints"
STATE: Final = "state.json"
TAG: Final = "deepspeed"
_PART: Final = ".part"
_UNIVERSAL: Final = ".universal"


@dataclass(frozen=True)
class State:
    """What a checkpoint is."""

    step: int  # steps done: the next one has this number
    ranks: int
    zero_stage: int
    held_out: float | None  # loss on the rows held out, if it was computed


class Checkpoints:
    """The checkpoints of a run. All ranks call its methods together."""

    def __init__(self, out: Path, keep: int, best: bool) -> None:
        self._folder = out / FOLDER
        self._keep = keep
        self._best = best

    def complete(self) -> dict[Path, State]:
        """Checkpoints that are whole, oldest first."""
        found = {}
        for path in sorted(self._folder.glob("step-*")):
            file = path / STATE
            if file.is_file():
                try:
                    found[path] = State(**json.loads(file.read_text(encoding="utf-8")))
                except (TypeError, ValueError):
                    raise StateError(
                        f"{file} cannot be read; remove {path} to go on from an older checkpoint."
                    ) from None
        return found

    def newest(self) -> tuple[Path, State] | None:
        """The one to go on from."""
        found = self.complete()
        return list(found.items())[-1] if found else None

    def best(self) -> tuple[Path, State] | None:
        """The one with the lowest held-out loss; None if none was computed."""
        known = {path: state for path, state in self.complete().items() if state.held_out is not None}
        return min(known.items(), key=lambda item: (item[1].held_out, item[0]), default=None)

    def save(self, engine: Any, state: State) -> Path:
        """Write one, and remove those that are no longer to be kept."""
        path = self._folder / f"step-{state.step:08d}"
        part = path.with_name(f".{path.name}{_PART}")
        if _first():
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        dist.barrier()
        engine.save_checkpoint(str(part), tag=TAG, client_state={}, save_latest=False)
        dist.barrier()
        if _first():
            (part / STATE).write_text(json.dumps(asdict(state)), encoding="utf-8")
            try:
                for file in [*part.rglob("*"), part]:
                    flush(file)
                shutil.rmtree(path, ignore_errors=True)
                part.rename(path)
                flush(self._folder)
            except OSError as error:
                raise ResourceError(f"The checkpoint {path} cannot be written: {error.strerror}.") from None
            self._prune()
        dist.barrier()
        return path

    def load(self, engine: Any, path: Path, universal: bool) -> None:
        """Put a checkpoint's weights and optimizer into the engine, which was made for one that is `universal` or not."""
        folder = self.universal(path) if universal else path
        if universal:
            if _first() and not (folder / STATE).is_file():
                self._convert(path, folder)
            dist.barrier()
        loaded, _ = engine.load_checkpoint(str(folder), tag=TAG)
        if loaded is None:
            raise StateError(f"DeepSpeed cannot load {folder}; remove it to go on from an older checkpoint.")

    @staticmethod
    def universal(path: Path) -> Path:
        """Where a checkpoint's form for any number of ranks lies."""
        return path.with_name(f".{path.name}{_UNIVERSAL}")

    @staticmethod
    def _convert(path: Path, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
        command += ["--input_folder", str(path / TAG), "--output_folder", str(folder / TAG)]
        command += ["--num_extract_workers", "1", "--num_merge_workers", "1"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (our own interpreter)
        if done.returncode != 0:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            raise StateError(
                f"{path} was saved by another number of ranks, and DeepSpeed cannot convert it ({''.join(last)})."
            )
        shutil.copy(path / STATE, folder / STATE)

    def _prune(self) -> None:
        found = self.complete()
        keep = set(list(found)[-self._keep :])
        if self._best and (best := self.best()) is not None:
            keep.add(best[0])
        for path in found:
            if path not in keep:
                shutil.rmtree(path)
        for path in self._folder.glob(f".*{_UNIVERSAL}"):
            shutil.rmtree(path)


def _first() -> bool:
    return dist.get_rank() == 0
