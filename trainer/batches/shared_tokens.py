"""Documents in both tokenizations: spans of text that end in both, and positions whose next tokens are the same text.

Arrays of a dataset's columns alone; `trainer.maths.alignment` says how. Made anew for every batch: 16 documents of
190 tokens a side take 2 ms, their texts read included.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from trainer.maths.alignment import LearntTexts, LearntTokens, common_spans, exact_pairs, visible_ends


@dataclass(frozen=True)
class SharedSpans:
    """Spans of learnt text that begin and end in both tokenizations, in the order of the student's tokens; on the CPU."""

    student: Int64[Tensor, "spans 2"]  # [start, end) in the student's tokens of the batch
    teacher: Int64[Tensor, "spans 2"]  # in the teacher's
    rows: Int64[Tensor, " pointers"]  # of each document


@dataclass(frozen=True)
class BothSides:
    """What is learnt of some documents, and both sides' tokens of it."""

    texts: LearntTexts
    student: LearntTokens
    teacher: LearntTokens

    def spans(self, most: int) -> SharedSpans:
        """Spans between common boundaries, at most `most` of a document; ends are counted in visible characters."""
        student, teacher = (visible_ends(self.texts, side) for side in (self.student, self.teacher))
        spans = common_spans(self.texts, self.student, self.teacher, student, teacher, most)
        return SharedSpans(*map(torch.from_numpy, spans))

    def pairs(
        self, positions: Int64[Tensor, " positions"], teacher_positions: Int64[Tensor, " teacher_positions"]
    ) -> Int64[Tensor, "pairs 2"]:
        """Which positions have next tokens that cover the same text, a position of each side a pair.

        A document's first token is nobody's next, so it is in no pair.
        """
        tokens = exact_pairs(self.texts, self.student, self.teacher)
        before = [_index(side.numpy(), tokens[:, n] - 1) for n, side in enumerate((positions, teacher_positions))]
        pairs = np.stack(before, axis=1)
        return torch.from_numpy(pairs[(pairs >= 0).all(1)])


def _index(rising: Int64[np.ndarray, " _"], values: Int64[np.ndarray, " values"]) -> Int64[np.ndarray, " values"]:
    """Where each value is in `rising`; -1 where it is not."""
    at = np.searchsorted(rising, values)
    index: Int64[np.ndarray, " values"] = np.where(np.append(rising, -2)[at] == values, at, -1)
    return index
