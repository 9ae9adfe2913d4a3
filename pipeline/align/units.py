"""Constituents to units: chunks and phrases of a sentence, as character spans.

- `phrases`: every NP and VP, nested ones included; equal spans with one label are one phrase.
- `chunks`: flat and disjoint: every NP that holds no other NP, and verb groups (labelled VP).

A verb group is the head of a chain of VPs each holding the next (`has [been [sleeping …]]`): its own words and its ADVP
and PRT children, up to the first other phrase. What follows from that, and where the definition leaves room:

- A VP with one VP child continues in it. A VP with several is a coordination: no group of its own, and none reaches
  into it (`will [[go] and [come]]` -> *will*, *go*, *come*). A VP under anything but a VP begins a chain
  (`wants [S [to [stay]]]` -> *wants*, *to stay*). An auxiliary outside the VP (`Does he sleep`) is in no chunk.
- A phrase before the first own word is passed over (`[PP in 1799] entered …` -> *entered*); one after it ends the
  group (`may [PP in the end] make …` -> *may*).
- An ADVP or PRT that holds an NP or a VP counts as another phrase (`left [ADVP [NP two days] ago]` -> *left*), and a
  verb group inside an NP chunk is left out (`[NP the wish to stay]` is one chunk), so that chunks stay disjoint.
- Conjunctions among the own words do not begin or end a group, and a group needs another own word than those.
- A relative or question pronoun alone (`the cat [that] I saw`, `[Who] knows?`) is no NP, whatever the parser calls it.
- A form of *be* between a question word and an NP (`What [is] the capital?`) is in no chunk, as where the subject follows
  it (`Is [he] a doctor?`), whether or not the parser finds a VP there.
- What an NP holds beside other NPs is in no NP chunk (`[NP [NP John 's] book]` -> *John 's*).

Units begin and end with a word: punctuation at their edges is cut off, a unit of nothing else is dropped and counted.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from jaxtyping import Int32

from pipeline.text import Constituents, Document, Sentence, Units

#: Punctuation to Unicode that stands for a word: `50 %`, `§ 4`, `# 1`, `R & D`.
SPOKEN: Final = frozenset("%‰‱&@#§¶％＆＠＃")
#: Categories of punctuation, combining marks, format and control characters.
UNSAID: Final = frozenset({"Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Mn", "Mc", "Me", "Cf", "Cc"})
#: Symbols to Unicode that serve as quotation marks and table rules.
MARKS: Final = frozenset("`´|")
CONJUNCTIONS: Final = frozenset({"and", "or", "but", "nor", "&", "and/or", "either", "neither", "both"})
#: What may stand inside a verb group.
ADVERBIAL: Final = frozenset({"ADVP", "PRT"})
UNITS: Final = frozenset({"NP", "VP"})
#: Tags of pronouns whose phrase is a WHNP in the Penn Treebank, though some treebanks (GUM) often say NP.
WH_PRONOUNS: Final = frozenset({"WP", "WDT"})
#: Forms of *be* as tokens. In a question they stand outside the VP in the Penn Treebank, though GUM often has them in one.
BE: Final = frozenset({"is", "are", "was", "were", "am", "'s", "’s", "'re", "’re", "'m", "’m"})
#: Stands for the part-of-speech tag where the parser gives none.
NO_TAG: Final = "XX"
BRACKETS: Final = str.maketrans(
    {"(": "-LRB-", ")": "-RRB-", "[": "-LSB-", "]": "-RSB-", "{": "-LCB-", "}": "-RCB-"}  # names of the Penn Treebank
)

Labelled = tuple[int, int, str]  # [start, end) and label


def is_punctuation(word: str) -> bool:
    """Whether a token is nothing but punctuation, marks and what is not seen, and so may not begin or end a unit."""
    return all((unicodedata.category(char) in UNSAID and char not in SPOKEN) or char in MARKS for char in word)


@dataclass(frozen=True)
class _Tree:
    """Nodes in pre-order, chains `X -> X` over the same tokens made one."""

    nodes: list[Labelled]  # tokens
    parents: list[int]  # -1 at the top
    children: list[list[int]]
    holds: list[set[str]]  # which of NP and VP stand below the node

    @classmethod
    def of(cls, tree: Constituents, words: Sequence[str]) -> "_Tree":
        nodes: list[Labelled] = []
        parents: list[int] = []
        children: list[list[int]] = []
        path: list[int] = []
        labelled = list(zip(map(tuple, tree.spans.tolist()), tree.labels, strict=True))
        for at, ((start, end), label) in enumerate(labelled):
            if label == "NP" and end == start + 1 and tree.tags is not None and tree.tags[start] in WH_PRONOUNS:
                label = "WHNP"
            while path and nodes[path[-1]][1] <= start:
                path.pop()
            asks = label == "VP" and path and nodes[path[-1]][2] == "SQ" and words[start].lower() in BE
            if asks and any(span[0] == start + 1 and name == "NP" for span, name in labelled[at + 1 : at + 2]):
                label = "SQ"
            node = (start, end, label)
            if path and nodes[path[-1]] == node:
                continue
            if path:
                children[path[-1]].append(len(nodes))
            parents.append(path[-1] if path else -1)
            path.append(len(nodes))
            nodes.append(node)
            children.append([])
        holds: list[set[str]] = [set() for _ in nodes]
        for index in range(len(nodes) - 1, 0, -1):
            if parents[index] >= 0:
                holds[parents[index]] |= holds[index] | ({nodes[index][2]} & UNITS)
        return cls(nodes, parents, children, holds)

    def continuation(self, vp: int) -> int | None:
        """The VP that `vp`'s chain goes on with: its only VP child, unless that is a coordination."""
        inner = self._vps(vp)
        return inner[0] if len(inner) == 1 and not self.is_coordination(inner[0]) else None

    def is_coordination(self, vp: int) -> bool:
        """Whether a VP holds several VPs."""
        return len(self._vps(vp)) > 1

    def _vps(self, node: int) -> list[int]:
        return [child for child in self.children[node] if self.nodes[child][2] == "VP"]

    def chain(self, vp: int) -> Iterator[tuple[int, int, Literal["own", "adverbial", "phrase", "verbal"]]]:
        """What a chain of VPs is made of, in order, the VPs themselves dissolved."""
        at, end, _ = self.nodes[vp]
        inner = self.continuation(vp)
        for child in self.children[vp]:
            start, stop, label = self.nodes[child]
            if at < start:
                yield at, start, "own"
            if child == inner:
                yield from self.chain(child)
            elif label == "VP":
                yield start, stop, "verbal"
            else:
                yield start, stop, "adverbial" if label in ADVERBIAL and not self.holds[child] else "phrase"
            at = stop
        if at < end:
            yield at, end, "own"


def _verb_group(tree: _Tree, head: int, words: Sequence[str], mute: Sequence[bool]) -> tuple[int, int] | None:
    """Tokens of the verb group of the chain that begins at `head`, if it has one."""
    start, end, verb = -1, -1, False
    for first, last, kind in tree.chain(head):
        if kind in ("own", "adverbial"):
            skipped = CONJUNCTIONS if kind == "own" else ()
            counted = [i for i in range(first, last) if not mute[i] and words[i].lower() not in skipped]
            if counted:
                start, end = counted[0] if start < 0 else start, counted[-1] + 1
                verb |= kind == "own"
        elif verb or kind == "verbal":
            break
        else:
            start = -1
    return (start, end) if verb else None


def _chunks(tree: _Tree, words: Sequence[str], mute: Sequence[bool], counts: Counter[str]) -> list[Labelled]:
    chunks: list[Labelled] = []
    in_base: list[bool] = []  # whether the node is an NP chunk or stands inside one
    for index, (start, end, label) in enumerate(tree.nodes):
        parent = tree.parents[index]
        inside = parent >= 0 and in_base[parent]
        base = label == "NP" and "NP" not in tree.holds[index]
        in_base.append(inside or base)
        if base:
            chunks.append((start, end, label))
        elif label == "VP" and not tree.is_coordination(index):
            continues = parent >= 0 and tree.nodes[parent][2] == "VP" and tree.continuation(parent) == index
            group = None if continues else _verb_group(tree, index, words, mute)
            if group and inside:
                counts["verb_groups_in_np"] += 1
            elif group:
                chunks.append((*group, label))
    return chunks


def _in_characters(
    units: Sequence[Labelled], sentence: Sentence, mute: Sequence[bool], counts: Counter[str], kind: str
) -> tuple[Int32[np.ndarray, "units 2"], tuple[str, ...]]:
    """Edges trimmed, equal units made one, sorted by (start, -end), in characters."""
    trimmed: dict[Labelled, None] = {}  # a set that keeps pre-order
    for start, end, label in units:
        while start < end and mute[start]:
            start += 1
        while start < end and mute[end - 1]:
            end -= 1
        if start < end:
            trimmed[start, end, label] = None
        else:
            counts[f"{kind}_punctuation"] += 1
    kept = sorted(trimmed, key=lambda unit: (unit[0], -unit[1]))
    tokens = np.array([unit[:2] for unit in kept], dtype=np.int32).reshape(-1, 2)
    spans = np.stack([sentence.spans[tokens[:, 0], 0], sentence.spans[tokens[:, 1] - 1, 1]], axis=1)
    return spans, tuple(label for _, _, label in kept)


def units_of(sentence: Sentence, tree: Constituents) -> Units:
    """Chunks and phrases of one sentence.

    `counts` holds `chunks_punctuation` and `phrases_punctuation` (units of nothing but punctuation, dropped) and
    `verb_groups_in_np` (verb groups left out because an NP chunk holds them).
    """
    counts: Counter[str] = Counter()
    words = sentence.words.words
    mute = [is_punctuation(word) for word in words]
    outline = _Tree.of(tree, words)
    phrases = [node for node in outline.nodes if node[2] in UNITS]
    found = _chunks(outline, words, mute, counts)
    return Units(
        *_in_characters(found, sentence, mute, counts, "chunks"),
        *_in_characters(phrases, sentence, mute, counts, "phrases"),
        counts=counts,
    )


def document_units(
    document: Document,
    trees: Mapping[int, Sequence[tuple[Sentence, Constituents]]],
    counts: Counter[str],
    keep_trees: bool,
) -> Units:
    """Units of a document from the trees of its sentences.

    `trees` gives for the index of a sentence its tree, or those of its pieces in order, each with the (part of the)
    sentence that it covers; sentences that were not parsed are missing. The counts of the units are added to `counts`
    in the result. `keep_trees` adds bracketed trees, one a sentence, "" for those not parsed.
    """
    parts = [units_of(sentence, tree) for index in sorted(trees) for sentence, tree in trees[index]]
    none = np.empty((0, 2), dtype=np.int32)
    total = counts.copy()
    for part in parts:
        total.update(part.counts)
    return Units(
        chunks=np.concatenate([none, *(part.chunks for part in parts)]),
        chunk_labels=tuple(label for part in parts for label in part.chunk_labels),
        phrases=np.concatenate([none, *(part.phrases for part in parts)]),
        phrase_labels=tuple(label for part in parts for label in part.phrase_labels),
        trees=tuple(
            bracketed(sentence.words.words, _joined(sentence, trees[index])) if trees.get(index) else ""
            for index, sentence in enumerate(document.sentences)
        )
        if keep_trees
        else None,
        counts=total,
    )


def _joined(whole: Sentence, pieces: Sequence[tuple[Sentence, Constituents]]) -> Constituents:
    """The trees of a sentence's pieces side by side, over the tokens of the whole."""
    tags = [NO_TAG] * len(whole.words.words)
    spans: list[Int32[np.ndarray, "nodes 2"]] = []
    for piece, tree in pieces:
        first = int(np.searchsorted(whole.spans[:, 0], piece.spans[0, 0]))
        spans.append(tree.spans + np.int32(first))
        if tree.tags is not None:
            tags[first : first + len(tree.tags)] = tree.tags
    return Constituents(np.concatenate(spans), tuple(label for _, tree in pieces for label in tree.labels), tuple(tags))


def bracketed(words: Sequence[str], tree: Constituents) -> str:
    """The tree in the notation of the Penn Treebank under a root `TOP`, on one line.

    Brackets inside words are spelled `-LRB-` and so on, spaces inside a formula left out; a word's tag is `XX` where the
    tree has none. After a word that ends in a backslash stands a space, since nltk reads `\\)` as one character.
    """
    tags = tree.tags or (NO_TAG,) * len(words)
    nodes = list(zip(tree.spans.tolist(), tree.labels, strict=True))
    parts, open_until, node = ["(TOP"], list[int](), 0
    for at, (word, tag) in enumerate(zip(words, tags, strict=True)):
        while node < len(nodes) and nodes[node][0][0] == at:
            parts.append(f" ({nodes[node][1]}")
            open_until.append(nodes[node][0][1])
            node += 1
        gap = " " if word.endswith("\\") else ""
        leaf = "".join(word.split()).translate(BRACKETS)
        parts.append(f" ({tag.translate(BRACKETS)} {leaf}{gap})")
        while open_until and open_until[-1] == at + 1:
            open_until.pop()
            parts.append(")")
    return "".join([*parts, ")"])
