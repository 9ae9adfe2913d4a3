"""Checkpoints: whole or not there, the newest kept, resumable on any number of ranks.

    checkpoints/step-00000200/  deepspeed/ (its own files: weights, optimizer, loss scale)  state.json  SHA256SUMS (last)

A checkpoint is written under a hidden name, flushed to the disk, and renamed when all of it is there; whatever else lies
in the folder is no checkpoint. Before a run goes on from one, its files are read and compared with their checksums; one
that was damaged since is set aside, and the one before it is taken. DeepSpeed's files are pickles: resume from your own
only.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch.distributed as dist
from pydantic import ValidationError

from schemas import console
from schemas.config import Strict
from schemas.errors import ResourceError, StateError
from schemas.files import flush, write_text
from trainer.engine.ranks import gathered, together
from trainer.engine.universal import convert, separate_steps
from trainer.engine.whole_files import SUMS, WholeFiles, problem, seal, sealed, without_patterns

FOLDER: Final = "checkpoints"
STATE: Final = "state.json"
TAG: Final = "deepspeed"
_NAME: Final = re.compile(r"step-(\d{8,})")
_PART: Final = ".part"
_UNIVERSAL: Final = ".universal"
_DAMAGED: Final = ".damaged"


class State(Strict):
    """What a checkpoint is."""

    step: int  # steps done: the next one has this number
    ranks: int
    zero_stage: int
    held_out: float | None  # loss on the rows held out, if it was computed
    sources: dict[str, dict[str, str]]  # what it learned from (`trainer.sources`)


class Checkpoints:
    """The checkpoints of a run. All ranks call its methods together."""

    def __init__(self, out: Path, keep: int) -> None:
        self._folder = out / FOLDER
        self._keep = keep

    def complete(self) -> dict[Path, State]:
        """Checkpoints that have all been written, oldest first."""
        states = {path: _state(path) for path in self._folders() if (path / SUMS).is_file()}
        return {path: state for path, state in states.items() if state is not None}

    def newest(self) -> tuple[Path, State] | None:
        """The one to go on from: the newest whose files are as they were written; newer ones are told.

        Raises `StateError` if there are some and none is whole.
        """
        damaged: dict[Path, str] = {}
        for path in reversed(self._folders()):
            damage = self._damage(path)
            if damage is None:
                _tell(damaged, path)
                return path, _known(path)
            damaged[path] = damage
        if damaged:
            path, damage = next(iter(damaged.items()))
            others = ", nor is any older one" if len(damaged) > 1 else ""
            with together():
                raise StateError(f"The checkpoint {path} is damaged: {damage}{others}. Begin anew with --overwrite.")
        return None

    def set_aside_after(self, path: Path) -> None:
        """Rename those that are newer than the one that is gone on from: they are damaged, and in the way."""
        with together():
            if dist.get_rank() == 0:
                folders = self._folders()
                for newer in folders[folders.index(path) + 1 :]:
                    aside = newer.with_name(newer.name + _DAMAGED)
                    shutil.rmtree(aside, ignore_errors=True)
                    newer.rename(aside)

    def save(self, engine: Any, state: State) -> Path:
        """Write one, and remove those that are no longer to be kept. Raises `ResourceError` where it cannot be written."""
        path = self._folder / f"step-{state.step:08d}"
        part = path.with_name(f".{path.name}{_PART}")
        with together(), self._writable(path, part):
            if dist.get_rank() == 0:
                self._clear(part)
        files = engine.checkpoint_engine = WholeFiles()
        with self._writable(path, part):
            engine.save_checkpoint(str(part), tag=TAG, client_state={}, save_latest=False)
        with together(), self._writable(path, part):
            own = files.checksums()
        checksums = {file: value for sums in gathered(own) for file, value in sums.items()}
        with together(), self._writable(path, part):
            if dist.get_rank() == 0:
                self._finish(part, path, state, checksums)
        return path

    def load(self, engine: Any, path: Path, universal: bool) -> None:
        """Put a checkpoint's weights and optimizer into the engine, which was made for one that is `universal` or not."""
        folder = path
        if universal:
            folder = path.with_name(f".{path.name}{_UNIVERSAL}")
            with together():
                if dist.get_rank() == 0:
                    convert(path / TAG, folder / TAG)
        with without_patterns(folder) as plain:
            loaded, _ = engine.load_checkpoint(str(plain), tag=TAG)
        with together():
            if loaded is None:
                raise StateError(f"DeepSpeed cannot load {path}; remove it to go on from an older checkpoint.")
        if universal:
            separate_steps(engine.optimizer.optimizer)
            if dist.get_rank() == 0:
                shutil.rmtree(folder, ignore_errors=True)  # all have read it

    def _folders(self) -> list[Path]:
        steps = {path: name for path in self._folder.glob("step-*") if (name := _NAME.fullmatch(path.name))}
        return sorted(steps, key=lambda path: int(steps[path][1]))

    def _damage(self, path: Path) -> str | None:
        """What is wrong with a checkpoint, the same on every rank; each reads some of its files."""
        with together():
            damage = _damage_seen(path, dist.get_rank(), dist.get_world_size())
        return next((seen for seen in gathered(damage) if seen is not None), None)

    def _clear(self, part: Path) -> None:
        """Room for a new one: nothing is left of what was not finished."""
        for leftover in self._folder.glob(".step-*"):
            shutil.rmtree(leftover)
        part.mkdir(parents=True)

    def _finish(self, part: Path, path: Path, state: State, checksums: dict[Path, str]) -> None:
        write_text(part / STATE, state.model_dump_json(indent=2) + "\n")
        seal(part, checksums)
        shutil.rmtree(path, ignore_errors=True)
        part.rename(path)
        flush(self._folder)
        self._prune()

    def _prune(self) -> None:
        states = self.complete()
        needed = set(list(states)[-self._keep :])
        for path in states.keys() - needed:
            leftover = path.with_name(f".{path.name}{_PART}")
            path.rename(leftover)  # a part of one must not look whole
            shutil.rmtree(leftover)

    @contextmanager
    def _writable(self, path: Path, part: Path) -> Iterator[None]:
        """Raises `ResourceError`, naming the checkpoint that is whole, for what cannot be written within."""
        try:
            yield
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            whole = list(self.complete())[-1:]
            start = f"goes on from {whole[0]}, which is whole" if whole else "begins anew, since there is no older one"
            raise ResourceError(
                f"The checkpoint {path} cannot be written ({error.strerror}); once it can, the same command {start}."
            ) from error


def _state(path: Path) -> State | None:
    """None where it cannot be read."""
    try:
        return State.model_validate_json((path / STATE).read_bytes())
    except (OSError, ValidationError):
        return None


def _damage_seen(path: Path, part: int, parts: int) -> str | None:
    """What is wrong with a checkpoint, as far as one part of its files shows."""
    try:
        checksums = sealed(path)
    except ValueError as error:
        return str(error)
    if STATE not in checksums:
        return f"{SUMS} does not name its {STATE}"
    own = list(checksums.items())[part::parts]
    return next((damage for name, value in own if (damage := problem(path / name, value)) is not None), None)


def _known(path: Path) -> State:
    with together():
        state = _state(path)
        if state is None:
            raise StateError(
                f"{path} was written by another version of mta-prep; go on with that, or pass --overwrite."
            )
    assert state is not None
    return state


def _tell(damaged: dict[Path, str], whole: Path) -> None:
    if dist.get_rank() == 0:
        for path, damage in damaged.items():
            console.stderr.print(
                f"The checkpoint {path} is damaged: {damage}. It is set aside as {path.name}{_DAMAGED}, and the run goes on "
                f"from {whole.name}, which is whole."
            )
