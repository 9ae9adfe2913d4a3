"""Causal attention over documents that lie one after the other, each by itself, as an attention function of transformers.

Nothing is padded but queries, keys and values of documents of like length that are attended to together; and since
padding stands on the right, a causal document never sees it, so no mask is needed either. No [tokens, tokens] matrix of
the batch exists, and of a document only where a sliding window or a soft cap leaves no choice, in blocks of queries.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor, nn
from transformers import AttentionInterface

from trainer.maths.ragged import groups, normalize_rows

NAME: Final = "mta_packed"
#: The keyword under which a body that hands unknown ones on to its attention may be given its `Pack`. What is recomputed
#: in the backward pass then has the pack of its own forward pass, whenever and in whichever thread that happens.
PACK: Final = "mta_pack"
#: Queries at once where scores have to be masked or capped.
QUERIES_AT_ONCE: Final = 256
#: Multiplications that padding may cost on a GPU, where one more block is some twenty kernels more a layer (reckoned).
FREE_PADDING_ON_GPU: Final = 2**28
#: What models tell an attention function that is either nothing to it here or known otherwise.
_HARMLESS: Final = frozenset(
    {"position_ids", "use_cache", "output_attentions", "output_hidden_states", "is_causal", "cache_position"}
)


class NotPackable(Exception):  # noqa: N818  # no error: the model is run another way
    """The model attends in a way that this function does not know."""


@dataclass(frozen=True)
class Block:
    """Documents attended to together, padded on the right to `width`."""

    documents: int
    width: int
    lengths: Int64[Tensor, " documents"]
    start: int | None  # of the first token, where they lie in one piece and are equally long; else None, and
    places: Int64[Tensor, " padded"] | None  # the token at each padded place (padding: the document's last)
    real: Int64[Tensor, " real"] | None  # padded places that are not padding
    tokens: Int64[Tensor, " real"] | None  # the token at each of these

    def to(self, device: torch.device) -> "Block":
        """The same on a device."""
        if self.places is None or self.real is None or self.tokens is None:
            return replace(self, lengths=self.lengths.to(device))
        places, real, tokens = (each.to(device) for each in (self.places, self.real, self.tokens))
        return replace(self, lengths=self.lengths.to(device), places=places, real=real, tokens=tokens)

    def gather(self, values: Float[Tensor, "heads tokens features"]) -> Float[Tensor, "documents heads width features"]:
        """Its documents' values; a view where they lie in one piece."""
        if self.places is None:
            assert self.start is not None
            mine = values[:, self.start : self.start + self.documents * self.width]
        else:
            mine = values.index_select(1, self.places)
        return mine.reshape(len(values), self.documents, self.width, -1).transpose(0, 1)

    def scatter(self, values: Float[Tensor, "documents width ..."], out: Float[Tensor, "tokens ..."]) -> None:
        """Write its documents' values to their tokens."""
        flat = self.flat(values)
        if self.tokens is None:
            assert self.start is not None
            out[self.start : self.start + len(flat)] = flat
        else:
            out.index_copy_(0, self.tokens, flat)

    def flat(self, values: Float[Tensor, "documents width ..."]) -> Float[Tensor, "real ..."]:
        """Its documents' values one after the other, without padding."""
        flat = values.flatten(0, 1)
        return flat if self.real is None else flat.index_select(0, self.real)

    def order(self) -> Int64[Tensor, " real"]:
        """The token that each of `flat` belongs to."""
        if self.tokens is not None:
            return self.tokens
        assert self.start is not None
        return torch.arange(self.start, self.start + self.documents * self.width, device=self.lengths.device)


def blocks(rows: Int64[Tensor, " pointers"], features: int, free_padding: int | None = None) -> list[Block]:
    """How documents are attended to: those of like length together (`groups`). A function of its arguments only."""
    found = []
    for group in groups(rows, features, free_padding=free_padding):
        documents, width = len(group.members), group.width
        together = bool((group.lengths == width).all()) and bool((group.starts.diff() == width).all())
        if together:
            found.append(Block(documents, width, group.lengths, int(group.starts[0]), None, None, None))
            continue
        place = torch.arange(width)
        places = (place.minimum(group.lengths[:, None] - 1) + group.starts[:, None]).flatten()
        real = (place < group.lengths[:, None]).flatten().nonzero().squeeze(1)
        found.append(Block(documents, width, group.lengths, None, places, real, places[real]))
    return found


@dataclass
class Pack:
    """The batch in work, and what its attention functions note on the way."""

    rows: Int64[Tensor, " pointers"]
    features: int  # about heads · head size: weighs padding against calls
    attention: frozenset[int] = frozenset()  # decoder layers, counted from 1, whose last query's attention is kept
    sliding: frozenset[int] = frozenset()  # decoder layers that must name their sliding window
    layer: int = 0  # the one in work, counted from 1
    kept: dict[int, Float32[Tensor, " tokens"]] = field(default_factory=dict)
    _blocks: dict[torch.device, list[Block]] = field(default_factory=dict)
    _back: dict[torch.device, Int64[Tensor, " tokens"]] = field(default_factory=dict)

    def blocks(self, device: torch.device) -> list[Block]:
        """Its blocks, on a device."""
        if device not in self._blocks:
            free = FREE_PADDING_ON_GPU if device.type == "cuda" else None
            self._blocks[device] = [block.to(device) for block in blocks(self.rows, self.features, free)]
        return self._blocks[device]

    def join(self, parts: Sequence[Float[Tensor, "_ heads features"]]) -> Float[Tensor, "tokens heads features"]:
        """What its blocks give as `flat`, in the order of the tokens; one permutation, whose gradient is one too."""
        device = parts[0].device
        if len(parts) == 1 and self.blocks(device)[0].tokens is None:
            return parts[0].contiguous()  # as the library's own functions give it: some models take views of it
        if device not in self._back:
            self._back[device] = torch.cat([block.order() for block in self.blocks(device)]).argsort()
        return torch.cat(list(parts)).index_select(0, self._back[device])


_current: ContextVar[Pack | None] = ContextVar("mta_packed_batch", default=None)


@contextmanager
def packed(model: Any, pack: Pack) -> Iterator[None]:
    """While it lasts, the model attends by `attend`, over this batch; then as before."""
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    token = _current.set(pack)
    try:
        yield
    finally:
        _current.reset(token)
        model.set_attn_implementation(before)


@contextmanager
def told_layers(layers: Iterable[nn.Module], pack: Pack) -> Iterator[None]:
    """While it lasts, a pack knows which of these decoder layers is in work."""

    def tell(layer: int) -> Callable[..., None]:
        def before(_module: nn.Module, _arguments: tuple[Any, ...]) -> None:
            pack.layer = layer

        return before

    with ExitStack() as hooks:
        for layer, module in enumerate(layers, 1):
            hooks.callback(module.register_forward_pre_hook(tell(layer)).remove)
        yield


def attend(
    module: nn.Module,
    query: Float[Tensor, "1 heads tokens features"],
    key: Float[Tensor, "1 key_heads tokens features"],
    value: Float[Tensor, "1 key_heads tokens value_features"],
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    mta_pack: Pack | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "1 tokens heads value_features"], None]:
    """Softmax attention of every document of `mta_pack`, or of the current `packed`, to itself, causal; transformers calls it.

    Query i sees keys j with i - `sliding_window` < j <= i; scores are softcap · tanh(score / softcap) where one is given;
    `dropout` is of the probabilities. Raises NotPackable if the model asks for anything else.
    """
    pack = mta_pack if mta_pack is not None else _current.get()
    unknown = sorted(name for name, each in others.items() if each is not None and name not in _HARMLESS)
    causal = getattr(module, "is_causal", True) and others.get("is_causal") is not False
    if pack is None or attention_mask is not None or unknown or not causal or query.shape[2] != key.shape[2]:
        raise NotPackable
    if pack.layer in pack.sliding and sliding_window is None:  # it would come as a mask, and none is made
        raise NotPackable
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    parts = []
    wanted = pack.layer in pack.attention and pack.layer not in pack.kept  # not once more when it is recomputed
    kept = torch.empty(query.shape[2], device=query.device) if wanted else None
    for block in pack.blocks(query.device):
        q, k, v = (block.gather(each[0]) for each in (query, key, value))
        if kept is not None:
            block.scatter(last_query(q, k, block.lengths, scale, sliding_window, softcap), kept)
        if softcap is None and (sliding_window is None or block.width <= sliding_window):
            grouped = k.shape[1] != q.shape[1]
            if grouped and q.device.type == "cuda" and q.dtype == torch.float32:
                # no fused kernel of CUDA's takes both float32 and heads that share keys: all scores would be written out
                k, v, grouped = repeated(k, q.shape[1]), repeated(v, q.shape[1]), False
            mixed = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=scale, dropout_p=dropout, enable_gqa=grouped
            )
        else:
            mixed = _in_parts(q, k, v, scale, sliding_window, softcap, dropout)
        parts.append(block.flat(mixed.transpose(1, 2)))
    if kept is not None:
        pack.kept[pack.layer] = normalize_rows(kept, pack.rows)
    return pack.join(parts)[None], None


AttentionInterface.register(NAME, attend)  # without a mask function of that name, models build no mask for it


def repeated(
    keys: Float[Tensor, "documents key_heads width features"], heads: int
) -> Float[Tensor, "documents heads width features"]:
    """Keys, or values, of every head, where some share them: each as often as it is needed, one after the other."""
    return keys.repeat_interleave(heads // keys.shape[1], 1)


def _scores(
    q: Float[Tensor, "documents heads queries features"],
    k: Float[Tensor, "documents key_heads keys features"],
    scale: float,
    softcap: float | None,
    seen: Bool[Tensor, "#documents #heads queries keys"],
) -> Float32[Tensor, "documents heads queries keys"]:
    """Softmax over the keys that are seen, as the models' own eager attention computes it."""
    keys = repeated(k, q.shape[1])
    scores = q @ keys.transpose(2, 3) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    return scores.masked_fill(~seen, float("-inf")).softmax(-1, dtype=torch.float32)


def _in_parts(
    q: Float[Tensor, "documents heads width features"],
    k: Float[Tensor, "documents key_heads width features"],
    v: Float[Tensor, "documents key_heads width value_features"],
    scale: float,
    sliding_window: int | None,
    softcap: float | None,
    dropout: float,
) -> Float[Tensor, "documents heads width value_features"]:
    """Attention that needs masked or capped scores, some queries at a time, and only the keys that these can see."""
    parts = []
    width = q.shape[2]
    place = torch.arange(width, device=q.device)
    for first in range(0, width, QUERIES_AT_ONCE):
        last = min(first + QUERIES_AT_ONCE, width)
        begin = 0 if sliding_window is None else max(0, first - sliding_window + 1)
        distance = place[first:last, None] - place[None, begin:last]
        seen = distance >= 0 if sliding_window is None else (distance >= 0) & (distance < sliding_window)
        part = q[:, :, first:last], k[:, :, begin:last], v[:, :, begin:last]
        if softcap is None:
            grouped = k.shape[1] != q.shape[1]
            parts.append(
                F.scaled_dot_product_attention(
                    *part, attn_mask=seen, dropout_p=dropout, scale=scale, enable_gqa=grouped
                )
            )
        else:
            values = repeated(part[2], q.shape[1])
            scores = _scores(part[0], part[1], scale, softcap, seen[None, None]).to(q.dtype)
            parts.append(F.dropout(scores, dropout) @ values)
    return torch.cat(parts, 2) if len(parts) > 1 else parts[0]


@torch.no_grad()
def last_query(
    q: Float[Tensor, "documents heads width features"],
    k: Float[Tensor, "documents key_heads width features"],
    lengths: Int64[Tensor, " documents"],
    scale: float,
    sliding_window: int | None,
    softcap: float | None,
) -> Float32[Tensor, "documents width"]:
    """Attention of each document's last query, summed over heads, in float32; nothing for padding."""
    last = q.take_along_dim((lengths - 1)[:, None, None, None], 2)
    place = torch.arange(k.shape[2], device=k.device)
    seen = place < lengths[:, None]
    if sliding_window is not None:
        seen &= place >= lengths[:, None] - sliding_window
    return _scores(last.float(), k.float(), scale, softcap, seen[:, None, None]).sum(1).squeeze(1)
