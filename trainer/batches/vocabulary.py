"""The tokens of a dataset's two sides: which are the same, and how many bytes each spells (`schemas.vocabulary`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from safetensors import SafetensorError, safe_open
from torch import Tensor

from schemas.columns import MISSING, SIDES, Side
from schemas.config import Mined
from schemas.vocabulary import NEAREST, SHARED, VOCABULARY, part_name


@dataclass(frozen=True)
class Vocabulary:
    """What a dataset knows of its tokens."""

    shared: Int64[Tensor, "shared 2"]  # the student's id and the teacher's, by the student's
    lengths: Mapping[Side, Int64[np.ndarray, " _"]]  # bytes that each id spells
    may_end: Mapping[Side, Int64[np.ndarray, " _"]]  # ids of special tokens, and of what usually ends what is learnt

    #: of each of the teacher's tokens the student's that is nearest to it, or -1; None: not known
    nearest: Int64[np.ndarray, " teacher_vocabulary"] | None = None

    @cached_property
    def _exact(self) -> Int64[np.ndarray, " teacher_vocabulary"]:
        own = np.full(len(self.lengths["teacher"]), MISSING, dtype=np.int64)
        ours, theirs = self.shared.numpy().T
        own[theirs] = ours
        return own

    def taken_for(self, vocabulary: Mined) -> Int64[np.ndarray, " teacher_vocabulary"]:
        """Of each of the teacher's tokens the student's that stands for it, or -1."""
        if vocabulary == "exact":
            return self._exact
        assert self.nearest is not None
        return self.nearest

    @classmethod
    def read(cls, folder: Path) -> "Vocabulary":
        """Out of a dataset's folder. Raises ValueError if it is not there."""
        try:
            with safe_open(folder / VOCABULARY, "np") as stored:
                nearest = stored.get_tensor(NEAREST).astype(np.int64) if NEAREST in stored.keys() else None  # noqa: SIM118
                shared = stored.get_tensor(SHARED).astype(np.int64)
                lengths = {side: stored.get_tensor(part_name(side, "lengths")).astype(np.int64) for side in SIDES}
                may_end = {
                    side: np.concatenate(
                        [stored.get_tensor(part_name(side, "special")), stored.get_tensor(part_name(side, "end"))],
                        dtype=np.int64,
                    )
                    for side in SIDES
                }
        except SafetensorError as error:
            raise ValueError(f"{VOCABULARY} is not what it should be ({error})") from None
        if shared.ndim != 2 or shared.shape[1] != 2 or not _known(shared, lengths):
            raise ValueError(f"{VOCABULARY} has shared tokens that its sides do not have")
        if nearest is not None and not _within(nearest, lengths):
            raise ValueError(f"{VOCABULARY} has nearest tokens that its sides do not have")
        return cls(torch.from_numpy(shared), lengths, may_end, nearest)


def _known(shared: Int64[np.ndarray, "shared 2"], lengths: Mapping[Side, Int64[np.ndarray, " _"]]) -> bool:
    limits = [len(lengths[side]) for side in ("student", "teacher")]
    return bool(((shared >= 0) & (shared < limits)).all())


def _within(nearest: Int64[np.ndarray, " _"], lengths: Mapping[Side, Int64[np.ndarray, " _"]]) -> bool:
    of_student = (nearest >= MISSING) & (nearest < len(lengths["student"]))
    return nearest.shape == (len(lengths["teacher"]),) and bool(of_student.all())
