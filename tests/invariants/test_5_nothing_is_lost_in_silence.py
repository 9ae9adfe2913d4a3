"""Nothing is lost in silence (invariant 5): rows in are rows out and rows left out, each with its place and reason.

Of any bytes at all: `tests/pipeline/read/test_sources_properties.py`.
"""

import json

import pytest
from datasets import load_from_disk

from pipeline.dataset import shards
from pipeline.dataset.prepare import prepare
from pipeline.dataset.realign import realign
from pipeline.dataset.report import show_rows, warnings_of
from pipeline.dataset.verify import verify
from schemas.columns import SIDES
from schemas.errors import UserError
from schemas.manifest import read_manifest


def test_rows_in_are_rows_out_and_losses(settings_for, tmp_path, sample_file):
    path = tmp_path / "rows.jsonl"
    lines = sample_file.read_text(encoding="utf-8").splitlines()
    lines[3] = '{"instruction": "broken'
    lines[7] = json.dumps({"instruction": "Say nothing.", "input": "", "output": "", "id": 7})
    lines[9] = json.dumps({"instruction": "Surrogate.", "input": "", "output": "\ud800", "id": "odd\u2028id"})
    lines[11] = json.dumps({"instruction": "Long. " * 300, "input": "", "output": "Yes."})
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    limits = {"max_length": 2048, "max_prompt_length": 200}
    config = settings_for(
        inputs=[str(path)],
        overflow="drop",
        teacher={"tokenizer": "embedded:sentencepiece-bpe", **limits},
    )
    manifest = prepare(config, tmp_path / "out", workers=1, quiet=True).manifest
    assert manifest.rows_in == len(lines)
    assert manifest.rows_out == len(load_from_disk(str(tmp_path / "out")))
    assert manifest.rows_in == manifest.rows_out + sum(manifest.rejected.values()) + sum(manifest.dropped.values())
    lost = left_out(tmp_path / "out")
    assert [entry["line"] for entry in lost] == [4, 8, 10, 12]
    assert [entry["id"] for entry in lost[:3]] == [None, "7", "odd\u2028id"]
    assert lost[3]["id"]
    assert all(entry["file"].endswith("rows.jsonl") and entry["reason"] and entry["raw"] for entry in lost)
    assert manifest.rejected == {"`output` is empty": 1, "broken JSON": 1, "unpaired surrogate": 1}
    assert lost[2]["reason"] == "unpaired surrogate: field `output`, \\ud800"
    assert manifest.dropped == {"teacher: prompt longer than max_prompt_length": 1}
    assert not verify(tmp_path / "out", quick=False, moved={}).found

    # what another tokenizer drops is listed behind what is carried over
    short = {"tokenizer": "embedded:bytelevel-bpe", "max_length": 300}
    again = realign(
        tmp_path / "out", tmp_path / "short", {"student": short}, None, workers=1, overwrite=False, quiet=True
    ).manifest
    more = left_out(tmp_path / "short")[len(lost) :]
    assert left_out(tmp_path / "short")[: len(lost)] == lost
    assert again.rows_in == again.rows_out + len(lost) + len(more)
    assert more
    assert all(entry["reason"] == "student: row longer than max_length" for entry in more)
    assert not {entry["id"] for entry in more} & {row["id"] for row in load_from_disk(str(tmp_path / "short"))}
    assert not verify(tmp_path / "short", quick=True, moved={}).found


def left_out(folder):
    return [json.loads(line) for line in (folder / shards.REJECTED).read_bytes().splitlines()]


def rows_file(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_long_prompts_are_cut_and_not_dropped(settings_for, tmp_path):
    row = {"instruction": "Tell me about the old mill by the river. " * 20, "output": "It was sold in May. " * 20}
    sides = {side: {"tokenizer": "embedded:bytelevel-bpe", "max_length": 64} for side in SIDES}
    config = settings_for(inputs=[rows_file(tmp_path / "rows.jsonl", row)], **sides)
    assert prepare(config, tmp_path / "out", workers=1, quiet=True).manifest.rows_out == 1
    (found,) = load_from_disk(str(tmp_path / "out")).to_list()
    assert len(found["teacher_input_ids"]) == 64
    assert 30 <= found["teacher_responses"][0][0] <= 34


def test_nothing_left_is_an_error_that_any_other_run_may_follow(settings_for, tmp_path):
    rows = [{"instruction": f"Tell me about the {number}. " * 9, "output": "Yes, it is."} for number in range(7)]
    tokenizer = {"tokenizer": "embedded:bytelevel-bpe"}
    config = {"inputs": [rows_file(tmp_path / "rows.jsonl", *rows)], "overflow": "drop"}
    out = tmp_path / "out"
    with pytest.raises(
        UserError, match=r"No row is left of 7 rows: 7 teacher: row longer than max_length\. .*rejected"
    ):
        prepare(settings_for(teacher=tokenizer | {"max_length": 20}, **config), out, workers=1, quiet=True)
    assert [path.name for path in out.iterdir()] == [shards.REJECTED]
    assert len(left_out(out)) == 7
    manifest = prepare(settings_for(teacher=tokenizer, **config), out, workers=1, quiet=True).manifest
    assert manifest.rows_out == 7
    assert not (out / shards.REJECTED).exists()


def test_fields_that_come_late_are_read_and_those_not_read_are_counted(settings_for, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.dataset.prepare.SAMPLE_ROWS", 5)
    rows = [{"instruction": f"Name {number}.", "response": "A name."} for number in range(6)]
    rows.append(
        {"instruction": "Who sold the mill?", "context": "Ada sold it in May.", "output": "Ada.", "text": "All."}
    )
    second = rows_file(tmp_path / "b.jsonl", {"input": "Who sold the mill?", "completion": "Ada.", "id": 1})
    third = rows_file(tmp_path / "c.jsonl", {"instruction": "Name 0.", "response": "A name.", "id": 1})
    config = settings_for(inputs=[rows_file(tmp_path / "a.jsonl", *rows), second, third], shard_rows=5)
    manifest = prepare(config, tmp_path / "out", workers=1, quiet=True).manifest
    texts = [row["text"] for row in load_from_disk(str(tmp_path / "out"))]
    assert "### Input:\nAda sold it in May.\n\n### Response:\nAda." in texts[6]
    assert "### Instruction:\nWho sold the mill?" in texts[7]
    used = {"completion": 1, "context": 1, "id": 2, "input": 1, "instruction": 8, "output": 1, "response": 7}
    assert manifest.counts["fields"] == {"used": used, "unused": {"text": 1}}
    assert manifest.counts["repeated_ids"] == {"rows": 1, "examples": ["1"]}
    other = {"tokenizer": "embedded:sentencepiece-bpe"}
    realign(tmp_path / "out", tmp_path / "again", {"student": other}, None, workers=1, overwrite=False, quiet=True)
    again = read_manifest(tmp_path / "again")
    assert again.counts["fields"] == manifest.counts["fields"]
    told = warnings_of(again, tmp_path)
    assert told == ["1 row with the id of an earlier row (of `1`): `mta-prep inspect --id` shows the first."]


def test_fields_that_are_not_read_are_told_in_one_line(settings_for, tmp_path, capsys):
    meta = {f"meta_{number:02}": number for number in range(25)}
    rows = [
        {"instruction": "Who sold the mill?", "output": "Ada.", "score": 1.5, "passage": "P", "Input": "Ada sold it."},
        {"instruction": "Who?", "output": "Ada.", "score": 0, **meta},
        {"instruction": "What is this?", "output": "A mill.", "images": ["mill.png"]},
    ]
    config = settings_for(inputs=[rows_file(tmp_path / "rows.jsonl", *rows)])
    manifest = prepare(config, tmp_path / "out", workers=1, quiet=True).manifest
    assert manifest.rejected == {"the template has no place for `images` (a Jinja file has, with `row.images`)": 1}
    assert manifest.counts["fields"]["unused"] == {"Input": 1, "passage": 1, "score": 2} | dict.fromkeys(meta, 1)
    show_rows(manifest)
    (line,) = (line for line in capsys.readouterr().out.replace("\n", " ").split("Not read: ")[1:])
    assert line.startswith("`score` in 2 rows; `Input`, `meta_00`, ")
    assert "`meta_17` in 1 row; and 8 more, which `counts` of manifest.json has." in line
    assert warnings_of(manifest, tmp_path)[1:] == [
        "`Input` was not read in 1 row: it is not written `input`. `--input-field Input` reads it."
    ]


def test_repeated_ids_are_found_whatever_the_portions(settings_for, prepared, tmp_path, monkeypatch):
    rows = [{"text": "A cat sat.", "id": name} for name in ("a", "b", "a", "c", "b", "a", "d")]
    config = settings_for(inputs=[rows_file(tmp_path / "rows.jsonl", *rows)], shard_rows=2)
    for at_once in (100, 2):
        monkeypatch.setattr("pipeline.dataset.ids.AT_ONCE", at_once)
        manifest = prepare(config, tmp_path / str(at_once), workers=1, quiet=True).manifest
        assert manifest.counts["repeated_ids"]["rows"] == 3
        assert set(manifest.counts["repeated_ids"]["examples"]) == {"a", "b"}
    assert read_manifest(prepared).counts["repeated_ids"] == {"rows": 0, "examples": []}
