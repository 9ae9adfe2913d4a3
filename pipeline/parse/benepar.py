"""The default parser: benepar's constituents, sentences cut where the model needs it, and the units found in them."""

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import pairwise
from typing import Any

from pipeline.align.units import document_units
from pipeline.parse import model
from pipeline.parse.chart import load_compiled
from pipeline.parse.engine import Engine
from pipeline.parse.int8 import refuse_where_slow
from pipeline.parse.precision import settled
from pipeline.text import Constituents, Document, Sentence, Units, Words
from schemas.config import ParserConfig

#: Where a sentence too long for the model is best cut, best first.
CUTS = (frozenset({".", "!", "?", ";"}), frozenset({":", "—", "–", "--"}), frozenset({",", ")", "]", "|"}))
#: Words before which it is cut where there is no such mark.
OPENERS = frozenset({"and", "but", "or", "so", "because", "which", "then", "while", "when", "if"})
#: What the network reads for a formula, an address or a piece of code, which it was not trained on: a noun as short as any.
NAME = "x"


def split_points(words: Sequence[str], longest: int) -> list[int]:
    """Where to cut a sentence so that no piece has more than `longest` words: starts of the pieces after the first.

    A piece ends at the strongest punctuation in its second half, the last such; with none, before the last conjunction
    there; with none of those, at `longest`.
    """
    points, start = [], 0
    while len(words) - start > longest:
        window = range(start + longest // 2, start + longest)
        at = next((max(hits) for marks in CUTS if (hits := [i for i in window if words[i] in marks])), None)
        if at is None:
            opener = max((i for i in window if words[i].lower() in OPENERS), default=start + longest)
            at = opener - 1
        start = at + 1
        points.append(start)
    return points


def pieces(sentence: Sentence, longest: int) -> list[Sentence]:
    """`sentence` itself, or its parts of at most `longest` words."""
    words, space = sentence.words.words, sentence.words.space_after
    bounds = [0, *split_points(words, longest), len(words)]
    return [
        Sentence(
            Words(words[a:b], space[a:b]),
            sentence.spans[a:b],
            sentence.parse,
            frozenset(name - a for name in sentence.names if a <= name < b),
        )
        for a, b in pairwise(bounds)
    ]


def plain(sentence: Sentence) -> Words:
    """Words as the network reads them: compatibility forms (full width, ligatures) undone, invisible characters out, and
    `NAME` for names that are no words."""
    words = tuple(NAME if at in sentence.names else word for at, word in enumerate(sentence.words.words))
    if not all(map(str.isascii, words)):
        forms = (unicodedata.normalize("NFKC", word) for word in words)
        seen = ("".join(char for char in form if unicodedata.category(char) != "Cf") for form in forms)
        words = tuple(new or old for new, old in zip(seen, words, strict=True))
    return Words(words, sentence.words.space_after)


def has_no_word(words: Sequence[str]) -> bool:
    """Whether nothing in these tokens is a letter or a digit: there is nothing to parse."""
    return not any(char.isalnum() for word in words for char in word)


def parsed_parts(document: Document, longest: int, counts: Counter[str]) -> Iterator[tuple[int, Sentence]]:
    """(index of the sentence, the sentence or a piece of it) of all that is to be parsed; the rest is counted by reason."""
    for place, sentence in enumerate(document.sentences):
        if not sentence.parse:
            counts["sentences_code"] += 1
        elif has_no_word(sentence.words.words):
            counts["sentences_punctuation"] += 1
        else:
            parts = pieces(sentence, longest)
            counts["sentences_split"] += len(parts) > 1
            yield from ((place, part) for part in parts)


def trees_of(engine: Engine, parts: Sequence[Sentence]) -> list[Constituents | None]:
    """The tree of each sentence or piece, None where it is too long for the model."""
    return engine.constituents([plain(part) for part in parts])


class BeneparParser:
    """The default parser: NP and VP from constituents (protocol: `pipeline.text.Parser`)."""

    def __init__(self, config: ParserConfig) -> None:
        config = settled(config)
        refuse_where_slow(config.precision, config.device)
        self.config = config
        self.loaded = model.load_for_inference(config.model)
        self.engine = Engine(self.loaded.network, config.token_budget, config.device, config.precision)
        self.longest = min(config.max_words, self.engine.max_words)

    def identity(self) -> dict[str, Any]:
        """Name and hash of the model, and the versions whose code decides the output."""
        return {
            "kind": "benepar",
            "name": self.loaded.name,
            "sha256": self.loaded.sha256,
            "forms": f"NFKC, no Cf, {NAME} for names",
            "benepar": version("benepar"),
            "spacy": version("spacy"),
        }

    def load(self) -> None:
        """The compiled search."""
        load_compiled()

    def extract(self, documents: Sequence[Document]) -> list[Units]:
        """Units of each document; see `pipeline.align.units` for their definition."""
        counts = [Counter[str]() for _ in documents]
        todo = [
            (row, place, part)
            for row, document in enumerate(documents)
            for place, part in parsed_parts(document, self.longest, counts[row])
        ]
        trees = trees_of(self.engine, [part for _, _, part in todo])
        found: list[dict[int, list[tuple[Sentence, Constituents]]]] = [{} for _ in documents]
        for (row, place, part), tree in zip(todo, trees, strict=True):
            if tree is None:
                counts[row]["sentences_too_long"] += 1
            else:
                counts[row]["sentences_parsed"] += 1
                found[row].setdefault(place, []).append((part, tree))
        return [
            document_units(document, found[row], counts[row], self.config.keep_trees)
            for row, document in enumerate(documents)
        ]
