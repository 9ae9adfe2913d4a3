"""How fast the engine is beside stock benepar with the same weights, and whether the trees are the same.

All contestants get the same sentences, already cut into words, on the same cores. One round measures each of them in
turn; the ratios are taken within a round, where the machine is the same for all, and their median is reported.
"""

import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import spacy
import torch
from benepar.integrations.spacy_plugin import BeneparComponent
from benepar.parse_base import BaseInputExample
from benepar.parse_chart import ChartParser
from spacy.tokens import Doc

from pipeline.bench.documents import Documents
from pipeline.parse import model, network, places
from pipeline.parse.chart import load_compiled
from pipeline.parse.engine import Engine
from pipeline.parse.int8 import slowdown
from pipeline.parse.scoring import joined_chains
from pipeline.parse.threads import torch_threads
from pipeline.text import Constituents, Words
from schemas.console import LOG_EVERY_S

network.supply_what_transformers_dropped()

#: Sentence lengths of the table, in words.
LENGTHS = (10, 20, 40, 80, 160)
#: Words measured per length.
WORDS_A_LENGTH = 1_600
#: Sentences on which the precisions are compared: one of them may be slow.
TIER_SENTENCES = 100
#: benepar's own recommendation for a batch, of its command line.
STOCK_SUBWORDS = 2_000


@dataclass
class StockExample(BaseInputExample):  # type: ignore[misc]
    """A sentence as benepar's `ChartParser.parse` takes it."""

    words: Sequence[str]
    space_after: Sequence[bool]
    tree: None = None

    def leaves(self) -> Sequence[str]:
        """The words."""
        return self.words

    def pos(self) -> list[tuple[str, str]]:
        """The words without tags."""
        return [(word, "UNK") for word in self.words]


def stock_examples(sentences: Sequence[Words]) -> list[StockExample]:
    """Sentences for stock benepar, with the plain quotation marks its spaCy component would feed."""
    return [StockExample([network.plain_form(w) for w in s.words], s.space_after) for s in sentences]


def stock_parses(parser: ChartParser, sentences: Sequence[Words]) -> list[Any]:
    """Stock benepar, everything at once, best labels only (no nltk trees)."""
    return list(parser.parse(stock_examples(sentences), return_compressed=True, subbatch_max_tokens=STOCK_SUBWORDS))


def stock_takes(parser: ChartParser, words: Words) -> bool:
    """Whether stock benepar can parse a sentence: not where a word of it has no subword (a control character, say)."""
    (example,) = stock_examples([words])
    try:
        return bool((np.asarray(parser.encode(example)["words_from_tokens"]) >= 0).all())
    except (AssertionError, StopIteration):  # its own words for a last word without subwords
        return False


def stock_spans(parser: ChartParser, parse: Any) -> set[tuple[int, int, str]]:
    """Labelled spans of a compressed parse of stock benepar; those without a label left out."""
    names = {index: label for label, index in parser.label_vocab.items()}
    found = zip(parse.starts.tolist(), parse.ends.tolist(), parse.labels.tolist(), strict=True)
    return {(start, end, names[label]) for start, end, label in found if label}


def engine_spans(tree: Constituents) -> set[tuple[int, int, str]]:
    """The same of ours, unary chains joined as benepar joins them."""
    labelled = zip(tree.spans.tolist(), tree.labels, strict=True)
    return set(joined_chains((start, end, label) for (start, end), label in labelled))


def score_of(parser: ChartParser, scores: np.ndarray, spans: set[tuple[int, int, str]]) -> float:
    """Total score of a tree in stock benepar's chart of scores, `scores[start, end - 1, label]`."""
    return float(sum(scores[start, end - 1, parser.label_vocab[label]] for start, end, label in spans))


@dataclass
class Difference:
    """A sentence on which two trees differ, and by how much the one's total score is above the other's."""

    words: tuple[str, ...]
    margin: float  # stock tree minus ours, in stock's float32 scores


def differences(
    parser: ChartParser, sentences: Sequence[Words], spans: Sequence[set[tuple[int, int, str]]]
) -> list[Difference]:
    """Sentences whose labelled spans, ours being `spans`, are not those of stock benepar."""
    found = []
    for words, parse, ours in zip(sentences, stock_parses(parser, sentences), spans, strict=True):
        theirs = stock_spans(parser, parse)
        if theirs != ours:
            (scores,) = parser.parse(stock_examples([words]), return_scores=True)
            margin = score_of(parser, scores, theirs) - score_of(parser, scores, ours)
            found.append(Difference(words.words, margin))
    return found


def cut(sentences: Sequence[Words], length: int, total: int) -> list[Words]:
    """Stretches of exactly `length` words of running text, `total` words together."""
    words = [word for sentence in sentences for word in sentence.words]
    space = [bool(after) for sentence in sentences for after in sentence.space_after]
    starts = islice(range(0, len(words) - length + 1, length), total // length)
    return [Words(tuple(words[at : at + length]), tuple(space[at : at + length])) for at in starts]


def encoder_alone(engine: Engine, sentences: Sequence[Words]) -> None:
    """The pretrained encoder by transformers, in the engine's own batches; nothing else."""
    encoded = engine.encode(sentences)
    with torch.inference_mode():
        for rows in engine.plan(encoded):
            network.hidden_states(engine.parser, [encoded[row] for row in rows])


def stock_component(name: str) -> BeneparComponent:
    """Stock benepar's spaCy component with the weights of the parser model `name`."""
    source = places.locate(name)
    if not (source / places.WEIGHTS).exists():
        return BeneparComponent(str(source))
    with tempfile.TemporaryDirectory() as folder:
        model.export_for_benepar(source, Path(folder))
        return BeneparComponent(folder)


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@dataclass
class Contest:
    """The engine beside stock benepar, with the same weights on the same cores."""

    network: network.Network
    engine: Engine
    int8: Engine | None  # None where 8-bit products are slower than float32
    stock: BeneparComponent
    progress: Callable[[str], None]

    @classmethod
    def of(cls, model_name: str, cores: int, progress: Callable[[str], None]) -> "Contest":
        """All contestants with the weights of the parser model `model_name`."""
        loaded = model.load(model_name).network
        fast = slowdown() <= 1
        return cls(
            loaded,
            Engine(loaded, threads=cores),
            Engine(loaded, threads=cores, precision="int8") if fast else None,
            stock_component(model_name),
            progress,
        )

    def takes(self, words: Words) -> bool:
        """Whether all contestants can parse it."""
        return stock_takes(self.stock._parser, words)

    def contestants(self, pool: Sequence[Words]) -> dict[str, Callable[[], object]]:
        """What each does with sentences."""
        work: dict[str, Callable[[], object]] = {
            "stock_batched": lambda: stock_parses(self.stock._parser, pool),
            "encoder_only": lambda: encoder_alone(self.engine, pool),
            "ours": lambda: self.engine.constituents(pool),
        }
        int8 = self.int8
        return work if int8 is None else work | {"ours_int8": lambda: int8.constituents(pool)}

    def rates(self, what: str, pool: Sequence[Words], documents: Sequence[Doc] = ()) -> dict[str, float]:
        """Sentences per second of each contestant; with `documents`, also of stock benepar one after the other."""
        work = self.contestants(pool)
        if documents:
            work = {"stock_documents": lambda: self._one_by_one(what, documents)} | work
        found = {}
        for name, call in work.items():
            found[name] = len(pool) / timed(call)
            self.progress(f"{what}, {name}: {found[name]:.1f} sentences/s")
        return found

    def _one_by_one(self, what: str, documents: Sequence[Doc]) -> None:
        said = time.perf_counter()
        for number, doc in enumerate(documents):
            self.stock(doc)
            if time.perf_counter() - said > LOG_EVERY_S:
                said = time.perf_counter()
                self.progress(f"{what}, stock_documents: {number + 1} of {len(documents)} documents")


def as_docs(documents: Documents) -> list[Doc]:
    """spaCy documents of these words and sentences, not parsed yet."""
    vocab = spacy.blank("en").vocab
    docs = []
    for document in documents:
        words = [word for sentence in document for word in sentence.words]
        space = [bool(after) for sentence in document for after in sentence.space_after]
        starts: list[bool | int | None] = [place == 0 for sentence in document for place in range(len(sentence.words))]
        docs.append(Doc(vocab, words=words, spaces=space, sent_starts=starts))
    return docs


def measure(
    model_name: str, documents: Documents, rounds: int, cores: int, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Sentences per second of each contestant, ratios, differing trees, and a table by sentence length.

    `documents`: sentences of each document, at most as long as the model takes. Those that stock benepar cannot parse are
    left out for all and counted. Where 8-bit products are slow there is no contestant in 8 bits, and no figure for it.
    """
    contest = Contest.of(model_name, cores, progress)
    kept = [[sentence for sentence in document if contest.takes(sentence)] for document in documents]
    kept = [document for document in kept if document]
    sentences = [sentence for document in kept for sentence in document]
    progress(f"{len(sentences)} sentences, {rounds} rounds, then sentences of {', '.join(map(str, LENGTHS))} words")
    # torch-struct, by which stock benepar decodes, warns of its own use of torch in every batch
    with torch_threads(cores), warnings.catch_warnings(action="ignore"):
        load_compiled()
        for call in contest.contestants(sentences[:64]).values():
            call()  # fills caches
        seen = [contest.rates(f"round {n + 1} of {rounds}", sentences, as_docs(kept)) for n in range(rounds)]
        table = {}
        for length in LENGTHS:
            pool = [words for words in cut(sentences, length, WORDS_A_LENGTH) if contest.takes(words)]
            if pool and length <= contest.engine.max_words:
                rates = contest.rates(f"{length} words", pool)
                table[length] = {name: round(value, 1) for name, value in rates.items()}
        tiers = precision_tiers(contest, sentences[:: max(1, len(sentences) // TIER_SENTENCES)], rounds)
        progress("comparing trees")
        spans = spans_of(contest.engine, sentences)
        differ = differences(contest.stock._parser, sentences, spans)
        spans8 = None if contest.int8 is None else spans_of(contest.int8, sentences)

    def ratio(over: str, of: str = "ours") -> float:
        return round(median(one[of] / one[over] for one in seen), 3)

    return {
        "sentences": len(sentences),
        "sentences_distinct": len(set(sentences)),
        "sentences_left_out": sum(map(len, documents)) - len(sentences),
        "documents": len(kept),
        "rounds": rounds,
        "sentences_per_second": {name: round(median(one[name] for one in seen), 1) for name in seen[0]},
        "ours_over_stock_documents": ratio("stock_documents"),
        "ours_over_stock_batched": ratio("stock_batched"),
        "ours_over_encoder_only": ratio("encoder_only"),
        "int8_over_float32": None if spans8 is None else ratio("ours", "ours_int8"),
        "int8_over_stock_documents": None if spans8 is None else ratio("stock_documents", "ours_int8"),
        "int8_over_encoder_only": None if spans8 is None else ratio("encoder_only", "ours_int8"),
        "trees_differ": len(differ),
        "largest_margin_of_differing": max((abs(one.margin) for one in differ), default=0.0),
        "trees_changed_by_int8": None if spans8 is None else sum(a != b for a, b in zip(spans, spans8, strict=True)),
        "tiers": tiers,
        "by_length": table,
    }


def precision_tiers(contest: Contest, sentences: Sequence[Words], rounds: int) -> dict[str, dict[str, float]]:
    """Of each precision: how many times as fast as float32 it is, by the clock and by processor time, and trees changed.

    They take turns, in every round on the same sentences; medians of the rounds' ratios.
    """
    engines = {
        "float32": contest.engine,
        "bf16": Engine(contest.network, threads=contest.engine.threads, precision="bf16"),
    }
    engines |= {} if contest.int8 is None else {"int8": contest.int8}
    plain = spans_of(contest.engine, sentences)
    changed = {
        name: sum(a != b for a, b in zip(plain, spans_of(engine, sentences), strict=True))
        for name, engine in engines.items()
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for number in range(rounds):
        for name, engine in engines.items():
            used = time.process_time()
            clock = timed(partial(engine.constituents, sentences))
            seconds[name].append((clock, time.process_time() - used))
            contest.progress(
                f"precisions, round {number + 1} of {rounds}, {name}: {len(sentences) / clock:.1f} sentences/s"
            )
    base = seconds["float32"]
    return {
        name: {
            "speed": round(median(one[0] / own[0] for one, own in zip(base, times, strict=True)), 3),
            "speed_by_processor_time": round(median(one[1] / own[1] for one, own in zip(base, times, strict=True)), 3),
            "sentences": len(sentences),
            "trees_changed": changed[name],
        }
        for name, times in seconds.items()
    }


def spans_of(engine: Engine, sentences: Sequence[Words]) -> list[set[tuple[int, int, str]]]:
    """Labelled spans of each sentence, none of one that is too long."""
    return [set() if tree is None else engine_spans(tree) for tree in engine.constituents(sentences)]
