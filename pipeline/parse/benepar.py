"""benepar's trees, fast: sentences of many documents in one batch, the label head once a fencepost, compiled decoding.

Sentences are taken from all documents of a call, equal ones once, sorted by length and batched under a budget of padded
subwords. The output depends on nothing but the sentences and the recorded config.
"""

from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from benepar.parse_chart import ChartParser
from jaxtyping import Int64
from torch import Tensor

from pipeline.align.units import document_units
from pipeline.parse import model, network
from pipeline.parse.base import Constituents, Document, Sentence, Units, Words
from pipeline.parse.chart import best_trees, span_count
from schemas.config import ParserConfig

#: Where a sentence too long for the model is best cut, best first.
CUTS = (frozenset({".", "!", "?", ";"}), frozenset({":", "—", "–", "--"}), frozenset({",", ")", "]", "|"}))
#: Label-head rows computed at once, to bound memory whatever the sentence lengths (256 MiB at 256 hidden units).
SPANS_AT_ONCE = 1 << 18


class Engine:
    """Labelled spans of sentences from a benepar `ChartParser`."""

    def __init__(self, parser: ChartParser, token_budget: int, device: str = "cpu") -> None:
        self.parser = parser.to(device)
        self.token_budget = token_budget
        self.labels = {
            index: tuple(filter(None, label.split("::"))) for label, index in self.parser.label_vocab.items()
        }
        self.tags = self.parser.tag_from_index
        tokenizer = self.parser.retokenizer.tokenizer
        positions = getattr(self.parser.pretrained_model.config, "max_position_embeddings", None)
        self.max_subwords = min(tokenizer.model_max_length, positions or tokenizer.model_max_length)
        table = (
            self.parser.add_timing.timing_table.shape[0] - 2 if self.parser.encoder is not None else self.max_subwords
        )
        self.max_words = table

    def encode(self, sentences: Sequence[Words]) -> list[network.Encoded]:
        """Subwords of each sentence."""
        return network.encode(self.parser, sentences)

    def fits(self, item: network.Encoded) -> bool:
        """Whether the model can take this sentence."""
        return bool(len(item.input_ids) <= self.max_subwords and item.words <= self.max_words)

    def parse(self, encoded: Sequence[network.Encoded]) -> list[Constituents]:
        """The best tree of each sentence; every one must fit."""
        order = sorted(range(len(encoded)), key=lambda row: (len(encoded[row].input_ids), encoded[row].words, row))
        trees: list[Constituents | None] = [None] * len(encoded)
        at = 0
        while at < len(order):
            end = at + 1
            while end < len(order) and (end + 1 - at) * len(encoded[order[end]].input_ids) <= self.token_budget:
                end += 1
            rows = order[at:end]
            for row, tree in zip(rows, self._batch([encoded[row] for row in rows]), strict=True):
                trees[row] = tree
            at = end
        return [tree for tree in trees if tree is not None]

    @torch.inference_mode()
    def _batch(self, batch: Sequence[network.Encoded]) -> list[Constituents]:
        lengths = np.array([item.words for item in batch], dtype=np.int32)
        posts, tag_scores = network.fenceposts(self.parser, batch)
        left, right = network.span_ends(lengths.tolist())
        spans = np.array([span_count(int(n)) for n in lengths], dtype=np.int64)
        firsts = np.concatenate([[0], np.cumsum(spans)])
        best, label = self._best_labels(posts, left, right, torch.from_numpy(firsts[:-1] + lengths - 1))
        nodes = best_trees(best.float().cpu().numpy(), lengths)
        labels = label.cpu().numpy()[nodes]
        starts, ends = left.numpy()[nodes], right.numpy()[nodes]
        tags = tag_scores.argmax(-1).cpu().numpy() if tag_scores is not None else None
        trees, node, word, post = [], 0, 0, 0
        for n in lengths.tolist():
            mine = slice(node, node + 2 * n - 1)
            kept = labels[mine] > 0
            pairs = np.stack([starts[mine][kept], ends[mine][kept]], 1) - post
            chains = [self.labels[int(index)] for index in labels[mine][kept]]
            repeat = [len(chain) for chain in chains]
            trees.append(
                Constituents(
                    spans=np.repeat(pairs, repeat, axis=0).astype(np.int32),
                    labels=tuple(name for chain in chains for name in chain),
                    tags=tuple(self.tags[int(tag)] for tag in tags[word : word + n]) if tags is not None else None,
                )
            )
            node, word, post = node + 2 * n - 1, word + n, post + n + 1
        return trees

    def _best_labels(
        self,
        posts: Tensor,
        left: Int64[Tensor, " spans"],
        right: Int64[Tensor, " spans"],
        roots: Int64[Tensor, " sentences"],
    ) -> tuple[Tensor, Tensor]:
        """Score and index of each span's best label; a whole sentence must have one if the model was trained so."""
        projected = network.first_layer(self.parser, posts)
        left, right, roots = (index.to(projected.device) for index in (left, right, roots))
        is_root = torch.zeros_like(left, dtype=torch.bool)
        if self.parser.decoder.force_root_constituent:
            is_root[roots] = True
        best, label = [], []
        parts = (torch.split(index, SPANS_AT_ONCE) for index in (left, right, is_root))
        for a, b, root in zip(*parts, strict=True):
            table = F.pad(network.label_scores(self.parser, projected, a, b), (1, 0))
            table[root, 0] = -torch.inf
            top = table.max(1)
            best.append(top.values)
            label.append(top.indices)
        return torch.cat(best), torch.cat(label)


def split_points(words: Sequence[str], longest: int) -> list[int]:
    """Where to cut a sentence so that no piece has more than `longest` words: starts of the pieces after the first.

    A piece ends at the strongest punctuation in its second half, the last such; with none, at `longest`.
    """
    points, start = [], 0
    while len(words) - start > longest:
        window = range(start + longest // 2, start + longest)
        at = next((max(hits) for marks in CUTS if (hits := [i for i in window if words[i] in marks])), None)
        start = start + longest if at is None else at + 1
        points.append(start)
    return points


def pieces(sentence: Sentence, longest: int) -> list[Sentence]:
    """`sentence` itself, or its parts of at most `longest` words."""
    words, space = sentence.words.words, sentence.words.space_after
    bounds = [0, *split_points(words, longest), len(words)]
    return [Sentence(Words(words[a:b], space[a:b]), sentence.spans[a:b], sentence.parse) for a, b in pairwise(bounds)]


def has_no_word(words: Sequence[str]) -> bool:
    """Whether nothing in these tokens is a letter or a digit: there is nothing to parse."""
    return not any(char.isalnum() for word in words for char in word)


class BeneparParser:
    """The default parser: NP and VP from constituents (protocol: `pipeline.parse.base.Parser`)."""

    def __init__(self, config: ParserConfig) -> None:
        self.config = config
        self.loaded = model.load(config.model)
        self.engine = Engine(self.loaded.network, config.token_budget, config.device)
        self.longest = min(config.max_words, self.engine.max_words)

    def identity(self) -> dict[str, Any]:
        """Name and hash of the model, and the versions whose code decides the output."""
        return {
            "kind": "benepar",
            "name": self.loaded.name,
            "sha256": self.loaded.sha256,
            "benepar": version("benepar"),
            "spacy": version("spacy"),
        }

    def extract(self, documents: Sequence[Document]) -> list[Units]:
        """Units of each document; see `pipeline.align.units` for their definition."""
        counts = [Counter[str]() for _ in documents]
        todo: list[tuple[int, int, Sentence]] = []
        for row, document in enumerate(documents):
            for place, sentence in enumerate(document.sentences):
                if not sentence.parse:
                    counts[row]["sentences_code"] += 1
                elif has_no_word(sentence.words.words):
                    counts[row]["sentences_punctuation"] += 1
                else:
                    parts = pieces(sentence, self.longest)
                    counts[row]["sentences_split"] += len(parts) > 1
                    todo.extend((row, place, part) for part in parts)
        unique = {part.words: None for _, _, part in todo}
        encoded = dict(zip(unique, self.engine.encode(list(unique)), strict=True))
        ready = {words: item for words, item in encoded.items() if self.engine.fits(item)}
        trees = dict(zip(ready, self.engine.parse(list(ready.values())), strict=True))
        found: list[dict[int, list[tuple[Sentence, Constituents]]]] = [{} for _ in documents]
        for row, place, part in todo:
            tree = trees.get(part.words)
            if tree is None:
                counts[row]["sentences_too_long"] += 1
            else:
                counts[row]["sentences_parsed"] += 1
                found[row].setdefault(place, []).append((part, tree))
        return [
            document_units(document, found[row], counts[row], self.config.keep_trees)
            for row, document in enumerate(documents)
        ]
