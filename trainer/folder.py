"""A run's folder: what lies in it, whose it is, what `--overwrite` removes.

OUT/  config.yaml  metrics.jsonl  curves.png  tensorboard/  checkpoints/  student/
"""

import shutil
from pathlib import Path
from typing import Final

import torch.distributed as dist

from schemas.training import TrainConfig
from trainer.config import require_same
from trainer.engine.checkpoint import FOLDER
from trainer.engine.monitor import CURVES, METRICS, TENSORBOARD

CONFIG: Final = "config.yaml"
STUDENT: Final = "student"


def claim(out: Path, config: TrainConfig, overwrite: bool) -> None:
    """Make a folder that of this run, or find that it is; `overwrite`: after removing another's. Every rank calls it.

    Raises `StateError` naming the first difference if it is the folder of a run of another config.
    """
    first = dist.get_rank() == 0
    path = out / CONFIG
    if first:
        if overwrite:
            _clear(out)
        out.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    if path.is_file():
        require_same(path, config)
    dist.barrier()
    if first:
        path.write_text(config.to_yaml(), encoding="utf-8")


def _clear(out: Path) -> None:
    for name in (FOLDER, STUDENT, TENSORBOARD):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in (CONFIG, METRICS, CURVES):
        (out / name).unlink(missing_ok=True)
