"""`nlp.add_pipe("mta_benepar")`: the engine as a spaCy component, in place of benepar's own.

    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    nlp.add_pipe("mta_benepar")
    next(nlp("The old dog has been sleeping.").sents)._.parse_string

It sets what benepar's component sets, through benepar's own extension code: `_.parse_string`, `_.labels`, `_.constituents`,
`_.children` and `_.parent` of spans, and `token.tag_` if the model tags. Beside that, `doc.spans["chunks"]` and
`doc.spans["phrases"]` hold the labelled units of `pipeline.align.units`. Sentences of all documents of a batch are parsed
together.

Where benepar's component fails, this one goes on. White space tokens, which that one parses as words or stops at, are not
shown to the parser and stand in the tree as `(_SP …)`. A sentence longer than the model can take is cut at its strongest
punctuation and its parts stand under a node `TOP`, with a warning; a single word of that length stays without labels.
Parsed documents can be stored (`DocBin` with `store_user_data=True`, `to_bytes`) and sent to other processes.

spaCy imports this module for every `nlp` object once the package is installed, so all that is slow to import is imported
with the first component.
"""

import inspect
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import srsly  # type: ignore[import-untyped]
from jaxtyping import Int32
from spacy.language import Language
from spacy.pipeline import Pipe
from spacy.tokens import Doc, Span
from spacy.util import minibatch

from pipeline.align.units import units_of
from pipeline.text import Constituents, Sentence, Words
from schemas.config import ParserConfig
from schemas.errors import StateError, UsageError

NAME = "mta_benepar"
#: Root of a sentence that had to be cut.
CUT = "TOP"
#: spaCy's tag of white space.
SPACE_TAG = "_SP"
#: A stored component, in its folder: name and hash of its model.
IDENTITY_FILE = "parser.json"
#: Marks constituents in the bytes of a stored document.
STORED = "mta_benepar.constituents"

Parts = list[tuple[Sentence, Constituents]]  # a sentence with its tree, or each of its pieces with its own


class ConstituencyComponent(Pipe):
    """Constituents, tags and units of spaCy documents that have sentence boundaries.

    `model`: `embedded`, a folder, or a published name. `token_budget`, `precision`, `device`, `threads`: see
    `pipeline.parse.engine.Engine`. `disable_tagger` leaves `token.tag_` alone. Raises `UserError` where the model is
    missing or not a parser, `UsageError` for `int8` where it would be slower than `float32`.
    """

    def __init__(
        self,
        name: str,
        model: str = "embedded",
        *,
        token_budget: int = 2048,
        precision: Literal["auto", "float32", "bf16", "int8"] = "float32",
        device: str = "cpu",
        threads: int = 1,
        disable_tagger: bool = False,
    ) -> None:
        from benepar.integrations import spacy_extensions  # noqa: F401 (installs the extension attributes)

        from pipeline.parse.engine import Engine
        from pipeline.parse.int8 import refuse_where_slow
        from pipeline.parse.model import load_for_inference
        from pipeline.parse.precision import settled

        if precision == "auto":
            precision = settled(ParserConfig(model=model, device=device, precision=precision)).precision
        refuse_where_slow(precision, device)
        self.name = name
        self.model = model
        self.disable_tagger = disable_tagger
        self.settings: dict[str, Any] = {
            "token_budget": token_budget,
            "precision": precision,
            "device": device,
            "threads": threads,
            "disable_tagger": disable_tagger,
        }
        self.loaded = load_for_inference(model)
        self.engine = Engine(self.loaded.network, token_budget, device, precision, threads)

    def __call__(self, doc: Doc) -> Doc:
        """Annotate one document in place; raises `UsageError` if it has no sentence boundaries."""
        self._annotate([(doc, sentences_of(doc))])
        return doc

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = 128) -> Iterator[Doc]:
        """Annotate documents, in order, `batch_size` of them at a time.

        Documents that fail go to the error handler: alone for want of sentence boundaries, else with their batch.
        """
        handle = self.get_error_handler()
        for docs in minibatch(stream, batch_size):  # type: ignore[no-untyped-call]
            ready = []
            for doc in docs:
                try:
                    ready.append((doc, sentences_of(doc)))
                except UsageError as error:
                    handle(self.name, self, [doc], error)
            try:
                self._annotate(ready)
            except Exception as error:  # what to do about it is the handler's to decide
                handle(self.name, self, [doc for doc, _ in ready], error)
            else:
                yield from (doc for doc, _ in ready)

    def _annotate(self, docs: Sequence[tuple[Doc, list[Sentence]]]) -> None:
        trees = self._trees([sentence for _, sentences in docs for sentence in sentences])
        at = 0
        for doc, sentences in docs:
            found = trees[at : at + len(sentences)]
            at += len(sentences)
            if self.engine.tags is not None and not self.disable_tagger:
                set_tags(doc, found)
            set_constituents(doc, found)
            set_units(doc, found)

    def _trees(self, sentences: Sequence[Sentence]) -> list[Parts]:
        """Trees of each sentence: one; those of its pieces if it is too long; none without words."""
        from pipeline.parse.benepar import pieces

        found: list[Parts] = [[] for _ in sentences]
        todo = [(row, part) for row, s in enumerate(sentences) if s.parse for part in pieces(s, self.engine.max_words)]
        cut = {row for row, part in todo if len(part.spans) < len(sentences[row].spans)}
        while todo:
            halves: list[tuple[int, Sentence]] = []
            for (row, part), tree in zip(todo, self.engine.constituents([p.words for _, p in todo]), strict=True):
                if tree is not None:
                    found[row].append((part, tree))
                else:  # too many subwords
                    cut.add(row)
                    if len(part.spans) > 1:
                        halves.extend((row, half) for half in pieces(part, (len(part.spans) + 1) // 2))
            todo = halves
        if cut:
            warnings.warn(
                f"{self.name}: {len(cut)} sentence(s) too long for the model were parsed in parts; a single word that is "
                "too long has no labels.",
                stacklevel=3,
            )
        return [sorted(parts, key=lambda part: int(part[0].spans[0, 0])) for parts in found]

    def identity(self) -> dict[str, str]:
        """What a stored component is: its model by name and hash."""
        return {"model": self.loaded.name, "sha256": self.loaded.sha256}

    def _check(self, stored: dict[str, str]) -> None:
        if stored["sha256"] != self.loaded.sha256:
            raise StateError(
                f"{self.name}: this pipeline was saved with the parser {stored['model']!r} (sha256 {stored['sha256'][:12]}…), "
                f"but its `model`, {self.model!r}, is now another one ({self.loaded.sha256[:12]}…). Put the old parser back, or "
                f'name it: spacy.load(…, config={{"components": {{"{self.name}": {{"model": "FOLDER"}}}}}}).'
            )

    def to_bytes(self, *, exclude: Iterable[str] = ()) -> bytes:
        """Name and hash of the model; its weights stay where they are."""
        return json.dumps(self.identity()).encode()

    def from_bytes(self, data: bytes, *, exclude: Iterable[str] = ()) -> "ConstituencyComponent":
        """Check that the model is the stored one; raises `StateError`."""
        self._check(json.loads(data))
        return self

    def to_disk(self, path: str | Path, *, exclude: Iterable[str] = ()) -> None:
        """Write name and hash of the model into the folder `path`; its weights stay where they are."""
        Path(path).mkdir(parents=True, exist_ok=True)
        (Path(path) / IDENTITY_FILE).write_bytes(self.to_bytes())

    def from_disk(self, path: str | Path, *, exclude: Iterable[str] = ()) -> "ConstituencyComponent":
        """Check that the model is the stored one; raises `StateError`."""
        return self.from_bytes((Path(path) / IDENTITY_FILE).read_bytes())

    def __reduce__(self) -> tuple[Callable[..., "ConstituencyComponent"], tuple[str, str]]:
        return partial(type(self), **self.settings), (self.name, self.model)


def make_component(
    nlp: Language,
    name: str,
    model: str,
    token_budget: int,
    precision: Literal["auto", "float32", "bf16", "int8"],
    device: str,
    threads: int,
    disable_tagger: bool,
) -> ConstituencyComponent:
    """spaCy's way to a `ConstituencyComponent`."""
    return ConstituencyComponent(
        name,
        model,
        token_budget=token_budget,
        precision=precision,
        device=device,
        threads=threads,
        disable_tagger=disable_tagger,
    )


# unwrapped, since spaCy reads the arguments' names, which run-time shape checks hide
Language.factory(
    NAME,
    requires=["doc.sents"],
    assigns=["doc.spans", "token.tag"]
    + [f"span._.{name}" for name in ("parse_string", "labels", "constituents", "children", "parent")]
    + [f"token._.{name}" for name in ("parse_string", "labels", "parent")],
    default_config={
        "model": "embedded",
        "token_budget": 2048,
        "precision": "float32",
        "device": "cpu",
        "threads": 1,
        "disable_tagger": False,
    },
    func=inspect.unwrap(make_component),
)


def sentences_of(doc: Doc) -> list[Sentence]:
    """The sentences of `doc`, without white space tokens; spans are [token, token + 1) of the document.

    `parse` is False where nothing is left. Raises `UsageError` if the document has no sentence boundaries.
    """
    if not doc.has_annotation("SENT_START"):
        raise UsageError(
            f"{NAME} needs sentence boundaries, and this document has none: add a sentencizer before it "
            f'(nlp.add_pipe("sentencizer", before="{NAME}")), or a parser.'
        )
    sentences = []
    for sent in doc.sents:
        tokens = [token for token in sent if not token.is_space]
        spaces = tuple(
            bool(token.whitespace_) or (token.i + 1 < sent.end and doc[token.i + 1].is_space) for token in tokens
        )
        first = np.array([token.i for token in tokens], dtype=np.int32)
        words = Words(tuple(token.text for token in tokens), spaces)
        sentences.append(Sentence(words, np.stack([first, first + 1], axis=1), parse=bool(tokens)))
    return sentences


def set_tags(doc: Doc, sentences: Sequence[Parts]) -> None:
    """`token.tag_` of all words in the trees, and of white space."""
    for token in doc:
        if token.is_space:
            token.tag_ = SPACE_TAG
    for part, tree in (pair for parts in sentences for pair in parts):
        for index, tag in zip(part.spans[:, 0].tolist(), tree.tags or (), strict=True):
            doc[index].tag_ = tag


def set_constituents(doc: Doc, sentences: Sequence[Parts]) -> None:
    """The tree of each sentence of `doc`, where benepar's extension attributes look for it.

    As in benepar's, every token is a node, and so is every sentence, with labels or without.
    """
    from benepar.integrations.spacy_extensions import ConstituentData

    numbers: dict[tuple[str, ...], int] = {(): 0}
    nodes: list[tuple[int, int, int]] = []
    for sent, parts in zip(doc.sents, sentences, strict=True):
        chains = chains_of(sent, parts)
        rows = [(a, -b, numbers.setdefault(chain, len(numbers))) for (a, b), chain in chains.items()]
        nodes.extend(sorted(rows))  # pre-order
    table = np.array(nodes, dtype=np.int64).reshape(-1, 3)
    starts = np.ascontiguousarray(table[:, 0])
    first_at = np.searchsorted(starts, np.arange(len(doc)))
    doc._._constituent_data = ConstituentData(starts, -table[:, 1], table[:, 2], first_at, tuple(numbers))


def chains_of(sent: Span, parts: Parts) -> dict[tuple[int, int], tuple[str, ...]]:
    """Labels of each node [start, end) of a sentence's tree, the outermost first; tokens of the document."""
    whole = (sent.start, sent.end)
    chains: dict[tuple[int, int], tuple[str, ...]] = {whole: (CUT,) if len(parts) > 1 else ()}
    for part, tree in parts:
        first, last = part.spans[:, 0].tolist(), part.spans[:, 1].tolist()
        for (a, b), label in zip(tree.spans.tolist(), tree.labels, strict=True):
            # a tree over all words is one over the white space around them too
            node = whole if len(parts) == 1 and (a, b) == (0, len(first)) else (first[a], last[b - 1])
            chains[node] = (*chains.get(node, ()), label)
    for token in range(sent.start, sent.end):
        chains.setdefault((token, token + 1), ())
    return chains


def set_units(doc: Doc, sentences: Sequence[Parts]) -> None:
    """`doc.spans["chunks"]` and `doc.spans["phrases"]`."""
    units = [units_of(part, tree) for parts in sentences for part, tree in parts]

    def spans(found: Int32[np.ndarray, "units 2"], labels: Sequence[str]) -> list[Span]:
        return [Span(doc, a, b, label=label) for (a, b), label in zip(found.tolist(), labels, strict=True)]

    doc.spans["chunks"] = [span for unit in units for span in spans(unit.chunks, unit.chunk_labels)]
    doc.spans["phrases"] = [span for unit in units for span in spans(unit.phrases, unit.phrase_labels)]


def encode_constituents(value: Any, chain: Callable[[Any], Any] | None = None) -> Any:
    """What msgpack stores of a parsed document's constituents; other values go on along the chain."""
    kind = type(value)
    if (kind.__module__, kind.__name__) == ("benepar.integrations.spacy_extensions", "ConstituentData"):
        labels = [list(labels) for labels in value.label_vocab]
        return {STORED: [value.starts, value.ends, value.labels, value.loc_to_constituent, labels]}
    return value if chain is None else chain(value)


def decode_constituents(value: Any, chain: Callable[[Any], Any] | None = None) -> Any:
    """Inverse of `encode_constituents`."""
    if isinstance(value, dict) and STORED in value:
        from benepar.integrations.spacy_extensions import ConstituentData

        *arrays, labels = value[STORED]
        return ConstituentData(*arrays, tuple(map(tuple, labels)))
    return value if chain is None else chain(value)


srsly.msgpack_encoders.register(NAME, func=encode_constituents)
srsly.msgpack_decoders.register(NAME, func=decode_constituents)
