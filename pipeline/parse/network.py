"""benepar's `ChartParser` under today's transformers: words to fenceposts, fenceposts to span scores.

The weights and modules are benepar's own; three things are done differently, all of them exact.
Words are mapped to subwords for a whole batch at once. The label head's first layer is linear in the difference of two
fenceposts, so it is applied once a fencepost (n times) and not once a span (n² times). Only spans that can exist
(i < j <= n) are scored, without padding.
"""

import html
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from pipeline.parse.chart import triangle
from pipeline.text import Words

#: A parser's modules: benepar's `ChartParser`, or `pipeline.parse.stored.StoredParser`, where no `forward` is called.
Network = Any
#: Forms benepar's spaCy component feeds in place of typographic ones: its models were trained on the plain forms.
PLAIN_FORMS = {
    "`": "'",
    "«": '"',
    "»": '"',
    "‘": "'",
    "’": "'",
    "“": '"',
    "”": '"',
    "„": '"',
    "‹": "'",
    "›": "'",
    "—": "--",
    "](": "(",  # of a link in Markdown: where it leads stands in brackets behind it
}


def with_special_tokens(tokenizer: Any, ids: list[int]) -> list[int]:
    """`ids` between the special tokens that this tokenizer puts around one sequence."""
    from trainer.models.tokenizer import surrounding_tokens

    before, after = surrounding_tokens(tokenizer)
    return before + ids + after


def supply_what_transformers_dropped() -> None:
    """Give fast tokenizers back the one method of transformers 4 that benepar 0.2 calls when it loads a model."""
    from transformers import PreTrainedTokenizerBase

    if not hasattr(PreTrainedTokenizerBase, "build_inputs_with_special_tokens"):
        PreTrainedTokenizerBase.build_inputs_with_special_tokens = with_special_tokens


@dataclass(frozen=True)
class Encoded:
    """One sentence as the encoder reads it."""

    input_ids: Int64[np.ndarray, " subwords"]
    words_from_tokens: Int64[np.ndarray, " words_and_two"]  # start, the last subword of each word, stop

    @property
    def words(self) -> int:
        return len(self.words_from_tokens) - 2


@dataclass(frozen=True)
class Reader:
    """All that `encode` and `padded` read of a parser, for processes that have no use for its weights."""

    retokenizer: Any


#: Full-width forms and mathematical alphanumerics: letters in another dress.
_STYLED = re.compile("[\uff01-\uff5e\U0001d400-\U0001d7ff]")


def plain_form(word: str) -> str:
    """The form of a word that the models know; of a character reference (`&amp;`) the character, of wide and mathematical
    letters (`Ｔｈｅ`, `𝐓𝐡𝐞`) the letters."""
    if word.startswith("&") and word.endswith(";"):
        word = html.unescape(word)
    if _STYLED.search(word):
        word = unicodedata.normalize("NFKC", word)
    return PLAIN_FORMS.get(word, word)


def encode(parser: Network, sentences: Sequence[Words]) -> list[Encoded]:
    """Subwords of each sentence, and for each word the last subword that overlaps it (as benepar's Retokenizer).

    Where that fails for a word without subwords (a control character, say) the neighbouring subword stands in, where
    benepar raises.
    """
    retokenizer = parser.retokenizer
    tokenizer = retokenizer.tokenizer
    texts, starts, ends = [], [], []
    for sentence in sentences:
        words = [plain_form(word) for word in sentence.words]
        lengths = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
        gaps = np.asarray(sentence.space_after, dtype=np.int64)
        end = np.cumsum(lengths + gaps) - gaps
        texts.append("".join(word + " " * space for word, space in zip(words, sentence.space_after, strict=True)))
        starts.append(end - lengths)
        ends.append(end)
    encoded = []
    shift = 1 if retokenizer.is_t5 else 0  # T5's decoder input is shifted right by one
    for item, start, end in zip(tokenizer.backend_tokenizer.encode_batch(texts), starts, ends, strict=True):
        offsets = np.asarray(item.offsets, dtype=np.int64).reshape(-1, 2)
        real = np.flatnonzero(offsets[:, 0] != offsets[:, 1])
        ids = np.asarray(item.ids, dtype=np.int64)
        if retokenizer.is_gpt2:
            ids = np.append(ids, tokenizer.eos_token_id)
        total = len(ids) + shift
        token_end = offsets[real, 1]
        before = np.searchsorted(token_end, end, side="right")
        inside = (
            (before > 0) & (token_end[np.maximum(before - 1, 0)] > start) if len(real) else np.zeros(len(end), bool)
        )
        pick = np.clip(np.where(inside, before - 1, before), 0, max(len(real) - 1, 0))
        place = real[pick] + shift if len(real) else np.zeros(len(end), dtype=np.int64)
        first, last = retokenizer.start_token_idx, retokenizer.stop_token_idx
        frame = [first if first >= 0 else total + first], [last if last >= 0 else total + last]
        encoded.append(Encoded(ids, np.concatenate([frame[0], place, frame[1]]).astype(np.int64)))
    return encoded


def positions(parser: Network, item: Encoded) -> int:
    """How many hidden states the encoder gives for this sentence: T5's decoder has one more than there are subwords."""
    return len(item.input_ids) + bool(parser.retokenizer.is_t5)


@dataclass(frozen=True)
class Padded:
    """Sentences of a batch as the network reads them, padded to the longest, on one device."""

    input_ids: Int64[Tensor, "sentences subwords"]
    attention_mask: Int64[Tensor, "sentences subwords"]
    words_from_tokens: Int64[Tensor, "sentences words_and_two"]
    valid_words: Bool[Tensor, "sentences words_and_two"]
    # counted on the host, where a mask on an accelerator would have to be waited for
    posts: Int64[Tensor, " posts"]  # the fenceposts among sentences · (words + 1)
    inner: Int64[Tensor, " words"]  # the words among sentences · words

    def to(self, device: torch.device, non_blocking: bool = False) -> "Padded":
        """The same on `device`."""
        return Padded(*(getattr(self, part.name).to(device, non_blocking=non_blocking) for part in fields(self)))


def padded(parser: Network, batch: Sequence[Encoded]) -> Padded:
    """`batch` filled up to its longest sentence, on the CPU."""
    pad = parser.retokenizer.tokenizer.pad_token_id or 0
    ids = np.full((len(batch), max(len(item.input_ids) for item in batch)), pad, dtype=np.int64)
    mask = np.zeros(ids.shape, dtype=np.int64)
    places = np.zeros((len(batch), max(item.words for item in batch) + 2), dtype=np.int64)
    valid = np.zeros(places.shape, dtype=bool)
    for row, item in enumerate(batch):
        ids[row, : len(item.input_ids)] = item.input_ids
        mask[row, : len(item.input_ids)] = 1
        places[row, : item.words + 2] = item.words_from_tokens
        valid[row, : item.words + 2] = True
    posts, inner = np.flatnonzero(valid[:, 1:]), np.flatnonzero(valid[:, 2:])
    return Padded(*map(torch.from_numpy, (ids, mask, places, valid, posts, inner)))


def encoder_states(
    parser: Network, input_ids: Int64[Tensor, "sentences subwords"], attention_mask: Int64[Tensor, "sentences subwords"]
) -> tuple[Float[Tensor, "sentences longest d"], Bool[Tensor, "sentences longest"]]:
    """The encoder's last hidden states, and which of them are real."""
    extra: dict[str, Any] = {}
    real = attention_mask
    if parser.retokenizer.is_t5:
        pad = parser.retokenizer.tokenizer.pad_token_id or 0
        real = torch.cat([torch.ones_like(attention_mask[:, :1]), attention_mask], 1)
        extra["decoder_input_ids"] = torch.cat([torch.full_like(input_ids[:, :1], pad), input_ids], 1)
        extra["decoder_attention_mask"] = real
    out = parser.pretrained_model(input_ids, attention_mask=attention_mask, **extra)
    return out.last_hidden_state, real.bool()


def hidden_states(
    parser: Network, batch: Sequence[Encoded]
) -> tuple[Float[Tensor, "sentences longest d"], Bool[Tensor, "sentences longest"]]:
    """The encoder's last hidden states, padded, and which of them are real."""
    device = parser.output_device
    item = padded(parser, batch)
    return encoder_states(parser, item.input_ids.to(device), item.attention_mask.to(device))


def fenceposts(
    parser: Network, batch: Padded
) -> tuple[Float[Tensor, "posts d_model"], Float[Tensor, "words tags"] | None]:
    """Fencepost vectors of all sentences, n+1 for n words, and tag scores if the model tags.

    `batch` lies on the parser's device. Through benepar's own modules, so that gradients and dropout are theirs;
    `pipeline.parse.packed` is the same without.
    """
    hidden, _ = encoder_states(parser, batch.input_ids, batch.attention_mask)
    valid_words = batch.valid_words
    features = hidden.gather(1, batch.words_from_tokens[:, :, None].expand(-1, -1, hidden.shape[-1]))
    features = features * valid_words[:, :, None]
    annotations = parser.project_pretrained(features)
    if parser.encoder is not None:
        annotations = parser.encoder(parser.add_timing(parser.morpho_emb_dropout(annotations)), valid_words)
        annotations = torch.cat([annotations[..., 0::2], annotations[..., 1::2]], -1)
    half = parser.d_model // 2
    posts = torch.cat([annotations[:, :-1, :half], annotations[:, 1:, half:]], -1)
    tags = None
    if parser.f_tag is not None:
        # start and stop are left out: n of n+2 places remain
        tags = parser.f_tag(annotations[:, 1:-1].flatten(0, 1).index_select(0, batch.inner))
    return posts.flatten(0, 1).index_select(0, batch.posts), tags


def span_ends(lengths: Sequence[int]) -> tuple[Int64[Tensor, " spans"], Int64[Tensor, " spans"]]:
    """Rows of `fenceposts` at which every span of every sentence begins and ends, in chart order."""
    offset, left, right = 0, [], []
    for words in lengths:
        a, b = triangle(words)
        left.append(a + offset)
        right.append(b + offset)
        offset += words + 1
    return torch.from_numpy(np.concatenate(left)), torch.from_numpy(np.concatenate(right))


def first_layer(parser: Network, posts: Float[Tensor, "posts d_model"]) -> Float[Tensor, "posts d_label"]:
    """The label head's linear first layer, without bias, once a fencepost."""
    return F.linear(posts, parser.f_label[0].weight)


def label_scores(
    parser: Network,
    projected: Float[Tensor, "posts d_label"],
    left: Int64[Tensor, " spans"],
    right: Int64[Tensor, " spans"],
) -> Float[Tensor, "spans labels_but_empty"]:
    """Scores of the labels 1, 2, … of the given spans; the empty label 0 scores 0 by definition.

    benepar subtracts "fencepost at the start" from "fencepost at the end".
    """
    # `index_select`, since its gradient is a sum by rows: that of `[]` sorts them first on a GPU
    hidden = projected.index_select(0, right) - projected.index_select(0, left) + parser.f_label[0].bias
    scores: Tensor = parser.f_label[3](parser.f_label[2](parser.f_label[1](hidden)))
    return scores
