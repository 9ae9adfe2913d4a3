"""What a model was asked is what `parse` puts before its response, whatever the row says."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.generate.exchange import exchange_of
from pipeline.generate.fields import Naming
from pipeline.read.contents import ContentsRenderer
from pipeline.read.fields import resolve_fields
from pipeline.read.records import Record
from pipeline.read.template import Renderer
from schemas.config import ConversationsConfig, FieldsConfig
from schemas.rows import RowError
from trainer.evaluation.prompts import Asked
from trainer.evaluation.questions import Reading

said = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)
single = st.one_of(
    st.fixed_dictionaries({"instruction": said}, optional={"input": said, "output": said, "other": said}),
    st.fixed_dictionaries({"instruction": said, "context": said}),
    st.fixed_dictionaries({"prompt": said}, optional={"response": said}),
    st.fixed_dictionaries({"prompt": said, "instruction": said, "input": said}),
    st.fixed_dictionaries({"input": said}, optional={"id": st.integers()}),
)


@given(single, said.map(str.strip).filter(bool))
def test_a_single_prompt_is_asked_as_parse_renders_it(row, response):
    exchange = exchange_of(Record(0, "rows", 1, row), Reading(), None)
    answered = exchange.answered(response, True)
    assert answered["output"] == response
    record = Record(0, "rows", 1, answered)
    fields = resolve_fields(FieldsConfig(), [record])
    rendered = Renderer(fields, "alpaca" if fields.form == "instruction" else "plain").render(record)
    ((start, _),) = rendered.responses
    assert rendered.text == exchange.question + response
    assert start == len(exchange.question)


PARTS = ["prompt", "instruction", "input", "id"]


@given(st.dictionaries(st.sampled_from(PARTS), said, min_size=1).filter(lambda row: set(row) != {"id"}), st.data())
def test_named_fields_are_asked_as_they_are_under_their_usual_names(row, data):
    """Whatever else stands under those; what is read so is carried, and nothing else."""
    fields = data.draw(st.permutations([*row, "question", "key"]))[: len(row)]
    named = dict(zip(row, fields, strict=True))
    elsewhere = dict.fromkeys([*row, "messages", "conversations"], "something else")
    elsewhere |= {named[part]: value for part, value in row.items()}
    naming = Naming(named)
    try:
        expected = exchange_of(Record(0, "rows", 1, row), Reading(), None)
    except RowError as error:
        with pytest.raises(RowError, match=error.reason.kind):
            exchange_of(Record(0, "rows", 1, elsewhere), Reading(), None, naming)
        return
    exchange = exchange_of(Record(0, "rows", 1, elsewhere), Reading(), None, naming)
    answered = exchange.answered("Yes.", True)
    assert exchange.question == expected.question
    assert answered == expected.answered("Yes.", True)
    assert set(naming.unread(elsewhere, answered)) == {*elsewhere} - {*fields}


turns = st.lists(st.tuples(said, said), max_size=2)


@given(turns, said, said, st.booleans(), st.booleans())
def test_a_conversation_is_asked_as_parse_reads_it(before, question, response, has_system, merged):
    messages = [{"role": "system", "content": "Be brief."}] if has_system else []
    for asked, told in before:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]
    messages.append({"role": "user", "content": question})
    row = {"id": "a", "messages": messages, "tools": []}
    reading = Reading(True, merged, merged)
    try:
        exchange = exchange_of(Record(0, "rows", 1, row), reading, None)
    except RowError:  # reasoning that does not end, in a turn of the row's own
        assert any("<think>" in told for _, told in before)
        return
    answered = exchange.answered(response, False)
    rendered = ContentsRenderer(FieldsConfig(form="conversation"), ConversationsConfig(learn="last")).render(
        Record(0, "rows", 1, answered)
    )
    assert rendered.id == "a"
    assert rendered.conversation.filled() == [*exchange.question.filled(), {"role": "assistant", "content": response}]


def test_reasoning_that_the_prompt_began_is_whole_in_the_row():
    row = {"messages": [{"role": "user", "content": "Why?"}]}
    asked = exchange_of(Record(0, "rows", 1, row), Reading(True), None)
    thinking = replace(asked, asked=Asked((1,), False, True))
    turn = thinking.answered("It is so.\n</think>\n\nBecause.", True)["messages"][-1]
    assert turn["content"] == "<think>\nIt is so.\n</think>\n\nBecause."
    with pytest.raises(RowError, match="does not end"):
        thinking.answered("It is so, and", False)


def test_calls_of_tools_and_their_results_go_with_the_question():
    call = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}
    tools = [{"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}]
    messages = [
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "12:00", "name": "clock"},
    ]
    exchange = exchange_of(Record(0, "rows", 1, {"messages": messages, "tools": tools}), Reading(True), None)
    answered = exchange.answered("Noon.", True)
    again = exchange_of(Record(0, "rows", 1, answered), Reading(True), None)
    assert again.question == exchange.question
    assert [turn["role"] for turn in answered["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert answered["tools"] == tools


@pytest.mark.parametrize(
    ("row", "response", "message"),
    [
        ({"instruction": "a"}, " ", "the response is empty"),
        ({"messages": [{"role": "user", "content": "a"}]}, "", "no turn of a conversation"),
        ({"messages": [{"role": "user", "content": "a"}]}, "<think>b", "no turn of a conversation"),
    ],
)
def test_a_response_that_parse_would_not_take_is_refused(row, response, message):
    exchange = exchange_of(Record(0, "rows", 1, row), Reading("messages" in row), None)
    with pytest.raises(RowError, match=message):
        exchange.answered(response, True)
