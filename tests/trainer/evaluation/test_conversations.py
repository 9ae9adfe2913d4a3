"""Evaluation on conversations: what is asked, where a response ends, what it is compared with."""

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from schemas import embedded
from schemas.config import ModelConfig
from schemas.errors import UserError
from trainer import evaluate
from trainer.evaluation.exact import exact_match, normalized
from trainer.evaluation.generate import Sampling
from trainer.evaluation.questions import read_questions
from trainer.evaluation.responses import Evaluation, _answer, load
from trainer.evaluation.results import read_result
from trainer.evaluation.rouge import RougeL, Words
from trainer.models.chat_template import ChatTemplate

TEACHER = "embedded:teacher"
ASKED, TOLD = (
    {"role": "user", "content": "Why is the sky blue?"},
    {"role": "assistant", "content": "It scatters light."},
)
CHATS = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            ASKED,
            TOLD,
            ASKED,
            {**TOLD, "reasoning_content": "Hm."},
        ]
    },
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "<think>\nHm.\n</think>\n\nHello."}]},
    {"messages": [ASKED, TOLD], "references": ["Light.", "The air."]},
]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def loaded():
    return load(ModelConfig(model=embedded.resolve(TEACHER)))


def test_the_last_answer_is_the_reference_and_all_before_it_the_prompt(tmp_path):
    questions = read_questions(written(tmp_path / "chats.jsonl", CHATS))
    assert [question.references for question in questions] == [
        ("It scatters light.",),
        ("Hello.",),
        ("Light.", "The air."),
    ]
    assert [len(question.prompt.messages) for question in questions] == [4, 1, 1]
    alone = written(tmp_path / "alone.jsonl", [{"instruction": "Add.", "input": "1 and 2", "output": ["3"]}])
    (question,) = read_questions(alone, as_conversations=True)
    assert question.prompt.filled() == [{"role": "user", "content": "Add.\n\n1 and 2"}]
    calls = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "f"}}]}
    for messages, reason in (([ASKED], "line 1"), ([ASKED, calls], "calls of tools alone")):
        with pytest.raises(UserError, match=reason):
            read_questions(written(tmp_path / "wrong.jsonl", [{"messages": messages}]))


@pytest.mark.parametrize("template", ["native", "chatml", "alpaca"])
def test_prompts_are_those_of_the_library(loaded, tmp_path, template):
    chat = ChatTemplate(template, loaded.tokenizer, "The tokenizer", "2024-07-26")
    asking = Evaluation(loaded, [None], Sampling(1.0, 0, 1.0), 200, 150, 2, quiet=True, template=chat)
    tokenizer = AutoTokenizer.from_pretrained(embedded.resolve(TEACHER))
    for question in read_questions(written(tmp_path / "chats.jsonl", CHATS)):
        ids, cut = asking._prompt(question)
        expected = tokenizer.apply_chat_template(
            question.prompt.filled(), chat_template=chat.text, add_generation_prompt=True, return_dict=False
        )
        assert list(ids) == expected
        assert not cut
    short = Evaluation(loaded, [None], Sampling(1.0, 0, 1.0), 24, 16, 2, quiet=True, template=chat)
    ids, cut = short._prompt(question)
    assert cut
    assert len(ids) == 16
    assert list(ids[1:]) == expected[-15:]
    assert ids[0] == expected[0] == tokenizer.bos_token_id


def test_a_text_that_begins_with_bos_has_it_once(loaded, tmp_path):
    asking = Evaluation(loaded, [None], Sampling(1.0, 0, 1.0), 64, 32, 2, quiet=True)
    rows = [{"prompt": "Hi there, all of you.", "output": "x"}, {"prompt": "<s>Hi there, all of you.", "output": "x"}]
    one, other = (asking._prompt(question)[0] for question in read_questions(written(tmp_path / "rows.jsonl", rows)))
    assert one.count(loaded.tokenizer.bos_token_id) == other.count(loaded.tokenizer.bos_token_id) == 1


def test_a_response_ends_where_its_template_ends_a_turn(loaded):
    for template, end in (("native", "</s>"), ("alpaca", "</s>")):
        chat = ChatTemplate(template, loaded.tokenizer, "The tokenizer", "2024-07-26")
        assert loaded.tokenizer.convert_ids_to_tokens(chat.end_tokens()) == [end]


def test_the_command_scores_conversations(tmp_path, monkeypatch, capsys):
    chats = written(
        tmp_path / "chats.jsonl", [*CHATS, {"messages": [ASKED, {"role": "assistant", "content": "天空很蓝。"}]}]
    )
    arguments = [
        "run",
        TEACHER,
        chats,
        "--greedy",
        "--max-length",
        72,
        "--max-prompt-length",
        64,
        "--out",
        tmp_path / "r.json",
    ]
    said = {}
    for name in ("field", "multilingual"):
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments), "--rouge-tokenizer", name])
        with pytest.raises(SystemExit) as stopped:
            evaluate.main()
        captured = capsys.readouterr()
        assert stopped.value.code == 0, captured.err
        said[name] = captured.err
    assert "of 1 row no reference has a word that ROUGE-L sees" in said["field"]
    assert "--rouge-tokenizer multilingual" in said["field"]
    assert "no reference" not in said["multilingual"]
    result = read_result(tmp_path / "r.json")
    assert (result.config["template"], result.config["rouge_tokenizer"]) == ("native", "multilingual")
    assert (result.files[0].rows, result.files[0].wordless) == (4, 0)
    assert 0 <= result.files[0].exact_match.mean <= 100


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop, Ça va!", ["don", "t", "stop", "ça", "va"]),
        ("Волга — река", ["волга", "река"]),
        ("我爱 Python3。", ["我", "爱", "python3"]),
        ("朝ごはん", ["朝", "ご", "は", "ん"]),
        ("मोर नाचते हैं।", ["मोर", "नाचते", "हैं"]),
        ("عاصمة المغرب؟", ["عاصمة", "المغرب"]),
        ("🎈 ---", []),
    ],
)
def test_words_of_all_scripts(text, words):
    assert Words().tokenize(text) == words


@given(st.text(), st.text(min_size=1))
def test_multilingual_rouge_is_of_the_longest_common_subsequence(text, reference):
    one, other = (Words().tokenize(side) for side in (text, reference))
    lengths = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, mine in enumerate(one):
        for j, theirs in enumerate(other):
            lengths[i + 1][j + 1] = lengths[i][j] + 1 if mine == theirs else max(lengths[i][j + 1], lengths[i + 1][j])
    common = lengths[-1][-1]
    expected = 200 * common / (len(one) + len(other)) if common else 0.0
    assert RougeL("multilingual").score(text, [reference]) == pytest.approx(expected)


def test_exact_match_is_normalised_as_the_field_does():
    assert exact_match("The Eiffel-Tower.", ["a cat", "eiffeltower"]) == 100.0
    assert exact_match(" 12:15 ", ["1215"]) == 100.0
    assert exact_match("twelve", ["12"]) == 0.0
    assert normalized("An  apple, a day & the $5") == "apple day 5"


def test_what_a_model_thinks_is_not_scored():
    assert _answer("<think>\nHm.\n</think>\n\nYes.") == "Yes."
    assert _answer(" Yes. ") == "Yes."
