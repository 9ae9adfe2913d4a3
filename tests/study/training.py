"""A run of the study: trained as any other, but nobody goes on from its end, so there is no checkpoint of that."""

import shutil
from pathlib import Path

import torch

from schemas.training import TrainConfig
from trainer.engine.checkpoint import FOLDER
from trainer.folder import claim, held, require_ours
from trainer.run import Run


class StudyRun(Run):
    """Its last state is what is exported; weights that are no numbers show in what is measured."""

    def _save(self, held_out: float | None) -> None:
        if self.done < self.steps:
            super()._save(held_out)


def trained(config: TrainConfig, tf32: bool) -> Path:
    """The exported student's folder; `tf32`: whether a GPU may shorten the factors of products. Raises as `trainer.run.train`."""
    out = Path(config.out)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        with held(out):
            require_ours(out, config, overwrite=False)
            run = StudyRun(config, fresh=False)
            claim(out, config, overwrite=False)
            run.train()
            folder = run.finish()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    shutil.rmtree(out / FOLDER, ignore_errors=True)
    return folder
