"""Templates: what is detected, what is refused and in which words, and texts that are right byte for byte."""

import hashlib
import resource
import signal
import time
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.read import jinja
from pipeline.read.contents import ContentsRenderer
from pipeline.read.fields import resolve_fields
from pipeline.read.parts import Parts
from pipeline.read.records import Record
from pipeline.read.template import Renderer, resolve_templates
from pipeline.text import Rendered
from runaway_templates import BY_CHANCE, TOO_MUCH
from schemas import limits
from schemas.columns import SIDES
from schemas.config import FieldsConfig, Form, ParseConfig, SideConfig
from schemas.errors import UsageError, UserError
from schemas.part_names import AFTER_INSTRUCTION, INPUTS, MESSAGES, UNPLACED
from schemas.rows import UNPAIRED, RowError, Unusable, holds_something

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


def fields_of(form: str, **named: str) -> FieldsConfig:
    return FieldsConfig(form=form, **named)


def config(fields: FieldsConfig, template: str = "auto", **sides: str) -> ParseConfig:
    """Resolved; `sides`: templates of their own."""
    own = {side: SideConfig(tokenizer="mine", template=sides.get(side)) for side in SIDES}
    resolved = resolve_templates(ParseConfig(inputs=("rows.jsonl",), fields=fields, template=template, **own))
    assert resolve_templates(resolved) == resolved, "a resolved config gives itself"
    return resolved


def reader(fields: FieldsConfig, template: str = "auto", **sides: str) -> Renderer | ContentsRenderer:
    found = config(fields, template, **sides)
    return ContentsRenderer(fields, found.conversations) if found.of_conversations else Renderer(fields, found.template)


def render(row: dict[str, Any], template: str = "auto", **named: str) -> Rendered:
    (record,) = records(row)
    return reader(resolve_fields(FieldsConfig(**named), [record]), template).render(record)


def halves(rendered: Rendered) -> tuple[str, str]:
    return rendered.text[: rendered.response_start], rendered.text[rendered.response_start :]


@pytest.mark.parametrize(
    ("row", "form", "template"),
    [
        ({"messages": TURNS, "text": "x", "prompt": "p", "response": "r"}, "conversation", None),
        ({"conversations": SHARED, "text": "x"}, "conversation", None),
        ({"prompt": TURNS[:2], "completion": TURNS[2:3]}, "conversation", None),
        ({"prompt": "P", "chosen": TURNS[1:3], "rejected": TURNS[3:]}, "conversation", None),
        ({"topic": "t", "prompt": "P", "instruction": "I", "input": "", "output": "O"}, "ready-made", "plain"),
        ({"prompt": "P", "instruction": "I", "output": ["O", "o"]}, "ready-made", "plain"),
        ({"prompt": "P", "instruction": "I", "response": "O"}, "instruction", "alpaca"),
        ({"instruction": "I", "input": "", "output": "O", "text": "all of it"}, "instruction", "alpaca"),
        ({"instruction": "I", "context": "C", "response": "R", "category": "qa", "id": 7}, "instruction", "alpaca"),
        ({"input": "Q", "output": "O"}, "instruction", "alpaca"),
        ({"prompt": "P", "completion": "C"}, "prompt", "plain"),
        ({"prompt": "P", "chosen": "C", "rejected": "R"}, "prompt", "plain"),
        ({"text": "T", "label": 1, "id": {"a": 1}}, "text", "plain"),
        ({"messages": None, "text": "T"}, "text", "plain"),
        ({"instruction": "I", "instances": [], "text": "T"}, "text", "plain"),
    ],
)
def test_detection(row: dict[str, Any], form: str, template: str | None) -> None:
    assert resolved(dict.fromkeys(row), row) == {"form": form}
    found = config(fields_of(form))
    assert found.of_conversations == (template is None)
    assert (template or "auto", template and found.teacher.template) == (found.template, None)


@pytest.mark.parametrize(
    ("form", "template", "sides", "expected"),
    [
        ("conversation", "auto", {}, ("native", "native")),
        ("conversation", "alpaca", {}, ("alpaca", "alpaca")),
        ("conversation", "auto", {"student": "chatml"}, ("native", "chatml")),
        ("instruction", "native", {}, ("native", "native")),
        ("instruction", "chatml", {}, ("chatml", "chatml")),
        ("instruction", "auto", {"student": "alpaca"}, ("native", "alpaca")),
        ("prompt", "plain", {"teacher": "native"}, ("native", "plain")),
        ("instruction", "auto", {"teacher": "alpaca", "student": "alpaca"}, None),
        ("prompt", "auto", {"teacher": "plain", "student": "plain"}, None),
        ("instruction", "alpaca", {}, None),
    ],
)
def test_sides_have_templates_of_their_own_where_one_text_would_not_do(form, template, sides, expected) -> None:
    found = config(fields_of(form), template, **sides)
    assert (found.teacher.template, found.student.template) == (expected or (None, None))
    if expected is None:
        assert found.template == (sides.get("student") or template)


def test_a_file_renders_prompts_or_conversations(tmp_path: Path) -> None:
    prompts, chats = tmp_path / "prompts.jinja", tmp_path / "chats.jinja"
    prompts.write_text("{{ messages[0].content }}")
    chats.write_text("{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}:{% endif %}")
    for form in ("conversation", "instruction", "prompt"):
        assert config(fields_of(form), str(prompts)).template == str(prompts)
        assert config(fields_of(form), str(chats)).student.template == str(chats)
        with pytest.raises(UsageError, match=r"renders prompts, so both sides must have it \(--template\)"):
            config(fields_of(form), "native", student=str(prompts))
    side = SideConfig(tokenizer="mine", max_prompt_length=9)
    limited = ParseConfig(inputs=("rows.jsonl",), fields=fields_of("conversation"), teacher=side, student=side)
    with pytest.raises(UsageError, match="--max-prompt-length is for single prompts"):
        resolve_templates(limited)


def test_named_fields_win_and_the_other_half_is_detected() -> None:
    row = {"question": "Q", "context": "C", "instruction": "I", "output": "O", "answer": "A", "key": "k", "text": "T"}

    def read(row: dict[str, Any], **named: str) -> tuple[str, ...]:
        """The texts that a Jinja file or a built-in template would be given."""
        fields = resolve_fields(FieldsConfig(**named), records(row))
        parts = Parts(records(row)[0], fields)
        if fields.form == "text":
            return (parts.required("text"),)
        asked = (parts.required("prompt"),) if fields.form == "prompt" else parts.instruction()
        return (*asked, parts.response())

    assert read(row, instruction="question", response="answer") == ("Q", "C", "A")
    assert read(row, prompt="question") == ("Q", "O")
    assert read(row, output="answer") == ("I", "C", "A")
    assert read(row, input="answer") == ("I", "A", "O")
    assert read(row, text="answer") == ("A",)
    assert read({"prompt": "P", "answer": "A"}, response="answer") == ("P", "A")
    assert render({**row, "output": "O"}, text="answer", id="key").id == "k"


@pytest.mark.parametrize(
    ("row", "named", "error", "message"),
    [
        ({"instruction": "I", "output": "O"}, {"instruction": "instuction"}, UserError, "did you mean `instruction`?"),
        ({"a": "I", "b": "O"}, {"prompt": "zzzz"}, UserError, "(--prompt-field); the fields are `a`, `b`"),
        ({"question": "Q", "answer": "A"}, {}, UserError, "`question`, `answer` are of no known form; name them with"),
        ({"id": "x", "instruction": "I", "instances": [{"output": "O"}]}, {}, UserError, "`instances` holds nested"),
        ({"question": "Q", "answer": "A"}, {"prompt": "question"}, UserError, "add --response-field"),
        (
            {"instruction": "I", "answer": "A"},
            {},
            UserError,
            "`instruction`, and no response to it; name its field with",
        ),
        (
            {"instruction": "I", "output": 3},
            {},
            UserError,
            "`output` is a number in rows.jsonl, line 1, text is wanted",
        ),
        ({"messages": "Hi"}, {}, UserError, "`messages` is a string in rows.jsonl, line 1, a list of turns is wanted"),
        ({"text": {"a": "T"}}, {}, UserError, "`text` is an object in rows.jsonl, line 1"),
        ({"instruction": "I", "output": "O", "context": "C"}, {"input": "contxt"}, UserError, "mean `context`?"),
        ({"prompt": "P", "a": "A", "output": "O"}, {"input": "a"}, UserError, "Nothing names the prompt"),
        ({"a": "A", "b": "B", "output": "O"}, {"prompt": "a", "input": "b"}, UsageError, "belongs to an instruction"),
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
        ({"text": "T", "b": "A"}, {"form": "text", "prompt": "b"}, UsageError, "of the form `text` do not have"),
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
    apart = prompt if prompt[-1].isspace() or response[0].isspace() else prompt + "\n"
    assert halves(render({"prompt": prompt, "response": response})) == (apart, response)
    row = {"prompt": prompt, "instruction": "I", "input": "X", "output": [response, "another"]}
    assert halves(render(row)) == (apart, response)
    assert render({"text": response}).text == response
    assert render({"text": response}).response_start == 0


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
        ({"prompt": "P", "response": Unusable.of("x\ud800", UNPAIRED, r"\ud800")}, "surrogate: field `response`"),
        ({"prompt": "P", "response": "R", "id": True}, "`id` is true or false"),
        ({"prompt": "P", "response": "R", "id": 1.5}, "`id` is a number"),
        ({"prompt": "P", "response": "R", "id": Unusable.of("\udfff", UNPAIRED)}, "surrogate: field `id`"),
    ],
)
def test_unusable_rows_have_a_reason(row: dict[str, Any], reason: str) -> None:
    renderer = Renderer(fields_of("prompt", prompt="prompt", response="response", id="id"), "plain")
    with pytest.raises(RowError) as raised:
        renderer.render(records(row)[0])
    assert reason in str(raised.value)


@pytest.mark.parametrize(
    "name",
    [
        *("system", "history", "tools", "tool_calls", "function_call", "reasoning_content", "chat_template_kwargs"),
        *("image", "images", "audios", "video", "image_url", "Images", "System"),
    ],
)
@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "I", "output": "O"},
        {"prompt": "P", "response": "R"},
        {"prompt": "P", "instruction": "I", "output": "O"},
    ],
)
def test_what_the_text_has_no_place_for_rejects_the_row(row: dict[str, Any], name: str, tmp_path: Path) -> None:
    for nothing in (None, "", " ", [], {}):
        assert render({**row, name: nothing}) == render(row)
    with pytest.raises(RowError, match=f"the template has no place for `{name}`"):
        render({**row, name: "Be brief."})
    with pytest.raises(RowError, match=f"the template has no place for `{name}`"):
        render({**row, name: [["Hi", "Hello."]]})
    template = tmp_path / "my.jinja"
    template.write_text("{{ row.NAME }}{{ row['other'] }}|".replace("NAME", name))
    assert halves(render({**row, name: "Be brief.", "other": "x"}, str(template)))[0] == "Be brief.x|"
    template.write_text("{% for name in row %}{{ name }}{% endfor %}|")
    assert name in halves(render({**row, name: "Be brief."}, str(template)))[0]
    assert render({"text": "T", name: "Be brief."}).unused == (name,)


@pytest.mark.parametrize("template", ["alpaca", "native"])
@pytest.mark.parametrize("name", ["passage", "knowledge", "Input", "score", "Answer", "source"])
def test_a_field_of_any_name_that_is_not_used_is_told(name: str, template: str) -> None:
    row = {"instruction": "Who sold the mill?", "output": "Ada."}
    fields = resolve_fields(FieldsConfig(), records(row))
    sides = {side: SideConfig(tokenizer="t", template="native") for side in SIDES}
    renderer = (
        Renderer(fields, template)
        if template == "alpaca"
        else ContentsRenderer(fields, ParseConfig(inputs=["a"], fields=fields, **sides).conversations)
    )
    for value in ("Ada sold it in May.", 0, 1.5, ["a"], {"a": None}, Unusable.of("NaN", "NaN is not JSON")):
        rendered = renderer.render(records(row | {name: value})[0])
        assert (rendered.used, rendered.unused) == (("instruction", "output"), (name,))
    for nothing in (None, "", " ", [], {}, False):
        assert renderer.render(records(row | {name: nothing})[0]).unused == ()


def test_a_file_of_prompts_has_a_place_for_what_it_takes_of_a_conversation(tmp_path: Path) -> None:
    template = tmp_path / "my.jinja"
    template.write_text("{{ row.documents[0] }}|{{ row.images[0] }}|{{ messages[0].content }}|")
    row = {"messages": TURNS[1:3], "documents": ["D"], "images": ["a.png"]}
    assert halves(render(row, str(template))) == ("D|a.png|Hi|", "Hello.")
    template.write_text("{{ messages[0].content }}|")
    with pytest.raises(RowError, match="no place for `documents`"):
        render(row, str(template))


def test_each_row_is_read_for_itself() -> None:
    """Parts that a row may lack, and other names of a part, wherever they come: after null, after rows without, anywhere."""
    first = [{"instruction": "I", "input": None, "response": "R"}, {"instruction": "I", "response": "R"}]
    fields = resolve_fields(FieldsConfig(), records(*first))
    renderer = reader(fields)

    def rendered(**row: Any) -> Rendered:
        return renderer.render(records(row)[0])

    with_input = WITH_INPUT.format(instruction="I", input="C")
    for row in (
        {"context": "C", "response": "R"},
        {"input": None, "context": "C", "output": "R"},
        {"input": " ", "context": "C", "output": None, "completion": "R"},
        {"input": "C", "chosen": ["R"]},
        {"context": 3, "input": "C", "output": 3, "response": "R"},
    ):
        assert rendered(instruction="I", **row).text == with_input + "R"
    assert rendered(instruction="I", context=3, input="C", output=3, response="R").unused == ("context", "output")
    assert rendered(instruction="", input="Q", output="R").text == WITHOUT_INPUT.format(instruction="Q") + "R"
    assert rendered(input="Q", output="R").text == WITHOUT_INPUT.format(instruction="Q") + "R"
    both = rendered(instruction="I", input="C", context="D", output="R", response="S", text="T", label="x", prompt="")
    unused = ("context", "label", "response", "text")
    assert (both.used, both.unused) == (("input", "instruction", "output"), unused)
    assert rendered(instruction="I", output=["R", "S"]).unused == ("output[1:]",)
    assert rendered(instruction="I", output=["R", ""]).unused == ()
    for value in (3, [], {}):
        with pytest.raises(RowError, match="text is wanted"):
            rendered(instruction="I", input=value, output="R")


#: Every name that a row may have a part under, names that are nobody's, and what it may hold.
NAMES = st.sampled_from(
    [
        *(*MESSAGES, "prompt", "instruction", *INPUTS, *AFTER_INSTRUCTION, "text", *UNPLACED),
        *("Input", "CONTEXT", "documents", "passage", "knowledge", "Images", "score", "rejected", ""),
    ]
)
HELD = st.sampled_from([None, "", " ", "words", "other words", 3, [], ["a", "b"], {"a": "x"}, False])


@given(row=st.dictionaries(NAMES, HELD, max_size=8), form=st.sampled_from(get_args(Form)))
def test_what_a_row_says_is_in_the_text_or_told(row: dict[str, Any], form: Form) -> None:
    fields = fields_of(form)
    marked_row = {
        name: f"<{name}: {value}>" if isinstance(value, str) and value.strip() else value for name, value in row.items()
    }
    try:
        rendered = reader(fields).render(records(marked_row)[0])
    except RowError:
        return
    for name, value in marked_row.items():
        frame = rendered.conversation.to_json() if rendered.conversation else ""
        said = isinstance(value, str) and (value in rendered.text or value in frame)
        made_of = form == "ready-made" and name in ("instruction", "input", "context")
        assert (
            said
            or made_of
            or not holds_something(value)
            or name in rendered.unused
            or (isinstance(value, list) and value[0] in rendered.text and f"{name}[1:]" in rendered.unused)
        ), name
    assert not {name for name in rendered.used if name in rendered.unused}


def test_empty_text_and_empty_instruction_have_a_reason() -> None:
    with pytest.raises(RowError, match="`text` is empty"):
        Renderer(fields_of("text"), "plain").render(records({"text": "\n"})[0])
    fields = fields_of("instruction")
    with pytest.raises(RowError, match="`instruction` is empty"):
        Renderer(fields, "alpaca").render(records({"instruction": "", "output": "O"})[0])
    with pytest.raises(RowError, match="`input` is a number"):
        Renderer(fields, "alpaca").render(records({"instruction": "I", "input": 0, "output": "O"})[0])


def test_fields_that_the_template_does_not_use_are_not_looked_at() -> None:
    row = {"prompt": "P", "instruction": 3, "input": 4, "output": "O", "score": Unusable.of("NaN", "NaN is not JSON")}
    rendered = Renderer(fields_of("ready-made"), "plain").render(records(row)[0])
    assert (rendered.text, rendered.unused) == ("P\nO", ("score",))


def test_ids_are_the_rows_own_or_of_the_content() -> None:
    row = {"prompt": "P", "response": "R"}
    assert render({**row, "id": 12}).id == "12"
    assert render({**row, "key": "k", "id": "x"}, id="key").id == "k"
    derived = hashlib.sha256(b"2\nP\nR").hexdigest()[:16]
    assert render(row).id == render({**row, "id": None}).id == render({**row, "id": "", "other": 1}).id == derived
    assert (
        render({**row, "id": 1.5}).id == render({**row, "id": {"a": 1}}).id == render({**row, "id": True}).id == derived
    )
    assert render({"text": "P\nR"}).id == hashlib.sha256(b"0\nP\nR").hexdigest()[:16] != derived
    assert render({"prompt": "P ", "response": " R"}).id != render({"prompt": "P", "response": "  R"}).id


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
        ("one\n{{ prompt ~ " + "9" * 5000 + " }}", "Python refuses what stands there: Exceeds the limit"),
        ("{% for a in prompt %}" * 21 + "{% endfor %}" * 21, "Python refuses what stands there: too many"),
        ("{{ prompt.replace(old='a', old='b') }}", "Python refuses what stands there: keyword argument repeated"),
        ("one\n{% if 1e999 > row.a %}a{% endif %}", "line 2: a number is not finite"),
        ("one\n{% set a = 1e308 + 1e308 %}{{ a }}", "line 2: a number is not finite"),
        ("one\n{% set a = ({'a': -1e999}, 2) %}{{ a }}", "line 2: a number is not finite"),
        ("one\n{% include 'other' %}", "line 2: a template stands alone"),
        ("one\n{% extends 'other' %}", "line 2: a template stands alone"),
    ],
)
def test_a_broken_template_is_told_before_any_row(template: Path, source: str, message: str) -> None:
    template.write_text(source)
    with pytest.raises(UsageError) as raised:
        Renderer(fields_of("instruction"), str(template))
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
        render({"instruction": "I", "output": "O"}, "plain")
    with pytest.raises(UsageError, match="have no turns"):
        render({"text": "T"}, "chatml")
    with pytest.raises(UsageError, match=r"'alpca' is neither built in nor a file\. Did you mean alpaca"):
        render({"instruction": "I", "output": "O"}, "alpca")


def test_identity_follows_the_content(template: Path, tmp_path: Path) -> None:
    fields = fields_of("instruction", output="output")
    template.write_bytes(b"{{ instruction }}\r\n")
    first = Renderer(fields, str(template)).identity()
    assert first["fields"] == {"form": "instruction", "output": "output"}
    assert first["names"] == {"instruction": ["instruction"], "input": ["input", "context"], "response": ["output"]}
    elsewhere = tmp_path / "folder" / "my.jinja"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(b"{{ instruction }}\n")
    assert Renderer(fields, str(elsewhere)).identity() == first
    elsewhere.write_text("{{ instruction }}")
    assert Renderer(fields, str(elsewhere)).identity() != first
    assert Renderer(fields, "alpaca").identity()["template"] == "alpaca"


@pytest.mark.parametrize("body", TOO_MUCH)
def test_a_template_that_asks_for_too_much_is_told_of(body, monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.3)
    began = time.process_time()
    with pytest.raises((UsageError, RowError), match=r"^loop\.jinja"):
        jinja.PromptTemplate(body, "loop.jinja", {"messages"}).render({"messages": [{"content": "What?"}]})
    assert time.process_time() - began < 3


@pytest.mark.parametrize("body", BY_CHANCE)
def test_a_template_that_gives_another_text_at_every_run_is_refused(body):
    with pytest.raises(UsageError, match=r"^by-chance\.jinja, line 2: .*(another text|is another) at every run"):
        jinja.PromptTemplate("x\n" + body, "by-chance.jinja", {"messages"}).render({"messages": [{"content": "What?"}]})


def test_limits_leave_honest_templates_alone():
    template = jinja.PromptTemplate("{{ instruction * 3 }}{{ 2 ** 10 }}", "three.jinja", {"instruction"})
    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)
    assert template.render({"instruction": "ab"}) == "ababab1024"
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)) == before


def test_a_prompt_larger_than_any_model_reads_is_its_rows_fault():
    template = jinja.PromptTemplate("{{ instruction }}" * 5, "five.jinja", {"instruction"})
    with pytest.raises(RowError, match="20,000,000 characters"):
        template.render({"instruction": "a" * 4_000_000})
