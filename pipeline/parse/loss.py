"""What a parser is trained for: gold trees by benepar's hinge, gold tags, and a teacher's distribution over each span's labels.

Hinge (Kitaev & Klein 2018, after Stern et al. 2017): the best tree under scores raised by 1 for every wrong label, minus
the gold tree. The search needs no gradient, and all but the spans in which the two trees differ cancel, so without a
teacher the label head is differentiated on those alone: exact, and most of what the chart part costs.

Distillation (Hinton et al. 2015) is over labels, span by span, the empty label among them: a span that teacher and
student both hold for no constituent costs nothing, whatever its scores. The hinge spreads scores by about 1 around 0, so
the temperature that makes distributions of them is below 1: at 0.2 a chart of 25 words has 13 nats of doubt in all, at 1
it has 1,300, nearly all of them about which of 45 labels a span without one has least.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from pipeline.parse import network
from pipeline.parse.chart import best_trees
from pipeline.parse.examples import NO_TAG, Batch


class Difference(NamedTuple):
    """Spans in which the best tree and the gold tree differ."""

    spans: Int64[Tensor, " spans"]
    predicted: Int64[Tensor, " spans"]  # label in the best tree, 0 where it lacks the span
    gold: Int64[Tensor, " spans"]
    margin: int  # how many labels of the best tree are wrong


def with_empty(scores: Float[Tensor, "spans labels_but_empty"]) -> Float[Tensor, "spans labels"]:
    """`scores` with that of the empty label, 0 by definition, in front."""
    return F.pad(scores, (1, 0))


@torch.no_grad()
def difference(batch: Batch, scores: Float[Tensor, "spans labels"]) -> Difference:
    """The best trees under raised scores against the gold trees. The search is the host's, which waits once for it."""
    raised = scores + 1.0
    raised.scatter_add_(1, batch.gold[:, None], torch.full_like(raised[:, :1], -1.0))
    raised[batch.roots, 0] = -math.inf
    best, label = raised.max(1)
    labels, gold = label.cpu().numpy(), batch.gold.cpu().numpy()
    nodes = best_trees(best.float().cpu().numpy(), batch.lengths)
    predicted = np.zeros_like(gold)
    predicted[nodes] = labels[nodes]
    in_tree = np.zeros(len(gold), dtype=bool)
    in_tree[nodes] = True
    # a gold constituent that the tree lacks, or a node that it labels otherwise
    spans = np.flatnonzero(np.where(in_tree, predicted != gold, gold > 0))
    margin = int((predicted != gold)[nodes].sum())
    parts = [torch.from_numpy(part).to(scores.device) for part in (spans, predicted[spans], gold[spans])]
    return Difference(parts[0], parts[1], parts[2], margin)


def hinge(found: Difference, scores: Float[Tensor, "differing labels"]) -> Float[Tensor, ""]:
    """Structured hinge, summed over sentences; `scores` are of the differing spans alone.

    A span that the best tree lacks counts there with the empty label, whose score is 0.
    """
    best, gold = (scores.gather(1, labels[:, None]).sum() for labels in (found.predicted, found.gold))
    return best - gold + found.margin


def divergence(
    student: Float[Tensor, "spans labels"], teacher: Float[Tensor, "spans labels"], temperature: float
) -> Float[Tensor, ""]:
    """KL of the student's distribution over each span's labels from the teacher's, summed over spans.

    Times the squared temperature, so that its gradients keep their size.
    """
    targets = F.log_softmax(teacher / temperature, -1)
    total: Tensor = F.kl_div(F.log_softmax(student / temperature, -1), targets, reduction="sum", log_target=True)
    return total * temperature**2


def tag_loss(scores: Float[Tensor, "words tags"], tags: Int64[Tensor, " words"]) -> Float[Tensor, ""]:
    """Mean cross-entropy over the words that have a tag, 0 where none has."""
    total = F.cross_entropy(scores, tags, ignore_index=NO_TAG, reduction="sum")
    return total / (tags != NO_TAG).sum().clamp(min=1)


def loss_of(
    parser: network.Network,
    batch: Batch,
    teacher: Float[Tensor, "spans labels_but_empty"] | None = None,
    weight: float = 8.0,
    temperature: float = 0.2,
) -> Float[Tensor, ""]:
    """Hinge over trees and, with a teacher, `weight` times the divergence from it, a sentence; plus scaled tag loss.

    `batch` and `teacher`, its scores of the batch's spans, lie on the parser's device.
    """
    posts, tag_scores = network.fenceposts(parser, batch.padded)
    projected = network.first_layer(parser, posts)
    if teacher is None:
        with torch.no_grad():
            found = difference(batch, with_empty(network.label_scores(parser, projected, batch.left, batch.right)))
        left, right = batch.left[found.spans], batch.right[found.spans]
        trees = hinge(found, with_empty(network.label_scores(parser, projected, left, right)))
    else:
        scores = with_empty(network.label_scores(parser, projected, batch.left, batch.right))
        found = difference(batch, scores)
        trees = hinge(found, scores.index_select(0, found.spans))
        trees = trees + weight * divergence(scores, with_empty(teacher.to(scores.dtype)), temperature)
    assert tag_scores is not None
    total: Tensor = trees / len(batch.lengths) + parser.tag_loss_scale * tag_loss(tag_scores, batch.tags)
    return total
