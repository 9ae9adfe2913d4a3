"""A run of the study: trained as any other, but nobody goes on from its end, so there is no checkpoint of that."""

import shutil
import time
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch

from schemas import console
from schemas.training import TrainConfig
from trainer.engine.checkpoint import FOLDER
from trainer.folder import claim, held, require_ours
from trainer.run import Run


class StudyRun(Run):
    """Its last state is what is exported; weights that are no numbers show in what is measured."""

    def _save(self, held_out: float | None) -> None:
        if self.done < self.steps:
            super()._save(held_out)


class Trained(NamedTuple):
    """What a run left."""

    student: Path  # folder
    began_at: int  # step; 0 but for one that went on after an interruption


def trained(config: TrainConfig, tf32: bool) -> Trained:
    """Train and export; `tf32`: whether a GPU may shorten the factors of products. Raises as `trainer.run.train`."""
    out = Path(config.out)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        with held(out):
            require_ours(out, config, overwrite=False)
            times = [time.monotonic()]
            run = StudyRun(config, fresh=False)
            claim(out, config, overwrite=False)
            began_at = run.done
            times.append(time.monotonic())
            run.train()
            times.append(time.monotonic())
            folder = run.finish()
            times.append(time.monotonic())
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    shutil.rmtree(out / FOLDER, ignore_errors=True)
    took = zip(("opened", "stepped", "exported"), pairwise(times), strict=True)
    console.stderr.print(", ".join(f"{what} in {end - began:.1f} s" for what, (began, end) in took))
    return Trained(folder, began_at)
