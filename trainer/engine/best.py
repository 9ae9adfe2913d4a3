"""The student of the lowest held-out loss, kept as it is exported.

    checkpoints/best-00000120/  student.safetensors  best.json  SHA256SUMS (last)

It is written whenever a validation gives the lowest loss so far, and takes the place of the one before. It is no
checkpoint: nothing goes on from it, so DeepSpeed need not load it, and it fits whatever ranks and stage the run ends with.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from schemas.config import Strict
from schemas.errors import ResourceError, StateError
from schemas.files import flush, write_text
from trainer.engine.checkpoint import FOLDER
from trainer.engine.whole_files import problem, seal, sealed

_NAME: Final = re.compile(r"best-\d{8,}")
_WEIGHTS: Final = "student.safetensors"
_RECORD: Final = "best.json"


class Best(Strict):
    """Which student it is."""

    step: int  # steps done
    held_out: float  # its loss on the rows held out


class BestStudent:
    """What is kept in a run's folder. The first rank alone calls its methods."""

    def __init__(self, out: Path) -> None:
        self._folder = out / FOLDER

    def known(self) -> Best | None:
        """Which one is kept; None if there is none."""
        return min(self._kept().values(), key=_rank, default=None)

    def keep(self, best: Best, state: Mapping[str, Tensor]) -> None:
        """Put a student in the place of the one that is there. Raises `ResourceError` where it cannot be written."""
        path = self._folder / f"best-{best.step:08d}"
        part = path.with_name(f".{path.name}.part")
        before = list(self._kept())
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, part / _WEIGHTS)
            write_text(part / _RECORD, best.model_dump_json() + "\n")
            seal(part, {})
            shutil.rmtree(path, ignore_errors=True)
            part.rename(path)
            flush(self._folder)
            for older in before:
                if older != path:
                    shutil.rmtree(older)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(part, ignore_errors=True)
            raise ResourceError(
                f"The student of step {best.step}, the best so far, cannot be written to {path} ({error}). Make room, and "
                "the same command goes on from the last checkpoint."
            ) from error

    def load(self) -> dict[str, Tensor]:
        """Its weights. Raises `StateError` if they are not what was written."""
        kept = self._kept()
        path = min(kept, key=lambda path: _rank(kept[path]))
        for name, checksum in sealed(path).items():
            if (damage := problem(path / name, checksum)) is not None:
                raise StateError(
                    f"The best student, {path}, is damaged: {damage}. Remove it, and the same command exports the student as "
                    "it was at the end."
                )
        return load_file(path / _WEIGHTS)

    def _kept(self) -> dict[Path, Best]:
        """All that are whole: more than one where a run was killed between writing one and removing another."""
        kept = {}
        for path in self._folder.glob("best-*"):
            if _NAME.fullmatch(path.name):
                try:
                    sealed(path)
                    kept[path] = Best.model_validate_json((path / _RECORD).read_bytes())
                except (OSError, ValueError, ValidationError):  # cut off while it was removed
                    continue
        return kept


def _rank(best: Best) -> tuple[float, int]:
    return best.held_out, best.step
