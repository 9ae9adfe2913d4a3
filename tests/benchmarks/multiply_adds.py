"""Multiply-adds of a step by method, counted on paper: what a measured time stands beside.

Of N tokens, n and m learnt ones of the student and of the teacher, body of B weights, hidden sizes d and D, vocabularies V_s and
V_t, O tokens in common, P pairs and K spans; each product counted once forward and once for each gradient it has:

    ce         3 N B + 3 n d V_s
    dskd       2 n d V_s                                                      projected rows, the matrix a constant to them
               + 3 m D V_t                                                    the teacher's own logits, and its space
               + 3 (4 n d D + 2 m d D) + Σ over documents n m (4 D + 5 d)     projectors, attention
    dwa        dskd + n d V_s                                                 entropies
    dskd_eta   2 n d V_s + 3 P D V_t + (O d D + d D²) / refresh + 2 P d D
    soft_dtw   Σ over documents 2 · 3 (n m + n² + m²) d + 3 · 2 m d D         cosines, projectors; tables are no products
    span_kl    K O D                            spans of tokens whose logits cross-entropy has; a few others as well 3 d V_s
    uld, gold    C D V_t                        C positions compared, or chunks; nothing with `source: sorted`
    mined        A D O                          A aligned positions

`top: k` has 3 m D U in place of 3 m D V_t, U being the tokens among any position's k likeliest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from trainer.batches.batch import Batch
from trainer.objectives.span_positions import MOST_TOGETHER, AmongPositions


@dataclass(frozen=True)
class Sizes:
    """Of the models of a run."""

    body: int  # weights of the student but for embeddings and output matrix
    student: tuple[int, int]  # hidden size, vocabulary
    teacher: tuple[int, int]
    shared: int  # tokens in common


def of_step(terms: Mapping[str, Mapping[str, Any]], batch: Batch, sizes: Sizes) -> int:
    """Of a step on one micro-batch with these terms of a config."""
    (d, own), (big, other) = sizes.student, sizes.teacher
    n = len(batch.targets)
    mine = batch.position_rows.diff()
    total = 3 * len(batch.ids) * sizes.body + 3 * n * d * own
    teacher = batch.teacher
    m, theirs = (0, mine) if teacher is None else (len(teacher.targets), teacher.position_rows.diff())
    tables = int((mine * theirs).sum())
    for name, options in terms.items():
        if name in ("dskd", "dwa"):
            vocabulary = other if options.get("teacher_space", True) else 0
            if "top" in options and teacher is not None and teacher.likeliest is not None:
                vocabulary = len(teacher.likeliest[:, : options["top"]].unique())
            total += 2 * n * d * own + 3 * m * big * vocabulary
            total += 3 * (4 * n + 2 * m) * d * big + tables * (4 * big + 5 * d)
            total += n * d * own if name == "dwa" else 0
        elif name == "dskd_eta" and batch.pairs is not None:
            pairs = len(batch.pairs)
            total += 2 * n * d * own + 3 * pairs * big * other
            total += (sizes.shared * d * big + d * big * big) // options.get("refresh", 1) + 2 * pairs * d * big
        elif name == "soft_dtw":
            squares = int((mine.square() + theirs.square()).sum())
            total += 2 * 3 * (tables + squares) * d + 3 * 2 * m * d * big
        elif name == "span_kl" and batch.spans is not None:
            spans = batch.spans
            own_rows = AmongPositions.of(spans.student, batch.rows, MOST_TOGETHER).others
            total += int(spans.rows[-1]) * sizes.shared * big + 3 * len(own_rows) * d * own
        elif name == "uld" and options.get("source") != "sorted" and "alignment" not in options:
            total += int(torch.minimum(mine, theirs).sum()) * big * other
        elif name in ("uld", "gold") and options.get("source") != "sorted" and batch.chunks is not None:
            total += len(batch.chunks.student) * big * other
        elif name == "mined" and batch.mined is not None:
            total += len(batch.mined) * big * sizes.shared
    return total
