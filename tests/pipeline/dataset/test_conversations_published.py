"""The embedded conversations across published tokenizers and templates: those in the folders that MTA_PREP_TOKENIZERS holds."""

import json
import os
from pathlib import Path

import pytest
from datasets import load_from_disk

from pipeline.dataset.prepare import prepare
from pipeline.dataset.verify import verify
from schemas import embedded
from schemas.chat_rows import conversation_of
from schemas.columns import SIDES
from schemas.config import ParseConfig
from trainer.models.chat_template import ChatTemplate
from trainer.models.tokenizer import load_tokenizer

pytestmark = pytest.mark.slow
FOLDERS = Path(os.environ.get("MTA_PREP_TOKENIZERS", "tokenizers"))
#: Calls of tools, and reasoning beside an answer, which one template of each pair does not know.
REFUSED = {"chat-009", "chat-010", "chat-011", "chat-027"}


@pytest.mark.parametrize(
    ("teacher", "student", "template"), [("smollm2", "gpt2", "alpaca"), ("qwen3", "llama3_1", "native")]
)
def test_each_side_reads_what_transformers_gives_it(teacher, student, template, tmp_path):
    if not all((FOLDERS / name).is_dir() for name in (teacher, student)):
        pytest.skip("MTA_PREP_TOKENIZERS names no folder with both tokenizers")
    sides = {
        "teacher": {"tokenizer": str(FOLDERS / teacher), "template": "native"},
        "student": {"tokenizer": str(FOLDERS / student), "template": template},
    }
    folder = tmp_path / "out"
    prepare(ParseConfig.parse({"inputs": ["embedded:conversations"], **sides}, "test"), folder, workers=1, quiet=True)
    findings = verify(folder, quick=False, moved={})
    assert findings.problems == []
    assert set(findings.retokenized.values()) == set(findings.decoded.values()) == {"every row"}
    lines = Path(embedded.resolve("embedded:conversations")).read_text(encoding="utf-8").splitlines()
    told = {row["id"]: conversation_of(row)[0] for row in map(json.loads, lines)}
    rows = {row["id"]: row for row in load_from_disk(str(folder))}
    assert told.keys() - rows.keys() == REFUSED
    for side in SIDES:
        tokenizer = load_tokenizer(sides[side]["tokenizer"], None, side)
        text = ChatTemplate(sides[side]["template"], tokenizer, side, "2024-07-26").text
        for name, row in rows.items():
            messages = told[name].filled()
            ids = tokenizer.apply_chat_template(messages, chat_template=text, tokenize=True, return_dict=False)
            assert row[f"{side}_input_ids"][: len(ids)] == ids, name
            assert row[f"{side}_input_ids"][len(ids) :] in ([], [tokenizer.eos_token_id]), name
            assert len(row[f"{side}_responses"]) == len(told[name].turns()), name
