"""Training sentences and their batches: which sentences a step sees, and what of them the network and the loss read.

All of it is a pure function of the sentences, the plan and the number of the step, so that processes can prepare steps
ahead, and a run that goes on sees what it would have seen.
"""

import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int32, Int64
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.parse import network
from pipeline.parse.chart import span_count, span_index
from pipeline.parse.gold import GoldSentence
from pipeline.parse.noise import noisy

#: A word without a known tag, which the tag loss passes over.
NO_TAG = -100


@dataclass(frozen=True)
class Example:
    """One training sentence: its words, subwords, gold label of each span that has one, gold tags."""

    sentence: GoldSentence = field(repr=False)
    encoded: network.Encoded
    spans: Int64[np.ndarray, " spans"] = field(repr=False)  # places in the triangular chart
    labels: Int64[np.ndarray, " spans"] = field(repr=False)
    tags: Int64[np.ndarray, " words"] = field(repr=False)


def examples_of(parser: network.Network, sentences: Sequence[GoldSentence]) -> list[Example]:
    """Training examples; sentences with a label chain outside the parser's vocabulary are left out."""
    known = [item for item in sentences if all(label in parser.label_vocab for label in item.labels)]
    examples = []
    for item, encoded in zip(known, network.encode(parser, [item.words for item in known]), strict=True):
        spans = span_index(item.starts, item.ends, len(item))
        labels = np.array([parser.label_vocab[label] for label in item.labels], dtype=np.int64)
        tags = np.array([parser.tag_vocab.get(tag, NO_TAG) for tag in item.tags], dtype=np.int64)
        examples.append(Example(item, encoded, spans, labels, tags if len(tags) else np.full(len(item), NO_TAG)))
    return examples


@dataclass(frozen=True)
class Batch:
    """What the network and the loss read of some sentences. `gold`, `left` and `right` are over all their charts."""

    padded: network.Padded
    lengths: Int32[np.ndarray, " sentences"]
    left: Int64[Tensor, " spans"]  # fenceposts
    right: Int64[Tensor, " spans"]
    gold: Int64[Tensor, " spans"]
    roots: Int64[Tensor, " sentences"]  # the span of each whole sentence
    tags: Int64[Tensor, " words"]
    places: Int64[Tensor, " spans"]  # in the charts of all examples, one after the other

    def to(self, device: torch.device) -> "Batch":
        """The same on `device`; the lengths stay on the host."""

        def moved(part: Any) -> Any:
            return part if isinstance(part, np.ndarray) else part.to(device, non_blocking=True)

        return Batch(*(moved(getattr(self, part.name)) for part in fields(self)))


def chart_starts(examples: Sequence[Example]) -> Int64[np.ndarray, " examples"]:
    """Where the chart of each example begins when all lie one after the other."""
    counts = np.array([span_count(item.encoded.words) for item in examples], dtype=np.int64)
    return np.cumsum(counts) - counts


def collate(
    parser: network.Network, batch: Sequence[Example], starts: Int64[np.ndarray, " sentences"] | None = None
) -> Batch:
    """One batch on the CPU. `starts`: where the charts of its sentences begin among all; by default there are no others."""
    lengths = np.array([item.encoded.words for item in batch], dtype=np.int32)
    own = chart_starts(batch)
    counts = np.array([span_count(int(n)) for n in lengths], dtype=np.int64)
    gold = np.zeros(int(counts.sum()), dtype=np.int64)
    gold[np.concatenate([item.spans + first for item, first in zip(batch, own, strict=True)])] = np.concatenate(
        [item.labels for item in batch]
    )
    left, right = network.span_ends(lengths.tolist())
    shift = np.zeros_like(own) if starts is None else starts - own
    return Batch(
        padded=network.padded(parser, [item.encoded for item in batch]),
        lengths=lengths,
        left=left,
        right=right,
        gold=torch.from_numpy(gold),
        roots=torch.from_numpy(own + lengths - 1),
        tags=torch.from_numpy(np.concatenate([item.tags for item in batch])),
        places=torch.from_numpy(np.arange(len(gold)) + np.repeat(shift, counts)),
    )


@dataclass(frozen=True)
class Plan:
    """What an epoch is made of, and how it falls into batches."""

    fixed: int  # the first so many examples are in every epoch
    rotating: int  # of the others, in an order of chance, an epoch has the next so many
    long_words: int  # examples in every epoch that are longer than this come twice
    batch_sentences: int
    batch_words: int
    noise: float  # share of the words altered, in every second sentence
    seed: int


def batches(lengths: Sequence[int], rows: Sequence[int], plan: Plan, shuffle: random.Random) -> list[list[int]]:
    """`rows` in batches of sentences of like length, in random order."""
    groups: list[list[int]] = [[]]
    for row in sorted(rows, key=lambda row: lengths[row] + shuffle.random() * 3):
        if len(groups[-1]) == plan.batch_sentences or (len(groups[-1]) + 1) * lengths[row] > plan.batch_words:
            groups.append([])
        groups[-1].append(row)
    shuffle.shuffle(groups)
    return [group for group in groups if group]


class Steps(Dataset[Batch]):
    """The batch of every step of a run, counted from 0 through all its epochs, which never end."""

    def __init__(self, parser: network.Network, examples: Sequence[Example], plan: Plan) -> None:
        self.reader = network.Reader(parser.retokenizer)
        self.examples = examples
        self.plan = plan
        self.lengths = [item.encoded.words for item in examples]
        self.starts = chart_starts(examples)
        self.rotation = list(range(plan.fixed, len(examples)))
        random.Random(plan.seed).shuffle(self.rotation)  # so that every epoch has some of each of the sources
        self._ends: list[int] = []  # of the epochs so far, in steps
        self._latest: tuple[int, list[list[int]]] = (-1, [])

    def epoch(self, number: int) -> list[list[int]]:
        """Rows of the examples in every batch of an epoch. A step after another asks for the same epoch, mostly."""
        if self._latest[0] != number:
            rows = self._rows(number)
            self._latest = number, batches(self.lengths, rows, self.plan, random.Random(self.plan.seed + number))
        return self._latest[1]

    def _rows(self, epoch: int) -> list[int]:
        plan, rotating = self.plan, len(self.rotation)
        rows = list(range(plan.fixed))
        rows += [row for row in rows if self.lengths[row] > plan.long_words]
        if rotating:
            first = epoch * plan.rotating
            rows += [self.rotation[at % rotating] for at in range(first, first + plan.rotating)]
        return rows

    def end(self, epoch: int) -> int:
        """How many steps there are up to the end of an epoch."""
        while len(self._ends) <= epoch:
            self._ends.append((self._ends[-1] if self._ends else 0) + len(self.epoch(len(self._ends))))
        return self._ends[epoch]

    def epoch_of(self, step: int) -> int:
        """The epoch that a step belongs to."""
        while not self._ends or self._ends[-1] <= step:
            self.end(len(self._ends))
        return bisect_right(self._ends, step)

    def __getitem__(self, step: int) -> Batch:
        epoch = self.epoch_of(step)
        rows = self.epoch(epoch)[step - (self.end(epoch - 1) if epoch else 0)]
        examples = [self.examples[row] for row in rows]
        if self.plan.noise:
            examples = self._noisy(examples, random.Random(f"{self.plan.seed} {step}"))
        return collate(self.reader, examples, self.starts[rows])

    def _noisy(self, examples: Sequence[Example], shuffle: random.Random) -> list[Example]:
        """The examples, every second one with some of its words altered; trees and tags stay."""
        tokenizer = self.reader.retokenizer.tokenizer
        rows = [row for row in range(len(examples)) if shuffle.random() < 0.5]
        words = [noisy(examples[row].sentence.words, self.plan.noise, tokenizer.unk_token, shuffle) for row in rows]
        altered = list(examples)
        for row, encoded in zip(rows, network.encode(self.reader, words), strict=True):
            if len(encoded.input_ids) <= tokenizer.model_max_length:
                altered[row] = replace(examples[row], encoded=encoded)
        return altered
