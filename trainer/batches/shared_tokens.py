"""Documents in both tokenizations: spans and chunks of text that end in both, and positions whose next tokens are the same text.

Arrays of a dataset's columns alone; `trainer.maths.alignment` says how. Made anew for every batch: 16 documents of
190 tokens a side take 2 ms, their texts read included.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from trainer.batches.batch import Chunks
from trainer.batches.lists import index_of
from trainer.maths.alignment import (
    Counts,
    LearntTexts,
    LearntTokens,
    byte_ends,
    common_spans,
    exact_pairs,
    prefix_keys,
    visible_ends,
)
from trainer.maths.ragged import select


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

    def chunks(
        self,
        positions: Int64[Tensor, " positions"],
        teacher_positions: Int64[Tensor, " teacher_positions"],
        sizes: tuple[Counts, Counts] | None,
    ) -> Chunks:
        """All spans between common boundaries but ends of turns, as positions whose next tokens they are.

        `sizes`: bytes that the tokens of each side spell, by which ends are counted; None: not known, so visible characters
        are. A document's first token is nobody's next, so what holds it is left out.
        """
        student, teacher = self.student.without_ends, self.teacher.without_ends
        if sizes is None:
            student_ends, teacher_ends = (visible_ends(self.texts, side) for side in (student, teacher))
        else:
            student_ends, teacher_ends, _ = byte_ends(self.texts, student, teacher, *sizes)
        most = max(len(student.places), 1)
        *spans, rows = common_spans(self.texts, student, teacher, student_ends, teacher_ends, most)
        chunks = [
            np.stack(
                [index_of(every.numpy(), of_side[:, 0] - 1), index_of(every.numpy(), of_side[:, 1] - 2) + 1], axis=1
            )
            for every, of_side in zip((positions, teacher_positions), spans, strict=True)
        ]
        whole = [np.diff(mine) == np.diff(of_side) for mine, of_side in zip(chunks, spans, strict=True)]
        there = torch.from_numpy((whole[0] & whole[1])[:, 0] & (chunks[0][:, 0] >= 0) & (chunks[1][:, 0] >= 0))
        index, chunk_rows = select(there, torch.from_numpy(rows))
        ours, theirs = (torch.from_numpy(mine)[index] for mine in chunks)
        return Chunks(ours, theirs, chunk_rows)

    def spelled(self, sizes: tuple[Counts, Counts]) -> int:
        """How many of the texts are, byte for byte, what the tokens of both sides spell."""
        _, _, exact = byte_ends(self.texts, self.student, self.teacher, *sizes)
        return int(exact.sum())

    def pairs(
        self, positions: Int64[Tensor, " positions"], teacher_positions: Int64[Tensor, " teacher_positions"]
    ) -> Int64[Tensor, "pairs 2"]:
        """Which positions have next tokens that cover the same text, a position of each side a pair.

        A document's first token is nobody's next, so it is in no pair.
        """
        tokens = exact_pairs(self.texts, self.student, self.teacher)
        before = [index_of(side.numpy(), tokens[:, n] - 1) for n, side in enumerate((positions, teacher_positions))]
        pairs = np.stack(before, axis=1)
        return torch.from_numpy(pairs[(pairs >= 0).all(1)])

    def prefixes(
        self, student_bytes: Counts, teacher_bytes: Counts
    ) -> tuple[Int64[np.ndarray, " student_tokens"], Int64[np.ndarray, " teacher_tokens"]]:
        """What is read of the learnt texts before each token of the batch, as numbers that both sides share; -1: not known.

        `…_bytes`: what each token spells.
        """
        sides = (self.student, student_bytes), (self.teacher, teacher_bytes)
        *ends, _ = byte_ends(self.texts, self.student, self.teacher, *(count[side.places] for side, count in sides))
        ours, theirs = (
            prefix_keys(self.texts, side, of_side, len(count))
            for (side, count), of_side in zip(sides, ends, strict=True)
        )
        return ours, theirs
