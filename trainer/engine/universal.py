"""A checkpoint in DeepSpeed's universal form, from which any number of ranks goes on."""

import argparse
import io
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Final

import torch
from deepspeed.checkpoint import ds_to_universal

from schemas.console import size
from schemas.errors import ResourceError, StateError
from trainer.engine.whole_files import without_patterns
from trainer.models.hub import first_line

#: Bytes on the disk that a conversion takes at its most, for each byte of the checkpoint: pieces, and what is made of them.
_ROOM: Final = 2


def convert(source: Path, target: Path) -> None:
    """Write DeepSpeed's folder `source` in universal form to `target`, which is made anew.

    Raises `ResourceError` where there is no room for it, `StateError` with DeepSpeed's own word for what it cannot convert.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    needed = _ROOM * sum(file.stat().st_size for file in source.iterdir())
    free = shutil.disk_usage(target).free
    if free < needed:
        raise ResourceError(
            f"{source.parent} was saved by another number of ranks; converting it takes {size(needed)} beside it, and "
            f"{size(free)} are free. Make room, or go on with as many ranks as before."
        )
    with without_patterns(source) as input_folder, without_patterns(target) as output_folder:
        options = argparse.Namespace(
            input_folder=str(input_folder),
            output_folder=str(output_folder),
            num_extract_workers=1,  # in this process
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                ds_to_universal.main(options)
        except Exception as error:  # it asserts, and raises whatever reading and writing pickles may
            raise StateError(
                f"{source.parent} was saved by another number of ranks, and DeepSpeed cannot convert it "
                f"({first_line(error)}); go on with as many ranks as before."
            ) from error


def separate_steps(optimizer: Any) -> None:
    """Give every state of an optimizer (torch.optim.Optimizer) a count of steps of its own.

    After a universal checkpoint of ZeRO-3 all have the same tensor, which would rise once for each of them in every step.
    """
    for state in optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()
