"""Self-attention of packed sentences."""

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Run = tuple[int, int, int]  # tokens [first, last), and the length of each sentence among them
#: q, k and v, each [tokens, heads, d], runs and scale -> [tokens, heads, d].
Attention = Callable[[Tensor, Tensor, Tensor, Sequence[Run], float], Tensor]


def runs_of(lengths: Sequence[int]) -> list[Run]:
    """Stretches of neighbouring sentences of one length."""
    runs, first = [], 0
    for length, group in groupby(lengths):
        last = first + length * sum(1 for _ in group)
        runs.append((first, last, length))
        first = last
    return runs


def attention(
    q: Float[Tensor, "tokens heads d"],
    k: Float[Tensor, "tokens heads d"],
    v: Float[Tensor, "tokens heads d"],
    runs: Sequence[Run],
    scale: float,
) -> Float[Tensor, "tokens heads d"]:
    """Self-attention within each sentence."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    for first, last, length in runs:
        a, b, c = (x[first:last].view(-1, length, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        out[first:last] = F.scaled_dot_product_attention(a, b, c, scale=scale).transpose(1, 2).flatten(0, 1)
    return out


def compiled_attention(
    q: Float[Tensor, "tokens heads d"],
    k: Float[Tensor, "tokens heads d"],
    v: Float[Tensor, "tokens heads d"],
    runs: Sequence[Run],
    scale: float,
) -> Float[Tensor, "tokens heads d"]:
    """The same of float32 on a CPU, by loops of our own where they can be compiled: the same bits in any batch.

    Their first use in a process takes most of a second, which float32 parsers, that need nothing compiled for a few
    sentences, do without.
    """
    from pipeline.parse import attention_loops as loops

    fit = all(part.dtype == torch.float32 and part.stride(-1) == 1 and part.device.type == "cpu" for part in (q, k, v))
    if not (loops.can_run() and fit and q.shape[-1] % loops.LANES == 0 and scale > 0):
        return attention(q, k, v, runs, scale)
    out = torch.empty(q.shape, dtype=q.dtype)
    loops.attend(q.numpy(), k.numpy(), v.numpy(), np.array(runs, np.int64).reshape(-1, 3), scale, out.numpy())
    return out
