"""The lines of a text, freed of Markdown marks: what a sentence splitter and a parser should see, and what not.

A text is cut into blocks at line breaks (as `str.splitlines` knows them), at its borders, between the cells of a table
row (pipes, or tabs inside a line), and at tags that part sentences (`pipeline.read.inline`). A block holds prose, or a
line of fenced code. Which line breaks inside a paragraph are none for a sentence is for the config to say: `hard`, none
of them; `soft`, all; `auto`, those that an editor seems to have made (`pipeline.read.wrapping`). A heading, and what has
a mark of its own, begins a paragraph. List markers, checkboxes, heading and quote marks, pipes, fences and such tags
stand outside its text but inside its span, so that the spans of all blocks together hold every non-space character of
the text exactly once.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pipeline.read.inline import PARTING
from pipeline.read.wrapping import Line, wrapped
from schemas.config import LineBreaks

#: Quote marks, heading marks, bullets, checkboxes and enumerators at the beginning of a line, white space after.
_MARKER = re.compile(
    r"""(?: >+\s*+
        | \#{1,6}\s++ | \#{2,6}(?=\w)
        | [-*+•‣⁃◦▪▫●○■□➢➤✓✔✗✘–—·]\s++
        | [☐☑☒]\s*+ | \[[ xX]\]\s++
        | \(?(?:\d{1,3}(?:\.\d{1,3}){0,4}|[A-Za-z]|[ivx]{2,5}|[IVX]{2,5})\)\s++
        | (?:\d{1,3}(?:\.\d{1,3}){0,4}|[A-Za-z]|[ivx]{2,5}|[IVX]{2,5})\.\s++
        )++(?=\S)""",
    re.VERBOSE,
)
_FENCE = re.compile(r"(?:>\s*+)*+(`{3,}+|~{3,}+)\s*+")
_PIPE = re.compile(r"(?<!\\)\|")
_SEPARATOR_ROW = re.compile(r"\|?\s*+:?-++:?\s*+(?:\|\s*+:?-++:?\s*+)*+\|?")
_CELL_GAP = re.compile(r"\s*\t\s*")


class Block(NamedTuple):
    """Text between hard boundaries, without white space at its edges. All are character offsets.

    `span_start <= start <= end <= span_end`; the markup lies outside [start, end), which is empty where there is
    nothing but markup (a table's separator row).
    """

    span_start: int
    start: int
    end: int
    span_end: int
    code: bool


class Plain(NamedTuple):
    """A line of prose that may go on with the next one, or go on the one before."""

    line: Line
    block: Block
    begins: bool  # it does not go on the one before
    ends: bool  # it does not go on


#: What a line is: parts of its own, a line of prose, or (None) blank.
Part = Block | Plain | None


def blocks(text: str, borders: Sequence[int], line_breaks: LineBreaks) -> list[Block]:
    """Blocks of `text` in order. An open fence or table ends at a border (`pipeline.text.Rendered.borders`)."""
    regions = [(text[start:end], start) for start, end in itertools.pairwise((0, *borders, len(text)))]
    return [block for region in regions for block in _joined(_parts(*region), line_breaks)]


def _joined(parts: Iterator[Part], line_breaks: LineBreaks) -> Iterator[Block]:
    paragraph: list[Plain] = []
    for part in parts:
        if not isinstance(part, Plain) or part.begins or (paragraph and paragraph[-1].ends):
            yield from _paragraph(paragraph, line_breaks)
            paragraph = []
        if isinstance(part, Plain):
            paragraph.append(part)
        elif part is not None:
            yield part
    yield from _paragraph(paragraph, line_breaks)


def _paragraph(lines: Sequence[Plain], line_breaks: LineBreaks) -> Iterator[Block]:
    """The lines of a paragraph, as many in one block as no sentence ends at."""
    breaks = len(lines) - 1
    goes_on = wrapped([plain.line for plain in lines]) if line_breaks == "auto" else [line_breaks == "soft"] * breaks
    first = 0
    for last in range(len(lines)):
        if last == breaks or not goes_on[last]:
            begin, end = lines[first].block, lines[last].block
            yield Block(begin.span_start, begin.start, end.end, end.span_end, code=False)
            first = last + 1


def _lines(region: str, offset: int) -> Iterator[Line]:
    for line in region.splitlines(keepends=True):
        bare = line.lstrip()
        indent = len(line) - len(bare)
        yield Line(offset + indent, indent, bare.rstrip())
        offset += len(line)


def _parts(region: str, offset: int) -> Iterator[Part]:
    fence = ""
    in_table = False
    lines = list(_lines(region, offset))
    for line, after in itertools.zip_longest(lines, lines[1:]):
        if not line.body:
            in_table = False
            yield None
            continue
        mark = _FENCE.match(line.body)
        if fence:
            closes = mark is not None and mark[1].startswith(fence) and mark.end() == len(line.body)
            yield _code_block(line, mark if closes else None)
            fence = "" if closes else fence
            continue
        if mark is not None and not (mark[1][0] == "`" and "`" in line.body[mark.end() :]):
            fence = mark[1]
            in_table = False
            yield _code_block(line, mark)
            continue
        separates = _is_separator_row(line.body)
        in_table = "|" in line.body and (in_table or separates or (after is not None and _is_separator_row(after.body)))
        yield from _prose_parts(line, in_table, separates)


def _code_block(line: Line, fence: re.Match[str] | None) -> Block:
    end = line.start + len(line.body)
    return Block(line.start, line.start + (fence.end() if fence else 0), end, end, code=True)


def _is_separator_row(body: str) -> bool:
    return "|" in body and _SEPARATOR_ROW.fullmatch(body) is not None


def _prose_parts(line: Line, in_table: bool, separates: bool) -> Iterator[Part]:
    start, _, body = line
    end = start + len(body)
    if separates:
        yield Block(start, end, end, end, code=False)
        return
    marker = _MARKER.match(body)
    first = marker.end() if marker else 0
    if in_table or (body.startswith("|", first) and body.count("|") > 1):
        yield from _cells(start, body, first, _PIPE)
    elif "\t" in body[first:]:
        yield from _cells(start, body, first, _CELL_GAP)
    else:
        heading = marker is not None and "#" in marker[0]
        yield from _between_tags(line, first, heading)


def _between_tags(line: Line, first: int, heading: bool) -> Iterator[Plain]:
    """A line of prose, cut at tags that part sentences; a tag belongs to the text after it, the last to the text before."""
    parts = list(_cells(line.start, line.body, first, PARTING))
    for part, block in enumerate(parts):
        begins = first > 0 or part > 0 or block.start > line.start
        ends = heading or part < len(parts) - 1 or block.end < block.span_end or block.start == block.end
        yield Plain(line, block, begins, ends)


def _cells(offset: int, body: str, first: int, gap: re.Pattern[str]) -> Iterator[Block]:
    """Blocks of a row's non-empty cells; a pipe belongs to the cell after it, the last pipes to the last cell."""
    gaps = [*((m.start(), m.end()) for m in gap.finditer(body, first)), (len(body), len(body))]
    cells: list[list[int]] = []  # span_start, start, end, span_end
    begin, span_start = first, 0
    for gap_start, gap_end in gaps:
        cell = body[begin:gap_start]
        if cell and not cell.isspace():
            start, end = begin + len(cell) - len(cell.lstrip()), begin + len(cell.rstrip())
            cells.append([start if gap is _CELL_GAP and cells else span_start, start, end, end])
            span_start = gap_start
        begin = gap_end
    if cells:
        cells[-1][3] = len(body)
    else:
        cells.append([0, len(body), len(body), len(body)])
    for first_char, start, end, last_char in cells:
        yield Block(offset + first_char, offset + start, offset + end, offset + last_char, code=False)
