"""Sources: every format gives the same rows, bad rows are told with their place, unusable files with a remedy."""

import gzip
import hashlib
import io
import json
import os
import pickle
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd

from pipeline.read.folders import split_of
from pipeline.read.inputs import open_inputs
from pipeline.read.json_rows import JsonArray
from pipeline.read.records import RAW_LIMIT, Record, Rejected
from pipeline.read.sources import Source, read_rows
from schemas.config import CsvConfig
from schemas.errors import Exit, ResourceError, UsageError, UserError
from schemas.manifest import CACHE_FORMAT, DATASET_FORMAT, MANIFEST
from schemas.rows import Unusable, unusable_in

ROWS = [
    {"instruction": "Say “hi”\r\nto Zoë 👩‍👩‍👧", "output": 'a "quoted", cell\nwith\ttab'},
    {"instruction": "数えて", "output": "一\u2028二"},
    {"instruction": "עוד אחת", "output": ""},
]


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def opened(
    *inputs: str, split: str | None = None, revision: str | None = None, csv: CsvConfig | None = None
) -> list[Source]:
    return open_inputs(inputs, split=split, revision=revision, spool=Path("spool"), csv=csv).sources


def only(name: str) -> Source:
    (source,) = opened(name)
    return source


def fields(source: Source, start: int = 0, stop: int | None = None) -> list[object]:
    return [row.fields if isinstance(row, Record) else str(row.reason) for row in source.read(start, stop)]


def json_lines(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def csv_text(rows: list[dict[str, str]], mark: str) -> str:
    def line(cells: list[str]) -> str:
        return mark.join('"' + cell.replace('"', '""') + '"' for cell in cells)

    return "\r\n".join([line(list(rows[0])), *(line(list(row.values())) for row in rows)])


def write(name: str, rows: list[dict[str, str]]) -> str:
    """A file of the format that `name` ends in."""
    path = Path(name)
    plain = name.removesuffix(".gz").removesuffix(".zst")
    if plain.endswith((".jsonl", ".ndjson")):
        content = json_lines(rows).encode()
    elif plain.endswith("wrapped.json"):
        content = json.dumps({"version": [1, {"a": []}], "data": rows, "tags": ["x"], "none": []}, indent=1).encode()
    elif plain.endswith(".json"):
        content = json.dumps(rows, ensure_ascii=False).encode()
    elif plain.endswith((".csv", ".tsv")):
        content = csv_text(rows, "," if plain.endswith(".csv") else "\t").encode()
    elif plain.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
        return name
    else:
        table = pa.Table.from_pylist(rows)
        opener = pa.ipc.new_file if "file" in name else pa.ipc.new_stream
        with opener(name, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
        return name
    if name.endswith(".gz"):
        half = len(content) // 2
        content = gzip.compress(content[:half]) + gzip.compress(content[half:])
    if name.endswith(".zst"):
        half = len(content) // 2
        content = zstd.compress(content[:half]) + zstd.compress(content[half:])
    path.write_bytes(content)
    return name


FORMATS = [
    "a.jsonl", "a.ndjson", "a.json", "wrapped.json", "a.csv", "a.tsv", "a.parquet", "file.arrow", "stream.arrow",
    "a.jsonl.gz", "a.jsonl.zst", "a.json.gz", "a.csv.zst", "a.tsv.gz",
]  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_formats_agree_and_skip(name: str) -> None:
    rows = [{**row, "n": str(n)} for n in range(3) for row in ROWS]
    source = only(write(name, rows))
    read = list(source.read())
    assert [row.fields for row in read if isinstance(row, Record)] == rows
    assert [row.number for row in read] == list(range(len(rows)))
    for start in range(len(rows) + 2):
        for stop in (None, 0, 2, 5, len(rows) + 3):
            assert list(source.read(start, stop)) == read[slice(start, stop)]
    described = source.describe()
    content = Path(source.name).read_bytes()
    assert (described.name, described.rows) == (source.name, len(rows))
    assert (described.bytes, described.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert fields(pickle.loads(pickle.dumps(source))) == rows


def test_extensions_in_capitals_are_known() -> None:
    assert fields(only(str(Path(write("a.jsonl.gz", ROWS)).rename("A.JSONL.GZ")))) == ROWS


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_byte_order_mark_is_no_part_of_the_text(name: str) -> None:
    path = Path(write(name, ROWS))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert fields(only(name)) == ROWS
    assert only(name).describe().bytes == path.stat().st_size


BAD_LINES: list[tuple[bytes, str]] = [
    (b'{"a": 1,}', "broken JSON"),
    (b'{"a": "x" "b"}', "character 11"),
    (b'{"a": 1} {"a": 2}', "broken JSON: extra data, character 10"),
    (b"[1, 2]", "not an object but an array"),
    (b'"text"', "not an object but a string"),
    (b"null", "not an object but null"),
    (b"true", "not an object but true or false"),
    (b"7", "not an object but a number"),
    (b'{"a": "caf\xe9}', "not UTF-8: byte 10 of the row is 0xe9"),
    (b'[{"a": 1}]', "name end in .json"),
    (b"[", "broken JSON: expecting value, character 3 of the row; if the file is one JSON array"),
    (b"{", "name end in .json"),
    (b"NaN", "not an object but a number"),
    (b'{"a": ' + b"9" * 5000 + b"}", "unreadable value"),
    (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_bad_json_line_is_rejected_alone(line: bytes, reason: str) -> None:
    good = b'{"a": "NaN and \\ud83d\\ude00"}\n'
    Path("a.jsonl").write_bytes(good + b"\n \t\r\n" + line + b"\n" + good)
    source = only("a.jsonl")
    first, bad, last = source.read()
    assert isinstance(first, Record)
    assert isinstance(last, Record)
    assert isinstance(bad, Rejected)
    assert (bad.number, bad.file, bad.line) == (1, "a.jsonl", 4)
    assert reason in str(bad.reason)
    assert bad.raw.startswith(line[:5].decode())
    assert len(bad.raw) <= RAW_LIMIT
    bad.raw.encode()
    assert last.fields == {"a": "NaN and 😀"}
    assert last.line == 5
    assert source.describe().rows == 3


BAD_VALUES: list[tuple[bytes, str, str]] = [
    (b'"caf\xe9"', "not UTF-8: field `a`, byte 24 of the row is 0xe9", r"caf\xe9"),
    (b'"\xed\xa0\x80"', "not UTF-8: field `a`, byte 21 of the row is 0xed", r"\xed\xa0\x80"),
    (rb'"\ud800x"', r"unpaired surrogate: field `a`, \ud800", r"\ud800x"),
    (b"NaN", "NaN is not JSON: field `a`, write null, or leave the field out", "NaN"),
    (b"-Infinity", "-Infinity is not JSON: field `a`, write null, or leave the field out", "-Infinity"),
]


@pytest.mark.parametrize(("value", "reason", "raw"), BAD_VALUES)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_bad_value_is_no_matter_to_who_does_not_use_it(name: str, value: bytes, reason: str, raw: str) -> None:
    """Wherever it stands, also in keys and deep inside of another value."""
    content = b'{"b": "good", "a":  ' + value + b', "c": [{"d": ' + value + b"}]}"
    Path(name).write_bytes(content if name == "a.jsonl" else b"[" + content + b"]")
    (row,) = only(name).read()
    assert isinstance(row, Record)
    assert row.fields["b"] == "good"
    bad = row.fields["a"]
    assert isinstance(bad, Unusable)
    assert str(bad) == raw
    assert str(bad.error("field `a`")) == reason
    assert unusable_in(row.fields["c"]) == row.fields["c"][0]["d"] == bad
    json.dumps(row.fields, ensure_ascii=False, default=str).encode()


def test_a_field_that_stands_twice_is_not_guessed() -> None:
    Path("a.jsonl").write_text('{"a": "x", "b": {"c": 1, "c": 1}, "a": "y"}\n{"\\ud800": 1}\n')
    twice, key = only("a.jsonl").read()
    assert isinstance(twice, Record)
    assert str(twice.fields["a"]) == '["x", "y"]'
    assert twice.fields["a"].reason.kind == "a field stands twice in its object"
    assert unusable_in(twice.fields["b"]) is not None
    assert isinstance(key, Record)
    assert key.fields == {r"\ud800": 1}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_no_depth_of_nesting_stops_a_file(name: str) -> None:
    """To look for surrogates takes more of the stack than to parse: a depth that parses may still be too deep."""
    rows = ['{"a": ' + "[" * depth + r'"\ud83d\ude00"' + "]" * depth + "}" for depth in range(20, 500, 20)]
    Path(name).write_text("\n".join(rows) if name == "a.jsonl" else "[" + ",".join(rows) + "]")
    read = list(only(name).read())
    assert len(read) == len(rows)
    assert isinstance(read[0], Record)
    assert isinstance(read[-1], Rejected)
    assert str(read[-1].reason) == "nested too deeply"


def test_a_line_over_the_limit_is_rejected_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.read.json_rows.ROW_LIMIT", 64)
    Path("a.jsonl").write_text('{"a": 1}\n{"a": "' + "x" * 500 + '"}\n{"a": "' + "y" * 54 + '"}\n{"a": 4}')
    first, bad, fits, last = only("a.jsonl").read()
    assert isinstance(bad, Rejected)
    assert "longer than" in bad.reason.kind
    assert [row.line for row in (first, fits, last)] == [1, 3, 4]
    assert isinstance(fits, Record)
    assert fits.fields == {"a": "y" * 54}


def test_bad_rows_of_an_array_are_rejected_alone_with_their_line() -> None:
    content = b'[\n {"a": "caf\xe9"},\n {"a":\n "\\ud800"}, 3,\n {"a": NaN},\n\n {"a": 1e400, "b": -0}]\n'
    Path("a.json").write_bytes(content)
    rows = list(only("a.json").read())
    assert [row.line for row in rows] == [2, 3, 4, 5, 7]
    assert isinstance(rows[2], Rejected)
    assert (str(rows[2].reason), rows[2].raw) == ("not an object but a number", "3")
    bad = [unusable_in(row.fields) for row in rows if isinstance(row, Record)]
    assert [value and value.reason.kind for value in bad] == [
        "not UTF-8",
        "unpaired surrogate",
        "NaN is not JSON",
        None,
    ]


@pytest.mark.parametrize(
    ("content", "before", "message"),
    [
        ('[{"a": 1},\n{"a" 2}]', 1, "line 2: broken JSON"),
        ('[{"a": 1},\n{"a": 2}', 2, "line 2: expected a comma or the end of the array (at the end of the file)"),
        ('[{"a": 1},\n{"a": "xx', 1, "line 2: broken JSON: unterminated string"),
        ('[{"a": 1}\n{"a": 2}]', 1, "line 2: expected a comma"),
        ('[{"a": 1},\n]', 1, "line 2: broken JSON"),
        ('[{"a": 1}]\n[]', 1, "line 2: more follows after the end"),
        ('{"a": 1}\n{"a": 2}', 0, "name the file .jsonl"),
        ('{"data": [{"a": 1}], "more": [{"a": 2}]}', 1, "both `data` and `more` hold rows"),
        ('{"data": {"a": 1}, "n": [1, {"a": 2}]}', 0, "no array of objects"),
        ("\nhello", 0, "line 2: expected an array of objects"),
        ('"hello"', 0, "expected an array of objects"),
    ],
)
def test_a_broken_array_gives_the_rows_before_and_then_the_place(content: str, before: int, message: str) -> None:
    Path("a.json").write_text(content)
    source = only("a.json")
    assert len(list(source.read(0, before))) == before
    with pytest.raises(UserError, match=r"^a\.json") as raised:
        next(source.read(before))
    assert message in str(raised.value)
    with pytest.raises(UserError):
        source.describe()


def test_csv_line_numbers_and_bad_rows() -> None:
    Path("a.csv").write_bytes(
        b"a,b\r\n"
        b'1,"two\r\nlines"\r\n'
        b"\r\n"
        b"3\r\n"
        b"4,5,6\n"
        b"7,caf\xe9\n"
        b'8,"' + b"long " * 40_000 + b'"\n'
        b'9,32"\n'
        b'"x"y,10\n'
        b'"taken for the end of line 10",11\n'
        b"12,13\n"
        b'14,"never closed\n'
        b"\n"
        b"15,16\n"
    )
    rows = list(only("a.csv").read())
    assert [row.line for row in rows] == [2, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15]
    reasons = [str(row.reason) if isinstance(row, Rejected) else "" for row in rows]
    assert [number for number, reason in enumerate(reasons) if not reason] == [0, 3, 4, 8]
    assert "1, the header has 2" in reasons[1]
    assert "3, the header has 2" in reasons[2]
    assert isinstance(rows[3], Record)
    assert rows[3].fields["a"] == "7"
    assert str(rows[3].fields["b"].error("b")) == "not UTF-8: b, byte 5 of the row is 0xe9"
    assert "no partner" in reasons[5]
    assert "broken CSV" in reasons[6]
    assert "passed over" in reasons[7]
    assert "never closed" in reasons[9]
    assert "line 13" in reasons[10]
    assert only("a.csv").describe().rows == 11


def test_no_row_is_made_of_the_inside_of_a_cell() -> None:
    """Backslashes before quotes are not RFC 4180: the cell's lines are passed over, counted and kept."""
    Path("a.csv").write_text(
        "instruction,response\n"
        "Say hi,Hi\n"
        '"Write CSV with the header \\"name,age\\"\n'
        "Anna,thirty\n"
        "\n"
        'Bert,forty","Done"\n'
        "Say bye,Bye\n"
    )
    source = only("a.csv")
    read = list(source.read())
    assert [row.fields["response"] for row in read if isinstance(row, Record)] == ["Hi", "Bye"]
    lost = [row for row in read if isinstance(row, Rejected)]
    assert [row.line for row in lost] == [3, 4, 6]
    assert [row.raw for row in lost[1:]] == ["Anna,thirty\n", 'Bert,forty","Done"\n']
    assert "pass --csv-escape" in lost[0].reason.detail
    assert lost[1].reason.detail == "line 3"
    assert source.describe().rows == len(read)
    (told,) = opened("a.csv", csv=CsvConfig(escape="\\"))
    assert [row.fields["instruction"][-10:] for row in told.read() if isinstance(row, Record)] == [
        "Say hi",
        "Bert,forty",
        "Say bye",
    ]


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_other_delimiters_are_recognised_by_the_header(mark: str) -> None:
    Path("a.csv").write_text("\n" + csv_text(ROWS, mark))
    assert fields(only("a.csv")) == ROWS
    assert fields(opened("a.csv", csv=CsvConfig(delimiter=mark))[0]) == ROWS
    (commas,) = opened("a.csv", csv=CsvConfig(delimiter=","))
    with pytest.raises(UserError, match="this cannot be the header"):
        list(commas.read())


def test_tabs_separate_unquoted_cells_unless_the_header_is_quoted_or_it_is_said() -> None:
    Path("a.tsv").write_text('a\tb\n"Hi," he said\t5"\nx\t"y"\n')
    assert fields(only("a.tsv")) == [{"a": '"Hi," he said', "b": '5"'}, {"a": "x", "b": '"y"'}]
    Path("b.tsv").write_text('a\tb\n"two\nlines\t"\tx\n1\t2\n')
    assert fields(opened("b.tsv", csv=CsvConfig(quote='"'))[0]) == [
        {"a": "two\nlines\t", "b": "x"},
        {"a": "1", "b": "2"},
    ]
    unsaid = list(only("b.tsv").read())
    assert [row.line for row in unsaid] == [2, 3, 4]
    assert isinstance(unsaid[0], Rejected)
    assert """--csv-quote '"'""" in unsaid[0].reason.detail
    assert isinstance(unsaid[1], Rejected)
    assert isinstance(unsaid[2], Record)
    (literal,) = opened("b.tsv", csv=CsvConfig(quote="none"))
    assert [isinstance(row, Record) for row in literal.read()] == [False, False, True]


@pytest.mark.parametrize(
    "content", ["a,b,a\n1,2,3\n", f"{'long text ' * 30},b\n1,2\n", '"a\nb",c\n1,2\n', ",\n1,2\n", '"a"b,c\n1,2\n']
)
def test_a_row_that_cannot_be_a_header_is_refused(content: str) -> None:
    Path("a.csv").write_text(content)
    with pytest.raises(UserError, match=r"a\.csv, line 1: this cannot be the header"):
        list(only("a.csv").read())


def test_a_value_of_a_table_that_python_cannot_hold_is_unusable_alone() -> None:
    binary = pa.array([b"good", b"caf\xe9", b"good"])
    broken = pa.StringArray.from_buffers(3, binary.buffers()[1], binary.buffers()[2])
    dates = pa.array([0, 0, 10_000_000], pa.date32())
    columns = {"a": broken, "b": pa.array(["x", "y", "z"]), "c": dates}
    with pa.ipc.new_stream("a.arrow", pa.schema({name: column.type for name, column in columns.items()})) as writer:
        writer.write_batch(pa.record_batch(columns))
    rows = [row.fields for row in only("a.arrow").read() if isinstance(row, Record)]
    assert [row["b"] for row in rows] == ["x", "y", "z"]
    assert str(rows[1]["a"].error("field `a`")) == "not UTF-8: field `a`, byte 3 of the string is 0xe9"
    assert str(rows[1]["a"]) == r"caf\xe9"
    assert (rows[0]["a"], rows[2]["a"]) == ("good", "good")
    assert rows[2]["c"].reason.kind == "unreadable value"


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.csv.gz", "a.json.zst"])
@pytest.mark.parametrize("damage", ["cut", "garbage after", "not compressed"])
def test_damaged_compression_is_told(name: str, damage: str) -> None:
    path = Path(write(name, ROWS * 2000))
    content = path.read_bytes()
    path.write_bytes(
        {"cut": content[:-5], "garbage after": content + b"hello, world", "not compressed": b"[1]\n" * 9}[damage]
    )
    with pytest.raises(UserError, match=rf"{name}: the \w+ data is damaged or cut short"):
        only(name).describe()
    with pytest.raises(UserError, match="damaged or cut short"):
        list(only(name).read())


@pytest.mark.parametrize("zeros", [1, 512, 300_000])
def test_gzip_may_be_padded_with_zeros(zeros: int) -> None:
    """As tapes and blocks of fixed size leave it, and `gzip -d` reads it; also between members."""
    lines = gzip.compress(json_lines(ROWS).encode())
    padded = lines + bytes(zeros) + lines + bytes(zeros)
    Path("a.jsonl.gz").write_bytes(padded)
    assert fields(only("a.jsonl.gz")) == ROWS * 2
    described = only("a.jsonl.gz").describe()
    assert (described.rows, described.bytes) == (2 * len(ROWS), len(padded))
    assert described.sha256 == hashlib.sha256(padded).hexdigest()
    Path("a.jsonl.gz").write_bytes(padded + b"x")
    with pytest.raises(UserError, match=r"damaged or cut short before any row was read \(Not a gzipped file"):
        only("a.jsonl.gz").describe()


def long_window(content: bytes, log: int) -> bytes:
    """A zstd frame whose header tells a window of 2**log bytes, as of a stream that `zstd --long=LOG` was given."""
    options = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.checksum_flag: 1}
    compressor = zstd.ZstdCompressor(options=options)
    frame = bytearray(compressor.compress(content) + compressor.flush())
    assert frame[5] == 27 - 10 << 3, "the window's byte is where the format says"
    frame[5] = log - 10 << 3
    return bytes(frame)


@pytest.mark.parametrize("log", range(27, 32))
def test_zstd_of_any_window_is_read(log: int) -> None:
    """Also as a later frame, behind one of the usual window."""
    lines = json_lines(ROWS).encode()
    Path("a.jsonl.zst").write_bytes(zstd.compress(lines) + long_window(lines, log))
    assert fields(only("a.jsonl.zst")) == ROWS * 2
    assert only("a.jsonl.zst").describe().rows == 2 * len(ROWS)


def test_a_zstd_window_beyond_the_bound_is_told() -> None:
    frame = bytearray(long_window(json_lines(ROWS).encode(), 31))
    frame[5] += 7  # the next larger window that a header can tell
    Path("a.jsonl.zst").write_bytes(frame)
    with pytest.raises(UserError, match="too much memory"):
        only("a.jsonl.zst").describe()


@pytest.mark.parametrize("name", ["a.parquet", "file.arrow", "stream.arrow"])
def test_a_name_of_a_column_that_is_no_text_is_told(name: str) -> None:
    path = Path(write(name, [{"a column": 1}]))
    path.write_bytes(path.read_bytes().replace(b"a column", b"a c\xf4lumn"))
    with pytest.raises(UserError, match=f"{name}: not a whole .* file \\('utf-8' codec"):
        list(only(name).read())


@pytest.mark.parametrize("name", ["a.parquet", "file.arrow", "stream.arrow"])
@pytest.mark.parametrize("cut", [3, 40, -20])
def test_damaged_columns_are_told(name: str, cut: int) -> None:
    path = Path(write(name, ROWS))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=f"{name}: not a whole"):
        only(name).describe()
    with pytest.raises(UserError, match=f"{name}: not a whole"):
        list(only(name).read())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "a.jsonl is empty."),
        ("a.jsonl.gz", b"", "is empty."),
        ("a.parquet", b"", "is empty."),
        ("a.json", b"[]", "holds no rows"),
        ("a.csv", b"a,b\n", "holds no rows"),
        ("a.jsonl", b"\n \n", "holds no rows"),
        ("a.csv", "a,b\n1,2\n".encode("utf-16"), "UTF-16"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), "let its name end in .gz"),
        ("a.json", b"PAR1....", "let its name end in .parquet"),
        ("a.txt", b"hello", "Known: .jsonl"),
        ("a.parquet.gz", b"hello", "cannot tell its format"),
        ("noextension", b"hello", "no extension"),
    ],
)
def test_unusable_files_are_told_with_a_remedy(name: str, content: bytes, message: str) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(UserError) as raised:
        only(name).describe()
    assert message in str(raised.value)
    assert str(raised.value).startswith(name)


def test_missing_files_name_the_nearest() -> None:
    Path("data").mkdir()
    write("data/train.jsonl", ROWS)
    with pytest.raises(UserError, match=r"data/trian.jsonl does not exist. Did you mean data/train.jsonl\?"):
        opened("data/trian.jsonl")
    with pytest.raises(UserError, match=r"dataa/train.jsonl does not exist. Did you mean data\?"):
        opened("dataa/train.jsonl")
    with pytest.raises(UserError, match=r"data/trainjsonl does not exist"):  # like a hub id, but the folder is there
        opened("data/trainjsonl")
    with pytest.raises(UserError, match="No file matches"):
        opened("data/*.csv")


def test_globs_and_folders_give_their_data_files_sorted() -> None:
    Path("data/deep/er").mkdir(parents=True)
    for name in ("data/b.jsonl", "data/a.csv", "data/.hidden.jsonl", "data/deep/er/c.json.gz", "data/deep/d.jsonl"):
        write(name, ROWS)
    Path("data/README.md").write_text("words")
    assert [source.name for source in opened("data")] == ["data/a.csv", "data/b.jsonl"]
    assert [source.name for source in opened("data/*")] == ["data/a.csv", "data/b.jsonl"]
    assert [source.name for source in opened("data/**/*.jsonl")] == ["data/b.jsonl", "data/deep/d.jsonl"]
    assert [source.name for source in opened("data/b.jsonl", "data/a.csv")] == ["data/b.jsonl", "data/a.csv"]
    assert only(str(Path("data/b.jsonl").absolute())).name == str(Path("data/b.jsonl").absolute())
    Path("odd[1].jsonl").write_bytes(Path("data/b.jsonl").read_bytes())
    assert only("odd[1].jsonl").name == "odd[1].jsonl"
    with pytest.raises(UsageError, match=r"data/b.jsonl is named twice"):
        opened("data/b.jsonl", "data/*.jsonl")
    Path("data/only").mkdir()
    with pytest.raises(UserError, match=r"data/only/ holds no data file.*\*\*"):
        opened("data/only")


def test_a_folder_of_several_splits_asks_for_one() -> None:
    Path("data").mkdir()
    for name in ("train.jsonl", "more.jsonl", "dev.csv", "dolly_test.json"):
        write(f"data/{name}", ROWS)
    with pytest.raises(UsageError, match="data has the splits test, train, validation: choose one with --split"):
        opened("data")
    assert [source.name for source in opened("data", split="train")] == ["data/train.jsonl"]
    assert [source.name for source in opened("data", split="dev")] == ["data/dev.csv"]
    assert [source.name for source in opened("data", split="validation")] == ["data/dev.csv"]
    with pytest.raises(UsageError, match="it has no split 'all'"):
        opened("data", split="all")
    assert len(opened("data/*")) == 4  # whoever names files gets those files


@pytest.mark.parametrize("known", ["train.jsonl", "eval.jsonl", "rows-00000-of-00001.jsonl"])
@pytest.mark.parametrize("other", ["heldout.jsonl", "held_out.csv", "more.jsonl"])
def test_a_file_of_no_known_split_is_not_joined_with_one_that_is(known: str, other: str) -> None:
    """As `datasets` does it, which reads the files whose names tell a split and no others, but not unsaid."""
    Path("data").mkdir()
    for name in (known, other):
        write(f"data/{name}", ROWS)
    split = split_of(Path(known))
    with pytest.raises(
        UsageError, match=rf"data has the split {split} and 1 file .*\({other}\): --split {split} leaves"
    ):
        opened("data")
    found = open_inputs(["data"], split=split, revision=None, spool=Path("spool"))
    assert [source.name for source in found.sources] == [f"data/{known}"]
    assert found.notes() == (f"Not read, for their names tell no split: data/{other}.",)
    assert len(opened(f"data/{known}", f"data/{other}")) == len(opened("data/*")) == 2


@pytest.mark.parametrize(("kind", "told"), [(DATASET_FORMAT, "prepared dataset"), (CACHE_FORMAT, "teacher cache")])
def test_a_folder_that_we_made_is_not_rows(kind, told) -> None:
    Path("our own").mkdir()
    write("our own/00000.parquet", ROWS)
    Path("our own", MANIFEST).write_text(json.dumps({"format": kind}))
    with pytest.raises(UsageError, match=f"^our own is a {told}, not rows to make one of") as refusal:
        opened("our own")
    assert ("`mta-prep parse --config 'our own/config.yaml' -o OTHER`" in str(refusal.value)) == (
        kind == DATASET_FORMAT
    )
    Path("our own", MANIFEST).write_text(json.dumps({"name": "a page"}))  # of somebody else
    assert [source.name for source in opened("our own")] == ["our own/00000.parquet", "our own/manifest.json"]


def test_a_folder_as_it_lies_on_a_hub_is_read_split_by_split() -> None:
    Path("snapshot/data").mkdir(parents=True)
    for name in ("train_sft-00000-of-00002", "train_sft-00001-of-00002", "test_sft-00000-of-00001-0123abcd"):
        write(f"snapshot/data/{name}.parquet", ROWS)
    Path("snapshot/README.md").write_text("words")
    Path("snapshot/dataset_infos.json").write_text(json.dumps({"default": {"splits": [{"name": "train"}]}}))
    Path("snapshot/config.json").write_text(json.dumps({"model_type": "llama"}, indent=1))
    Path("snapshot/.gitattributes").write_text("words")
    with pytest.raises(UsageError, match="snapshot has the splits test_sft, train_sft"):
        opened("snapshot")
    found = open_inputs(["snapshot"], split="train_sft", revision=None, spool=Path("spool"))
    assert [Path(source.name).name[:15] for source in found.sources] == ["train_sft-00000", "train_sft-00001"]
    skipped = ("snapshot/README.md", "snapshot/config.json", "snapshot/dataset_infos.json")
    assert found.skipped == skipped
    assert found.notes() == (f"Not read, for they are no data: {', '.join(skipped)}.",)
    Path("snapshot/data").rename("snapshot/train")
    with pytest.raises(UserError, match=r"snapshot/ holds no data file\..* name snapshot/train\."):
        opened("snapshot")


def test_files_of_one_split_are_no_choice() -> None:
    Path("data").mkdir()
    for name in ("part-00000-of-00002.parquet", "part-00001-of-00002.parquet"):
        write(f"data/{name}", ROWS)
    assert len(opened("data")) == 2
    assert not open_inputs(["data"], split=None, revision=None, spool=Path("spool")).notes()
    with pytest.raises(UsageError, match="it has no split 'train'"):
        opened("data", split="train")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("Training_2.jsonl.gz", "train"),
        ("dolly-eval.v2.csv", "test"),
        ("val.json", "validation"),
        ("validation-00000-of-00001.parquet", "validation"),
        ("train_gen-00003-of-00012-9a0b.parquet", "train_gen"),
        ("constraints.jsonl", None),
        ("devices.jsonl", None),
        ("latest.csv", None),
    ],
)
def test_splits_are_told_by_names(name: str, split: str | None) -> None:
    assert split_of(Path(name)) == split


def test_rows_of_all_sources_are_numbered_through() -> None:
    sources = opened(write("a.jsonl", ROWS), write("b.csv", ROWS[:1]), write("c.parquet", ROWS))
    counts = [source.describe().rows for source in sources]
    assert counts == [3, 1, 3]
    rows = list(read_rows(sources, counts))
    assert [(row.number, row.file) for row in rows] == list(enumerate(["a.jsonl"] * 3 + ["b.csv"] + ["c.parquet"] * 3))
    for start in range(9):
        for stop in (None, 0, 1, 3, 4, 6, 9):
            assert list(read_rows(sources, counts, start, stop)) == rows[slice(start, stop)]


def test_a_shard_opens_no_other_source() -> None:
    sources = opened(write("a.jsonl", ROWS), write("b.jsonl", ROWS))
    Path("a.jsonl").unlink()
    assert len(list(read_rows(sources, [3, 3], 3, 6))) == 3


@contextmanager
def stdin_from(monkeypatch: pytest.MonkeyPatch, path: str) -> Iterator[None]:
    with Path(path).open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        yield


def test_standard_input_is_kept_to_be_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with stdin_from(monkeypatch, os.devnull), pytest.raises(UserError, match="nothing is piped in"):
        opened("-")
    with stdin_from(monkeypatch, write("a.jsonl", ROWS)):
        source = only("-")
    assert fields(source) == ROWS
    assert source.describe().name == "-"
    assert [path.name for path in Path("spool").iterdir()] == ["stdin.jsonl"]
    with stdin_from(monkeypatch, os.devnull), pytest.raises(UserError, match="nothing is piped in"):
        opened("-")  # no rows of another run, whatever lies there
    with stdin_from(monkeypatch, write("b.jsonl", ROWS[:1])):
        assert fields(only("-")) == ROWS[:1]
    with stdin_from(monkeypatch, "b.jsonl"), pytest.raises(ResourceError, match="cannot be kept"):
        open_inputs(["-"], split=None, revision=None, spool=Path("a.jsonl"))


def test_an_unknown_hub_id_without_network_is_told() -> None:
    with pytest.raises(ResourceError, match="There is no file or folder someone/rows-of-mine here") as raised:
        opened("someone/rows-of-mine")
    assert "download it" in str(raised.value)
    with pytest.raises(ResourceError, match="The dataset 'someone/rows'"):
        opened("hf://datasets/someone/rows@main/part/a.jsonl")
    with pytest.raises(UsageError, match="OWNER/NAME"):
        opened("hf://someone/rows")
    with pytest.raises(UsageError, match="another"):
        opened("hf://datasets/someone/rows@v1", revision="v2")


def test_hub_datasets_go_through_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []
    whole = datasets.DatasetDict(
        {
            "train": datasets.Dataset.from_list(ROWS * 200, split="train"),
            "test": datasets.Dataset.from_list(ROWS, split="test"),
        }
    )

    def load(name: str, **options: str | None) -> object:
        asked.append((name, {key: value for key, value in options.items() if value is not None}))
        return whole[options["split"]] if options["split"] else whole

    monkeypatch.setattr(datasets, "load_dataset", load)
    (source,) = opened("someone/rows", split="train", revision="v1")
    assert source.name == "hf://datasets/someone/rows@v1#train"
    assert fields(source, 299, 302) == [ROWS[2], ROWS[0], ROWS[1]]
    assert source.describe() == pickle.loads(pickle.dumps(source)).describe()
    assert source.describe().rows == 600
    opened("hf://datasets/someone/rows@v2/sub/a.parquet", split="test")
    opened("hf://datasets/someone/rows/sub", split="test")
    assert asked == [
        ("someone/rows", {"split": "train", "revision": "v1"}),
        ("someone/rows", {"split": "test", "revision": "v2", "data_files": "sub/a.parquet"}),
        ("someone/rows", {"split": "test", "data_dir": "sub"}),
    ]
    with pytest.raises(UsageError, match="train, test: choose one with --split"):
        opened("someone/rows")


def test_saved_datasets_are_read_back() -> None:
    import datasets

    rows = datasets.Dataset.from_list(ROWS * 100)
    rows.save_to_disk("one", num_shards=3)
    datasets.DatasetDict({"train": rows, "test": rows.select(range(2))}).save_to_disk("many")
    assert fields(only("one")) == ROWS * 100
    assert fields(only("one"), 290, 310) == (ROWS * 100)[290:310]
    (test,) = opened("many", split="test")
    assert (test.name, fields(test)) == ("many/test", ROWS[:2])
    with pytest.raises(UsageError, match="many has the splits test, train: choose"):
        opened("many")
    with pytest.raises(UsageError, match="no split 'dev'"):
        opened("many", split="dev")
    with pytest.raises(UsageError, match="without splits"):
        opened("one", split="train")


def test_flags_that_would_do_nothing_are_refused() -> None:
    write("a.jsonl", ROWS)
    with pytest.raises(UsageError, match="none of the inputs has splits"):
        opened("a.jsonl", split="train")
    with pytest.raises(UsageError, match="is on a hub"):
        opened("a.jsonl", revision="main")
    with pytest.raises(UsageError, match="none of the inputs is a"):
        opened("a.jsonl", csv=CsvConfig(delimiter=";"))


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "json.gz"])
def test_memory_does_not_grow_with_the_file(kind: str) -> None:
    """8 MB of rows are read within 2 MB."""
    rows = [{"a": f"{number:06d}" * 1_500} for number in range(900)]
    source = only(write(f"a.{kind}", rows))
    del rows
    tracemalloc.start()
    assert source.describe().rows == 900
    assert sum(isinstance(row, Record) for row in source.read()) == 900
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_a_row_larger_than_the_window_is_whole() -> None:
    rows = [{"a": "x" * 300_000}, {"a": "y"}]
    split = JsonArray(window=7).split(io.BufferedReader(io.BytesIO(json.dumps(rows).encode())), "a.json")
    assert [row for _, (row, _) in split] == rows


def test_a_pipe_is_no_file_that_can_be_read_twice(tmp_path):
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(UsageError, match=r"rows\.jsonl is no file but a pipe, .*pipe what comes out of it into `-`"):
        opened(str(tmp_path / "rows.jsonl"))


@pytest.mark.parametrize("line", [r'{"instruction": "\ud800", "output": "b"}', '{"instruction": NaN, "output": "b"}'])
def test_why_a_value_is_no_text_is_told(tmp_path: Path, command, line: str) -> None:
    write("rows.jsonl", [])
    Path("rows.jsonl").write_text(line + "\n", encoding="utf-8")
    sides = ("--teacher", "embedded:bytelevel-bpe", "--student", "embedded:bytelevel-bpe", "--parser", "spacy")
    code, _, said = command("parse", "rows.jsonl", *sides, "-o", "out")
    assert code == Exit.INPUT
    told = " ".join(said.split())
    assert "`instruction` is no text (" in told
    assert "unpaired surrogate: \\ud800" in told or "NaN is not JSON" in told


@pytest.mark.parametrize("shard_rows", [1 << 63, 10**40])
def test_shards_may_be_larger_than_any_number_of_rows(command, shard_rows: int) -> None:
    write("rows.jsonl", [{"instruction": "Say hi.", "output": "The old man saw a dog."}])
    sides = ("--teacher", "embedded:bytelevel-bpe", "--student", "embedded:bytelevel-bpe", "--parser", "spacy")
    code, _, said = command("parse", "rows.jsonl", *sides, "-o", "out", "--set", f"shard_rows={shard_rows}")
    assert code in (Exit.OK, Exit.USAGE), said
