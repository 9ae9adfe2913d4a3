"""Test rows that are conversations: what is asked, to the token, what it is compared with, and what ends a response."""

import copy
import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from chat_kinds import KINDS, exchanges
from pipeline.read.tokenizers import OffsetTokenizer
from pipeline.text import Rendered
from schemas import embedded
from schemas.config import ModelConfig, SideConfig
from schemas.errors import Exit, UsageError, UserError
from trainer.evaluation import responses
from trainer.evaluation.generate import Response
from trainer.evaluation.prompts import Prompter, open_template
from trainer.evaluation.questions import Question, Reading, digest, read_questions
from trainer.models.chat_ending import ending_of
from trainer.models.chat_template import BUILT_IN, ChatTemplate
from trainer.models.tokenizer import load_tokenizer

TEACHER = "embedded:teacher"
DATE = "2024-07-26"
USER, ANSWER = {"role": "user", "content": "Where?"}, {"role": "assistant", "content": "In Ulm."}
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "find", "arguments": {}}}]}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("embedded:sentencepiece-bpe", None, "Tokenizer")


@pytest.fixture(scope="module")
def natives(tokenizer):
    """A tokenizer with each kind of template as its own."""
    tokenizers = {}
    for name, kind in KINDS.items():
        tokenizers[name] = copy.deepcopy(tokenizer)
        tokenizers[name].chat_template = kind.text
        tokenizers[name].add_tokens(["<|end|>", "<|return|>", "<|assistant|>", "<|user|>"], special_tokens=True)
    return tokenizers


@pytest.fixture(scope="module")
def side():
    """The same tokenizer as rows are prepared with it."""
    return OffsetTokenizer("student", SideConfig(tokenizer="embedded:sentencepiece-bpe"), "truncate")


@pytest.fixture
def questions_of(tmp_path):
    def read(*rows, **reading):
        return read_questions(written(tmp_path / "rows.jsonl", rows), reading=Reading(**reading))

    return read


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def native_ids(tokenizer, messages, **options):
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **options)


@pytest.mark.parametrize("kind", [*KINDS, *BUILT_IN])
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(told=exchanges(), limit=st.integers(4, 60))
def test_prompts_are_the_template_s_own(natives, questions_of, kind, told, limit):
    messages = [{"role": role, "content": content} for role, content in told]
    tokenizer = natives[kind if kind in KINDS else "header"]
    template = ChatTemplate("native" if kind in KINDS else kind, tokenizer, "T", DATE)
    (question,) = questions_of({"messages": messages})
    assert question.references == (messages[-1]["content"],)
    expected = native_ids(tokenizer, messages[:-1], chat_template=template.text)
    assert list(Prompter(tokenizer, template, 10_000)(question).ids) == expected
    cut = Prompter(tokenizer, template, limit)(question)
    assert cut.was_cut == (len(expected) > limit)
    opening = [1] if expected[0] == 1 else []
    short = [*opening, *expected[len(opening) - limit :]] if cut.was_cut else expected
    assert list(cut.ids) == short
    assert cut.thinking == (kind == "thought-prompted")


def test_calls_and_tools_are_asked_as_the_template_writes_them(tokenizer, questions_of):
    tool = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}
    result = {"role": "tool", "content": "48.4, 10.0"}
    (question,) = questions_of({"messages": [USER, CALL, result, ANSWER], "tools": [tool]})
    prompter = Prompter(tokenizer, ChatTemplate("native", tokenizer, "T", DATE), 10_000)
    messages = [USER, CALL | {"content": ""}, result]
    assert list(prompter(question).ids) == native_ids(tokenizer, messages, tools=[tool])


@settings(max_examples=40)
@given(
    st.lists(st.sampled_from(["<s>", " ", "\n", "Hi", "a b", "</s>"]), min_size=1, max_size=5)
    .map("".join)
    .filter(str.strip)
)
def test_a_text_is_opened_once_as_in_training(tokenizer, side, text):
    whole = text + "answer"
    row = Rendered("row", whole, ((len(text), len(whole)),))
    (encoding,) = side.encode([row])
    trained = encoding.input_ids[: encoding.responses[0, 0]].tolist()
    question = Question(0, "here", text, ("x",), "")
    assert list(Prompter(tokenizer, None, 100)(question).ids) == trained
    for limit in range(2, len(trained)):
        cut = Prompter(tokenizer, None, limit)(question)
        assert cut.was_cut
        assert cut.ids[0] == 1
        assert 1 < len(cut.ids) <= limit
        assert list(cut.ids[1:]) == trained[1 - len(cut.ids) :]


FORMS = [
    ({"messages": [USER, ANSWER]}, [USER], ("In Ulm.",)),
    (
        {"conversations": [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "In Ulm."}]},
        [USER],
        ("In Ulm.",),
    ),
    ({"messages": json.dumps([USER, ANSWER])}, [USER], ("In Ulm.",)),
    ({"prompt": [USER], "completion": [ANSWER]}, [USER], ("In Ulm.",)),
    ({"prompt": [USER], "completion": ["In Ulm.", "Ulm"]}, [USER], ("In Ulm.", "Ulm")),
    ({"prompt": "Where?", "chosen": [USER, ANSWER], "rejected": [USER, USER]}, [USER], ("In Ulm.",)),
    ({"chosen": "\n\nHuman: Where?\n\nAssistant: In Ulm."}, [USER], ("In Ulm.",)),
    ({"messages": [USER, ANSWER], "references": ["Ulm", "Here", "Ulm"]}, [USER], ("Ulm", "Here")),
    ({"messages": [USER], "references": "Ulm"}, [USER], ("Ulm",)),
    ({"messages": json.dumps([USER]), "references": "Ulm"}, [USER], ("Ulm",)),
    ({"messages": json.dumps([USER, ANSWER, USER]), "references": "Ulm"}, [USER, ANSWER, USER], ("Ulm",)),
    ({"messages": [USER, ANSWER, USER], "references": ["Ulm"]}, [USER, ANSWER, USER], ("Ulm",)),
    ({"messages": [USER, CALL], "references": ["Ulm"]}, [USER], ("Ulm",)),
    ({"messages": [USER, ANSWER | {"reasoning_content": "Hm."}]}, [USER], ("In Ulm.",)),
    ({"messages": [USER, ANSWER | {"content": "It is </think>."}]}, [USER], ("It is </think>.",)),
    ({"messages": [USER, ANSWER | {"content": "<think>\nHm.\n</think>\n\nIn Ulm."}]}, [USER], ("In Ulm.",)),
]


@pytest.mark.parametrize(("row", "asked", "references"), FORMS)
def test_every_form_of_a_conversation(questions_of, row, asked, references):
    (question,) = questions_of(row)
    assert question.prompt.filled() == asked
    assert question.references == references


SINGLE = [
    ({"instruction": "Where?", "output": "In Ulm."}, "Where?", ("In Ulm.",)),
    ({"instruction": "Where?", "input": "Now.", "output": ["In Ulm.", "Ulm"]}, "Where?\n\nNow.", ("In Ulm.", "Ulm")),
    ({"prompt": "Where?", "response": "In Ulm.", "output": "no"}, "Where?", ("In Ulm.",)),
    ({"prompt": "Where?", "chosen": "In Ulm."}, "Where?", ("In Ulm.",)),
    ({"prompt": "Where?", "references": ["In Ulm.", "Ulm"]}, "Where?", ("In Ulm.", "Ulm")),
    ({"prompt": "Where?", "output": "In Ulm.", "references": ["Ulm"]}, "Where?", ("Ulm",)),
    ({"prompt": "Where?", "output": "<think>Hm.</think>\nIn Ulm."}, "Where?", ("In Ulm.",)),
    ({"prompt": "Where?", "output": "Behind </think> now."}, "Where?", ("Behind </think> now.",)),
    ({"prompt": "Where?", "references": ["<think>Hm.</think>A </think> b"]}, "Where?", ("A </think> b",)),
]


@pytest.mark.parametrize(("row", "asked", "references"), SINGLE)
def test_single_questions_by_a_template_or_without(questions_of, row, asked, references):
    (text,) = questions_of(row)
    (turn,) = questions_of(row, as_conversations=True)
    assert asked.partition("\n")[0] in text.prompt
    assert turn.prompt.filled() == [{"role": "user", "content": asked}]
    assert text.references == turn.references == references
    assert digest([text]) == digest([turn]), "one row, however it is asked"


def test_what_is_beside_a_single_question_needs_a_template(questions_of):
    row = {"prompt": "Where?", "system": "Be brief.", "output": "Ulm", "history": []}
    with pytest.raises(UserError, match=r"line 1: .* no place for `system`; a chat template has, with --template"):
        questions_of(row)
    (question,) = questions_of(row, as_conversations=True)
    assert question.prompt.filled() == [{"role": "system", "content": "Be brief."}, USER]
    (question,) = questions_of(row, as_conversations=True, system_into_user=True)
    assert question.prompt.filled() == [{"role": "user", "content": "Be brief.\n\nWhere?"}]
    again = [USER, {"role": "user", "content": "Now."}, ANSWER, {"role": "assistant", "content": "Ulm."}]
    (question,) = questions_of({"messages": again}, merge_turns=True)
    assert question.prompt.filled() == [{"role": "user", "content": "Where?\n\nNow."}]
    assert question.references == ("In Ulm.\n\nUlm.",)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"messages": [USER]},
            "line 1: `messages` has no turn of the assistant: `references` may hold what to compare with.",
        ),
        ({"messages": json.dumps([USER])}, "has no turn of the assistant: `references` may hold what to compare with."),
        ({"messages": json.dumps([USER])[:-1], "references": ["Ulm"]}, "`messages`"),
        (
            {"messages": [USER, ANSWER, USER]},
            "line 1: `messages` ends with a turn that is not the assistant's: turn 3: user; `references` may hold",
        ),
        ({"messages": [ANSWER]}, "line 1: nothing stands before the answer."),
        ({"messages": [USER, CALL]}, "line 1: the last answer is calls of tools alone: `references` may hold"),
        ({"messages": [USER | {"role": "nobody"}, ANSWER]}, "a role that is not known: turn 1: `nobody`"),
        ({"messages": [USER, ANSWER], "references": []}, "`references` is an empty list"),
        ({"messages": [USER, ANSWER], "references": [""]}, "`references` is empty"),
        ({"messages": [USER, ANSWER], "images": ["a.png"]}, "has no place for `images`"),
        ({"prompt": "Where?", "output": "<think>Hm."}, "a reference is reasoning alone"),
        (
            {"messages": [USER, ANSWER | {"content": "<think>Hm.</think>"}]},
            "line 1: a reference is reasoning alone, without",
        ),
        ({"messages": [USER, ANSWER | {"content": "", "reasoning_content": "Hm."}]}, "a reference is reasoning alone"),
        ({"messages": [USER], "references": ["Ulm", "<think>Hm.</think> "]}, "a reference is reasoning alone"),
        ({"messages": [USER, CALL | {"reasoning_content": "Hm."}]}, "the last answer is calls of tools alone"),
    ],
)
def test_rows_that_cannot_be_asked(questions_of, row, message):
    with pytest.raises(UserError) as told:
        questions_of(row)
    assert message in str(told.value)


def test_a_prompt_that_the_template_would_take_words_from_is_refused(tokenizer, questions_of):
    deaf = copy.deepcopy(tokenizer)
    deaf.chat_template = (
        "{% for m in messages if m['role'] != 'system' %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
        "{{ 'assistant: ' if add_generation_prompt else '' }}"
    )
    prompter = Prompter(deaf, ChatTemplate("native", deaf, "T", DATE), 10_000)
    told = {"messages": [{"role": "system", "content": "Be brief."}, USER, ANSWER]}
    (question,) = questions_of(told)
    with pytest.raises(
        UserError, match=r"line 1: .*it leaves out a content: message 1 \(system\); .* --system-into-user` reads"
    ):
        prompter(question)
    (question,) = questions_of(told, system_into_user=True)
    assert "Be brief.\n\nWhere?" in deaf.decode(prompter(question).ids)


def test_which_template(tokenizer, tmp_path):
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(UserError, match=r"^T has no chat template of its own. Choose one with --template: alpaca"):
        open_template(None, bare, "T", needed=True)
    assert open_template(None, bare, "T", needed=False) is None
    assert open_template(None, tokenizer, "T", needed=True).identity()["source"] == "native"
    broken = copy.deepcopy(tokenizer)
    broken.chat_template = "{% for"
    assert open_template(None, broken, "T", needed=False) is None, "it would tell no more than what ends a turn"
    with pytest.raises(UsageError):
        open_template(None, broken, "T", needed=True)
    assert open_template("chatml", broken, "T", needed=True).identity()["source"] == "chatml"
    prompts = tmp_path / "prompts.jinja"
    prompts.write_text("Q: {{ prompt }}\nA: ", encoding="utf-8")
    with pytest.raises(UsageError, match="renders prompts; one that renders conversations is wanted"):
        open_template(str(prompts), tokenizer, "T", needed=False)


@pytest.mark.parametrize("kind", KINDS)
def test_the_token_that_ends_a_turn(natives, kind):
    ending = ending_of(ChatTemplate("native", natives[kind], "T", DATE), natives[kind])
    end = "<|return|>" if kind == "last-ends-otherwise" else KINDS[kind].end
    assert natives[kind].convert_ids_to_tokens(ending.special[0]) == end
    assert ending.text == ""


def test_an_end_that_is_no_token(tokenizer):
    bytelevel = load_tokenizer("embedded:bytelevel-bpe", None, "T")
    for own in (tokenizer, bytelevel):
        for name in BUILT_IN:
            ending = ending_of(ChatTemplate(name, own, "T", DATE), own)
            assert ending == ("<|im_end|>" if name == "chatml" else "", (own.eos_token_id,))
    refusing = copy.deepcopy(tokenizer)
    refusing.chat_template = "{{ raise_exception('no') }}"
    assert ending_of(ChatTemplate("native", refusing, "T", DATE), refusing) == ("", ())


def test_responses_stop_where_turns_end(natives):
    teacher = responses.load(ModelConfig(model=TEACHER))
    assert teacher.template.identity()["source"] == "native"
    own = natives["header"]
    template = ChatTemplate("native", own, "T", DATE)
    chat = responses.Loaded(teacher.teacher, own, {}, template)
    assert chat.stop == (2, own.convert_tokens_to_ids("<|end|>"))
    assert responses.Loaded(teacher.teacher, own, {}).stop == (2,)


def test_a_model_is_asked_by_its_own_template(run, tmp_path):
    """Greedy responses against a plain loop on the ids that transformers gives."""
    rows = [{"messages": [USER, ANSWER, {"role": "user", "content": "When?"}, ANSWER]}, {"messages": [USER, ANSWER]}]
    path = written(tmp_path / "chats.jsonl", rows)
    lengths = ("--max-length", 72, "--max-prompt-length", 60)
    code, printed, err = run("run", TEACHER, path, "--greedy", *lengths, "--json", "--save-texts")
    assert (code, err) == (Exit.OK, "")
    result = json.loads(printed)
    folder = Path(embedded.resolve(TEACHER))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for row, (text,) in zip(rows, result["files"][0]["texts"], strict=True):
        ids = native_ids(tokenizer, row["messages"][:-1])
        assert len(ids) <= 60
        response = []
        while len(response) < 12 and tokenizer.eos_token_id not in response:
            with torch.no_grad():
                response.append(int(model(torch.tensor([ids + response])).logits[0, -1].argmax()))
        assert text == tokenizer.decode(response, skip_special_tokens=True).strip()
    assert result["template"]["source"] == "native"
    assert result["config"]["stop"] == ["</s>"]
    assert result["files"][0]["cut_prompts"] == 0


def test_a_template_that_refuses_a_row_is_told_before_anything_is_generated(run, tmp_path):
    template = tmp_path / "strict.jinja"
    template.write_text(
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m['content'] }}{% endfor %}{{ '>' if add_generation_prompt }}",
        encoding="utf-8",
    )
    path = written(
        tmp_path / "chats.jsonl",
        [{"messages": [USER, ANSWER]}, {"messages": [{"role": "system", "content": "S"}, USER, ANSWER]}],
    )
    flags = ("--greedy", "--max-length", 40, "--max-prompt-length", 32, "--template", template)
    code, printed, err = run("run", TEACHER, path, *flags)
    told = " ".join(err.split())
    assert (code, printed) == (Exit.INPUT, "")
    assert f"{path}, line 2: " in told
    assert (
        "strict.jinja: it refuses the conversation: no system; `mta-prep evaluate run … --system-into-user` reads it so"
        in told
    )
    code, printed, _ = run("run", TEACHER, path, *flags, "--system-into-user", "--json")
    assert code == Exit.OK
    assert json.loads(printed)["template"]["source"] == "strict.jinja"


class Scripted:
    """Stands for a generator that gives the ids of `answers`, in the order of the rows."""

    answers: tuple = ()

    def __init__(self, model, stop, new_tokens, sampling):
        pass

    def __call__(self, prompts):
        return [Response(Scripted.answers[prompt.row], True) for prompt in prompts]


def test_reasoning_is_told_and_not_scored(run, tmp_path, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(embedded.resolve(TEACHER))
    said = ("<think>\nA mill?\n</think>\n\nIn Ulm.", "<think>\nIn Ulm", "In Ulm", "now")
    Scripted.answers = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in said]
    monkeypatch.setattr(responses, "Generator", Scripted)
    path = written(
        tmp_path / "chats.jsonl", [{"messages": [USER, ANSWER]}] * 3 + [{"messages": [USER], "references": ["今"]}]
    )
    code, printed, err = run("run", TEACHER, path, "--greedy", "--json", "--save-texts")
    assert (code, err) == (Exit.OK, "")
    (file,) = json.loads(printed)["files"]
    assert file["matches"] == [[True], [False], [True], [False]]
    assert file["scores"] == [[pytest.approx(100)], [0], [pytest.approx(100)], [0]]
    assert file["exact_match"]["mean"] == pytest.approx(50)
    assert (file["reasoned"], file["unanswered"]) == (0.5, 0.25)
    assert [text for (text,) in file["texts"]] == list(said), "nothing of them is lost"
    assert file["wordless"] == 1
    code, printed, err = run("run", TEACHER, path, "--greedy")
    assert all(words in printed for words in ("EM", "scored behind </think>", "25.0%", "template native"))
    assert "chats: of 1 row no reference has a word that ROUGE-L sees" in " ".join(err.split())
    assert "--rouge-tokenizer multilingual" in err
    code, printed, err = run("run", TEACHER, path, "--greedy", "--rouge-tokenizer", "multilingual")
    assert "no reference" not in err
    assert "multilingual ROUGE-L" in printed
