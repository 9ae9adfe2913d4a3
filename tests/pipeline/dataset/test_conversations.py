"""Datasets of conversations: the embedded ones, another template without parsing, and what is refused."""

import json
import unicodedata
from pathlib import Path

import pytest
from datasets import load_from_disk

from pipeline.dataset.prepare import prepare
from pipeline.dataset.realign import realign
from pipeline.dataset.verify import verify
from schemas import embedded
from schemas.columns import GRANULARITIES, SIDES
from schemas.config import ParseConfig
from schemas.errors import StateError, UsageError, UserError
from schemas.manifest import MANIFEST, read_manifest

NATIVE = {
    "inputs": ["embedded:conversations"],
    "teacher": {"tokenizer": "embedded:sentencepiece-bpe"},
    "student": {"tokenizer": "embedded:bytelevel-bpe"},
}
ALPACA = NATIVE | {"student": {"tokenizer": "embedded:bytelevel-bpe", "template": "alpaca"}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Datasets by their config, each made once."""
    base, done = tmp_path_factory.mktemp("chats"), {}

    def make(**values):
        key = json.dumps(values, sort_keys=True)
        if key not in done:
            done[key] = base / f"{len(done)}"
            prepare(ParseConfig.parse(values, "test"), done[key], workers=1, quiet=True)
        return done[key]

    return make


def rows_of(folder):
    return {row["id"]: row for row in load_from_disk(str(folder))}


def test_the_embedded_conversations_are_what_the_docs_say():
    rows = [json.loads(line) for line in Path(embedded.resolve("embedded:conversations")).read_text().splitlines()]
    text = json.dumps(rows, ensure_ascii=False)
    assert len(rows) == len({row["id"] for row in rows}) >= 24
    for key in (
        "messages",
        "conversations",
        "completion",
        "rejected",
        "tools",
        "tool_calls",
        "reasoning_content",
        "system",
    ):
        assert f'"{key}"' in text, key
    for marker in ("<think>", "<|im_end|>", "```", '"type": "text"'):
        assert marker in text, marker
    scripts = {unicodedata.name(char).split()[0] for char in text if char.isalpha()}
    assert {"LATIN", "CYRILLIC", "CJK", "HIRAGANA", "ARABIC", "DEVANAGARI"} <= scripts
    assert max(len(row.get("messages", ())) for row in rows) >= 7


def test_every_row_is_used_and_verified(made):
    folder = made(**NATIVE)
    manifest = read_manifest(folder)
    assert manifest.rows_out == manifest.rows_in == 26
    findings = verify(folder, quick=False, moved={})
    assert findings.problems == []
    assert set(findings.retokenized.values()) == set(findings.decoded.values()) == {"every row"}
    both = manifest.counts["alignment"]["both"]
    for name in GRANULARITIES:
        assert both[name]["kept"] >= 0.99 * both[name]["units"]


def test_roles_contents_and_what_is_learnt(made):
    row = rows_of(made(**NATIVE))["chat-001"]
    roles = [message["role"] for message in row["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user", "assistant"]
    said = [row["text"][message["start"] : message["end"]] for message in row["messages"]]
    assert "\n\n".join(said) == row["text"]
    assert [row["text"][start:end] for start, end in row["responses"]] == said[2::2]
    for side in SIDES:
        for (first, last), answer in zip(row[f"{side}_responses"], said[2::2], strict=True):
            characters = [span for span in row[f"{side}_offsets"][first:last] if span[0] >= 0]
            assert row["text"][characters[0][0] : characters[-1][1]] == answer
            assert row[f"{side}_offsets"][last - 1] == [-1, -1]  # what ends the turn


def test_another_template_needs_no_parsing(made, tmp_path, contents):
    out = tmp_path / "out"
    realign(made(**NATIVE), out, {"student": {"template": "alpaca"}}, None, workers=1, overwrite=False, quiet=True)
    other = made(**ALPACA)
    assert rows_of(out) == rows_of(other)
    assert read_manifest(out).teacher_fingerprint == read_manifest(other).teacher_fingerprint
    assert read_manifest(out).fingerprint == read_manifest(other).fingerprint
    assert len(rows_of(made(**NATIVE))) - len(rows_of(out)) == 2  # calls of tools, which Alpaca's has no place for
    assert rows_of(out).keys() | {"chat-009", "chat-010"} == rows_of(made(**NATIVE)).keys()


def test_a_rendered_dataset_has_no_template_to_change(prepared, tmp_path):
    with pytest.raises(UsageError, match="are rendered, so no template can be changed"):
        realign(
            prepared,
            tmp_path / "out",
            {"student": {"template": "chatml"}},
            None,
            workers=1,
            overwrite=False,
            quiet=True,
        )


def test_what_is_learnt_and_the_order_of_templates_are_in_the_fingerprints(made):
    def fingerprints(**values):
        manifest = read_manifest(made(**NATIVE | {"limit": 13} | values))
        return manifest.fingerprint, manifest.teacher_fingerprint, manifest.tokenizers

    (all_, all_teacher, _), (last, last_teacher, _) = fingerprints(), fingerprints(conversations={"learn": "last"})
    assert len({all_, all_teacher, last, last_teacher}) == 4
    student = {"tokenizer": "embedded:bytelevel-bpe", "template": "plain"}
    _, teacher, identities = fingerprints(student=student, limit=8)
    assert teacher == fingerprints(limit=8)[1]
    assert identities["student"]["template"]["source"] == "plain"


ASKED = {"role": "user", "content": "Hi"}
TOLD = {"role": "assistant", "content": "Hello there."}


@pytest.mark.parametrize(
    ("messages", "template", "reason"),
    [
        ([ASKED, TOLD, ASKED], "chatml", "`messages`"),
        ([ASKED, {"role": "assistant", "content": " "}], "chatml", ""),
        ([ASKED, {"role": "assistant", "content": None}], "chatml", ""),
        ([ASKED, {**ASKED, "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, TOLD], "chatml", ""),
        (
            [ASKED, {**TOLD, "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]}],
            "alpaca",
            "",
        ),
    ],
)
def test_a_row_that_cannot_be_right_is_told(made, tmp_path, messages, template, reason):
    path = tmp_path / "rows.jsonl"
    good = {"id": "good", "messages": [ASKED, TOLD]}
    path.write_text("\n".join(json.dumps(row) for row in (good, {"id": "bad", "messages": messages})), encoding="utf-8")
    config = ParseConfig.parse(NATIVE | {"inputs": [str(path)], "template": template}, "test")
    prepare(config, tmp_path / "out", workers=1, quiet=True)
    (entry,) = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert entry["id"] == "bad"
    assert reason in entry["reason"]
    assert list(rows_of(tmp_path / "out")) == ["good"]


def test_a_tokenizer_without_a_template_is_refused_with_what_to_do(tmp_path, made):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    source = Path(embedded.resolve("embedded:bytelevel-bpe"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    config = ParseConfig.parse(NATIVE | {"student": {"tokenizer": str(folder)}}, "test")
    with pytest.raises(UserError, match=r"has no chat template of its own\. Choose one with .*--student-template"):
        prepare(config, tmp_path / "out", workers=1, quiet=True)
    assert not (tmp_path / "out" / MANIFEST).exists()


def test_the_first_format_is_refused_with_the_command_that_makes_this_one(made, tmp_path):
    folder = tmp_path / "old"
    folder.mkdir()
    values = json.loads((made(**NATIVE) / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(values | {"format_version": 1}))
    with pytest.raises(StateError, match=rf"`mta-prep parse --config {folder}/config.yaml -o OTHER`"):
        read_manifest(folder)
