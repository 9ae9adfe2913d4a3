"""Text to sentences and words, with character offsets into the original text.

Blocks between hard boundaries (`pipeline.read.markup`) are cut into sentences by rules (`pipeline.read.sentence_rules`)
or by the `senter` of an installed spaCy pipeline, and into tokens by spaCy's English tokenizer. For every document:

- sentence spans are ordered, disjoint, free of white space at the edges, and hold every non-space character once;
- tokens lie inside their sentence and, with its markup, hold every visible character of its span once;
- word spans are ordered and disjoint, each inside one sentence, and hold every letter and digit of the text once;
- no token parts a character from its marks, and invisible ones (`pipeline.read.characters`) are in tokens only where they
  stand inside; elsewhere they are white space. Some tokenizers drop both, and could then stand for no such token.
"""

import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64
from spacy.about import __version__ as spacy_version
from spacy.lang.en import English, EnglishDefaults
from spacy.language import Language
from spacy.tokens import Doc

from pipeline.read.characters import INVISIBLE, JOINING
from pipeline.read.inline import NAMES, URL, Kind, Mark, marks
from pipeline.read.markup import Block, blocks
from pipeline.read.sentence_rules import sentence_ends, unambiguous_ends
from pipeline.read.spacy_models import HOW_TO_INSTALL, bounded_memory, load_pipeline, pipeline_identity
from pipeline.text import Document, Sentence, Words
from schemas.config import SegmentConfig
from schemas.errors import UsageError

#: Enters the manifest; to be raised with every change of rules, marks or tokenization that can move a span.
SEGMENTATION_VERSION = 4
#: Stands between chunks in what the tokenizer is given. Not a line feed: that is one of spaCy's special cases, and
#: after the first of those in a document spaCy caches nothing more.
_BETWEEN = "\f"
#: spaCy's tokenizer takes quadratic time in the length of a run without white space.
_LONGEST_RUN = 100
_LOOSE = re.compile(rf"(?<!\S)[{INVISIBLE}]++|(?<![{INVISIBLE}])[{INVISIBLE}]++(?!\S)")
_MARKS = re.compile(f"[{JOINING}]+")
_RUN = re.compile(rf"\S{{{_LONGEST_RUN}}}(?=\S)")


class _Tokens(NamedTuple):
    """A document's tokens other than white space, in order, markup included."""

    starts: Int32[np.ndarray, " tokens"]
    ends: Int32[np.ndarray, " tokens"]
    punctuation: Bool[np.ndarray, " tokens"]  # or marks with nothing before them
    urls: Bool[np.ndarray, " tokens"]  # URLs and addresses, which no letter around them joins
    hidden: Bool[np.ndarray, " tokens"]  # tags and the like inside a sentence, which no parser sees
    names: Bool[np.ndarray, " tokens"]  # parts of a name (`pipeline.read.inline`)
    goes_on: Bool[np.ndarray, " tokens"]  # with the token before it one name, and one token to the parser


class _English(English):  # type: ignore[no-untyped-call]  # its metaclass hook
    """`spacy.blank("en")`, whose tokenizer leaves whole what is one token (`pipeline.read.inline`).

    That would be made by way of a config, and its tokenizer's rules read again as the pattern is set: three times as slow.
    """

    class Defaults(EnglishDefaults):
        token_match = URL.fullmatch


class Segmenter:
    """Cuts texts into sentences and words as a `SegmentConfig` says.

    Raises `UsageError` for an unknown method, a pipeline that is not installed, or one without a `senter`.
    """

    def __init__(self, config: SegmentConfig) -> None:
        method, _, name = config.sentences.partition(":")
        self._identity: dict[str, Any] = {
            "sentences": config.sentences,
            "line_breaks": config.line_breaks,
            "version": SEGMENTATION_VERSION,
            "tokenizer": "spacy blank en",
            "spacy": spacy_version,
        }
        self._line_breaks = config.line_breaks
        self._senter = method == "senter"
        if config.sentences == "rules":
            self._pipeline: Language = _English()
        elif self._senter and name:
            self._pipeline = load_pipeline(name, {"senter"})
            if not self._pipeline.has_pipe("senter"):
                raise UsageError(f"The spaCy pipeline `{name}` has no `senter`. {HOW_TO_INSTALL}")
            self._identity |= pipeline_identity(name, self._pipeline)
            # The words must not depend on how sentences are found.
            self._pipeline.tokenizer = _English(self._pipeline.vocab).tokenizer
        else:
            raise UsageError(f"Sentences are found by `rules` or by `senter:NAME`, not by `{config.sentences}`.")
        self._tokenizer: Any = self._pipeline.tokenizer  # typed by spaCy as any callable

    def identity(self) -> dict[str, Any]:
        """Method and versions; for a `senter` also its pipeline's name, version and hash."""
        return dict(self._identity)

    def segment(self, texts: Sequence[str], borders: Sequence[Sequence[int]]) -> list[Document]:
        """One `Document` a text; no sentence and no word reaches over one of its borders, which rise.

        Texts must be free of unpaired surrogates (spaCy stores UTF-8).
        """
        cut: list[list[Block]] = []
        chunked: list[_Chunks] = []
        for text, own in zip(texts, borders, strict=True):
            sentences: list[Block] = []
            inside: list[Mark] = []
            for block in blocks(text, own, self._line_breaks):
                of_block = _marks(text, block)
                sentences += self._sentences(text, block, of_block)
                inside += of_block
            cut.append(sentences)
            chunked.append(_chunks(sentences, inside, text))
        seen = map(_as_spacy_sees, texts, borders)
        spaced = (_BETWEEN.join([text[a:b] for a, b in c.spans]) for text, c in zip(seen, chunked, strict=True))
        with bounded_memory(self._pipeline):
            # Through the tokenizer itself: `Language.pipe` refuses texts of a million characters.
            docs = self._tokenizer.pipe(spaced)
            tokens = [_tokens(*parts) for parts in zip(docs, texts, chunked, strict=True)]
            if self._senter:
                cut = self._cut_by_senter(texts, cut, tokens)
        return [_document(*parts) for parts in zip(texts, cut, tokens, strict=True)]

    def _sentences(self, text: str, block: Block, inside: Sequence[Mark]) -> list[Block]:
        """Sentences of a block as far as text alone can tell them; a `senter` needs tokens and comes later."""
        if block.code:
            return [block]
        body = _masked(text, block, inside)
        ends = unambiguous_ends(body) if self._senter else sentence_ends(body)
        if not ends:
            return [block]
        parts = [body[a:b].rstrip() for a, b in itertools.pairwise([0, *ends])]
        last = [block.start + a + len(part) for a, part in zip([0, *ends], parts, strict=False)]
        return _cut_block(block, [block.start + end for end in ends], last)

    def _cut_by_senter(
        self, texts: Sequence[str], cut: Sequence[list[Block]], tokens: Sequence[_Tokens]
    ) -> list[list[Block]]:
        vocab = self._pipeline.vocab
        docs = (
            Doc(
                vocab,
                [text[a:b] for a, b in zip(t.starts, t.ends, strict=True)],
                _space_after(text, np.stack([t.starts, t.ends], axis=1)).tolist(),
            )
            for text, t in zip(texts, tokens, strict=True)
        )
        starts = (doc.to_array(["SENT_START"]).reshape(-1) == 1 for doc in self._pipeline.pipe(docs))
        return [_cut_at(*parts) for parts in zip(cut, tokens, starts, strict=True)]


def _as_spacy_sees(text: str, borders: Sequence[int]) -> str:
    """The text with spaces for line feeds (see `_BETWEEN`), and for invisible characters at the edges of words."""
    parts = [text[start:end] for start, end in itertools.pairwise((0, *borders, len(text)))]
    return "".join(_LOOSE.sub(lambda run: " " * len(run[0]), part.replace("\n", " ")) for part in parts)


def _cut_block(block: Block, starts: list[int], ends: list[int]) -> list[Block]:
    """A block cut before each of `starts`; `ends[i]` is where the text before `starts[i]` ends."""
    firsts = [block.span_start, *starts]
    begins = [block.start, *starts]
    lasts = [*ends, block.end]
    return [
        Block(first, begin, end, block.span_end if i == len(starts) else end, code=False)
        for i, (first, begin, end) in enumerate(zip(firsts, begins, lasts, strict=True))
    ]


def _marks(text: str, block: Block) -> list[Mark]:
    """Marks inside a block, by characters of the text; in code, URLs alone are."""
    return [
        Mark(block.start + mark.start, block.start + mark.end, mark.kind)
        for mark in marks(text[block.start : block.end])
        if mark.kind is Kind.URL or not block.code
    ]


def _masked(text: str, block: Block, inside: Sequence[Mark]) -> str:
    """A block's text with quotation marks for what is hidden, and letters for what is whole: no sentence ends inside."""
    parts, at = [], block.start
    for mark in inside:
        if mark.kind is not Kind.URL:
            parts += [text[at : mark.start], ('"' if mark.kind is Kind.HIDDEN else "x") * (mark.end - mark.start)]
            at = mark.end
    return "".join([*parts, text[at : block.end]])


class _Chunks(NamedTuple):
    """Stretches of a text that are tokenized apart, and what mark each is, if any."""

    spans: list[tuple[int, int]]
    kinds: list[Kind | None]


def _chunks(sentences: Sequence[Block], inside: Sequence[Mark], text: str) -> _Chunks:
    """Markup and text of every sentence, the text cut around its marks and inside runs too long for spaCy's tokenizer."""
    chunks = _Chunks([], [])

    def plain(start: int, end: int) -> None:
        for span in _short_runs(text, start, end):
            chunks.spans.append(span)
            chunks.kinds.append(None)

    marks_left = iter(inside)
    mark = next(marks_left, None)
    for span_start, start, end, span_end, _ in sentences:
        plain(span_start, start)
        at = start
        while mark is not None and mark.end <= end:
            plain(at, mark.start)
            chunks.spans.append((mark.start, mark.end))
            chunks.kinds.append(mark.kind)
            at = mark.end
            mark = next(marks_left, None)
        plain(at, end)
        plain(end, span_end)
    return chunks


def _short_runs(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    if end - start > _LONGEST_RUN:
        for match in _RUN.finditer(text, start, end):
            yield start, match.end()
            start = match.end()
    if end > start:
        yield start, end


def _tokens(doc: Doc, text: str, chunks: _Chunks) -> _Tokens:
    table = doc.to_array(["IDX", "LENGTH", "IS_PUNCT", "IS_SPACE", "IS_ASCII"]).astype(np.int64)
    table = table[table[:, 3] == 0]
    spans = np.array(chunks.spans, dtype=np.int64).reshape(-1, 2)
    # Where each chunk begins in the text that spaCy saw: chunks in order, one character between two.
    lengths = spans[:, 1] - spans[:, 0]
    seen = np.cumsum(lengths + 1) - lengths - 1
    chunk = np.searchsorted(seen, table[:, 0], side="right") - 1
    starts = table[:, 0] + (spans[:, 0] - seen)[chunk]
    ends = starts + table[:, 1]
    touches = np.zeros(len(table), dtype=bool)
    touches[1:] = (starts[1:] == ends[:-1]) & (chunk[1:] == chunk[:-1])
    kinds = np.array([_CODES[kind] for kind in chunks.kinds], dtype=np.int64)[chunk]
    punctuation = table[:, 2] == 1
    owner = 0
    for i in np.flatnonzero(table[:, 4] == 0).tolist():
        marks = _MARKS.match(text, starts[i], ends[i])
        if marks and touches[i]:
            owner = i - 1 if starts[i - 1] < ends[i - 1] else owner  # a token of marks alone was emptied just before
            starts[i] = ends[owner] = marks.end()
        elif marks:
            punctuation[i] = marks.end() == ends[i]
    whole = (kinds == _CODES[Kind.WHOLE]) | (kinds == _CODES[Kind.FORMULA])
    own = (starts < ends) & ~_joined(ends, punctuation, chunk, whole)
    names, chunk = _IS_NAME[kinds[own]], chunk[own]
    goes_on = np.zeros(len(chunk), dtype=bool)
    goes_on[1:] = names[1:] & (chunk[1:] == chunk[:-1])
    return _Tokens(
        starts[own].astype(np.int32),
        ends[own].astype(np.int32),
        punctuation[own],
        kinds[own] == _CODES[Kind.URL],
        kinds[own] == _CODES[Kind.HIDDEN],
        names,
        goes_on,
    )


#: Kinds of marks as numbers of an array.
_CODES = {None: 0} | {kind: kind.value for kind in Kind}
_IS_NAME = np.array([False] + [kind in NAMES for kind in Kind])


def _joined(
    ends: Int64[np.ndarray, " tokens"],
    punctuation: Bool[np.ndarray, " tokens"],
    chunk: Int64[np.ndarray, " tokens"],
    whole: Bool[np.ndarray, " tokens"],
) -> Bool[np.ndarray, " tokens"]:
    """Which tokens are part of the one before them, as both are of one whole mark; the first grows over the others."""
    rest = np.zeros(len(chunk), dtype=bool)
    rest[1:] = whole[1:] & (chunk[1:] == chunk[:-1])
    first = np.flatnonzero(whole & ~rest)
    if len(first):
        ends[first] = np.maximum.reduceat(np.where(whole, ends, 0), first)
        punctuation[first] = np.logical_and.reduceat(punctuation | ~whole, first)
    return rest


def _space_after(text: str, spans: Int32[np.ndarray, "tokens 2"]) -> Bool[np.ndarray, " tokens"]:
    """Whether a token is followed by white space, by what is as good as that, or by what is hidden, before the next one."""
    return np.append(spans[1:, 0], np.int32(len(text))) > spans[:, 1]


def _cut_at(sentences: list[Block], tokens: _Tokens, begins: Bool[np.ndarray, " tokens"]) -> list[Block]:
    """Blocks cut where a `senter` has a sentence begin inside one."""
    span_starts = np.array([s.span_start for s in sentences])
    cuts = np.flatnonzero(begins)
    cuts = cuts[cuts > 0]
    owners = np.searchsorted(span_starts, tokens.starts[cuts], side="right") - 1
    starts: list[list[int]] = [[] for _ in sentences]
    ends: list[list[int]] = [[] for _ in sentences]
    for owner, start, end in zip(
        owners.tolist(), tokens.starts[cuts].tolist(), tokens.ends[cuts - 1].tolist(), strict=True
    ):
        if sentences[owner].start < start < sentences[owner].end and not sentences[owner].code:
            starts[owner].append(start)
            ends[owner].append(end)
    return [
        part for s, a, b in zip(sentences, starts, ends, strict=True) for part in (_cut_block(s, a, b) if a else [s])
    ]


def _document(text: str, sentences: Sequence[Block], tokens: _Tokens) -> Document:
    table = np.array([sentence[:4] for sentence in sentences], dtype=np.int32).reshape(-1, 4)
    owner = np.searchsorted(table[:, 0], tokens.starts, side="right") - 1
    markup = tokens.hidden | (tokens.starts < table[owner, 1]) | (tokens.starts >= table[owner, 2])
    spans = np.stack([tokens.starts, tokens.ends], axis=1)
    parsed = np.flatnonzero(~markup)
    first = np.flatnonzero(~tokens.goes_on[parsed])
    last = np.append(first[1:], len(parsed))[: len(first)] - 1
    spans_parsed = np.stack([tokens.starts[parsed[first]], tokens.ends[parsed[last]]], axis=1)
    names = tokens.names[parsed[first]]
    strings = [text[start:end] for start, end in spans_parsed.tolist()]
    spaces = _space_after(text, spans_parsed).tolist()
    bounds = np.searchsorted(owner[parsed[first]], np.arange(len(sentences) + 1)).tolist()
    return Document(
        text=text,
        sentences=tuple(
            Sentence(
                Words(tuple(strings[a:b]), tuple(spaces[a:b])),
                spans_parsed[a:b],
                parse=b > a and not sentence.code,
                names=frozenset(np.flatnonzero(names[a:b]).tolist()),
            )
            for sentence, (a, b) in zip(sentences, itertools.pairwise(bounds), strict=True)
        ),
        sentence_spans=np.ascontiguousarray(table[:, [0, 3]]),
        word_spans=_words(text, tokens, spans, owner, markup),
    )


def _words(
    text: str,
    tokens: _Tokens,
    spans: Int32[np.ndarray, "tokens 2"],
    owner: Int64[np.ndarray, " tokens"],
    markup: Bool[np.ndarray, " tokens"],
) -> Int32[np.ndarray, "words 2"]:
    """Tokens but for punctuation; of markup only what has letters or digits; pieces of a run of letters joined."""
    keep = ~tokens.punctuation
    for i in np.flatnonzero(keep & markup).tolist():
        keep[i] = any(map(str.isalnum, text[spans[i, 0] : spans[i, 1]]))
    words, owner, url = spans[keep], owner[keep], tokens.urls[keep]
    touches = np.zeros(len(words), dtype=bool)
    touches[1:] = (words[1:, 0] == words[:-1, 1]) & (owner[1:] == owner[:-1]) & ~url[1:] & ~url[:-1]
    for i in np.flatnonzero(touches).tolist():
        touches[i] = all(unicodedata.category(c)[0] in "LM" for c in text[words[i, 0] - 1 : words[i, 0] + 1])
    first = np.flatnonzero(~touches)
    last = np.append(first[1:], len(words))[: len(first)] - 1
    return np.stack([words[first, 0], words[last, 1]], axis=1)
