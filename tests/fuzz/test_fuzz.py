"""Small real files, mutated, through the public readers: a right result or a sentence, whatever the bytes.

Flipped bits, truncation, stretches copied elsewhere, huge numbers, deep nesting. How many of each reader's files are tried
is bounded; `FUZZ=20` tries twenty times as many, and other ones each time.
"""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.read.inputs import open_inputs
from pipeline.read.jinja import PromptTemplate
from pipeline.read.loading import load_fast_tokenizer
from pipeline.read.records import Record, Rejected
from schemas import embedded
from schemas.config import CacheConfig, ParseConfig, SideConfig, Strict
from schemas.console import explain
from schemas.errors import Exit, UserError
from schemas.manifest import MANIFEST, read_cache_manifest, read_manifest
from schemas.rows import RowError
from schemas.training import TrainConfig
from trainer.batches.documents import Documents
from trainer.cache import TeacherCache

#: How many times as many files are tried.
TIMES = int(os.environ.get("FUZZ", "1"))
#: Characters of a message that a person reads, a path and a quoted value included.
READ = 1_500

SPLICED = (
    b"[" * 100_000,
    b'{"a":' * 20_000,
    b"9" * 5_000,
    b"-1",
    b"1e999",
    b"18446744073709551616",
    b"NaN",
    b"null",
    b'""',
    b"\x00",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\r\n\r\n",
    b'"',
    b"\\ud800",
    b"&a *a ",
    b"!!python/object/apply:os.system ['true']",
    b"{{ ''.__class__.__mro__ }}",
    b"{% for x in range(10 ** 12) %}a{% endfor %}",
    b"{{ 'a' * 10 ** 12 }}",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
)


@st.composite
def edits(draw):
    """One to three changes of a file, as fractions of its length so that they suit any."""
    places = st.floats(0, 1, allow_nan=False)
    kinds = st.one_of(
        st.tuples(st.just("flip"), places, st.integers(0, 7)),
        st.tuples(st.just("cut"), places),
        st.tuples(st.just("drop"), places, places),
        st.tuples(st.just("copy"), places, places, places),
        st.tuples(st.just("splice"), places, st.sampled_from(SPLICED)),
        st.tuples(st.just("number"), places, st.sampled_from(SPLICED[2:9])),
    )
    return draw(st.lists(kinds, min_size=1, max_size=3))


def mutated(data, changes):
    for kind, place, *more in changes:
        at = int(place * len(data))
        if kind == "flip" and data:
            at = min(at, len(data) - 1)
            data = data[:at] + bytes([data[at] ^ 1 << more[0]]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at]
        elif kind in ("drop", "copy"):
            first, last = sorted((at, int(more[0] * len(data))))
            to = int(more[1] * len(data)) if kind == "copy" else first
            data = data[:to] + data[first:last] + data[to:] if kind == "copy" else data[:first] + data[last:]
        elif kind == "splice":
            data = data[:at] + more[0] + data[at:]
        elif kind == "number" and (number := re.compile(rb"-?\d+").search(data, at)) is not None:
            data = data[: number.start()] + more[0] + data[number.end() :]
    return data


def fuzzed(examples):
    """So many examples, the same ones each time unless more are asked for."""

    def decorate(test):
        suppressed = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
        own = settings(
            max_examples=examples * TIMES, derandomize=TIMES == 1, deadline=None, suppress_health_check=suppressed
        )
        return own(given(changes=edits())(test))

    return decorate


def told(error):
    """What a person sees of an error is short, and no bug."""
    message = str(error)
    assert "\n" not in message.strip(), message
    assert len(message) <= READ, message
    assert explain(error, debug=False) != Exit.FAILED


def put(path, data):
    """In place of the file, for what has it mapped keeps the old one."""
    aside = path.with_name("aside")
    aside.write_bytes(data)
    aside.replace(path)


ROWS = [
    {"id": "a", "instruction": "Name a bird.", "input": "", "output": "The wren, of 9 grams.", "n": 1.5},
    {"id": "b", "instruction": "Schreib é, 漢字, \U0001f600.", "input": "x", "output": 'Ja, "so".', "n": -2},
    {"id": "c", "instruction": "Say\nit.", "input": None, "output": "It, said.", "n": 10**12},
] * 3


def csv_of(rows):
    lines = ["id,instruction,output", *(f'{row["id"]},"{row["output"]}",x' for row in rows)]
    return "\n".join(lines).encode()


def arrow_of(rows, folder):
    path = folder / "whole.arrow"
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    return path.read_bytes()


def parquet_of(rows, folder):
    pq.write_table(pa.Table.from_pylist(rows), folder / "whole.parquet")
    return (folder / "whole.parquet").read_bytes()


SOURCES = {
    "jsonl": lambda folder: b"\n".join(json.dumps(row).encode() for row in ROWS),
    "json": lambda folder: json.dumps({"data": ROWS}).encode(),
    "csv": lambda folder: csv_of(ROWS),
    "arrow": lambda folder: arrow_of(ROWS, folder),
    "parquet": lambda folder: parquet_of(ROWS, folder),
}


@pytest.mark.parametrize("form", SOURCES)
@fuzzed(40)
def test_sources(tmp_path_factory, form, changes):
    folder = tmp_path_factory.mktemp("source")
    path = folder / f"rows.{form}"
    path.write_bytes(mutated(SOURCES[form](folder), changes))
    try:
        for source in open_inputs([str(path)], split=None, revision=None, spool=folder).sources:
            rows = list(source.read())
            assert [row.number for row in rows] == list(range(source.describe().rows))
            assert all(isinstance(row, Record | Rejected) for row in rows)
    except UserError as error:
        told(error)
    shutil.rmtree(folder)


@fuzzed(60)
def test_manifest_of_a_dataset(prepared, tmp_path, changes):
    (tmp_path / MANIFEST).write_bytes(mutated((prepared / MANIFEST).read_bytes(), changes))
    try:
        assert read_manifest(tmp_path).shards
    except UserError as error:
        told(error)


@fuzzed(60)
def test_manifest_of_a_cache(make_cache, tmp_path, changes):
    (tmp_path / MANIFEST).write_bytes(mutated((make_cache() / MANIFEST).read_bytes(), changes))
    try:
        assert read_cache_manifest(tmp_path).shards
    except UserError as error:
        told(error)


@fuzzed(60)
def test_shard_of_a_cache(make_cache, tmp_path, changes):
    """Its header above all: what it says of lengths and places may be anything."""
    whole, folder = make_cache(), tmp_path / "cache"
    if not folder.exists():
        shutil.copytree(whole, folder)
    manifest = json.loads((whole / MANIFEST).read_text(encoding="utf-8"))
    file = folder / "shards" / manifest["shards"][0]["file"]
    data = (whole / "shards" / file.name).read_bytes()
    length = 8 + int.from_bytes(data[:8], "little")
    put(file, mutated(data[:length], changes) + data[length:])
    manifest["shards"][0]["bytes"] = file.stat().st_size
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    try:
        cache = TeacherCache(folder)
        for row in range(3):
            for layer in cache.layers:
                assert len(cache.unit_weights(row, layer)) == len(cache.unit_index(row, layer))
                cache.relations(row, layer)
    except UserError as error:
        told(error)


@fuzzed(60)
def test_shard_of_a_dataset(prepared, tmp_path, changes):
    folder = tmp_path / "dataset"
    if not folder.exists():
        shutil.copytree(prepared, folder)
    manifest = json.loads((prepared / MANIFEST).read_text(encoding="utf-8"))
    file = folder / manifest["shards"][0]["file"]
    put(file, mutated((prepared / file.name).read_bytes(), changes))
    manifest["shards"][0]["bytes"] = file.stat().st_size
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    try:
        documents = Documents(folder)
        documents.batch(np.arange(5))
        documents.tokens("teacher", np.arange(5))
    except UserError as error:
        told(error)


TRAIN = {
    "student": {"model": "gpt2", "init": {"layers": [0, 3]}},
    "data": {"dataset": "prepared", "caches": ["cache"], "batch_size": 8, "workers": 0},
    "objectives": {"ce": {}, "dsa": {"weight": 2.0, "layers": {6: 12}}},
    "optim": {"lr": 1.0e-4, "warmup": 10},
    "steps": 2,
    "out": "run",
}


@pytest.mark.parametrize("kind", [ParseConfig, CacheConfig, TrainConfig])
@fuzzed(40)
def test_config(prepared, make_cache, tmp_path, kind, changes):
    if kind is TrainConfig:
        whole = TrainConfig.parse(TRAIN, "test").to_yaml()
    else:
        whole = ((prepared if kind is ParseConfig else make_cache()) / "config.yaml").read_text(encoding="utf-8")
    path = tmp_path / "config.yaml"
    path.write_bytes(mutated(whole.encode(), changes))
    try:
        config = kind.parse(Strict.from_yaml(path), str(path))
        assert kind.parse(config.model_dump(mode="json"), "again") == config
    except UserError as error:
        told(error)


PROMPT = (
    "{%- set name = row['instruction'] | trim %}\n### {{ name }}\n"
    "{% if input %}{{ input | upper }}{% else %}none{% endif %}"
    "{% for n in range(3) %}{{ n * 2 }}, {% endfor %}{{ '%d' % 7 }}{{ row.id ~ instruction }}"
)


@fuzzed(80)
def test_template(changes):
    text = mutated(PROMPT.encode(), [change for change in changes if change[0] != "splice" or len(change[2]) < 200])
    values = {"instruction": "Say.", "input": "", "prompt": "", "messages": [], "row": ROWS[0]}
    try:
        template = PromptTemplate(text.decode("utf-8", "replace"), "t.jinja", values)
        assert isinstance(template.render(values), str)
    except UserError as error:
        told(error)
    except RowError as error:
        told(UserError(str(error)))


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@fuzzed(12)
def test_tokenizer(tmp_path, file, changes):
    whole = Path(embedded.resolve("embedded:bytelevel-bpe"))
    folder = tmp_path / "tokenizer"
    if not folder.exists():
        shutil.copytree(whole, folder)
    (folder / file).write_bytes(mutated((whole / file).read_bytes(), changes))
    try:
        loaded = load_fast_tokenizer("student", SideConfig(tokenizer=str(folder)))
        loaded.backend.encode("A text.")
    except UserError as error:
        told(error)
