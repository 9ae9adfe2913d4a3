"""The geometry of a document in a model's hidden space: token weights, units, relations (MTA, arXiv 2605.01374).

Batches are flat with row pointers (`trainer.maths.ragged`); spans are flat too: unit k holds tokens [start, end) of the whole
batch, and spans may nest, overlap and repeat. Hidden states may be of any floating type and are computed with in
float32, or in float64 if that is what they are, also under autocast; on a GPU, matrix products follow
`torch.set_float32_matmul_precision`, whose default is full float32. A document's results depend on its own tokens
only; what else is in the batch can change no more than the order of a sum, that is the last bits.
"""

from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from schemas.columns import MISSING
from schemas.signals import Weights
from trainer.maths.ragged import (
    BUDGET,
    at_least_float32,
    check_pointers,
    groups,
    normalize_rows,
    pointers,
    select,
    spread,
    sum_rows,
)
from trainer.maths.triangle import later_units, unit_pairs, whole_documents

#: Added to the standard deviation of a hidden state.
STD_EPSILON: Final = 1e-5
#: Norms below this count as this much, as in `torch.nn.functional.cosine_similarity`.
NORM_EPSILON: Final = 1e-8


@dataclass(frozen=True)
class Units:
    """Units that have a span, of a batch of documents; all on the CPU."""

    index: Int64[Tensor, " units"]  # place of each in the list it was chosen from
    spans: Int64[Tensor, "units 2"]  # [start, end) in the tokens of the batch
    rows: Int64[Tensor, " pointers"]  # units of each document


def units_with_span(
    spans: Int[Tensor, "all_units 2"], unit_rows: Int64[Tensor, " pointers"], token_rows: Int64[Tensor, " _"]
) -> Units:
    """The units of a batch that have a span, [-1, -1) marking those that have none.

    `spans`: as a dataset holds them, each counted from its document's first token. Raises ValueError for a span that
    is empty or leaves its document.
    """
    check_pointers(unit_rows, len(spans))
    check_pointers(token_rows)
    if len(unit_rows) != len(token_rows):
        raise ValueError(f"units of {len(unit_rows) - 1} documents, but tokens of {len(token_rows) - 1}")
    lengths = spread(token_rows.diff(), unit_rows)
    start, end = spans.to(torch.int64).unbind(1)
    missing = (start == MISSING) & (end == MISSING)
    wrong = ~missing & ((start < 0) | (start >= end) | (end > lengths))
    if bool(wrong.any()):
        unit = int(wrong.nonzero()[0])
        raise ValueError(
            f"unit {unit} of the batch has span [{int(start[unit])}, {int(end[unit])}) "
            f"in a document of {int(lengths[unit])} tokens"
        )
    index, rows = select(~missing, unit_rows)
    first = spread(token_rows[:-1], rows)
    return Units(index, torch.stack([start[index] + first, end[index] + first], dim=1), rows)


@torch.no_grad()
def centrality_weights(
    hidden: Float[Tensor, "tokens hidden"], rows: Int64[Tensor, " pointers"], budget: int = BUDGET
) -> Float[Tensor, " tokens"]:
    """How much each token is attended to by the others of its document, by hidden states alone. No gradient.

        Ĥ_t = H_t / (std of its features, unbiased, + 1e-5)
        S[s,t] = Ĥ_s · Ĥ_t / sqrt(d), -inf on the diagonal
        w_t = (1/N) Σ_s softmax(S[s,:])[t]

    Adds up to 1 in every document; a one-token document has w = 1. Needs three tensors of at most `budget` elements,
    or of N · d for a document longer than that. Raises ValueError for fewer than two features.
    """
    check_pointers(rows, len(hidden))
    features = hidden.shape[1]
    if features < 2:
        raise ValueError(f"the standard deviation of a hidden state needs two features, got {features}")
    buffers = []
    base = torch.zeros(len(rows) - 1, dtype=torch.int64)  # where each document begins in the buffers
    filled = 0
    long = rows.diff().square() > budget
    with torch.autocast(hidden.device.type, enabled=False):
        for group in groups(rows, features, budget, ~long):
            size, width = len(group.members), group.width
            lengths = group.lengths.to(hidden.device, non_blocking=True)[:, None]
            states = _scaled(at_least_float32(group.padded(hidden)))
            scores = torch.bmm(states, states.transpose(1, 2))
            real = torch.arange(width, device=hidden.device) < lengths
            scores.masked_fill_(~real[:, None, :], -torch.inf)
            # one token alone has nothing but itself to attend to
            scores.diagonal(dim1=1, dim2=2).masked_fill_(lengths > 1, -torch.inf)
            scores.sub_(scores.amax(2, keepdim=True)).exp_()
            share = real / (scores.sum(2) * lengths)
            buffers.append(torch.bmm(share[:, None, :], scores).flatten())
            base[group.members] = filled + width * torch.arange(size)
            filled += size * width
        for document in long.nonzero().flatten().tolist():
            first, last = rows[document : document + 2].tolist()
            buffers.append(_centrality_in_blocks(hidden[first:last], budget))
            base[document] = filled
            filled += last - first
    if not buffers:
        return at_least_float32(hidden[:, 0])
    place = spread((base - rows[:-1]).to(hidden.device, non_blocking=True), rows)
    return torch.cat(buffers).index_select(0, place + torch.arange(len(hidden), device=hidden.device))


def _scaled(states: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows hidden"]:
    """Ĥ_t / d^(1/4), whose inner products are the scores."""
    features = states.shape[-1]
    # Two passes by hand: torch.std over the last dimension takes five times as long on a CPU.
    centred = states - states.mean(-1, keepdim=True)
    std = torch.linalg.vector_norm(centred, dim=-1, keepdim=True) * (features - 1) ** -0.5
    del centred
    scaled: Tensor = states * (features**-0.25 / (std + STD_EPSILON))
    return scaled


def _centrality_in_blocks(hidden: Float[Tensor, "tokens hidden"], budget: int) -> Float[Tensor, " tokens"]:
    """Of one document of more than one token, some lines of scores at a time: never more than `budget` of them, or a line."""
    states = _scaled(at_least_float32(hidden))
    tokens = len(states)
    lines = max(1, budget // tokens)
    weights = states.new_zeros(tokens)
    for start in range(0, tokens, lines):
        scores = states[start : start + lines] @ states.T
        scores.diagonal(offset=start).fill_(-torch.inf)
        scores.sub_(scores.amax(1, keepdim=True)).exp_()
        weights += (scores.sum(1) * tokens).reciprocal() @ scores
    return weights


def uniform_weights(rows: Int64[Tensor, " pointers"], device: torch.device | str = "cpu") -> Float[Tensor, " tokens"]:
    """1/N for each of a document's N tokens, so that units are plain means."""
    return spread(1 / rows.diff().to(device, torch.float32), rows)


def pool(
    hidden: Float[Tensor, "tokens hidden"], weights: Float[Tensor, " tokens"], spans: Int64[Tensor, "units 2"]
) -> Float[Tensor, "units hidden"]:
    """U_k = Σ_{t∈k} w_t H_t / Σ_{t∈k} w_t for each span. Differentiable in `hidden` and `weights`.

    A unit whose weights add up to nothing is the plain mean. Costs O(span tokens · d) time and O((tokens + units) · d)
    memory: a sparse product that copies no hidden state, though nested spans hold each token many times over.
    """
    rows, token = _span_tokens(spans, len(hidden), hidden.device)
    states = at_least_float32(hidden)
    shares = normalize_rows(weights.to(states.dtype)[token], rows)
    offsets = rows.to(states.device, non_blocking=True)
    pooled: Tensor = F.embedding_bag(
        token, states, offsets, mode="sum", per_sample_weights=shares, include_last_offset=True
    )
    return pooled


def unit_weights(
    weights: Float[Tensor, " tokens"], spans: Int64[Tensor, "units 2"], rows: Int64[Tensor, " pointers"]
) -> Float[Tensor, " units"]:
    """ω_k = Σ_{t∈k} w_t, normalised to add up to 1 within each document (`rows`: units of each).

    For some of the units only: `normalize_rows(unit_weights(…)[index], rows of those)`.
    """
    check_pointers(rows, len(spans))
    members, token = _span_tokens(spans, len(weights), weights.device)
    return normalize_rows(sum_rows(weights[token], members), rows)


def covered(spans: Int64[Tensor, "units 2"], tokens: int) -> Bool[Tensor, " tokens"]:
    """Which tokens of the batch lie in at least one span; on the CPU."""
    _check_spans(spans, tokens)
    depth = torch.zeros(tokens + 1, dtype=torch.int64)
    for edge, step in zip(spans.unbind(1), (1, -1), strict=True):
        depth.index_add_(0, edge, torch.full_like(edge, step))
    return depth.cumsum(0)[:-1] > 0


def relations(
    units: Float[Tensor, "units hidden"],
    rows: Int64[Tensor, " pointers"],
    later: Int64[Tensor, " units"] | None = None,
    budget: int = BUDGET,
) -> Float[Tensor, " pairs"]:
    """Cosine of every pair of units of one document, as flat upper triangles (`trainer.maths.triangle`). Differentiable.

        cos(U_i, U_j) = U_i · U_j / (max(|U_i|, 1e-8) max(|U_j|, 1e-8)), clipped to [-1, 1]

    So a zero vector has cosine 0 with everything. Where it is clipped the cosine has no gradient. `later`, `budget` and
    memory: as of `pair_products`.
    """
    check_pointers(rows, len(units))
    unit = at_least_float32(units)
    norm: Tensor = torch.linalg.vector_norm(unit, dim=1, keepdim=True)
    return pair_products(unit / norm.clamp_min(NORM_EPSILON), rows, later, budget).clamp(-1, 1)


def pair_products(
    units: Float[Tensor, "units hidden"],
    rows: Int64[Tensor, " pointers"],
    later: Int64[Tensor, " units"] | None = None,
    budget: int = BUDGET,
) -> Float[Tensor, " pairs"]:
    """U_i · U_j of the pairs that count, by `later` (`trainer.maths.triangle`); None: of all. Differentiable.

    Of documents all of whose pairs count it needs every full matrix at once (Σ K², with padding), and padded units of at
    most `budget` elements a group, or of one document. Of one that is cut to a band, of at most w - 1 units behind each,
    it needs a copy of the units and three tensors of 2wK elements.
    """
    later = later_units(rows) if later is None else later
    whole = whole_documents(rows, later)
    buffers = []
    base = torch.zeros(len(rows) - 1, dtype=torch.int64)  # where each document's matrix begins in the buffers
    widths = torch.zeros_like(base)  # from a pair to that of the next first unit with the same second one
    filled = 0
    with torch.autocast(units.device.type, enabled=False):
        for group in groups(rows, units.shape[1], budget, whole):
            size, width = len(group.members), group.width
            padded = group.padded(units)
            buffers.append(torch.bmm(padded, padded.transpose(1, 2)).flatten())
            base[group.members] = filled + width**2 * torch.arange(size)
            widths[group.members] = width
            filled += size * width**2
        if not bool(whole.all()):
            documents = torch.split(units, rows.diff().tolist())
            for document in (~whole).nonzero().flatten().tolist():
                width = int(later[rows[document] : rows[document + 1]].max()) + 1
                buffers.append(_band(documents[document], width).flatten())
                base[document], widths[document] = filled, width - 1
                filled += len(buffers[-1])
    if not buffers:
        return units.flatten()[:0]
    left, right = unit_pairs(later, units.device)
    local = torch.arange(len(units)) - spread(rows[:-1], rows)
    # where, in the buffers, a unit's line would have the batch's first unit
    line = spread(base - rows[:-1], rows) + local * spread(widths, rows)
    return torch.cat(buffers).index_select(0, line.to(units.device, non_blocking=True)[left] + right)


def _band(units: Float[Tensor, "units hidden"], width: int) -> Float[Tensor, "padded_units width"]:
    """U_i · U_(i+δ) as [i, δ], δ from 0 to width - 1, of one document; 0 behind its last unit. Differentiable.

    In blocks of `width` units, each with itself and with the next: twice the products that are needed, and no others.
    """
    blocks = -(-len(units) // width)
    padded = F.pad(units, (0, 0, 0, blocks * width - len(units))).view(blocks, width, -1)
    own = torch.bmm(padded, padded.transpose(1, 2))
    following = torch.bmm(padded[:-1], padded[1:].transpose(1, 2))
    both = torch.cat([own, F.pad(following, (0, 0, 0, 0, 0, 1))], dim=2)
    # lines of one element more: each then begins at its own unit
    skewed = F.pad(both.flatten(1), (0, width)).view(blocks, width, 2 * width + 1)
    return skewed[:, :, :width].flatten(0, 1)


def _check_spans(spans: Tensor, tokens: int) -> None:
    if spans.device.type != "cpu":
        raise ValueError(f"spans belong on the CPU, these are on {spans.device}")
    start, end = spans.unbind(1)
    if bool(((start < 0) | (start >= end) | (end > tokens)).any()):
        raise ValueError(f"every span must hold at least one of the batch's {tokens} tokens and no others")


def _span_tokens(spans: Tensor, tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The tokens of every span one after the other, on `device`, and the pointers of each span's tokens."""
    _check_spans(spans, tokens)
    rows = pointers(spans[:, 1] - spans[:, 0])
    shift = spread((spans[:, 0] - rows[:-1]).to(device, non_blocking=True), rows)
    return rows, shift + torch.arange(int(rows[-1]), device=device)


def student_units(
    hidden: Float[Tensor, "tokens hidden"],
    rows: Int64[Tensor, " pointers"],
    spans: Int64[Tensor, "units 2"],
    weights: Weights,
) -> Float[Tensor, "units hidden"]:
    """The student's pooled units, each by the student's own token weights, through which no gradient flows.

    `rows`: tokens of each document; `spans`: [start, end) in the tokens of the batch. At least float32.
    """
    token = uniform_weights(rows, hidden.device) if weights == "uniform" else centrality_weights(hidden, rows)
    return pool(hidden, token, spans)
