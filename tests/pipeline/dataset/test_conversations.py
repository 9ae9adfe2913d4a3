"""Datasets of conversations: the embedded ones, another template without parsing, and what is refused."""

import json
import unicodedata
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
from datasets import load_from_disk

from pipeline.dataset.prepare import prepare
from pipeline.dataset.realign import realign
from pipeline.dataset.verify import verify
from pipeline.dataset.view import as_read, find_row, spelled_by
from schemas import embedded
from schemas.chat_rows import conversation_of
from schemas.columns import GRANULARITIES, SIDES
from schemas.config import ParseConfig
from schemas.console import visible
from schemas.conversations import ContentRole
from schemas.errors import StateError, UsageError, UserError
from schemas.manifest import MANIFEST, read_manifest
from trainer.models.chat_template import ChatTemplate
from trainer.models.tokenizer import load_tokenizer

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


@pytest.fixture(scope="module")
def sample():
    return [json.loads(line) for line in Path(embedded.resolve("embedded:conversations")).read_text().splitlines()]


def test_the_embedded_conversations_are_what_the_docs_say(sample):
    assert [row["id"] for row in sample] == [f"chat-{number:03}" for number in range(1, 28)]
    forms = Counter(" ".join(key for key in row if key not in ("id", "system", "tools")) for row in sample)
    assert forms == {"messages": 21, "conversations": 2, "prompt completion": 2, "prompt chosen rejected": 2}
    assert sum("tools" in row for row in sample) == 2
    assert sum("system" in row for row in sample) == 1
    told = [conversation_of(row)[0] for row in sample]
    assert {len(conversation.turns()) for conversation in told} == {1, 2, 3, 4}
    assert max(len(conversation.messages) for conversation in told) == 8
    calls = [len(message.get("tool_calls", ())) for conversation in told for message in conversation.messages]
    assert sorted(filter(None, calls)) == [1, 2]
    roles = Counter(content.role for conversation in told for content in conversation.contents)
    assert min(roles[role] for role in get_args(ContentRole)) >= 3
    lengths = [len(content.text) for conversation in told for content in conversation.contents]
    assert min(lengths) == len("hi")
    assert max(lengths) > 1_500
    said = "\n".join(content.text for conversation in told for content in conversation.contents)
    for mark in ("<|im_end|>", "```", "\n- ", "🎂", "ü", "é"):
        assert mark in said, mark
    scripts = {unicodedata.name(char).split()[0] for char in said if char.isalpha()}
    assert scripts == {"LATIN", "CYRILLIC", "CJK", "HIRAGANA", "ARABIC", "DEVANAGARI"}
    lines = [json.dumps(row) for row in sample]
    for mark in ("<think>", '"reasoning_content"', '"type": "text"', '{"role": "system", "content": ""}'):
        assert any(mark in line for line in lines), mark


def test_every_row_is_used_and_verified(made):
    folder = made(**NATIVE)
    manifest = read_manifest(folder)
    assert manifest.rows_out == manifest.rows_in == 27
    findings = verify(folder, quick=False, moved={})
    assert findings.problems == []
    assert set(findings.retokenized.values()) == set(findings.decoded.values()) == {"every row"}
    thinks = rows_of(folder)["chat-027"]
    thought = thinks["messages"][2]  # the student's template leaves it out, since a question follows
    assert thought["role"] == "reasoning"
    both = manifest.counts["alignment"]["both"]
    for name in GRANULARITIES:
        left_out = [thought["start"] <= start < thought["end"] for start, _ in thinks[name]]
        assert [span == [-1, -1] for span in thinks[f"student_{name}"]] == left_out
        assert both[name]["cut"] == sum(left_out) > 0
        assert both[name]["inside"] <= 0.007 * both[name]["units"]


def test_what_a_side_reads_is_shown_to_the_character(made, sample):
    folder = made(**NATIVE)
    config = ParseConfig.parse(read_manifest(folder).config, "test")
    for side in SIDES:
        template = ChatTemplate(
            "native", load_tokenizer(getattr(config, side).tokenizer, None, side), side, "2024-07-26"
        )
        spelled = spelled_by(side, config)
        for number, row in enumerate(sample):
            rendered = template.render(conversation_of(row)[0])
            assert as_read(find_row(folder, number, None), side, spelled).plain == visible(rendered), row["id"]


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


@pytest.mark.parametrize(
    ("values", "told"),
    [({"max_prompt_length": 5}, "for single prompts"), ({"template": "nope"}, "'nope' is neither built")],
)
def test_another_side_is_refused_what_conversations_have_not(made, tmp_path, values, told):
    student = {"student": {"tokenizer": "embedded:bytelevel-bpe"} | values}
    with pytest.raises(UsageError, match=told):
        realign(made(**NATIVE), tmp_path / "out", student, None, workers=1, overwrite=False, quiet=True)
    assert not (tmp_path / "out").exists()


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
