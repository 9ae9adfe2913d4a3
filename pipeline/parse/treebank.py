"""Bracketed trees, one a line or spread over lines: read, freed of traces and function tags, as benepar expects.

Normalisation, in order: traces (`-NONE-`) and what they leave empty are dropped; function tags and indices go
(`NP-SBJ-1` -> `NP`); labels outside the Penn Treebank's inventory (`NML`, and the `HEADING`, `CAPTION`, … of CRAFT) are
spliced out, their children moving up; `X -> X` chains become one node; a root of several children becomes `FRAG`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benepar.ptb_unescape import guess_space_after, ptb_unescape
from nltk.tree import Tree

from pipeline.text import Words
from schemas.errors import UserError

#: Phrase labels of the Penn Treebank II bracketing guidelines (Bies et al. 1995).
PHRASES = frozenset(
    {"ADJP", "ADVP", "CONJP", "FRAG", "INTJ", "LST", "NAC", "NP", "NX", "PP", "PRN", "PRT", "QP", "RRC", "S", "SBAR"}
    | {"SBARQ", "SINV", "SQ", "UCP", "VP", "WHADJP", "WHADVP", "WHNP", "WHPP", "X"}
)
ROOTS = frozenset({"", "ROOT", "TOP", "S1", "VROOT"})
#: The end of a word that ends in a backslash. nltk takes it and the bracket for one escaped character.
_BACKSLASH = re.compile(r"\\(?=[()])")


@dataclass(frozen=True)
class GoldTree:
    """A gold tree (its root wrapper removed) with its place in the file."""

    tree: Tree
    place: str


def plain_label(label: str) -> str:
    """`NP-SBJ-1`, `NP=2`, `ADVP|PRT` -> `NP`, `NP`, `ADVP`; tags such as `-LRB-` stay."""
    if label.startswith("-"):
        return label
    for mark in "-=|":
        head = label.split(mark, 1)[0]
        label = head or label
    return label


def normalise(node: Tree, splice: bool = True) -> list[Tree]:
    """The subtree without traces, function tags and (if `splice`) foreign labels: no tree, one, or several."""
    if len(node) == 1 and isinstance(node[0], str):
        return [] if node.label() == "-NONE-" else [Tree(node.label(), [node[0]])]
    children = [kept for child in node if isinstance(child, Tree) for kept in normalise(child, splice)]
    if not children:
        return []
    label = plain_label(node.label())
    if (splice and label not in PHRASES) or label in ROOTS:
        return children
    if len(children) == 1 and children[0].label() == label and isinstance(children[0][0], Tree):
        return children
    return [Tree(label, children)]


def bracketings(path: Path) -> Iterator[tuple[int, str]]:
    """Top-level bracketings with the line on which each begins."""
    depth, start = 0, 0
    parts: list[str] = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            if depth == 0:
                start, parts = number, []
            depth += line.count("(") - line.count(")")
            parts.append(line)
            if depth < 0:
                raise UserError(
                    f"{path}, line {number}: a closing bracket too many. One tree a line is the safest form."
                )
            if depth == 0:
                yield start, "".join(parts)
    if depth:
        raise UserError(f"{path}, line {start}: the tree that begins here is never closed.")


def parsed_tree(path: Path, number: int, text: str, splice: bool = True) -> GoldTree | None:
    """The normalised tree of one bracketing of `path` that begins on line `number`; None if it holds only traces.

    Raises `UserError` where the text is no tree.
    """
    try:
        tree = Tree.fromstring(_BACKSLASH.sub(r"\\ ", text))
    except ValueError as error:
        raise UserError(f"{path}, line {number}: not a bracketed tree ({str(error).splitlines()[0]}).") from error
    tops = normalise(tree, splice)
    if not tops:
        return None
    whole = tops[0] if len(tops) == 1 and isinstance(tops[0][0], Tree) else Tree("FRAG", tops)
    return GoldTree(whole, f"{path.name}:{number}")


def read_trees(path: Path, splice: bool = True) -> Iterator[GoldTree]:
    """Normalised trees of one bracketed file; trees that hold only traces are left out.

    Raises `UserError` with file and line for brackets that do not match.
    """
    for number, text in bracketings(path):
        tree = parsed_tree(path, number, text, splice)
        if tree is not None:
            yield tree


def gold_trees(path: Path) -> list[GoldTree]:
    """All trees of a bracketed file; raises `UserError` where there are none, or what is there cannot be read."""
    try:
        trees = list(read_trees(path))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}), so no file of bracketed trees.") from error
    if not trees:
        raise UserError(f"{path}: no tree in it; one looks like (S (NP (NN time)) (VP (VBZ flies))).")
    return trees


def words_of(tree: GoldTree) -> Words:
    """The surface words of a gold tree: Penn escapes undone, spaces guessed as benepar does."""
    leaves = tree.tree.leaves()
    plain = ptb_unescape(leaves)
    return Words(tuple(plain), tuple(bool(space) for space in guess_space_after(leaves)))
