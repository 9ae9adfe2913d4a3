"""A parser's network for inference: the tokens of a batch lie one after the other, with no padding between sentences.

Every linear layer, norm and activation runs on real tokens only, and attention on runs of equally long sentences, which
need no mask. q, k and v are one product, as are benepar's per-head weights. This is BERT's and benepar's arithmetic in
another order of summation: float32 results agree to rounding. Encoders other than BERT run through transformers, padded,
and are packed behind it.
"""

import copy
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pipeline.parse import network
from pipeline.parse.attention import Attention, Run, attention, compiled_attention, runs_of
from pipeline.parse.int8 import INSIDE as INSIDE_INT8
from pipeline.parse.int8 import Int8Head, Int8Linear
from pipeline.parse.network import Network
from pipeline.parse.stored import StoredBert
from schemas.errors import UsageError

Linear = Callable[[Tensor], Tensor]


def packable(encoder: nn.Module) -> bool:
    """Whether `PackedBert` computes what this encoder does."""
    if isinstance(encoder, StoredBert):
        return True
    from transformers import BertModel

    return type(encoder) is BertModel and encoder.config.is_decoder is not True  # type: ignore[union-attr]


def activation_named(name: str) -> Linear:
    """An activation by the name that a model's config gives it."""
    if name in ("gelu", "relu"):  # so that a parser of ours needs nothing of transformers
        return F.gelu if name == "gelu" else F.relu
    from transformers.activations import ACT2FN

    return cast(Linear, ACT2FN[name])


class LinearOf(Protocol):
    """Makes layers `before(x) W' + b` of a precision; `before` by the name that a model's config gives it."""

    def __call__(self, weight: Tensor, bias: Tensor | None, before: str | None = None) -> Linear: ...


def float_linear(weight: Tensor, bias: Tensor | None, before: str | None = None) -> Linear:
    """A layer in the precision of its weights."""
    weight = weight.detach().contiguous()
    if before is None:
        return lambda x: F.linear(x, weight, bias)
    activation = activation_named(before)
    return lambda x: F.linear(activation(x), weight, bias)


def int8_linear(weight: Tensor, bias: Tensor | None, before: str | None = None) -> Linear:
    """A layer on 8-bit integers."""
    inside = before if before in INSIDE_INT8 else None
    layer = Int8Linear(weight.detach(), None if bias is None else bias.detach(), inside)
    if before == inside:
        return layer
    activation = activation_named(str(before))
    return lambda x: layer(activation(x))


class PackedBert:
    """BERT (Devlin et al. 2019) on packed tokens."""

    def __init__(self, encoder: Any, linear: LinearOf, attention: Attention) -> None:
        self.embeddings = encoder.embeddings
        self.attention = attention
        self.heads = encoder.config.num_attention_heads
        self.layers = []
        for layer in encoder.encoder.layer:
            own, out = layer.attention.self, layer.attention.output
            qkv = (own.query, own.key, own.value)
            weight, bias = torch.cat([part.weight for part in qkv]), torch.cat([part.bias for part in qkv])
            products = (
                linear(weight, bias),
                linear(out.dense.weight, out.dense.bias),
                linear(layer.intermediate.dense.weight, layer.intermediate.dense.bias),
                linear(layer.output.dense.weight, layer.output.dense.bias, encoder.config.hidden_act),
            )
            self.layers.append((*products, out.LayerNorm, layer.output.LayerNorm))

    def __call__(
        self, ids: Int64[Tensor, " subwords"], positions: Int64[Tensor, " subwords"], runs: Sequence[Run]
    ) -> Float[Tensor, "subwords d"]:
        """Last hidden states."""
        table = self.embeddings
        x = table.word_embeddings(ids) + table.token_type_embeddings.weight[0]
        x = table.LayerNorm(x + table.position_embeddings(positions))
        for qkv, output, up, down, norm_attention, norm in self.layers:
            q, k, v = qkv(x).view(len(x), 3, self.heads, -1).unbind(1)
            x = norm_attention(output(self.attention(q, k, v, runs, q.shape[-1] ** -0.5).flatten(1)) + x)
            x = norm(down(up(x)) + x)
        hidden: Tensor = x
        return hidden


class PackedCharts:
    """benepar's partitioned transformer (Kitaev & Klein 2018, section 3) on packed words: content and position apart."""

    def __init__(self, parser: Network, linear: LinearOf, attention: Attention) -> None:
        self.timing = parser.add_timing
        self.attention = attention
        self.layers = []
        for layer in parser.encoder.layers:
            own = layer.self_attn
            heads, _, _, half = own.w_qkv_c.shape
            self.heads, self.half, self.scale = heads, half, own.scaling_factor
            # [head, input, qkv, feature] -> one output row for each of qkv, head, feature
            qkv = [linear(w.permute(2, 0, 3, 1).flatten(0, 2), None) for w in (own.w_qkv_c, own.w_qkv_p)]
            out = [linear(w.flatten(0, 1).T, None) for w in (own.w_o_c, own.w_o_p)]
            up = [linear(part.weight, part.bias) for part in (layer.linear1.linear_c, layer.linear1.linear_p)]
            down = [linear(part.weight, part.bias, "relu") for part in (layer.linear2.linear_c, layer.linear2.linear_p)]
            self.layers.append((qkv, out, up, down, layer.norm_attn, layer.norm_ff))

    def __call__(
        self, content: Float[Tensor, "words half"], positions: Int64[Tensor, " words"], runs: Sequence[Run]
    ) -> Float[Tensor, "words d_model"]:
        """Annotations of words, start and stop included."""
        x = self.timing.norm(torch.cat([content, self.timing.timing_table[positions]], -1))
        for qkv, output, up, down, norm_attention, norm in self.layers:
            halves = [part(half) for part, half in zip(qkv, x.chunk(2, -1), strict=True)]
            shape = (len(x), 3, self.heads, self.half)
            q, k, v = torch.cat([part.view(shape) for part in halves], -1).unbind(1)
            mixed = self.attention(q, k, v, runs, self.scale)
            out = [part(half.flatten(1)) for part, half in zip(output, mixed.chunk(2, -1), strict=True)]
            x = norm_attention(x + torch.cat(out, -1))
            inner = [part(half) for part, half in zip(up, x.chunk(2, -1), strict=True)]
            x = norm(x + torch.cat([part(half) for part, half in zip(down, inner, strict=True)], -1))
        annotations: Tensor = x
        return annotations


class PackedParser:
    """Words to fenceposts of a batch: what `network.fenceposts` gives, for inference.

    `precision` is that of the linear layers: `float32`; `bf16`, all weights and activations (meant for GPUs);
    `int8`, weights by output row and activations by token, on the CPU.
    """

    def __init__(self, parser: Network, precision: str, device: str) -> None:
        if precision not in ("float32", "bf16", "int8"):
            raise UsageError(f"A parser runs in float32, bf16 or int8, not in {precision!r}.")
        if precision == "int8" and device != "cpu":
            raise UsageError(f"Parser precision int8 is for the CPU, not {device}; use bf16 or float32 there.")
        try:
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:  # torch's own words run over several lines
            raise UsageError(
                f"There is no device {device!r} to run the parser on: {str(error).splitlines()[0]}"
            ) from error
        # a copy, since a conversion works in place and the caller's parser is the caller's
        self.parser = copy.deepcopy(parser).to(device, torch.bfloat16) if precision == "bf16" else parser.to(device)
        self.device = torch.device(device)

        linear, attend = (int8_linear, compiled_attention) if precision == "int8" else (float_linear, attention)
        parser = self.parser
        bert = parser.pretrained_model
        self.bert = PackedBert(bert, linear, attend) if packable(bert) else None
        self.project = linear(parser.project_pretrained.weight, None)
        self.charts = PackedCharts(parser, linear, attend) if parser.encoder is not None else None
        self.head = Int8Head(parser.f_label) if precision == "int8" else None

    def first_layer(self, posts: Float[Tensor, "posts d_model"]) -> Float[Tensor, "posts d_label"]:
        """`network.first_layer`."""
        return network.first_layer(self.parser, posts) if self.head is None else self.head.first_layer(posts)

    def label_scores(
        self, projected: Float[Tensor, "posts d_label"], left: Int64[Tensor, " spans"], right: Int64[Tensor, " spans"]
    ) -> Float[Tensor, "spans labels_but_empty"]:
        """`network.label_scores`."""
        if self.head is not None:
            return self.head.label_scores(projected, left, right)
        return network.label_scores(self.parser, projected, left, right)

    def hidden_states(self, batch: Sequence[network.Encoded]) -> Float[Tensor, "subwords d"]:
        """The encoder's last hidden states; start and end tokens included."""
        lengths = [len(item.input_ids) for item in batch]
        if self.bert is None:
            hidden, mask = network.hidden_states(self.parser, batch)
            return hidden[mask]
        ids = torch.from_numpy(np.concatenate([item.input_ids for item in batch])).to(self.device)
        positions = torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])).to(self.device)
        return self.bert(ids, positions, runs_of(lengths))

    def fenceposts(self, batch: Sequence[network.Encoded]) -> tuple[Float[Tensor, "posts d_model"], Tensor | None]:
        """Fencepost vectors of all sentences, n+1 for n words, and tag scores [words, tags] if the model tags."""
        hidden = self.hidden_states(batch)
        lengths = [item.words + 2 for item in batch]  # start and stop are words to benepar
        firsts = accumulate((network.positions(self.parser, item) for item in batch), initial=0)
        places = np.concatenate([item.words_from_tokens + first for item, first in zip(batch, firsts, strict=False)])
        words = self.project(hidden[torch.from_numpy(places).to(self.device)])
        if self.charts is not None:
            within = torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])).to(self.device)
            words = self.charts(words, within, runs_of(lengths))
            words = torch.cat([words[:, 0::2], words[:, 1::2]], -1)
        last = np.cumsum(lengths) - 1
        keep = np.ones(last[-1] + 1, dtype=bool)
        keep[last] = False  # no fencepost begins at a stop
        left = torch.from_numpy(np.flatnonzero(keep)).to(self.device)
        half = words.shape[1] // 2
        posts = torch.cat([words[left, :half], words[left + 1, half:]], -1)
        tags = None
        if self.parser.f_tag is not None:
            keep[last - np.array(lengths) + 1] = False  # nor has a start a tag
            tags = self.parser.f_tag(words[torch.from_numpy(np.flatnonzero(keep)).to(self.device)])
        return posts, tags
