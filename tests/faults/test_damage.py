"""Single bits that have flipped, in any file: a sentence or the same values, and never the end of the process.

What training and commands map or read is damaged at many places, one at a time, and read in this very process: a wild
offset that were followed would end it. Values of shards are taken at their word unless checksums are compared; all that
is asked of a flip among them is that it ends nothing.
"""

import copy
import json
import pickle
import random
import shutil
from collections import Counter
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.cache import report as cache_report
from pipeline.cache import verify as cache_verify
from pipeline.cache import view as cache_view
from pipeline.cache.plan import cache as make
from pipeline.dataset import report, verify, verify_rows, view
from pipeline.read.inputs import open_inputs
from schemas import files
from schemas.columns import GRANULARITIES, arrow_schema
from schemas.errors import DamagedError, UserError
from schemas.manifest import MANIFEST, read_cache_manifest, read_manifest
from schemas.saved_dataset import dataset_files
from schemas.signals import EMBEDDINGS, Signal
from schemas.vocabulary import VOCABULARY
from trainer.batches.documents import Documents
from trainer.cache import TeacherCache

SHARD = "data-00001-of-00005.arrow"
CACHE_SHARD = "shards/00001.safetensors"
#: Places of a file that are damaged: as many again at its beginning, where what says how to read the rest lies.
FLIPS = 50
BEGINNING = 4000


@pytest.fixture(scope="module")
def cached(cache_plan, tmp_path_factory):
    """A cache with every signal."""
    out = tmp_path_factory.mktemp("damage") / "cache"
    signals = list(get_args(Signal))
    storage = {"units": "fp8", "states": "int8", "final": "bf16"}
    plan = cache_plan(signals=signals, storage=storage, topk=4, limit=3, shard_tokens=400)
    make(plan, out, workers=1, quiet=True)
    return out


@pytest.fixture(scope="module")
def small(prepared, tmp_path_factory):
    """One shard of the sample as a dataset."""
    folder = tmp_path_factory.mktemp("small") / "dataset"
    folder.mkdir()
    for name in (SHARD, VOCABULARY, "config.yaml"):
        shutil.copy(prepared / name, folder)
    manifest = json.loads((prepared / MANIFEST).read_text(encoding="utf-8"))
    shard = next(entry for entry in manifest["shards"] if entry["file"] == SHARD)
    manifest |= {"shards": [shard], "rows_out": shard["rows"], "rows_in": shard["rows"], "rejected": {}, "dropped": {}}
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    for name, text in dataset_files(arrow_schema(trees=True), [SHARD], manifest["fingerprint"]).items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def flips(path, count=FLIPS):
    """Contents of the file with one bit flipped, at many places."""
    data, chance = path.read_bytes(), random.Random(0)
    ends = [len(data)] * count + [min(BEGINNING, len(data))] * count
    for place in (chance.randrange(end) for end in ends):
        yield data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]


def replaced(path, data):
    """Put the content there as another file: what an earlier reader has mapped stays as it was."""
    aside = path.with_name("aside")
    aside.write_bytes(data)
    aside.replace(path)


def outcomes(folder, file, read, same, expected, count=FLIPS):
    """How often reading the folder, each time with another bit of the file flipped, ends in which way."""
    counts = Counter()
    for data in flips(folder / file, count):
        replaced(folder / file, data)
        try:
            values = read(folder)
        except UserError as error:
            counts["a sentence" if "\n" not in str(error) else "lines"] += 1
        else:
            counts["the same" if same(values, expected) else "other values"] += 1
    return counts


def trained_on(folder):
    """Everything that training maps of a dataset."""
    documents = Documents(folder)
    batch = documents.batch(np.arange(len(documents)))
    ids, rows = documents.tokens("teacher", batch.documents.numpy())
    values = [batch.ids, batch.rows, batch.positions, torch.from_numpy(ids), rows]
    for name in GRANULARITIES:
        shared, units = documents.units(name, batch), documents.teacher_units(name, batch, rows)
        values += [shared.spans, shared.rows, shared.kept, shared.teacher_rows, units.spans, units.rows]
        documents.left_out(name)
    spans = documents.common_spans(batch.documents.numpy(), 1024)
    values += [spans.student, spans.teacher, spans.rows, documents.exact_pairs(batch.documents.numpy())]
    values += [documents.vocabulary.shared, *map(torch.from_numpy, documents.vocabulary.lengths.values())]
    return [*values, torch.tensor(documents.largest_student_id), documents.ids.to_pylist()]


def said_by(folder):
    """Everything that a cache holds."""
    cache = TeacherCache(folder)
    values = [cache.ids, cache.head.weight, cache.head.scale]
    for row in range(len(cache)):
        for layer in cache.layers:
            values += [cache.unit_index(row, layer), cache.unit_weights(row, layer), cache.relations(row, layer)]
            values += [cache.units(row, layer), cache.states(row, layer), cache.state_index(row, layer)]
            values += [cache.token_weights(row, layer), cache.attention(row, layer)]
        values += [cache.final(row), *cache.topk(row), cache.entropy(row), cache.argmax(row), cache.logprob(row)]
        values.append(cache.sorted(row))
    return [*values, cache.embeddings.weight, cache.embeddings.ids]


def alike(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(one, other, strict=True)
    )


@pytest.fixture
def copied(tmp_path):
    def make_copy(folder):
        target = tmp_path / "copy"
        shutil.copytree(folder, target)
        return target

    return make_copy


def test_training_on_a_damaged_dataset(small, copied):
    counts = outcomes(copied(small), SHARD, trained_on, alike, trained_on(small))
    assert counts["a sentence"] > FLIPS / 2


def test_a_damaged_map_of_tokens_is_found(small, copied):
    counts = outcomes(copied(small), VOCABULARY, trained_on, alike, trained_on(small), 20)
    assert counts.keys() == {"a sentence"}, "its checksum is compared whenever it is read"


@pytest.mark.parametrize("file", [CACHE_SHARD, "index.arrow", "head.safetensors", EMBEDDINGS, MANIFEST])
def test_reading_a_damaged_cache(cached, copied, file):
    counts = outcomes(copied(cached), file, said_by, alike, said_by(cached))
    assert counts["a sentence"] > FLIPS / 3
    if file in ("index.arrow", "head.safetensors", EMBEDDINGS):
        assert counts.keys() == {"a sentence"}, "their checksums are compared whenever they are read"


@pytest.mark.parametrize("kind", ["dataset", "cache"])
def test_with_verify_every_flip_is_found(small, cached, copied, kind):
    folder = copied(small if kind == "dataset" else cached)
    opened = (
        (lambda: Documents(folder, verify=True)) if kind == "dataset" else (lambda: TeacherCache(folder, verify=True))
    )
    path = folder / (SHARD if kind == "dataset" else CACHE_SHARD)
    opened()
    for data in list(flips(path))[:: FLIPS // 5]:
        replaced(path, data)
        with pytest.raises(DamagedError, match=f"{path.name} has another checksum"):
            opened()


@pytest.mark.parametrize("kind", ["dataset", "cache"])
def test_checksums_are_compared_once_and_not_in_every_worker(small, cached, kind, monkeypatch):
    opened = Documents(small, verify=True) if kind == "dataset" else TeacherCache(cached, verify=True)
    monkeypatch.setattr(files, "sha256_of", lambda path: pytest.fail(f"{path} is read once more"))
    assert len(pickle.loads(pickle.dumps(opened))) == len(opened)


def others_of(manifest):
    """Entries of files that are no shards."""
    return [entry for name in ("index", "head", "embeddings", "vocabulary") if (entry := manifest.get(name))]


def fitted(folder, file, manifest):
    """The manifest with the checksum that the file now has, as if it had been written so."""
    for entry in (*manifest["shards"], *others_of(manifest)):
        if entry["file"] == (folder / file).name:
            entry["sha256"] = files.sha256_of(folder / file)
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize(("file", "count"), [(SHARD, FLIPS), (CACHE_SHARD, 30), ("index.arrow", 20)])
def test_what_looks_for_damage_survives_it(small, cached, copied, monkeypatch, file, count):
    """`verify` and `inspect` of files whose checksums fit, so that everything in them is looked at."""
    monkeypatch.setattr(verify_rows, "_tokenizers", lambda *_: {})  # which read texts only
    of_dataset = file == SHARD
    folder = copied(small if of_dataset else cached)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))

    def look(folder):
        fitted(folder, file, manifest)
        if of_dataset:
            findings = verify.verify(folder, quick=False, moved={})
            view.as_json(view.find_row(folder, 1, None))
        else:
            findings = cache_verify.verify(folder, quick=False, dataset=None)
            cache_view.as_json(cache_view.find_row(folder, 1, None))
        return findings.problems

    counts = outcomes(folder, file, look, lambda problems, _: not problems, None, count)
    assert counts["a sentence"] + counts["other values"] > 0


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x08" + bytes(15)])
@pytest.mark.parametrize("file", [CACHE_SHARD, "index.arrow", "head.safetensors", EMBEDDINGS])
def test_files_of_something_else_are_findings(cached, copied, file, content):
    folder = copied(cached)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    replaced(folder / file, content)
    for entry in (*manifest["shards"], *others_of(manifest)):
        entry["bytes"] = (folder / (entry["file"] if "rows" not in entry else f"shards/{entry['file']}")).stat().st_size
    fitted(folder, file, manifest)
    (problem,) = cache_verify.verify(folder, quick=False, dataset=None).problems
    assert "cannot be read" in problem


def places(values, path=()):
    """Every place of nested mappings and lists, the first two of a list."""
    if path:
        yield path
    inner = values.items() if isinstance(values, dict) else enumerate(values[:2]) if isinstance(values, list) else ()
    for key, value in inner:
        yield from places(value, (*path, key))


GONE = object()


@pytest.mark.parametrize("kind", ["dataset", "cache"])
def test_whatever_a_manifest_says(small, cached, copied, monkeypatch, capsys, kind):
    """A key is missing, of another type, or out of its range: `verify` finds something, `info` shows or says so."""
    folder = copied(small if kind == "dataset" else cached)
    monkeypatch.setattr(files, "sha256_of", lambda path: known[path.name])
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    entries = [*manifest["shards"], *others_of(manifest)]
    known = {entry["file"]: entry["sha256"] for entry in entries}
    refused, chance = set(), random.Random(0)
    for place in places(manifest):
        for value in (GONE, chance.choice((None, "x", -1, 10**18, [], {}, True, float("nan")))):
            changed = copy.deepcopy(manifest)
            *outer, last = place
            inner = changed
            for key in outer:
                inner = inner[key]
            if value is GONE:
                del inner[last]
            else:
                inner[last] = value
            (folder / MANIFEST).write_text(json.dumps(changed), encoding="utf-8")
            try:
                if kind == "dataset":
                    findings = verify.verify(folder, quick=True, moved={})
                    changed_manifest = read_manifest(folder)
                    report.show_info(changed_manifest, folder, changed_manifest.vocabulary_problem(folder))
                else:
                    findings = cache_verify.verify(folder, quick=True, dataset=None)
                    cache_report.show_info(read_cache_manifest(folder), folder)
            except UserError:
                refused.add(place)
            else:
                refused |= {place} if findings.found else set()
    capsys.readouterr()
    expected = {
        "dataset": {("rows_in",), ("rows_out",), ("tokenizers", "teacher", "sha256"), ("counts", "alignment")},
        "cache": {("rows",), ("tokens",), ("logits", "scale"), ("teacher", "depth"), ("index", "sha256")},
    }
    assert expected[kind] | {("shards", 0, "bytes")} <= refused


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (("logits", "scale"), 1e9),
        (("logits", "soft_cap"), -30.0),
        (("norm", "kind"), "batch"),
        (("norm", "epsilon"), None),
        (("teacher", "depth"), 10**9),
        (("teacher", "depth"), 3),  # of a cache of layer 4
        (("teacher", "vocabulary"), 0),
        (("head",), None),
        (("embeddings",), None),
        (("tied_embeddings",), True),  # beside their file
        (("teacher", "embedding_size"), 0),
        (("shards", 1, "file"), "00000.safetensors"),
        (("format",), ["mta-prep/teacher-cache"]),
        (("rows",), 10**400),
    ],
)
def test_a_cache_of_impossible_sizes(cached, copied, key, value):
    folder = copied(cached)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    inner = manifest
    for part in key[:-1]:
        inner = inner[part]
    inner[key[-1]] = value
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UserError, match="is damaged or not the manifest of a teacher cache"):
        TeacherCache(folder)


def test_numbers_out_of_their_range_are_findings(small, copied):
    """As where a shard was written by something else: a response that begins before its text, a span before its row."""
    folder = copied(small)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    whole = pa.ipc.open_stream((folder / SHARD).read_bytes()).read_all()
    for column, change in (
        ("responses", lambda spans: [[-1, spans[0][1]]]),
        ("conversation", lambda text: "{"),
        ("messages", lambda contents: [{"role": "user", "start": 0, "end": 3}]),
        ("student_responses", lambda spans: [[spans[0][0], 10**6]]),
        ("teacher_input_ids", lambda ids: [-5, *ids[1:]]),
        ("words", lambda spans: [[-7, 2], *spans[1:]]),
        ("teacher_words", lambda spans: spans[1:]),
    ):
        values = whole.column(column).to_pylist()
        values[0] = change(values[0])
        index = whole.schema.get_field_index(column)
        table = whole.set_column(index, whole.schema.field(column), pa.array(values, whole.schema.field(column).type))
        with (folder / SHARD).open("wb") as stream, pa.ipc.new_stream(stream, table.schema) as writer:
            writer.write_table(table)
        manifest["shards"][0]["bytes"] = (folder / SHARD).stat().st_size
        fitted(folder, SHARD, manifest)
        findings = verify.verify(folder, quick=False, moved={})
        assert SHARD in findings.problems[0], column
        if column in ("student_responses", "teacher_words"):  # what else training follows it checks where it does
            with pytest.raises(DamagedError):
                trained_on(folder)


INPUTS = {
    "stream": lambda table, path: write_arrow(pa.ipc.new_stream, table, path),
    "file": lambda table, path: write_arrow(pa.ipc.new_file, table, path),
    "parquet": lambda table, path: pq.write_table(table, path, row_group_size=8),
}


def write_arrow(kind, table, path):
    with kind(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=8)


@pytest.mark.parametrize("form", [*INPUTS, "saved"])
def test_a_damaged_input(tmp_path, form):
    turns = [{"role": "user", "content": "héllo"}, {"role": "assistant", "content": "x"}]
    table = pa.Table.from_pylist(
        [{"id": str(row), "messages": turns, "tags": ["a" * row, "b"], "n": row / 3} for row in range(20)]
    )
    if form == "saved":
        import datasets

        datasets.disable_progress_bars()
        datasets.Dataset(table).save_to_disk(str(tmp_path / "saved"))
        (path,) = (tmp_path / "saved").glob("*.arrow")
        given = tmp_path / "saved"
    else:
        given = path = tmp_path / ("rows.parquet" if form == "parquet" else "rows.arrow")
        INPUTS[form](table, path)

    def read(_):
        (source,) = open_inputs([str(given)], split=None, revision=None, spool=tmp_path).sources
        return (
            source.describe().rows,
            [row.fields for row in source.read() if hasattr(row, "fields")],
            [*source.read(7, 12)],
        )

    whole = read(None)
    assert len(whole[1]) == 20
    counts = outcomes(path.parent, path.name, read, lambda one, other: one == other, whole)
    assert counts["a sentence"] > FLIPS / 2
