"""What stands inside a line and is no prose: tags and emphasis marks, which no parser should see; URLs, formulas and
character references, which are one token; names that are no words.

A mark is hidden (`HIDDEN`), whole (`WHOLE`), a name (`NAME`), or both of these (`FORMULA`, `URL`). Hidden are HTML's tags by
their names (`<name>` in a letter is a word), the control tokens of chat formats, comments, references to white space
(`&nbsp;`), and the marks of links, emphasis and code. Whole are URLs, addresses, where links lead, formulas between the
delimiters of LaTeX and Markdown, and other character references. Names are URLs, formulas and inline code of one run:
whatever they are made of, they stand where a noun would. A formula with spaces in it is a name of several tokens.
Tags that end a line where a page is shown, and control tokens, part sentences (`PARTING`).
"""

import html
import re
from collections.abc import Iterator
from enum import Enum, auto
from typing import NamedTuple

from pipeline.read.characters import INVISIBLE

#: Elements that begin and end on lines of their own.
_PARTING_TAGS = (
    "address article aside blockquote body br caption center dd details div dl dt fieldset figcaption figure footer form h[1-6] "
    "head header hr html li main nav ol option p pre section select summary table tbody td tfoot th thead title tr ul"
)
_INLINE_TAGS = (
    "a abbr acronym b bdi bdo big button cite code data del dfn em font i img input ins kbd label mark q s samp small span "
    "strike strong sub sup time tt u var wbr"
)
#: Tags of chat formats that wrap what a model thinks, calls and is told, or stand for one token.
_CHAT_TAGS = "s think thinking reasoning answer tool_call tool_response tools bos eos pad start_of_turn end_of_turn"


def _tag(names: str) -> str:
    return rf"</?(?:{names.replace(' ', '|')})(?:\s(?=[^<>\n]*=)[^<>\n]{{0,300}})?/?>"


#: What parts sentences. No pattern here takes more than linear time: every loop is bounded or possessive.
PARTING = re.compile(
    rf"{_tag(_PARTING_TAGS)} | <\|[^<>|\s]{{1,40}}\|> | </?(?:{_CHAT_TAGS.replace(' ', '|')})> | \[/?INST\] | <</?SYS>>",
    re.VERBOSE | re.IGNORECASE,
)
_HIDDEN_TAG = re.compile(rf"{_tag(_INLINE_TAGS)}|<!--.{{0,300}}?-->", re.IGNORECASE)
_EMPHASIS = re.compile(
    r"(?<![\w*])(\*{1,3})(?=[^\s*])([^*\n]{1,300}?)(?<=[^\s*])\1(?![\w*])"
    r"|(?<![\w_])(_{1,3})(?=[^\s_])(?!(?<=__)\w+__)([^_\n]{1,300}?)(?<=[^\s_])\3(?![\w_])"  # `__init__` is a name
    r"|(~~)(?=[^\s~])([^~\n]{1,300}?)(?<=[^\s~])~~"
    r"|(`{1,2})(?=[^`])([^`\n]{1,300}?)\7(?!`)"
)
#: Inline code that is a name: of one run, and not of marks alone.
_CODE = re.compile(r"(?=\S*\w)\S+")
_REFERENCE = re.compile(r"&(?:[A-Za-z][A-Za-z0-9]{1,24}|\#\d{1,7}|\#[xX][0-9A-Fa-f]{1,6});")
URL = re.compile(
    rf"""(?<![A-Za-z0-9])(?:[A-Za-z][A-Za-z0-9+.-]{{1,20}}://|www\.)[^\s<>"`{{}}|\\^。！？、，」』）{INVISIBLE}]++
      | (?<![\w.+-])[\w.+-]{{1,64}}+@[\w-]++(?:\.[\w-]++)++""",
    re.VERBOSE,
)
_AFTER_URL = ".,;:!?'\"’”)]*_~"
#: Formulas. Of dollars, none before a digit (Pandoc's rule), none beside a space inside, and only what looks like mathematics
#: between.
_FORMULA = re.compile(
    r"\$\$(?:[^$\s]| (?! )){1,300}\$\$"
    r"|(?<![\\$\w])\$(?=[^\s$])(?:[A-Za-z]\w?|(?=[^$\n]{0,200}[\\^_=<>{}])(?:[^$\s]| (?! )){1,200}(?<![\\ ]))\$(?! ?\d|\$)"
    r"|\\\((?:(?!\\\))(?:\S| (?! ))){1,200}\\\)"
    r"|\\\[(?:(?!\\\])(?:\S| (?! ))){1,300}\\\]"
)
#: A link or picture: its text, and where it leads, which is one token.
_LINK = re.compile(r"(!?\[)[^\[\]\n]{1,300}(\]\()([^()\[\]\s]{1,300})(?=\))")
#: One of them is in every line that has a mark, but for addresses that begin with `www.`.
_SIGNS = "<&$*_~`\\@:["


class Kind(Enum):
    """How a mark is read."""

    HIDDEN = auto()  # by no parser
    WHOLE = auto()  # as one token
    FORMULA = auto()  # as one token and name
    URL = auto()  # as one token and name, which no letter around it joins
    NAME = auto()  # as a name, of whatever tokens


#: What a parser reads as a name (`pipeline.text.Sentence`).
NAMES = frozenset({Kind.FORMULA, Kind.URL, Kind.NAME})


class Mark(NamedTuple):
    """Characters [start, end) of a line, and how they are read."""

    start: int
    end: int
    kind: Kind


def marks(line: str) -> list[Mark]:
    """Marks of a line or sentence in order, disjoint; where two overlap, the one that begins first stays whole."""
    if not any(sign in line for sign in _SIGNS) and "www." not in line:
        return []
    ordered: list[Mark] = []
    for mark in sorted(_candidates(line), key=lambda mark: (mark.start, -mark.end)):
        if not ordered or mark.start >= ordered[-1].end:
            ordered.append(mark)
    return ordered


def _candidates(line: str) -> Iterator[Mark]:
    if "://" in line or "www." in line or "@" in line:
        for match in URL.finditer(line):
            yield Mark(match.start(), match.start() + len(_without_closers(match[0])), Kind.URL)
    if "<" in line:
        for match in _HIDDEN_TAG.finditer(line):
            yield Mark(*match.span(), Kind.HIDDEN)
    if "&" in line:
        for match in _REFERENCE.finditer(line):
            if (character := html.unescape(match[0])) != match[0]:
                yield Mark(*match.span(), Kind.HIDDEN if character.isspace() else Kind.WHOLE)
    if "](" in line:
        for match in _LINK.finditer(line):
            yield Mark(*match.span(1), Kind.HIDDEN)
            yield Mark(*match.span(2), Kind.WHOLE)
            yield Mark(*match.span(3), Kind.WHOLE)
    if "$" in line or "\\" in line:
        for match in _FORMULA.finditer(line):
            yield Mark(*match.span(), Kind.NAME if " " in match[0] else Kind.FORMULA)
    for match in _EMPHASIS.finditer(line) if any(sign in line for sign in "*_~`") else ():
        width = len(next(group for group in match.groups() if group))
        yield Mark(match.start(), match.start() + width, Kind.HIDDEN)
        yield Mark(match.end() - width, match.end(), Kind.HIDDEN)
        if line[match.start()] == "`" and _CODE.fullmatch(line, match.start() + width, match.end() - width):
            yield Mark(match.start() + width, match.end() - width, Kind.NAME)


def _without_closers(url: str) -> str:
    """Drops what ends the sentence or the bracket around a URL, not the brackets that are its own."""
    end = len(url)
    unopened = url.count(")") - url.count("(")
    while url[end - 1] in _AFTER_URL:
        if url[end - 1] == ")":
            if unopened <= 0:
                break
            unopened -= 1
        end -= 1
    return url[:end]
