"""benepar's trees, fast: sentences in, labelled spans out.

Equal sentences are parsed once; the rest are sorted by length and batched under a budget of subwords, which bounds
memory: a batch's activations take about `20 · token_budget · d_ff` bytes a thread (125 MB for MiniLM at 4,096), and the
label head works on `SPANS_AT_ONCE` spans at a time whatever the lengths. Batches are independent: with several threads
one is decoded while the next is in the network. The output depends on nothing but the sentences of the call and the
settings given here; threads change nothing.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from pipeline.parse import network
from pipeline.parse.chart import best_trees, best_trees_on_device, span_count
from pipeline.parse.packed import PackedParser
from pipeline.parse.threads import torch_threads
from pipeline.text import Constituents, Words
from trainer.models.memory import in_halves

#: Label-head rows computed at once. On a CPU few, since their hidden units (2 MB at 256) then stay in its cache.
SPANS_AT_ONCE = {"cpu": 2048}
SPANS_AT_ONCE_ELSEWHERE = 1 << 18
#: Sentences tokenized at once.
SENTENCES_AT_ONCE = 1024

Item = TypeVar("Item")
Result = TypeVar("Result")


class Engine:
    """Labelled spans of sentences from a benepar `ChartParser`, or a `StoredParser`.

    `token_budget`: subwords of a batch, padding counted, sentences longer than that alone in theirs. `precision`: see
    `PackedParser`. `threads`: batches in work at a time; each uses one core where the device is a CPU.
    """

    def __init__(
        self,
        parser: network.Network,
        token_budget: int = 2048,
        device: str = "cpu",
        precision: str = "float32",
        threads: int = 1,
    ) -> None:
        self.packed = PackedParser(parser, precision, device)
        self.parser = self.packed.parser
        self.token_budget = token_budget
        self.threads = threads
        self.spans_at_once = SPANS_AT_ONCE.get(self.packed.device.type, SPANS_AT_ONCE_ELSEWHERE)
        self.labels = {
            index: tuple(filter(None, label.split("::"))) for label, index in self.parser.label_vocab.items()
        }
        self.tags = self.parser.tag_from_index
        tokenizer = self.parser.retokenizer.tokenizer
        places = getattr(self.parser.pretrained_model.config, "max_position_embeddings", None)
        padding = getattr(getattr(self.parser.pretrained_model, "embeddings", None), "padding_idx", None)
        if places is not None and padding is not None:  # RoBERTa and its kin count positions from behind the padding's
            places -= padding + 1
        self.max_subwords = min(tokenizer.model_max_length, places or tokenizer.model_max_length)
        self.max_words = (
            self.parser.add_timing.timing_table.shape[0] - 2 if self.parser.encoder is not None else self.max_subwords
        )

    def constituents(self, sentences: Sequence[Words]) -> list[Constituents | None]:
        """The best tree of each sentence; None where it is longer than the model can take (or has no word)."""
        unique = list(dict.fromkeys(sentences))
        groups = [unique[first : first + SENTENCES_AT_ONCE] for first in range(0, len(unique), SENTENCES_AT_ONCE)]
        encoded = list(chain.from_iterable(self._each(self.encode, groups)))
        fitting = [row for row, item in enumerate(encoded) if self.fits(item)]
        found = self.parse([encoded[row] for row in fitting])
        trees = {unique[row]: tree for row, tree in zip(fitting, found, strict=True)}
        return [trees.get(words) for words in sentences]

    def encode(self, sentences: Sequence[Words]) -> list[network.Encoded]:
        """Subwords of each sentence."""
        return network.encode(self.parser, sentences)

    def fits(self, item: network.Encoded) -> bool:
        """Whether the model can take this sentence."""
        return bool(len(item.input_ids) <= self.max_subwords and 0 < item.words <= self.max_words)

    def parse(self, encoded: Sequence[network.Encoded]) -> list[Constituents]:
        """The best tree of each sentence; every one must fit."""
        plan = self.plan(encoded)
        trees: list[Constituents | None] = [None] * len(encoded)
        results = self._each(self._batch_or_halves, [[encoded[row] for row in rows] for rows in plan])
        for rows, batch in zip(plan, results, strict=True):
            for row, tree in zip(rows, batch, strict=True):
                trees[row] = tree
        return [tree for tree in trees if tree is not None]

    def plan(self, encoded: Sequence[network.Encoded]) -> list[list[int]]:
        """Rows of each batch, longest sentences first, so that no thread is left alone with them at the end."""
        order = sorted(range(len(encoded)), key=lambda row: (len(encoded[row].input_ids), encoded[row].words, row))
        batches: list[list[int]] = []
        for row in order:
            if not batches or (len(batches[-1]) + 1) * len(encoded[row].input_ids) > self.token_budget:
                batches.append([])
            batches[-1].append(row)
        return batches[::-1]

    def _each(self, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterable[Result]:
        """Results in order; on a CPU each of the threads computes on one core."""
        if self.threads == 1 or len(items) < 2:
            return map(work, items)
        setting = int(self.packed.device.type == "cpu") or torch.get_num_threads()
        count = min(self.threads, len(items))
        with (
            torch_threads(setting),
            ThreadPoolExecutor(count, initializer=lambda: torch.set_num_threads(setting)) as pool,
        ):
            return list(pool.map(work, items))

    def _batch_or_halves(self, batch: Sequence[network.Encoded]) -> list[Constituents]:
        """`_batch`, and where memory runs out the same in parts."""

        def alone(item: network.Encoded) -> str:
            return (
                f"a single sentence of {item.words} words in work; use fewer --workers, or have sentences split sooner "
                "(`parser.max_words` in --config)."
            )

        return list(chain.from_iterable(in_halves(self._batch, batch, self.packed.device, alone)))

    @torch.inference_mode()
    def _batch(self, batch: Sequence[network.Encoded]) -> list[Constituents]:
        lengths = np.array([item.words for item in batch], dtype=np.int32)
        posts, tag_scores = self.packed.fenceposts(batch)
        left, right = network.span_ends(lengths.tolist())
        firsts = np.concatenate([[0], np.cumsum([span_count(int(n)) for n in lengths])])
        roots = torch.from_numpy(firsts[:-1] + lengths - 1)
        best, label = self._best_labels(posts, left, right, roots)
        on_cpu = best.device.type == "cpu"
        nodes = best_trees(best.numpy(), lengths) if on_cpu else best_trees_on_device(best, lengths)
        labels = label.cpu().numpy()[nodes]
        tags = tag_scores.argmax(-1).cpu().numpy() if tag_scores is not None else None
        return self._read(lengths, left.numpy()[nodes], right.numpy()[nodes], labels, tags)

    def _best_labels(
        self,
        posts: Float[Tensor, "posts d_model"],
        left: Int64[Tensor, " spans"],
        right: Int64[Tensor, " spans"],
        roots: Int64[Tensor, " sentences"],
    ) -> tuple[Float[Tensor, " spans"], Int64[Tensor, " spans"]]:
        """Score and index of each span's best label; a whole sentence must have one if the model was trained so."""
        projected = self.packed.first_layer(posts)
        left, right = left.to(projected.device), right.to(projected.device)
        best = torch.empty(len(left), device=projected.device)
        label = torch.empty(len(left), dtype=torch.int64, device=projected.device)
        for first in range(0, len(left), self.spans_at_once):
            part = slice(first, first + self.spans_at_once)
            scores = self.packed.label_scores(projected, left[part], right[part]).float()
            top = scores.max(1)
            # the empty label 0 scores 0, and wins a tie as the first
            best[part] = top.values.clamp(min=0)
            label[part] = (top.indices + 1) * (top.values > 0)
            if self.parser.decoder.force_root_constituent:
                # chosen on the CPU, since a mask on an accelerator would have to be waited for
                inside = roots[(roots >= first) & (roots < first + self.spans_at_once)].to(projected.device)
                best[inside] = top.values[inside - first]
                label[inside] = top.indices[inside - first] + 1
        return best, label

    def _read(
        self,
        lengths: Int[np.ndarray, " sentences"],
        starts: Int[np.ndarray, " nodes"],
        ends: Int[np.ndarray, " nodes"],
        labels: Int[np.ndarray, " nodes"],
        tags: Int[np.ndarray, " words"] | None,
    ) -> list[Constituents]:
        """Constituents of each sentence, from the nodes of its binary tree; spans count fenceposts of the batch."""
        trees, node, word, post = [], 0, 0, 0
        for n in lengths.tolist():
            mine = slice(node, node + 2 * n - 1)
            kept = labels[mine] > 0
            pairs = np.stack([starts[mine][kept], ends[mine][kept]], 1) - post
            chains = [self.labels[index] for index in labels[mine][kept].tolist()]
            names = tuple(chain.from_iterable(chains))
            if len(names) > len(chains):
                pairs = np.repeat(pairs, [len(chain) for chain in chains], axis=0)
            named = tuple(map(self.tags.__getitem__, tags[word : word + n].tolist())) if tags is not None else None
            trees.append(Constituents(spans=pairs.astype(np.int32), labels=names, tags=named))
            node, word, post = node + 2 * n - 1, word + n, post + n + 1
        return trees
