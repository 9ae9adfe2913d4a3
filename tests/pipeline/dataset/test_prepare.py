"""From rows to a dataset: the same bytes whatever the road, opened by anyone, nothing lost."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from datasets import load_from_disk

from pipeline.align.spans import Tokens
from pipeline.dataset.prepare import estimate, prepare
from pipeline.dataset.realign import realign
from pipeline.dataset.verify import verify
from pipeline.dataset.verify_rows import tree_problem
from pipeline.read.locating import Locator
from schemas import embedded
from schemas.columns import GRANULARITIES, SIDES, arrow_schema
from schemas.errors import StateError
from schemas.manifest import read_manifest


def test_shard_size_changes_files_but_not_rows_or_fingerprints(settings_for, prepared, tmp_path):
    prepare(settings_for(shard_rows=24), tmp_path / "out", workers=1, quiet=True)
    one, many = read_manifest(tmp_path / "out"), read_manifest(prepared)
    assert (len(one.shards), len(many.shards)) == (1, 5)
    assert load_from_disk(str(prepared)).to_list() == load_from_disk(str(tmp_path / "out")).to_list()
    assert one.fingerprint == many.fingerprint
    assert one.teacher_fingerprint == many.teacher_fingerprint


def test_running_again_does_nothing_and_another_config_is_refused(settings_for, prepared, contents):
    before = contents(prepared)
    assert prepare(settings_for(), prepared, workers=1, quiet=True).already_finished
    with pytest.raises(StateError, match=r"`config\.overflow` was \"truncate\", is now \"drop\""):
        prepare(settings_for(overflow="drop"), prepared, workers=1, quiet=True)
    assert contents(prepared) == before


def test_align_writes_what_parsing_with_that_student_would(settings_for, prepared, contents, tmp_path):
    other = {"tokenizer": "embedded:sentencepiece-bpe"}
    realign(prepared, tmp_path / "aligned", {"student": other}, None, workers=1, overwrite=False, quiet=True)
    prepare(settings_for(student=other), tmp_path / "parsed", workers=1, quiet=True)
    assert contents(tmp_path / "aligned") == contents(tmp_path / "parsed")


def test_a_new_student_leaves_the_teacher_fingerprint_alone(prepared, tmp_path):
    other = {"tokenizer": "embedded:sentencepiece-bpe"}
    realign(prepared, tmp_path / "s", {"student": other}, None, workers=1, overwrite=False, quiet=True)
    realign(
        prepared,
        tmp_path / "t",
        {"teacher": {"tokenizer": "embedded:bytelevel-bpe"}},
        None,
        workers=1,
        overwrite=False,
        quiet=True,
    )
    old, student, teacher = (read_manifest(path) for path in (prepared, tmp_path / "s", tmp_path / "t"))
    assert student.teacher_fingerprint == old.teacher_fingerprint
    assert student.fingerprint != old.fingerprint
    assert teacher.teacher_fingerprint != old.teacher_fingerprint


def test_anyone_can_open_it(prepared):
    """datasets and plain pyarrow, in an interpreter that cannot import this project."""
    code = """
import glob, sys
for name in ("pipeline", "schemas"):
    sys.modules[name] = None
import pyarrow as pa
from datasets import load_from_disk
rows = load_from_disk(sys.argv[1])
tables = [pa.ipc.open_stream(pa.memory_map(path)).read_all() for path in sorted(glob.glob(sys.argv[1] + "/data-*.arrow"))]
assert pa.concat_tables(tables).to_pylist() == rows.to_list()
row = rows[0]
a, b = row["chunks"][0]
print(len(rows), row["text"][a:b])
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(prepared)], capture_output=True, text=True, check=True, cwd=prepared
    )
    assert done.stdout.split()[0] == "24"


def test_the_schema_is_the_contract(prepared):
    rows = load_from_disk(str(prepared))
    assert rows.data.schema.remove_metadata() == arrow_schema(trees=True)
    for row in rows:
        for name in GRANULARITIES:
            for side in SIDES:
                assert len(row[name]) == len(row[f"{side}_{name}"])
        assert tree_problem(row["trees"], len(row["sentences"])) is None
        assert "are" in tree_problem([*row["trees"], ""], len(row["sentences"]))


@pytest.mark.parametrize(
    "tree", ["(TOP)", "(TOP )", "()", " ", "(TOP (NP))", "(TOP (NN cat)", "(TOP (NN cat)))", "cat"]
)
def test_a_tree_without_words_is_none(tree):
    assert tree_problem(["(TOP (NN cat))", "", r"(TOP (SYM \ ))"], 3) is None
    assert tree_problem(["(TOP (NN cat))", tree], 2) == "have none of words for sentence 2"


def test_a_token_boundary_falls_where_the_response_begins(prepared):
    for row in load_from_disk(str(prepared)):
        for side in SIDES:
            ((first, last),) = row[f"{side}_responses"]
            assert last == len(row[f"{side}_input_ids"])
            before = [end for start, end in row[f"{side}_offsets"][:first] if start >= 0]
            after = [start for start, end in row[f"{side}_offsets"][first:] if start >= 0]
            assert max(before, default=0) <= row["responses"][0][0] <= min(after)


def test_token_spans_spell_their_units(prepared):
    kept = 0
    for row in load_from_disk(str(prepared)):
        for side in SIDES:
            offsets = row[f"{side}_offsets"]
            for name in GRANULARITIES:
                for (start, end), (a, b) in zip(row[name], row[f"{side}_{name}"], strict=True):
                    if a < 0:
                        continue
                    kept += 1
                    real = [span for span in offsets[a:b] if span[0] >= 0]
                    covered = row["text"][real[0][0] : max(span[1] for span in real)]
                    assert covered.strip() == row["text"][start:end]
    assert kept > 1000


def test_a_dry_run_writes_nothing_and_estimates_bytes(settings_for, prepared, tmp_path):
    found = estimate(settings_for(), tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()
    assert (found["rows"], found["shards"]) == (24, 5)
    written = sum(shard.bytes for shard in read_manifest(prepared).shards)
    assert found["estimated_bytes"] == pytest.approx(written, rel=0.25)


@pytest.mark.parametrize("quick", [True, False])
def test_verify_finds_a_flipped_byte_a_missing_shard_and_a_false_count(prepared, tmp_path, quick):
    def broken(change):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(prepared, copy)
        change(copy)
        return verify(copy, quick=quick, moved={}).problems

    def flip(folder, name="data-00001-of-00005.arrow"):
        path = folder / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    def false_count(folder):
        path = folder / "manifest.json"
        values = json.loads(path.read_text(encoding="utf-8"))
        values["rows_in"] += 1
        path.write_text(json.dumps(values), encoding="utf-8")

    assert broken(lambda folder: None) == []
    assert any("data-00001-of-00005.arrow has another checksum" in problem for problem in broken(flip))
    missing = broken(lambda folder: (folder / "data-00004-of-00005.arrow").unlink())
    assert any("data-00004-of-00005.arrow is missing" in problem for problem in missing)
    assert any("rows in" in problem for problem in broken(false_count))
    if not quick:  # what lies beside the shards is looked at alike, before anything is decoded
        return
    for name in ("state.json", "dataset_info.json"):  # which `load_from_disk` reads
        for change in (
            lambda folder, name=name: flip(folder, name),
            lambda folder, name=name: (folder / name).unlink(),
        ):
            assert [problem.split(",")[0] for problem in broken(change)] == [name]


def test_verify_finds_rows_that_lie_though_their_checksums_fit(prepared, tmp_path):
    """A shard rewritten with one token's offset moved, its checksum made to fit."""
    from schemas import arrow, files

    copy = tmp_path / "copy"
    shutil.copytree(prepared, copy)
    path = copy / "data-00000-of-00005.arrow"
    table = arrow.table(path)
    rows = table.to_pylist()
    offsets = rows[0]["teacher_offsets"]
    place = next(index for index, span in enumerate(offsets) if span[1] - span[0] > 2)
    offsets[place] = [offsets[place][0], offsets[place][1] - 1]
    changed = pa.Table.from_pylist(rows, schema=table.schema)
    with files.written(path) as stream, pa.ipc.new_stream(stream, changed.schema) as writer:
        writer.write_table(changed)
    values = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    values["shards"][0] |= {"bytes": path.stat().st_size, "sha256": files.sha256_of(path)}
    (copy / "manifest.json").write_text(json.dumps(values), encoding="utf-8")
    problems = verify(copy, quick=False, moved={}).problems
    assert any("row 0" in problem and "teacher" in problem for problem in problems)


@pytest.fixture
def with_zero_width_spaces(settings_for, tmp_path):
    """A config on two rows, for a student whose tokenizer (BERT's) drops zero-width spaces."""
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "Who sat?", "response": f"The small cat{gap}sat on the mat."} for gap in (" ", " \u200b ")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return settings_for(inputs=[str(path)], student={"tokenizer": str(embedded.DATA / "parser")}, parser={})


def words_lost(folder):
    return [sum(span == [-1, -1] for span in row["student_words"]) for row in load_from_disk(str(folder))]


def test_what_a_tokenizer_drops_costs_no_word(with_zero_width_spaces, tmp_path):
    prepare(with_zero_width_spaces, tmp_path / "out", workers=1, quiet=True)
    assert words_lost(tmp_path / "out") == [0, 0]
    assert verify(tmp_path / "out", quick=False, moved={}).problems == []


def test_verify_sees_offsets_that_are_wrong_whenever_they_are_computed(with_zero_width_spaces, tmp_path, monkeypatch):
    """Dropped characters given to the token before them: the same in the run and when `verify` tokenizes again."""
    right = Locator.locate

    def locate(self, texts, encodings):
        found = right(self, texts, encodings)
        for text, ranges in zip(texts, found, strict=True):
            for at in (at for at, char in enumerate(text) if char == "\u200b" and (ranges.starts != at).all()):
                ranges.ends[np.flatnonzero(ranges.ends <= at)[-1]] = at + 1
        return found

    monkeypatch.setattr(Locator, "locate", locate)
    prepare(with_zero_width_spaces, tmp_path / "out", workers=1, quiet=True)
    assert words_lost(tmp_path / "out") == [0, 1]
    [problem] = verify(tmp_path / "out", quick=False, moved={}).problems
    assert "student offsets say that a token reaches over all of 'cat \\u200b'" in problem


def test_verify_sees_token_spans_that_are_wrong_whenever_they_are_computed(prepared, tmp_path, monkeypatch):
    right = Tokens.spans_of

    def spans_of(self, units):
        found, reasons = right(self, units)
        found.spans[2] = [-1, -1]
        return found, reasons

    monkeypatch.setattr(Tokens, "spans_of", spans_of)
    other = {"tokenizer": "embedded:sentencepiece-bpe"}
    realign(prepared, tmp_path / "out", {"student": other}, None, workers=1, overwrite=False, quiet=True)
    problems = verify(tmp_path / "out", quick=False, moved={}).problems
    assert any("row 0" in problem and "student spans of words say [-1, -1]" in problem for problem in problems)


def test_a_manifest_names_no_path_outside_its_folder(prepared, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(prepared, copy)
    values = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    values["shards"][0]["file"] = "../../etc/passwd"
    (copy / "manifest.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(StateError, match="damaged"):
        verify(copy, quick=True, moved={})


def test_the_papers_own_extractor_prepares_and_verifies(settings_for, tmp_path):
    config = settings_for(parser={"kind": "spacy"}, limit=8)
    manifest = prepare(config, tmp_path / "out", workers=1, quiet=True).manifest
    assert manifest.parser["kind"] == "spacy"
    assert manifest.counts["alignment"]["both"]["chunks"]["kept"] > 50
    assert verify(tmp_path / "out", quick=False, moved={}).problems == []
