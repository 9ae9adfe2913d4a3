"""Padding and batching never leak (invariant 8): a loss on a batch is what the losses on its rows alone come to.

Every term, from token ids through student and output head: numerators and denominators of a batch are the sums of those
of its documents, and so are gradients. Of the mathematics by itself: `tests/trainer/maths/test_geometry_properties.py`, and
`test_a_batch_is_the_sum_of_its_documents` in the tests of terms.
"""

import pytest
import torch

from cached_batches import TERMS, term_of
from trainer.student.distiller import Distiller

#: Of float32 sums in another order.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def rows(source_of_all_terms):
    """Short ones of different lengths."""
    return source_of_all_terms.documents.lengths("student").argsort()[[0, 5, 2]].tolist()


@pytest.fixture(scope="module", params=["packed", "padded"])
def student(request, student_of_three):
    return student_of_three(packing=request.param == "packed")


def loss_of(distiller, batches, batch):
    """The share of a batch in the loss of all, and its gradient."""
    denominators = [distiller.denominators(each) for each in batches]
    total = {name: sum(each[name] for each in denominators) for name in denominators[0]}
    loss, _ = distiller(batch, total, dict.fromkeys(total, 1.0))
    learning = [parameter for parameter in distiller.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, learning, allow_unused=True)
    flat = [
        torch.zeros_like(parameter).flatten() if gradient is None else gradient.flatten()
        for parameter, gradient in zip(learning, gradients, strict=True)
    ]
    return loss.detach(), torch.cat(flat)


@pytest.mark.parametrize("name", TERMS)
def test_a_batch_is_its_rows_alone(source_of_all_terms, rows, student, name):
    source = source_of_all_terms
    torch.manual_seed(0)
    distiller = Distiller(student, term_of(name, student), source.head)
    whole, alone = source.fetch(rows), [source.fetch([row]) for row in rows]
    loss, gradient = loss_of(distiller, [whole], whole)
    parts = [loss_of(distiller, alone, batch) for batch in alone]
    assert float(loss) > 0
    torch.testing.assert_close(sum(part for part, _ in parts), loss, rtol=TOLERANCE, atol=0)
    difference = sum(part for _, part in parts) - gradient
    assert float(difference.norm() / gradient.norm()) < 10 * TOLERANCE


#: Terms that begin with nothing random: on states, on logits, and on rows that take the logits of others.
TOGETHER = ("ce", "sfkl", "fdd norm", "dsa", "span_geometry", "span_kl")


def test_terms_beside_each_other_are_what_they_are_alone(source_of_all_terms, rows, student):
    source = source_of_all_terms
    batch = source.fetch(rows)

    def of(*names):
        terms = {name: term for each in names for name, term in term_of(each, student).items()}
        return loss_of(Distiller(student, terms, source.head), [batch], batch)

    loss, gradient = of(*TOGETHER)
    parts = [of(name) for name in TOGETHER]
    torch.testing.assert_close(sum(part for part, _ in parts), loss, rtol=TOLERANCE, atol=0)
    difference = sum(part for _, part in parts) - gradient
    assert float(difference.norm() / gradient.norm()) < 10 * TOLERANCE
