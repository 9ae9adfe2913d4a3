"""Whatever the rows hold, every text format gives them back, counts them, and survives damage without losing one."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.read.inputs import open_inputs
from pipeline.read.json_rows import JsonArray, JsonLines
from pipeline.read.records import RAW_LIMIT, Problem, Record, Rejected
from pipeline.read.sources import Source
from schemas.config import CsvConfig
from schemas.errors import UserError
from schemas.rows import Unusable

#: All of Unicode but for surrogates, line ends and controls included; and what JSON and CSV give a meaning to.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.text('\\"{}[],:\n\r\tu0d8 ', max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.lists(st.dictionaries(TEXT, VALUES, max_size=4), max_size=6)
STYLES = st.sampled_from([{}, {"indent": 1}, {"separators": (",", ":")}, {"separators": (" , ", "\n:\r\n")}])
WINDOWS = st.integers(1, 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


def stream(content: bytes) -> io.BufferedReader:
    return io.BufferedReader(io.BytesIO(content))


def source_of(path: Path, content: bytes, csv: CsvConfig | None = None) -> Source:
    path.write_bytes(content)
    (source,) = open_inputs([str(path)], split=None, revision=None, spool=path.parent, csv=csv).sources
    return source


@given(rows=OBJECTS, ascii_only=st.booleans(), style=STYLES, window=WINDOWS, wrapped=st.booleans())
def test_arrays_give_back_their_objects_whatever_the_window(
    rows: list[dict[str, Any]], ascii_only: bool, style: dict[str, Any], window: int, wrapped: bool
) -> None:
    content = {"n": 1, "list": [1, [{}]], "data": rows} if wrapped and rows else rows
    text = json.dumps(content, ensure_ascii=ascii_only, **style)
    read = list(JsonArray(window).split(stream(text.encode()), "x"))
    assert [JsonArray().parse(row) for _, row in read] == rows
    # Objects begin on the lines on which the whole text has them: an opening brace stands there.
    lines = text.split("\n")
    assert all("{" in lines[line - 1] for line, _ in read)
    assert [line for line, _ in read] == sorted(line for line, _ in read)


@given(rows=OBJECTS, cut=st.floats(0, 1), window=WINDOWS)
def test_an_array_cut_short_gives_a_prefix_and_an_error(rows: list[dict[str, Any]], cut: float, window: int) -> None:
    whole = json.dumps(rows).encode()
    part = whole[: int(cut * (len(whole) - 1))]
    read = []
    try:
        for _, (row, _) in JsonArray(window).split(stream(part), "x"):
            read.append(row)
        assert part == b""
    except UserError:
        assert part
    assert read == rows[: len(read)]


@given(rows=OBJECTS, ends=st.sampled_from(["\n", "\r\n", "\n\n", "\n  \r\n"]), last=st.booleans())
def test_json_lines_give_back_their_objects(folder: Path, rows: list[dict[str, Any]], ends: str, last: bool) -> None:
    text = ends.join(json.dumps(row, ensure_ascii=False) for row in rows) + (ends if last else "")
    source = source_of(folder / "a.jsonl", text.encode())
    read = list(source.read())
    assert [row.fields for row in read if isinstance(row, Record)] == rows
    assert [row.line for row in read] == [1 + place * ends.count("\n") for place in range(len(rows))]
    if rows:
        assert source.describe().rows == len(rows)


@given(lines=st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line), max_size=8))
def test_any_bytes_at_all_are_rows_or_reasons(lines: list[bytes]) -> None:
    """Each line that is not blank is counted once, and is an object or has a reason and a text that can be written."""
    content = b"\n".join(lines)
    split = list(JsonLines().split(stream(content), "x"))
    assert [line for line, _ in split] == [n for n, line in enumerate(lines, 1) if line and not line.isspace()]
    for _, line in split:
        row = JsonLines().parse(line)
        if isinstance(row, Problem):
            assert row.reason
            assert len(row.raw.encode()) <= 4 * RAW_LIMIT
        else:
            assert row == json.loads(line)


@given(text=st.text(max_size=8))
def test_no_unpaired_surrogate_gets_through(text: str) -> None:
    """With surrogates among the characters: a row is a record just when UTF-8 can hold it."""
    row = JsonLines().parse(json.dumps({"a": [text]}).encode())
    joined = json.loads(json.dumps(text))  # an escaped pair is one character
    try:
        joined.encode()
        assert row == {"a": [joined]}
    except UnicodeEncodeError:
        (bad,) = row["a"]
        assert isinstance(bad, Unusable)
        assert bad.text == joined.encode("utf-8", "backslashreplace").decode()


@given(
    rows=st.lists(st.lists(TEXT, min_size=2, max_size=2), min_size=1, max_size=6),
    mark=st.sampled_from([",", "\t"]),
    ends=st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_csv_gives_back_every_cell(folder: Path, rows: list[list[str]], mark: str, ends: str) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=mark, lineterminator=ends, quoting=csv.QUOTE_ALL)
    writer.writerows([["first", "second"], *rows])
    source = source_of(folder / ("a.csv" if mark == "," else "a.tsv"), text.getvalue().encode())
    read = list(source.read())
    assert [list(row.fields.values()) for row in read if isinstance(row, Record)] == rows
    assert source.describe().rows == len(rows)


def written(rows: list[list[str]], **style: Any) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n", **style).writerows([["first", "second"], *rows])
    return text.getvalue().encode()


@given(
    rows=st.lists(st.lists(TEXT, min_size=2, max_size=2), min_size=1, max_size=6),
    marks=st.permutations([",", ";", "\t", "|", "'", '"', "\\", "~"]),
    doubled=st.booleans(),
)
def test_csv_of_any_marks_is_given_back_if_they_are_told(
    folder: Path, rows: list[list[str]], marks: list[str], doubled: bool
) -> None:
    delimiter, quote, escape = marks[:3]
    style = {"doublequote": True} if doubled else {"doublequote": False, "escapechar": escape}
    content = written(rows, delimiter=delimiter, quotechar=quote, quoting=csv.QUOTE_ALL, **style)
    told = CsvConfig(delimiter=delimiter, quote=quote, escape=None if doubled else escape)
    read = source_of(folder / "told.csv", content, told).read()
    assert [list(row.fields.values()) for row in read if isinstance(row, Record)] == rows


@given(
    rows=st.lists(
        st.lists(
            st.text(st.characters(exclude_characters="\t\r\n", exclude_categories=["Cs"]), min_size=1),
            min_size=2,
            max_size=2,
        ),
        min_size=1,
        max_size=6,
    )
)
def test_unquoted_tabs_give_back_every_cell(folder: Path, rows: list[list[str]]) -> None:
    text = "".join(f"{first}\t{second}\n" for first, second in [["first", "second"], *rows])
    read = source_of(folder / "plain.tsv", text.encode()).read()
    assert [list(row.fields.values()) for row in read if isinstance(row, Record)] == rows


#: Texts with quotes in pairs, each of which begins at a letter: as text that holds CSV, code or speech does.
_PARTS = st.sampled_from(['"a"', '"a,b\nc"', '"b c"', '"d,e"', "f", ",", "\n", " x ", "g,h", "\ni,j\n"])
QUOTING = st.lists(_PARTS, max_size=8).map("".join)


@settings(max_examples=100)
@given(
    rows=st.lists(st.lists(QUOTING, min_size=2, max_size=2), min_size=1, max_size=6),
    before_quotes=st.sampled_from(["", "\\"]),
)
def test_no_row_is_invented_where_quotes_are_not_doubled(
    folder: Path, rows: list[list[str]], before_quotes: str
) -> None:
    """Whether bare or behind backslashes: what is read was written, and every line is in a row or told."""
    lines = ["first,second"]
    lines += [",".join('"' + cell.replace('"', before_quotes + '"') + '"' for cell in row) for row in rows]
    text = "\n".join(lines) + "\n"
    source = source_of(folder / "bare.csv", text.encode())
    read = list(source.read())
    places = [row.line for row in read] + [text.count("\n") + 1]
    physical = text.split("\n")
    for row, line, after in zip(read, places, places[1:], strict=False):
        if isinstance(row, Record):
            assert list(row.fields.values()) in rows
        else:
            assert not "".join(physical[line : after - 1]).strip(), "a lost line is a lost row of its own"
            assert row.raw == physical[line - 1] + "\n"
    assert source.describe().rows == len(read)


@settings(max_examples=60)
@given(content=st.binary(max_size=80), name=st.sampled_from(["b.csv", "b.json", "b.jsonl", "b.tsv"]))
def test_any_file_is_read_or_refused(folder: Path, content: bytes, name: str) -> None:
    """No other error than `UserError`, whatever the bytes; and `describe` counts what `read` gives."""
    source = source_of(folder / name, content)
    try:
        rows = list(source.read())
    except UserError:
        with pytest.raises(UserError):
            source.describe()
        return
    if rows:
        assert source.describe().rows == len(rows)
    for row in rows:
        lost = isinstance(row, Rejected)
        shown = f"{row.reason}{row.raw}" if lost else json.dumps(row.fields, ensure_ascii=False, default=str)
        shown.encode()
