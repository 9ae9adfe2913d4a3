"""A run's folder: who works in it, whose it is, what `--overwrite` removes.

    OUT/  config.yaml  metrics.jsonl  curves.png  tensorboard/  checkpoints/  student/
          .lock (while a trainer is at work)

A run looks at the folder first, and writes to it last, when all else is known to fit: one that is refused leaves it as it
was.
"""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import torch.distributed as dist
from filelock import FileLock, Timeout

from schemas.errors import ResourceError, StateError
from schemas.files import write_text
from schemas.training import TrainConfig
from trainer.config import require_same
from trainer.engine.checkpoint import FOLDER
from trainer.engine.monitor import CURVES, METRICS, TENSORBOARD, WANDB_ID
from trainer.engine.ranks import together

CONFIG: Final = "config.yaml"
STUDENT: Final = "student"
LOCK: Final = ".lock"
_FOLDERS: Final = (FOLDER, STUDENT, TENSORBOARD)
_FILES: Final = (METRICS, CURVES, WANDB_ID)


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Keep other trainers out of a folder. Every rank calls it.

    The folder is made for that, and removed at the end if it is still empty. Raises `StateError` if another trainer is at
    work in it, `ResourceError` if it cannot be written.
    """
    with ExitStack() as stack:
        with together():
            if dist.get_rank() == 0:
                stack.enter_context(_locked(out))
        yield


def require_ours(out: Path, config: TrainConfig, overwrite: bool) -> None:
    """Raises `StateError` for a folder in which this run may not begin or go on.

    That is the folder of a run of another config, unless `overwrite`; but not of one that ended before it had done a step.
    And it is a folder that holds what a run would write, and not the config of a run.
    """
    present = [name for name in (*_FOLDERS, *_FILES) if (out / name).exists()]
    if present and not (out / CONFIG).is_file():
        raise StateError(
            f"{out} holds {present[0]} and no {CONFIG}, so it is no training run's folder; choose another `out`."
        )
    if not overwrite and _has_begun(out):
        require_same(out / CONFIG, config)


def claim(out: Path, config: TrainConfig, overwrite: bool) -> None:
    """Make a folder this run's; `overwrite`: after removing what is there. Every rank calls it."""
    with together():
        if dist.get_rank() == 0:
            if overwrite:
                _clear(out)
            write_text(out / CONFIG, config.to_yaml())


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    lock = FileLock(out / LOCK)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise StateError(f"Another trainer is at work in {out}. Wait for it to end, or choose another `out`.") from None
    except OSError as error:
        raise ResourceError(f"Nothing can be written to {out}: {error.strerror}. Choose another `out`.") from None
    try:
        yield
    finally:
        (out / LOCK).unlink(missing_ok=True)  # before others can have it: theirs would be removed
        lock.release()
        with suppress(OSError):  # one that is not empty
            for folder in missing:
                folder.rmdir()


def _has_begun(out: Path) -> bool:
    metrics = out / METRICS
    return any((out / name).exists() for name in (FOLDER, STUDENT)) or (
        metrics.is_file() and metrics.stat().st_size > 0
    )


def _clear(out: Path) -> None:
    for name in _FOLDERS:
        if (out / name).exists():
            shutil.rmtree(out / name)
    for name in _FILES:
        (out / name).unlink(missing_ok=True)
    (out / CONFIG).unlink(missing_ok=True)  # last: what is left, if this is cut off, is still a run's
