"""Larger parsers as teachers: their scores of every span of every training sentence, computed once before training.

A teacher reads the sentences as they are, the student may read them with noise: both charts are over words, so the
spans are the same, whatever subwords either model cuts words into.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float16, Int64
from torch import Tensor

from pipeline.parse import model, network
from pipeline.parse.chart import best_trees, span_count
from pipeline.parse.examples import Example, chart_starts, collate
from pipeline.parse.loss import with_empty
from schemas.errors import UserError

#: Words of a batch of sentences that teachers score, padding counted.
WORDS_AT_ONCE = 4096


def _batches(examples: Sequence[Example]) -> list[list[int]]:
    """Rows of the examples by length, shortest first."""
    rows: list[list[int]] = [[]]
    for row in sorted(range(len(examples)), key=lambda row: examples[row].encoded.words):
        if rows[-1] and (len(rows[-1]) + 1) * examples[row].encoded.words > WORDS_AT_ONCE:
            rows.append([])
        rows[-1].append(row)
    return [batch for batch in rows if batch]


def _opened(folder: Path, labels: dict[str, int], device: torch.device) -> network.Network:
    teacher = model.load(str(folder)).network
    if teacher.label_vocab != labels:
        raise UserError(
            f"{folder}: this teacher's labels are not the student's. Train it with --labels and the parser that the student "
            "begins with."
        )
    return teacher.to(device)


@torch.no_grad()
def span_scores(
    folders: Sequence[Path], examples: Sequence[Example], labels: dict[str, int], device: torch.device
) -> Float16[Tensor, "all_spans labels_but_empty"]:
    """Mean of the teachers' scores, for the charts of all examples one after the other. 90 bytes a span for 45 labels."""
    starts = chart_starts(examples)
    total = int(starts[-1]) + span_count(examples[-1].encoded.words)
    scores = torch.zeros(total, max(labels.values()), dtype=torch.float16, device=device)
    for folder in folders:
        teacher = _opened(folder, labels, device)
        for rows in _batches(examples):
            sentences = [examples[row].sentence.words for row in rows]
            read = [
                replace(examples[row], encoded=encoded)
                for row, encoded in zip(rows, network.encode(teacher, sentences), strict=True)
            ]
            batch = collate(teacher, read, starts[rows]).to(device)
            posts, _ = network.fenceposts(teacher, batch.padded)
            projected = network.first_layer(teacher, posts)
            part = network.label_scores(teacher, projected, batch.left, batch.right)
            scores[batch.places] += (part / len(folders)).to(scores.dtype)
    return scores


def best_spans(
    scores: Float[Tensor, "spans labels_but_empty"], words: int
) -> tuple[Int64[np.ndarray, " nodes"], Int64[np.ndarray, " nodes"]]:
    """Places in the chart and labels of the constituents of a sentence's best tree, whose root has a label."""
    whole = with_empty(scores.float())
    whole[words - 1, 0] = -torch.inf
    best, label = whole.max(1)
    nodes = best_trees(best.numpy(), np.array([words], dtype=np.int32))
    labels = label.numpy()[nodes]
    return nodes[labels > 0], labels[labels > 0]


def with_trees(examples: Sequence[Example], scores: Float16[Tensor, "all_spans labels_but_empty"]) -> list[Example]:
    """The examples, those without a tree with the teachers' own."""
    treed, scores = [], scores.cpu()  # at once: a GPU that others use answers every question late
    for item, start in zip(examples, chart_starts(examples).tolist(), strict=True):
        if not len(item.spans):
            words = item.encoded.words
            spans, labels = best_spans(scores[start : start + span_count(words)], words)
            item = replace(item, spans=spans, labels=labels)
        treed.append(item)
    return treed
