"""Losses and a student's gradients are the same from a cache as from the teacher's own forward pass (invariant 1).

Both sides of the comparison are written here, in float64, from the equations: what the plain model gives for each document
alone, turned into signals with no help of the code under test, beside what is read from a cache. The student is random:
hidden states of the teacher's own tokens, a map from them to each teacher layer, and an output matrix.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from datasets import load_from_disk

from pipeline.cache.plan import cache
from pipeline.cache.verify import verify
from schemas import embedded
from trainer.cache import TeacherCache

ROWS, TOPK, STUDENT = 4, 64, 20
LAYERS = {1: "phrases", 2: "words", 4: "chunks"}
SIGNALS = ["relations", "units", "states", "final", "topk", "attention"]
SIZES = {
    "vocab_size": 4096,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
}
GATED = SIZES | {"intermediate_size": 64, "num_key_value_heads": 2, "initializer_range": 0.2}
TEACHERS = {
    "llama": (transformers.LlamaConfig(**GATED), "covered"),
    "gpt2": (transformers.GPT2Config(**SIZES, initializer_range=0.2), "all"),
    "gemma": (
        transformers.Gemma2Config(
            **GATED,
            head_dim=12,
            query_pre_attn_scalar=12,
            sliding_window=32,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        ),
        "covered",
    ),
    # its last hidden state is narrower than the others
    "opt_projected": (
        transformers.OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=24, do_layer_norm_before=False, init_std=0.2),
        "all",
    ),
}
#: Types in which vectors are stored; what others round is seen in `tests/pipeline/cache/test_cache.py`.
STORAGE = {"fp32": 1e-5, "bf16": 1e-2}


def tolerance(loss, storage):
    """Relative, of a loss and of its gradient: invariant 1's.

    Log-probabilities of `topk`, here from about -10, are off by up to 2^-11 of themselves, so probabilities, relatively,
    by up to ten times that.
    """
    return {"dsa": 1e-4, "topk_kl": 10 * 2**-11}.get(loss, STORAGE[storage])


@dataclass
class Layer:
    """What a teacher says of one layer of one document, in float64."""

    spans: list  # [start, end) of the units that have one
    unit_weights: torch.Tensor
    relations: torch.Tensor
    units: torch.Tensor
    place: dict  # token -> its place among the kept states
    states: torch.Tensor
    token_weights: torch.Tensor
    attention: torch.Tensor


@dataclass
class Document:
    """What a teacher says of one document."""

    positions: list  # whose next token is the response's
    layers: dict
    normed: dict  # layer -> logits of its kept states behind the final norm, where there is one
    logits: torch.Tensor
    topk: tuple


def centrality(hidden):
    scaled = hidden / (hidden.std(1, keepdim=True) + 1e-5)
    scores = scaled @ scaled.T / hidden.shape[1] ** 0.5
    return scores.fill_diagonal_(-torch.inf).softmax(1).mean(0)


def pooled(hidden, weights, spans):
    shares = [weights[a:b] for a, b in spans]
    # attention within a window pays some units nothing at all
    shares = [share / share.sum() if share.sum() > 0 else torch.full_like(share, 1 / len(share)) for share in shares]
    return torch.stack([share @ hidden[a:b] for share, (a, b) in zip(shares, spans, strict=True)])


def cosines(units):
    directions = F.normalize(units, dim=1)
    return directions @ directions.T


def positions(row):
    return [token - 1 for first, last in row["teacher_responses"] for token in range(max(first, 1), last)]


def from_model(model, row, state_tokens):
    ids = torch.tensor(row["teacher_input_ids"])[None]
    with torch.no_grad():
        output = model(ids, output_hidden_states=True, output_attentions=True, use_cache=False)
    layers = {}
    for layer, name in LAYERS.items():
        hidden = output.hidden_states[layer][0].double()
        spans = [span for span in row[f"teacher_{name}"] if span[0] >= 0]
        weights = centrality(hidden)
        units = pooled(hidden, weights, spans)
        shares = torch.stack([weights[a:b].sum() for a, b in spans])
        inside = {token for a, b in spans for token in range(a, b)}
        kept = [token for token in range(len(hidden)) if state_tokens == "all" or token in inside]
        attention = output.attentions[layer - 1][0, :, -1].double().sum(0)
        layers[layer] = Layer(
            spans=spans,
            unit_weights=shares / shares.sum(),
            relations=cosines(units),
            units=units,
            place={token: place for place, token in enumerate(kept)},
            states=hidden[kept],
            token_weights=weights[kept],
            attention=attention / attention.sum(),
        )
    logits = output.logits[0].double()
    best = logits.log_softmax(1).topk(TOPK)
    normed = {layer: logits_behind_norm(model, of.states) for layer, of in layers.items() if layer < max(LAYERS)}
    return Document(positions(row), layers, normed, logits, (best.indices, best.values))


def logits_behind_norm(model, states):
    """As the model itself has them, by its own modules; as they are, where it has no norm."""
    norm = getattr(model.base_model, "norm", None) or getattr(model.base_model, "ln_f", None)
    if norm is None:
        return states
    with torch.no_grad():
        logits = model.get_output_embeddings()(norm(states.float())).double()
    cap = getattr(model.config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


def from_cache(read, number, row):
    layers = {}
    for layer, name in read.layers.items():
        spans = row[f"teacher_{name}"]
        layers[layer] = Layer(
            spans=[spans[unit] for unit in read.unit_index(number, layer).tolist()],
            unit_weights=read.unit_weights(number, layer).double(),
            relations=read.relations(number, layer).double(),
            units=read.units(number, layer).double(),
            place={token: place for place, token in enumerate(read.state_index(number, layer).tolist())},
            states=read.states(number, layer).double(),
            token_weights=read.token_weights(number, layer).double(),
            attention=read.attention(number, layer).double(),
        )
    indices, values = read.topk(number)
    inner = {layer: read.states(number, layer) for layer in layers if layer < max(LAYERS)}
    if read.knows_norm:
        inner = {layer: read.head.logits(read.head.norm(states)) for layer, states in inner.items()}
    normed = {layer: each.double() for layer, each in inner.items()}
    return Document(positions(row), layers, normed, read.logits(number).double(), (indices, values.double()))


class Student:
    """Leaves to take gradients of: the same for every teacher of these widths."""

    def __init__(self, rows, widths):
        random = torch.Generator().manual_seed(9)

        def leaf(*shape):
            return torch.randn(*shape, generator=random, dtype=torch.float64, requires_grad=True)

        self.states = [{layer: leaf(len(row["teacher_input_ids"]), STUDENT) for layer in LAYERS} for row in rows]
        self.maps = {layer: leaf(STUDENT, width) for layer, width in widths.items()}
        self.head = leaf(STUDENT, SIZES["vocab_size"])
        self.leaves = [*(leaf for each in self.states for leaf in each.values()), *self.maps.values(), self.head]

    def log_probabilities(self, number, document):
        return self.of_layer(number, max(LAYERS), list(document.positions))

    def of_layer(self, number, layer, tokens):
        return (self.states[number][layer][tokens] @ self.head / STUDENT**0.5).log_softmax(1)


def dsa(student, documents):
    """Mean over layers of Σ_{i≠j} ω_i ω_j (cos^S - cos^T)² / Σ_{i≠j} ω_i ω_j."""
    terms = []
    for layer in LAYERS:
        above = below = 0
        for number, document in enumerate(documents):
            of, hidden = document.layers[layer], student.states[number][layer]
            units = pooled(hidden, centrality(hidden.detach()), of.spans)
            pair = of.unit_weights[:, None] * of.unit_weights * (1 - torch.eye(len(units), dtype=torch.float64))
            above = above + (pair * (cosines(units) - of.relations).square()).sum()
            below = below + pair.sum()
        terms.append(above / below)
    return sum(terms) / len(terms)


def aligned(student, documents, pairs_of):
    """Mean over layers of Σ w (1 - cos(W H^S, H^T)) / Σ w, over what `pairs_of` makes of a document's layer."""
    terms = []
    for layer, to_teacher in student.maps.items():
        above = below = 0
        for number, document in enumerate(documents):
            mine, theirs, weights = pairs_of(document.layers[layer], student.states[number][layer])
            above = above + (weights * (1 - F.cosine_similarity(mine @ to_teacher, theirs, dim=1))).sum()
            below = below + weights.sum()
        terms.append(above / below)
    return sum(terms) / len(terms)


def covered_tokens(of, hidden):
    tokens = sorted({token for a, b in of.spans for token in range(a, b)})
    places = [of.place[token] for token in tokens]
    return hidden[tokens], of.states[places], of.token_weights[places]


def whole_units(of, hidden):
    return pooled(hidden, centrality(hidden.detach()), of.spans), of.units, of.unit_weights


def units_by_attention(of, hidden):
    """As SRA pools, with the teacher's weights for both sides; states that no unit covers are not looked at."""
    states = torch.zeros(len(hidden), of.states.shape[1], dtype=torch.float64)
    states[list(of.place)] = of.states
    shares = torch.stack([of.attention[a:b].sum() for a, b in of.spans])
    return pooled(hidden, of.attention, of.spans), pooled(states, of.attention, of.spans), shares


def at_positions(student, documents, divergence):
    total = sum(
        divergence(document, student.log_probabilities(number, document)).sum()
        for number, document in enumerate(documents)
    )
    return total / sum(len(document.positions) for document in documents)


def behind_norm(student, documents):
    """FDD's first part with the final norm, at the states that are kept: a mean over layers of KL(p ‖ q)."""
    total = 0
    for number, document in enumerate(documents):
        for layer, normed in document.normed.items():
            q = student.of_layer(number, layer, list(document.layers[layer].place))
            p = normed.log_softmax(1)
            total = total + (p.exp() * (p - q[:, : p.shape[1]])).sum() / len(p)
    return total / len(documents)


def forward_kl(document, q):
    p = document.logits[list(document.positions)].log_softmax(1)
    return p.exp() * (p - q)


def skewed_reverse_kl(document, q):
    """KL(q ‖ (1-λ)p + λq), λ = 0.1."""
    p = document.logits[list(document.positions)].softmax(1)
    return q.exp() * (q - (0.9 * p + 0.1 * q.exp()).log())


def topk_kl(document, q):
    indices, p = (each[list(document.positions)] for each in document.topk)
    return p.exp() * (p - q.gather(1, indices))


LOSSES = {
    "dsa": dsa,
    "hidden": lambda student, documents: aligned(student, documents, covered_tokens),
    "unit_hidden": lambda student, documents: aligned(student, documents, whole_units),
    "attention": lambda student, documents: aligned(student, documents, units_by_attention),
    "forward_kl": lambda student, documents: at_positions(student, documents, forward_kl),
    "skewed_reverse_kl": lambda student, documents: at_positions(student, documents, skewed_reverse_kl),
    "topk_kl": lambda student, documents: at_positions(student, documents, topk_kl),
    "behind_norm": behind_norm,
}


def with_gradient(loss, student, documents):
    value = loss(student, documents)
    gradients = torch.autograd.grad(value, student.leaves, allow_unused=True)
    return value.detach(), torch.cat([each.flatten() for each in gradients if each is not None])


@pytest.fixture(scope="module")
def rows(prepared):
    return load_from_disk(str(prepared)).select(range(ROWS)).to_list()


@pytest.fixture(scope="module", params=TEACHERS)
def live(request, rows, tmp_path_factory):
    """A random teacher's folder, which of its states are to be kept, a student, and each loss from the model itself."""
    config, state_tokens = TEACHERS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(1)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for file in Path(embedded.resolve("embedded:sentencepiece-bpe")).glob("tokenizer*.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    documents = [from_model(model, row, state_tokens) for row in rows]
    student = Student(rows, {layer: of.states.shape[1] for layer, of in documents[0].layers.items()})
    return (
        folder,
        state_tokens,
        student,
        {name: with_gradient(loss, student, documents) for name, loss in LOSSES.items()},
    )


@pytest.mark.parametrize("storage", STORAGE)
def test_losses_and_gradients(cache_plan, live, rows, tmp_path, storage):
    folder, state_tokens, student, expected = live
    plan = cache_plan(
        teacher={"model": str(folder)},
        layers=[{"layer": layer, "granularity": name} for layer, name in LAYERS.items()],
        signals=SIGNALS,
        storage=dict.fromkeys(("units", "states", "final"), storage),
        state_tokens=state_tokens,
        topk=TOPK,
        limit=ROWS,
    )
    manifest = cache(plan, tmp_path / "cache", workers=1, quiet=True).manifest
    files = [manifest.index, manifest.head, *manifest.shards]
    assert sum(plan.sizes().values()) == pytest.approx(sum(file.bytes for file in files), rel=0.02)
    assert verify(tmp_path / "cache", quick=False, dataset=None).problems == []
    read = TeacherCache(tmp_path / "cache")
    assert read.knows_norm == (folder.name[:3] != "opt")
    documents = [from_cache(read, number, row) for number, row in enumerate(rows)]
    for name, loss in LOSSES.items():
        value, gradient = with_gradient(loss, student, documents)
        live_value, live_gradient = expected[name]
        off = float((value - live_value).abs() / live_value.abs())
        turned = float((gradient - live_gradient).norm() / live_gradient.norm())
        assert max(off, turned) <= tolerance(name, storage), (name, off, turned)
