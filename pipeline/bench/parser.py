"""How fast the engine is beside stock benepar with the same weights, and whether the trees are the same.

All contestants get the same sentences, already cut into words, on the same cores. One round measures each of them in
turn; the ratios are taken within a round, where the machine is the same for all, and their median is reported.
"""

import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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

from pipeline.dataset import prepare
from pipeline.parse import model, network
from pipeline.parse.engine import Engine, torch_threads
from pipeline.parse.scoring import joined_chains
from pipeline.text import Constituents, Words
from schemas.config import ParseConfig, SideConfig

network.supply_what_transformers_dropped()

#: Sentence lengths of the table, in words.
LENGTHS = (10, 20, 40, 80, 160)
#: Words measured per length.
WORDS_A_LENGTH = 3_200
#: benepar's own recommendation for a batch, of its command line.
STOCK_SUBWORDS = 2_000
Documents = Sequence[Sequence[Words]]


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
    return [StockExample([network.PLAIN_FORMS.get(w, w) for w in s.words], s.space_after) for s in sentences]


def stock_parses(parser: ChartParser, sentences: Sequence[Words]) -> list[Any]:
    """Stock benepar, everything at once, best labels only (no nltk trees)."""
    return list(parser.parse(stock_examples(sentences), return_compressed=True, subbatch_max_tokens=STOCK_SUBWORDS))


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
    source = model.locate(name)
    if not (source / model.WEIGHTS).exists():
        return BeneparComponent(str(source))
    with tempfile.TemporaryDirectory() as folder:
        model.export_for_benepar(source, Path(folder))
        return BeneparComponent(folder)


def documents_of(inputs: Sequence[str], longest: int) -> list[list[Words]]:
    """Sentences of each row of `inputs`, rendered and segmented as `mta-prep parse` does; longer ones left out."""
    # the tokenizers play no part here
    side = SideConfig(tokenizer="embedded:bytelevel-bpe")
    config = ParseConfig(inputs=tuple(inputs), teacher=side, student=side)
    with tempfile.TemporaryDirectory() as spool:
        plan = prepare.plan(config, Path(spool))
        stage = prepare.PrepareStage(plan.config)
        rows, _ = stage.render(list(plan.read(0, plan.rows)))
    texts, starts = [row.text for _, row in rows], [row.response_start for _, row in rows]
    sentences = [
        [part.words for part in document.sentences if part.parse and 0 < len(part.words.words) <= longest]
        for document in stage.segmenter.segment(texts, starts)
    ]
    return [document for document in sentences if document]


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(
    model_name: str, documents: Documents, rounds: int, cores: int, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Sentences per second of each contestant, ratios, differing trees, and a table by sentence length.

    `documents`: sentences of each document, at most as long as the model takes.
    """
    parser = model.load(model_name).network
    engine = Engine(parser, threads=cores)
    int8 = Engine(parser, threads=cores, precision="int8")
    stock = stock_component(model_name)
    vocab = spacy.blank("en").vocab

    def as_docs() -> list[Doc]:
        docs = []
        for document in documents:
            words = [word for sentence in document for word in sentence.words]
            space = [bool(after) for sentence in document for after in sentence.space_after]
            starts: list[bool | int | None] = [
                place == 0 for sentence in document for place in range(len(sentence.words))
            ]
            docs.append(Doc(vocab, words=words, spaces=space, sent_starts=starts))
        return docs

    sentences = [sentence for document in documents for sentence in document]
    distinct = len(set(sentences))

    def contestants(pool: Sequence[Words]) -> dict[str, Callable[[], object]]:
        return {
            "stock_batched": lambda: stock_parses(stock._parser, pool),
            "encoder_only": lambda: encoder_alone(engine, pool),
            "ours": lambda: engine.constituents(pool),
            "ours_int8": lambda: int8.constituents(pool),
        }

    def rates(pool: Sequence[Words], more: dict[str, Callable[[], object]] | None = None) -> dict[str, float]:
        work = (more or {}) | contestants(pool)
        return {name: len(pool) / timed(call) for name, call in work.items()}

    # torch-struct, by which stock benepar decodes, warns of its own use of torch in every batch
    with torch_threads(cores), warnings.catch_warnings(action="ignore"):
        for call in contestants(sentences[:64]).values():
            call()  # compiles the decoder, fills caches
        seen = []
        for number in range(rounds):
            docs = as_docs()

            def per_document(docs: list[Doc] = docs) -> None:
                for doc in docs:
                    stock(doc)

            seen.append(rates(sentences, {"stock_documents": per_document}))
            progress(f"round {number + 1} of {rounds}: " + ", ".join(f"{k} {v:.1f}" for k, v in seen[-1].items()))
        table = {}
        for length in LENGTHS:
            pool = cut(sentences, length, WORDS_A_LENGTH)
            if pool and length <= engine.max_words:
                table[length] = {name: round(value, 1) for name, value in rates(pool).items()}
                progress(f"{length} words: {table[length]}")
        spans = spans_of(engine, sentences)
        differ = differences(stock._parser, sentences, spans)
        changed = sum(a != b for a, b in zip(spans, spans_of(int8, sentences), strict=True))

    def ratio(over: str, of: str = "ours") -> float:
        return round(median(one[of] / one[over] for one in seen), 3)

    return {
        "sentences": len(sentences),
        "sentences_distinct": distinct,
        "documents": len(documents),
        "rounds": rounds,
        "sentences_per_second": {name: round(median(one[name] for one in seen), 1) for name in seen[0]},
        "ours_over_stock_documents": ratio("stock_documents"),
        "ours_over_stock_batched": ratio("stock_batched"),
        "ours_over_encoder_only": ratio("encoder_only"),
        "int8_over_encoder_only": ratio("encoder_only", "ours_int8"),
        "trees_differ": len(differ),
        "largest_margin_of_differing": max((abs(one.margin) for one in differ), default=0.0),
        "trees_changed_by_int8": changed,
        "by_length": table,
    }


def spans_of(engine: Engine, sentences: Sequence[Words]) -> list[set[tuple[int, int, str]]]:
    """Labelled spans of each sentence, none of one that is too long."""
    return [set() if tree is None else engine_spans(tree) for tree in engine.constituents(sentences)]
