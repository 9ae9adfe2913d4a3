"""The embedded tokenizers are what their recipe makes, load offline, and tell the truth about the embedded rows."""

import json
import runpy
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from chat_kinds import ASKED, TOOL, check, conversation
from pipeline.read.tokenizers import OffsetTokenizer
from rows import prompted
from schemas.config import SideConfig
from trainer.models.chat_template import ChatTemplate
from trainer.models.tokenizer import load_tokenizer

FOLDER = Path(__file__).parents[3] / "data" / "tokenizers"
ROWS = FOLDER.parent / "sample" / "instructions.jsonl"
NAMES = ("bytelevel-bpe", "sentencepiece-bpe")


def test_training_again_gives_the_same_bytes():
    """After a change of the embedded rows: `python data/tokenizers/train.py`."""
    again = runpy.run_path(str(FOLDER / "train.py"))["files"]()
    assert {name.split("/")[0] for name in again} == set(NAMES)
    for name, text in again.items():
        assert (FOLDER / name).read_bytes() == text.encode("utf-8"), name


@pytest.mark.parametrize("name", NAMES)
def test_it_is_small_and_loads_as_any_other(name):
    assert sum(file.stat().st_size for file in (FOLDER / name).iterdir()) < 400_000
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / name)
    assert len(tokenizer) == 4096
    text = "The small cat\n日本 👍 costs 12."
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


@pytest.mark.parametrize(
    ("name", "prefix", "suffix", "bare"),
    [("bytelevel-bpe", [], ["<|endoftext|>"], False), ("sentencepiece-bpe", ["<s>"], ["</s>"], True)],
)
def test_its_offsets_hold_on_every_embedded_row(name, prefix, suffix, bare):
    tokenizer = OffsetTokenizer("teacher", SideConfig(tokenizer=str(FOLDER / name)), "truncate")
    identity = tokenizer.identity()
    assert (identity["name"], identity["prefix"], identity["suffix"]) == (name, prefix, suffix)
    assert identity["response_without_dummy_prefix"] is bare
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    texts, starts = (
        [row["instruction"] + "\n" + row["output"] for row in rows],
        [len(row["instruction"]) + 1 for row in rows],
    )
    tokenizer.encode(prompted(texts, starts))
    counts = tokenizer.offset_counts
    assert counts["rows_refused"] == 0
    assert counts["tokens"] > 20_000


def test_the_teacher_has_the_files_of_its_tokenizer():
    for file in (FOLDER / "sentencepiece-bpe").iterdir():
        assert (FOLDER.parent / "teacher" / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize("name", NAMES)
def test_its_chat_template_shows_all_that_a_conversation_has(name):
    tokenizer = load_tokenizer(f"embedded:{name}", None, "Tokenizer")
    template = ChatTemplate("native", tokenizer, "Tokenizer", "2024-07-26")
    row = conversation(("system", "Be kind."), *ASKED, tools=[TOOL])
    layout = check(template, row)
    assert json.dumps(TOOL) in layout.text
    call, answer = (layout.text[start:end] for start, end in layout.turns)
    assert "weather" in call
    assert '{"city": "Ulm <|end|>", "days": 3}' in call
    assert [turn.rstrip().endswith(tokenizer.eos_token) for turn in (call, answer)] == [True, True]
    assert layout.text.count(tokenizer.eos_token) == 2
    for turn, (start, _) in zip(row.turns(), layout.turns, strict=True):
        assert template.render(row.before(turn), add_generation_prompt=True) == layout.text[:start]


def test_their_chat_templates_differ_in_what_they_show_of_reasoning():
    row = conversation(
        ("user", "a"), ("assistant", "b", {"reasoning": "R"}), ("user", "c"), ("assistant", "d", {"reasoning": "S"})
    )
    shown, texts = {}, set()
    for name in NAMES:
        template = ChatTemplate("native", load_tokenizer(f"embedded:{name}", None, name), name, "2024-07-26")
        layout = check(template, row)
        shown[name] = [text for place, text in zip(layout.places, "aRbcSd", strict=True) if place >= 0]
        texts.add(template.text)
    assert shown == {"bytelevel-bpe": list("abcSd"), "sentencepiece-bpe": list("aRbcSd")}
    assert len(texts) == 2
