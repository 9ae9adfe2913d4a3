"""Losses on logits, some rows at a time, so that no matrix of all logits ever exists.

Logits are the largest thing in a training step: 1,000 positions of a vocabulary of 49,152 are 200 MB in float32, and a
loss needs several such matrices. Here rows are taken some at a time (`trainer.models.head.LOGITS_AT_ONCE`):

1. their logits, and those they are compared with, by one matrix product each;
2. every loss and its derivative by the logits, a few rows at a time where that keeps them in the processor's cache;
   derivatives take the place of the logits they belong to;
3. from those the gradients of rows, weight and bias, added up in float32.

A work that wants some tokens' logits alone is given a copy of the matrix of these, once; or, of few rows, the logits of all
tokens, of which it takes its own, since that copy, and its gradient's, cost more than the products do.

All of it happens in the forward pass. What is kept for the backward pass are finished gradients, no larger than what
they are gradients of.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from trainer.maths.ragged import at_least_float32
from trainer.models.head import Head, parted

#: Logits whose losses are computed at once on a CPU: a dozen float32 matrices of 2 MiB stay in its cache, those of 64 MiB
#: do not, which costs half as much again. Other devices take all the logits there are.
IN_CACHE: Final = 2**19

#: Of a work on some tokens alone: up to so many rows, times the other tokens over those, no copy of the matrix is made. The
#: products of a row with another token cost 6 operations a feature, copies of matrix and gradient move 24 bytes a token's
#: feature, and while a byte is moved, a processor does about four operations, an accelerator more.
FEW_ROWS: Final = 16

#: Of some rows within a portion: logits of every stream, which rows of all, which of the portion -> sums of every loss.
Evaluate = Callable[[Sequence[Tensor], slice, slice], Float[Tensor, " losses"]]


@dataclass(frozen=True)
class Stream:
    """Rows that go through an output matrix."""

    rows: Float[Tensor, "rows features"]
    #: whether the matrix learns from them, and its bias is added; else it is a constant to them, without its bias
    own: bool = True
    bias: bool = True


@runtime_checkable
class RowWork(Protocol):
    """Losses to compute on rows through one output matrix; each is a sum over rows."""

    @property
    def factors(self) -> Sequence[float | Float[Tensor, ""]]:
        """What each loss is multiplied by."""

    @property
    def columns(self) -> Int64[Tensor, " columns"] | None:
        """Tokens whose logits are wanted; None: all."""

    @property
    def bounds(self) -> Sequence[int] | None:
        """Where rows may be parted, rising, from the first to behind the last; None: anywhere."""

    def streams(self) -> Sequence[Stream]:
        """As many rows of each."""

    def prepared(self, head: Head) -> "RowWork":
        """The same with what must be known of all rows before the first loss."""

    def portion(self, part: slice) -> Evaluate:
        """Losses of rows in this part, for which it may compute what they are compared with."""


@dataclass(frozen=True)
class Gradients:
    """What gradients are added to; None: not wanted."""

    weight: Float[Tensor, "vocabulary features"] | None
    bias: Float[Tensor, " vocabulary"] | None
    rows: Sequence[Float[Tensor, "rows features"] | None]  # of each stream

    @property
    def wanted(self) -> bool:
        """Whether any is."""
        return any(each is not None for each in (self.weight, self.bias, *self.rows))


def accumulate(
    work: RowWork, head: Head, factors: Float[Tensor, " losses"], gradients: Gradients
) -> Float[Tensor, " losses"]:
    """The sum of each loss, without gradient; `gradients`, of Σ factor · sum, are added to."""
    training = gradients.wanted
    values = torch.zeros_like(factors)
    streams = work.streams()
    count = len(streams[0].rows)
    taken = None  # of the logits
    if work.columns is None or _few(count, len(work.columns), len(head.weight)):
        weight, bias, by_weight, by_bias = head.weight, head.bias, gradients.weight, gradients.bias
        taken = work.columns
    else:  # a copy of some of the matrix's rows, once
        weight = head.weight.index_select(0, work.columns)
        bias = None if head.bias is None else head.bias.index_select(0, work.columns)
        by_weight = None if gradients.weight is None else gradients.weight.new_zeros(weight.shape)
        by_bias = None if gradients.bias is None or bias is None else gradients.bias.new_zeros(bias.shape)
    matrix = Head(weight, bias, head.soft_cap, head.scale)
    in_cache = IN_CACHE // max(len(weight), 1) if weight.device.type == "cpu" else count
    for part in matrix.portions(count, len(streams), work.bounds):
        rows_of = [each.rows[part].detach().to(weight.dtype) for each in streams]
        raw = [F.linear(rows, weight, bias if each.bias else None) for rows, each in zip(rows_of, streams, strict=True)]
        evaluate = work.portion(part)
        for rows in parted(part.start, part.stop, in_cache, work.bounds):
            within = slice(rows.start - part.start, rows.stop - part.start)
            leaves = [each[within].detach().requires_grad_(training) for each in raw]
            with torch.set_grad_enabled(training):
                logits = [at_least_float32(matrix.after(each)) for each in leaves]
                if taken is not None:
                    logits = [columns_of(each, taken) for each in logits]
                sums = evaluate(logits, rows, within)
                loss = factors @ sums
            values += sums.detach()
            if training:
                derivatives = torch.autograd.grad(loss, leaves, materialize_grads=True)
                for each, derivative in zip(raw, derivatives, strict=True):
                    each[within] = derivative
        if not training:
            continue
        for derivative, rows_, stream, by_rows in zip(raw, rows_of, streams, gradients.rows, strict=True):
            if by_rows is not None:
                by_rows[part] = _product(derivative, weight)
            if by_weight is not None and stream.own:
                _add_product(by_weight, derivative.t(), rows_)
            if by_bias is not None and stream.own and stream.bias:
                by_bias += derivative.sum(0, dtype=by_bias.dtype)
    if weight is not head.weight and work.columns is not None:
        for total, some in ((gradients.weight, by_weight), (gradients.bias, by_bias)):
            if total is not None and some is not None:
                total.index_add_(0, work.columns, some)
    return values


def columns_of(
    logits: Float[Tensor, "rows vocabulary"], columns: Int64[Tensor, " columns"]
) -> Float[Tensor, "rows columns"]:
    """Those of some tokens; differentiable."""
    return logits.gather(1, columns.expand(len(logits), -1))  # whose derivative is quicker than that of `index_select`


def _few(rows: int, columns: int, vocabulary: int) -> bool:
    return rows * (vocabulary - columns) <= FEW_ROWS * columns


def entropies(head: Head, rows: Float[Tensor, "rows features"]) -> Float[Tensor, " rows"]:
    """Of the distribution that each row gives, in nats; at least float32, without gradient."""
    found = at_least_float32(rows.new_empty(len(rows)))
    for part in head.portions(len(rows)):
        logprobs = at_least_float32(head.logits(rows[part].detach())).log_softmax(1)
        # what is impossible adds nothing
        found[part] = -torch.linalg.vecdot(logprobs.exp(), logprobs.clamp_min(torch.finfo(logprobs.dtype).min))
    return found


def next_logprobs(
    head: Head, rows: Float[Tensor, "rows features"], tokens: Int64[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """Of a token each, by the distribution that each row gives; at least float32, without gradient."""
    logprobs = at_least_float32(rows.new_empty(len(rows)))
    for part in head.portions(len(rows)):
        logits = at_least_float32(head.logits(rows[part].detach()))
        logprobs[part] = picked(logits, tokens[part])
    return logprobs


def picked(logits: Float[Tensor, "rows vocabulary"], tokens: Int64[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """The log-probability of a token each, by logits."""
    return logits.gather(1, tokens[:, None]).squeeze(1) - logits.logsumexp(1)


def exact(dtype: torch.dtype) -> torch.dtype:
    """What sums are in (`trainer.maths.ragged.at_least_float32`)."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _product(left: Float[Tensor, "n k"], right: Float[Tensor, "k m"]) -> Float[Tensor, "n m"]:
    """left · right, of which nothing is rounded to half precision, where float16 might not hold it."""
    if exact(left.dtype) == left.dtype:
        return left @ right
    if left.device.type == "cuda":
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def _add_product(total: Float[Tensor, "n m"], left: Float[Tensor, "n k"], right: Float[Tensor, "k m"]) -> None:
    """total += left · right"""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += _product(left, right)
