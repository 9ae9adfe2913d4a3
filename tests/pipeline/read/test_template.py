"""Templates: what is detected, what is refused and in which words, and texts that are right byte for byte."""

import hashlib
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.read import jinja
from pipeline.read.fields import resolve_fields
from pipeline.read.records import Record, RowError
from pipeline.read.template import Rendered, Renderer, resolve_template
from schemas.config import FieldsConfig
from schemas.errors import UsageError, UserError

WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "Bye."},
]
SHARED = [
    {"from": "human", "value": "Hi"},
    {"from": "gpt", "value": "Hello."},
]


def records(*rows: dict[str, Any]) -> list[Record]:
    return [Record(number, "rows.jsonl", number + 1, row) for number, row in enumerate(rows)]


def resolved(*rows: dict[str, Any], **named: str) -> dict[str, str]:
    fields = resolve_fields(FieldsConfig(**named), records(*rows))
    assert resolve_fields(fields, records(*rows)) == fields, "a resolved config gives itself"
    return fields.model_dump(exclude_none=True)


def render(row: dict[str, Any], template: str = "auto", **named: str) -> Rendered:
    (record,) = records(row)
    fields = resolve_fields(FieldsConfig(**named), [record])
    return Renderer(fields, resolve_template(template, fields)).render(record)


def halves(rendered: Rendered) -> tuple[str, str]:
    return rendered.text[: rendered.response_start], rendered.text[rendered.response_start :]


@pytest.mark.parametrize(
    ("row", "expected", "template"),
    [
        ({"messages": TURNS, "text": "x", "prompt": "p", "response": "r"}, {"messages": "messages"}, "chat"),
        ({"conversations": SHARED, "text": "x"}, {"messages": "conversations"}, "chat"),
        (
            {"topic": "t", "prompt": "P", "instruction": "I", "input": "", "output": "O"},
            {"prompt": "prompt", "instruction": "instruction", "input": "input", "output": "output"},
            "plain",
        ),
        (
            {"prompt": "P", "instruction": "I", "output": ["O", "o"]},
            {"prompt": "prompt", "instruction": "instruction", "output": "output"},
            "plain",
        ),
        (
            {"instruction": "I", "input": "", "output": "O", "text": "all of it"},
            {"instruction": "instruction", "input": "input", "output": "output"},
            "alpaca",
        ),
        (
            {"instruction": "I", "context": "C", "response": "R", "category": "qa", "id": 7},
            {"instruction": "instruction", "input": "context", "output": "response", "id": "id"},
            "alpaca",
        ),
        ({"prompt": "P", "completion": "C"}, {"prompt": "prompt", "response": "completion"}, "plain"),
        ({"prompt": "P", "chosen": "C", "rejected": "R"}, {"prompt": "prompt", "response": "chosen"}, "plain"),
        ({"text": "T", "label": 1, "id": {"a": 1}}, {"text": "text"}, "plain"),
        ({"text": "T", "id": 1.5}, {"text": "text"}, "plain"),
        ({"messages": None, "text": "T"}, {"text": "text"}, "plain"),
        ({"instruction": "I", "instances": [], "text": "T"}, {"text": "text"}, "plain"),
    ],
)
def test_detection(row: dict[str, Any], expected: dict[str, str], template: str) -> None:
    assert resolved(dict.fromkeys(row), row) == expected
    assert resolve_template("auto", FieldsConfig(**expected)) == template


def test_named_fields_win_and_the_other_half_is_detected() -> None:
    row = {"question": "Q", "context": "C", "instruction": "I", "output": "O", "answer": "A", "key": "k", "text": "T"}
    assert resolved(row, instruction="question", response="answer") == {
        "instruction": "question",
        "response": "answer",
    }
    assert resolved(row, prompt="question") == {"prompt": "question", "response": "output"}
    assert resolved(row, output="answer") == {"instruction": "instruction", "input": "context", "output": "answer"}
    assert resolved(row, input="answer") == {"instruction": "instruction", "input": "answer", "output": "output"}
    assert resolved(row, text="answer", id="key") == {"text": "answer", "id": "key"}
    assert resolved({"prompt": "P", "answer": "A"}, response="answer") == {"prompt": "prompt", "response": "answer"}


@pytest.mark.parametrize(
    ("row", "named", "error", "message"),
    [
        ({"instruction": "I", "output": "O"}, {"instruction": "instuction"}, UserError, "did you mean `instruction`?"),
        ({"a": "I", "b": "O"}, {"prompt": "zzzz"}, UserError, "(--prompt-field); the fields are `a`, `b`"),
        ({"question": "Q", "answer": "A"}, {}, UserError, "`question`, `answer` are of no known form; name them with"),
        ({"id": "x", "instruction": "I", "instances": [{"output": "O"}]}, {}, UserError, "`instances` holds nested"),
        ({"question": "Q", "answer": "A"}, {"prompt": "question"}, UserError, "add --response-field"),
        (
            {"question": "Q", "answer": "A"},
            {"output": "answer"},
            UserError,
            "add --prompt-field or --instruction-field",
        ),
        ({"a": "Q", "b": "A"}, {"text": "a", "prompt": "b"}, UsageError, "--text-field and --prompt-field exclude"),
        (
            {"a": [], "b": "A"},
            {"messages": "a", "response": "b"},
            UsageError,
            "--messages-field and --response-field exclude",
        ),
        ({"a": "Q", "b": "A"}, {"response": "a", "output": "b"}, UsageError, "give one"),
        ({}, {}, UserError, "None of the first rows"),
    ],
)
def test_what_does_not_resolve_is_told(
    row: dict[str, Any], named: dict[str, str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        resolve_fields(FieldsConfig(**named), records(row))
    assert message in str(raised.value)


#: What templates could trip over: braces, Jinja's marks, HTML, every kind of line end.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=10) | st.text("{}%#<&>\r\n \u2028'\"\\", max_size=10)
FULL = TEXT.filter(str.strip)


@given(instruction=FULL, extra=TEXT, output=FULL)
def test_alpaca_to_the_byte(instruction: str, extra: str, output: str) -> None:
    rendered = render({"instruction": instruction, "input": extra, "output": output})
    template = WITH_INPUT if extra else WITHOUT_INPUT
    marked = template.replace("{instruction}", "\0I\0").replace("{input}", "\0X\0")
    prompt = "".join({"I": instruction, "X": extra}.get(part, part) for part in marked.split("\0"))
    assert halves(rendered) == (prompt, output)
    assert halves(render({"instruction": instruction, "output": output}))[0] == WITHOUT_INPUT.replace(
        "{instruction}", instruction
    )


@given(prompt=FULL, response=FULL)
def test_ready_made_prompts_and_texts_stay_as_they_are(prompt: str, response: str) -> None:
    assert halves(render({"prompt": prompt, "response": response})) == (prompt, response)
    row = {"prompt": prompt, "instruction": "I", "input": "X", "output": [response, "another"]}
    assert halves(render(row)) == (prompt, response)
    assert render({"text": response}).text == response
    assert render({"text": response}).response_start == 0


@given(contents=st.lists(TEXT, min_size=1, max_size=5), response=FULL)
def test_chat_keeps_every_turn_in_order(contents: list[str], response: str) -> None:
    turns = [{"role": ["user", "assistant"][n % 2], "content": text} for n, text in enumerate(contents)]
    row = {"messages": [*turns, {"role": "assistant", "content": response}, {"role": "user", "content": "later"}]}
    heads = ["### User:\n", "### Assistant:\n"]
    expected = "".join(f"{heads[n % 2]}{text}\n\n" for n, text in enumerate(contents)) + heads[1]
    assert halves(render(row)) == (expected, response)


def test_chat_of_other_forms() -> None:
    expected = (
        "### System:\nBe brief.\n\n### User:\nHi\n\n### Assistant:\nHello.\n\n### User:\nAnd now?\n\n### Assistant:\n"
    )
    assert halves(render({"messages": TURNS})) == (expected, "Bye.")
    hi = "### User:\nHi\n\n### Assistant:\n"
    assert halves(render({"conversations": SHARED})) == (hi, "Hello.")
    assert halves(render({"prompt": "Hi", "response": "Hello."}, "chat")) == (hi, "Hello.")
    assert halves(render({"instruction": "Hi", "input": "", "output": "Hello."}, "chat")) == (hi, "Hello.")
    row = {"prompt": "ready-made", "instruction": "Hi", "input": "you", "output": "Hello."}
    assert render(row, "chat").text == "### User:\nHi\n\nyou\n\n### Assistant:\nHello."


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "P", "response": ""}, "`response` is empty"),
        ({"prompt": "P", "response": None}, "`response` is empty"),
        ({"prompt": "P", "response": " \n\u00a0"}, "`response` is empty"),
        ({"prompt": "P", "response": []}, "`response` is empty"),
        ({"prompt": "P"}, "the row has no `response`"),
        ({"prompt": None, "response": "R"}, "`prompt` is empty"),
        ({"response": "R"}, "the row has no `prompt`"),
        ({"prompt": "P", "response": 3}, "`response` is a number, text is wanted"),
        ({"prompt": "P", "response": 0}, "`response` is a number, text is wanted"),
        ({"prompt": "P", "response": False}, "`response` is true or false, text is wanted"),
        ({"prompt": "P", "response": [1.5]}, "`response` is a number, text is wanted"),
        ({"prompt": "P", "response": {"a": 1}}, "`response` is an object, text is wanted"),
        ({"prompt": ["P"], "response": "R"}, "`prompt` is a list, text is wanted"),
        ({"prompt": "P", "response": "x\ud800"}, r"unpaired surrogate \ud800 in the text"),
        ({"prompt": "P", "response": "R", "id": True}, "`id` is true or false"),
        ({"prompt": "P", "response": "R", "id": 1.5}, "`id` is a number"),
        ({"prompt": "P", "response": "R", "id": "\udfff"}, r"unpaired surrogate \udfff in `id`"),
    ],
)
def test_unusable_rows_have_a_reason(row: dict[str, Any], reason: str) -> None:
    renderer = Renderer(FieldsConfig(prompt="prompt", response="response", id="id"), "plain")
    with pytest.raises(RowError) as raised:
        renderer.render(records(row)[0])
    assert reason in str(raised.value)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, "`messages` is empty"),
        ([], "`messages` is empty"),
        ("Hi", "`messages` is a string, a list of turns is wanted"),
        (TURNS[:2], "no turn of the assistant"),
        ([*TURNS[:2], {"role": "assistant", "content": None}], "the assistant's last turn is empty"),
        (["Hi"], "turn 1 of `messages` is a string"),
        ([TURNS[0], {"content": "Hi"}], "turn 2 of `messages` has no role"),
        ([{"role": 1, "content": "Hi"}], "the role of turn 1 of `messages` is a number"),
        ([{"role": "user", "content": [{"type": "text"}]}], "the content of turn 1 of `messages` is a list"),
    ],
)
def test_unusable_messages_have_a_reason(messages: Any, reason: str) -> None:
    with pytest.raises(RowError) as raised:
        Renderer(FieldsConfig(messages="messages"), "chat").render(records({"messages": messages})[0])
    assert reason in str(raised.value)


def test_empty_text_and_empty_instruction_have_a_reason() -> None:
    with pytest.raises(RowError, match="`text` is empty"):
        Renderer(FieldsConfig(text="text"), "plain").render(records({"text": "\n"})[0])
    fields = FieldsConfig(instruction="instruction", input="input", output="output")
    with pytest.raises(RowError, match="`instruction` is empty"):
        Renderer(fields, "alpaca").render(records({"instruction": "", "output": "O"})[0])
    with pytest.raises(RowError, match="`input` is a number"):
        Renderer(fields, "alpaca").render(records({"instruction": "I", "input": 0, "output": "O"})[0])


def test_fields_that_the_template_does_not_use_are_not_looked_at() -> None:
    fields = FieldsConfig(prompt="prompt", instruction="instruction", input="input", output="output")
    row = records({"prompt": "P", "instruction": 3, "input": 4, "output": "O"})[0]
    assert Renderer(fields, "plain").render(row).text == "PO"


def test_ids_are_the_rows_own_or_of_the_content() -> None:
    row = {"prompt": "P", "response": "R"}
    assert render({**row, "id": 12}).id == "12"
    assert render({**row, "key": "k", "id": "x"}, id="key").id == "k"
    derived = hashlib.sha256(b"1\nPR").hexdigest()[:16]
    assert render(row).id == render({**row, "id": None}).id == render({**row, "id": "", "other": 1}).id == derived
    assert render({"text": "PR"}).id == hashlib.sha256(b"0\nPR").hexdigest()[:16] != derived
    assert render({"prompt": "PR", "response": "R"}).id != render({"prompt": "P", "response": "RR"}).id


@pytest.fixture
def template(tmp_path: Path) -> Path:
    return tmp_path / "my.jinja"


def test_a_template_file_renders_the_prompt(template: Path) -> None:
    template.write_bytes(b"\xef\xbb\xbf[{{ row.topic }}]\r\n{{ instruction }}|{{ input }}|{{ messages[0].content }}\n")
    row = {"instruction": "<I>\r\n", "output": "O", "topic": "t"}
    assert halves(render(row, str(template))) == ("[t]\n<I>\r\n||<I>\r\n\n", "O")
    template.write_text("{{ input }}?")
    assert halves(render({"instruction": "I", "input": "X", "output": "O"}, str(template))) == ("X?", "O")
    template.write_text("{% for turn in messages %}{{ turn.role }}: {{ turn.content }};{% endfor %}")
    assert halves(render({"messages": TURNS[1:3]}, str(template))) == ("user: Hi;", "Hello.")
    assert halves(render({"prompt": "Hi", "response": "Hello."}, str(template))) == ("user: Hi;", "Hello.")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("one\n{% if %}", "line 2"),
        ("one\n\n{{ prompt | nosuchfilter }}", "line 3: No filter named"),
        ("one\n{{ prompt }}", "line 2: no field gives `prompt`"),
        ("one\n{{ topic }}", "line 2: no field gives `topic`"),
        ("one\n{% include 'other' %}", "line 2: a template stands alone"),
        ("one\n{% extends 'other' %}", "line 2: a template stands alone"),
    ],
)
def test_a_broken_template_is_told_before_any_row(template: Path, source: str, message: str) -> None:
    template.write_text(source)
    with pytest.raises(UsageError) as raised:
        Renderer(FieldsConfig(instruction="instruction", output="output"), str(template))
    assert str(raised.value).startswith(f"{template}, line")
    assert message in str(raised.value)


@pytest.mark.parametrize("source", ["x\n{{ ''.__class__.__mro__ }}", "x\n{{ row.update({'a': 1}) }}"])
def test_a_template_cannot_leave_its_sandbox(template: Path, source: str) -> None:
    template.write_text(source)
    with pytest.raises(UsageError, match=r"my\.jinja, line 2"):
        render({"prompt": "P", "response": "R"}, str(template))


@pytest.mark.parametrize("source", ["x\n{{ row.topic }}", "x\n{{ row.number + 1 }}", "x\n{{ 1 // row.zero }}"])
def test_a_row_that_lacks_what_the_template_wants_has_a_reason(template: Path, source: str) -> None:
    template.write_text(source)
    with pytest.raises(RowError, match=r"my\.jinja, line 2"):
        render({"prompt": "P", "response": "R", "number": "7", "zero": 0}, str(template))


def test_templates_that_do_not_fit_the_fields_are_told() -> None:
    with pytest.raises(UsageError, match="needs a field for `instruction`"):
        render({"prompt": "P", "response": "R"}, "alpaca")
    with pytest.raises(UsageError, match="needs a field for `prompt`"):
        render({"messages": TURNS}, "plain")
    with pytest.raises(UsageError, match="use plain"):
        render({"text": "T"}, "chat")
    with pytest.raises(UsageError, match=r"'alpca' is neither built in nor a file\. Did you mean alpaca"):
        render({"instruction": "I", "output": "O"}, "alpca")


def test_identity_follows_the_content(template: Path, tmp_path: Path) -> None:
    fields = FieldsConfig(instruction="instruction", output="output")
    template.write_bytes(b"{{ instruction }}\r\n")
    first = Renderer(fields, str(template)).identity()
    assert first["fields"] == {"instruction": "instruction", "output": "output"}
    elsewhere = tmp_path / "folder" / "my.jinja"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(b"{{ instruction }}\n")
    assert Renderer(fields, str(elsewhere)).identity() == first
    elsewhere.write_text("{{ instruction }}")
    assert Renderer(fields, str(elsewhere)).identity() != first
    assert Renderer(fields, "alpaca").identity()["template"] == "alpaca"


@pytest.mark.parametrize(
    "body",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ instruction * 10 ** 9 }}",
        "{{ instruction | center(10 ** 10) }}",
        "{% set ns = namespace(x=instruction) %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ 2 ** 100000 }}",
    ],
)
def test_a_template_that_asks_for_too_much_is_told_of(body, monkeypatch):
    monkeypatch.setattr(jinja, "SECONDS", 0.3)
    with pytest.raises((UsageError, RowError), match=r"^loop\.jinja"):
        jinja.PromptTemplate(body, "loop.jinja", {"instruction"}).render({"instruction": "What?"})


def test_limits_leave_honest_templates_alone():
    template = jinja.PromptTemplate("{{ instruction * 3 }}{{ 2 ** 10 }}", "three.jinja", {"instruction"})
    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)
    assert template.render({"instruction": "ab"}) == "ababab1024"
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)) == before


def test_a_prompt_larger_than_any_model_reads_is_its_rows_fault():
    template = jinja.PromptTemplate("{{ instruction }}" * 5, "five.jinja", {"instruction"})
    with pytest.raises(RowError, match="20,000,000 characters"):
        template.render({"instruction": "a" * 4_000_000})
