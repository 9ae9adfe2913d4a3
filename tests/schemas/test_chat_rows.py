"""Rows as conversations: every form gives the same one, nothing that a row says is lost, and what cannot be one is told."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.chat_assembly import arranged_anew
from schemas.chat_rows import conversation_of
from schemas.config import FieldsConfig
from schemas.conversations import Content, Conversation
from schemas.rows import RowError, Unusable

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.text(" \n\u3000<>{}[]|", max_size=6)
VALUES = st.recursive(st.none() | st.booleans() | st.integers() | TEXT, lambda inner: st.lists(inner, max_size=2))
SPACE = st.text(" \n\t", max_size=3)
ALIASES = {
    "system": ["system", "developer", "System"],
    "user": ["user", "human", "prompter", " Human "],
    "assistant": ["assistant", "gpt", "model", "bot", "GPT"],
    "tool": ["tool", "function", "observation", "ipython"],
}
Q, A = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}
CALL = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}
TOOL = {"type": "function", "function": {"name": "clock", "description": "Tells the time.", "parameters": {}}}


def contents(row: dict[str, Any], **options: bool) -> list[tuple[str, str]]:
    """Who says what."""
    conversation, _, _ = conversation_of(row, **options)
    return [(content.role, content.text) for content in conversation.contents]


def asked_and_told(conversation: Conversation) -> list[tuple[str, str | None]]:
    return [(message["role"], message["content"]) for message in conversation.filled()]


@st.composite
def turns(draw, plain: bool = False) -> list[dict[str, Any]]:
    """Turns of a conversation that ends in an answer; no two say the same. `plain`: questions and answers alone."""
    drawn: list[dict[str, Any]] = []

    def add(role: str, **more: Any) -> None:
        drawn.append({"role": role, "text": f"{draw(TEXT)}{len(drawn)}{draw(SPACE)}", **more})

    if draw(st.booleans()):
        add("system")
    for _ in range(draw(st.integers(1, 3))):
        add("user")
        if not plain and draw(st.booleans()):
            arguments = draw(st.dictionaries(TEXT, VALUES, max_size=2))
            add("assistant", call={"name": "look", "arguments": arguments}, silent=draw(st.booleans()))
            add("tool")
        add("assistant", **({} if plain else {"reasoning": draw(st.booleans()), "learnt": draw(st.booleans())}))
    drawn[-1].pop("learnt", None)
    return drawn


def expected(drawn: list[dict[str, Any]], tools: tuple[Any, ...] = ()) -> Conversation:
    messages, said, unlearnt = [], [], set()
    for number, turn in enumerate(drawn):
        message: dict[str, Any] = {"role": turn["role"]}
        if turn.get("reasoning"):
            message["reasoning_content"] = [len(said)]
            said.append(Content("reasoning", f"because {turn['text']}"))
        message["content"] = None
        if not turn.get("silent"):
            message["content"] = [len(said)]
            said.append(Content(turn["role"], turn["text"]))
        if "call" in turn:
            message["tool_calls"] = [{"type": "function", "function": turn["call"]}]
        if not turn.get("learnt", True):
            unlearnt.add(number)
        messages.append(message)
    return Conversation(tuple(messages), tuple(said), tools, frozenset(unlearnt))


def openai(data: st.DataObject, drawn: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The turns as OpenAI's messages, in one of the ways that data sets write them."""
    messages = []
    for turn in drawn:
        message: dict[str, Any] = {"role": data.draw(st.sampled_from(ALIASES[turn["role"]])), "name": None}
        lines = [{"type": "text", "text": line} for line in turn["text"].split("\n")]
        message["content"] = None if turn.get("silent") else data.draw(st.sampled_from([turn["text"], lines]))
        if turn.get("reasoning"):
            message[data.draw(st.sampled_from(["reasoning_content", "reasoning", "thinking"]))] = (
                f"because {turn['text']}"
            )
        if "learnt" in turn:
            key, form = data.draw(
                st.sampled_from([("weight", int), ("weight", float), ("train", bool), ("loss_mask", int)])
            )
            message[key] = form(turn["learnt"])
        if "call" in turn:
            text = json.dumps(turn["call"]["arguments"])
            function = turn["call"] | {"arguments": data.draw(st.sampled_from([text, turn["call"]["arguments"]]))}
            calls: list[tuple[str, Any]] = [("tool_calls", [{"type": "function", "function": function}])]
            calls += [("function_call", function), ("tool_calls", json.dumps([function]))]
            key, value = data.draw(st.sampled_from(calls))
            message[key] = value
        messages.append(message)
    return messages


def sharegpt(data: st.DataObject, drawn: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The turns as ShareGPT's; calls and reasoning are turns of their own where they can be."""
    spoken = []
    for turn, message in zip(drawn, openai(data, drawn), strict=True):
        told = {"from": message.pop("role"), "value": message.pop("content")}
        if turn.get("silent"):
            spoken.append({"from": "function_call", "value": json.dumps(turn["call"])})
            continue
        if turn.get("reasoning"):
            for key in ("reasoning_content", "reasoning", "thinking"):
                message.pop(key, None)
            spoken.append({"from": "thinking", "value": f"because {turn['text']}"})
        spoken.append(told | message)
    return spoken


@given(drawn=turns(), data=st.data())
def test_messages_in_every_way_of_writing_them(drawn, data):
    tools = data.draw(st.sampled_from([(), (TOOL,)]))
    row: dict[str, Any] = {"id": 7, "messages": openai(data, drawn)}
    if tools:
        bare = [{"type": "function", **TOOL["function"]}]
        key, value = data.draw(
            st.sampled_from([("tools", [TOOL]), ("tools", json.dumps(bare)), ("functions", [TOOL["function"]])])
        )
        row[key] = value
    if data.draw(st.booleans()):
        row["messages"] = json.dumps(row["messages"])
    conversation, used, unused = conversation_of(row)
    assert conversation == expected(drawn, tools)
    assert (used, unused) == (frozenset(row), frozenset())
    assert Conversation.from_json(conversation.to_json(), conversation.contents) == conversation


@given(drawn=turns(), data=st.data())
def test_sharegpt(drawn, data):
    beside = drawn[0]["role"] == "system" and data.draw(st.booleans())
    row: dict[str, Any] = {"conversations": sharegpt(data, drawn[1:] if beside else drawn)}
    if beside:
        row["system"] = drawn[0]["text"]
    conversation, _, unused = conversation_of(row)
    assert conversation == expected(drawn)
    assert not unused


@given(drawn=turns(), data=st.data())
def test_prompt_and_response_of_messages(drawn, data):
    messages = openai(data, drawn)
    answers = [number for number, turn in enumerate(drawn) if turn["role"] == "assistant"]
    cut = data.draw(st.sampled_from(answers))
    key = data.draw(st.sampled_from(["completion", "chosen", "response", "output"]))
    rejected = {"rejected": [A]}
    first = next(turn["text"] for turn in drawn if turn["role"] == "user")
    for row in (
        {"prompt": messages[:cut], key: messages[cut:]},
        {"prompt": messages[:cut], key: messages},
        {"prompt": first, key: messages},
        {key: messages},
    ):
        conversation, used, unused = conversation_of(row | rejected)
        assert conversation == expected(drawn)
        assert (used, unused) == (frozenset(row), frozenset(rejected))


@given(drawn=turns(plain=True), data=st.data())
def test_single_turns_with_system_and_history(drawn, data):
    row: dict[str, Any] = {}
    rest = drawn
    if drawn[0]["role"] == "system":
        row[data.draw(st.sampled_from(["system", "system_prompt"]))] = drawn[0]["text"]
        rest = drawn[1:]
    texts = [turn["text"] for turn in rest]
    pairs = [list(pair) for pair in zip(texts[:-2:2], texts[1:-2:2], strict=True)]
    if pairs:
        row["history"] = data.draw(st.sampled_from([pairs, json.dumps(pairs)]))
    ask, answer = data.draw(
        st.sampled_from([("instruction", "output"), ("prompt", "response"), ("input", "output"), ("prompt", "chosen")])
    )
    row |= {ask: texts[-2], answer: texts[-1]}
    conversation, used, unused = conversation_of(row | {"rejected": "no"})
    assert conversation == expected(drawn)
    assert (used, unused) == (frozenset(row), {"rejected"})


@given(drawn=turns(plain=True))
def test_a_transcript(drawn):
    rest = drawn[drawn[0]["role"] == "system" :]
    speakers = {"user": "Human", "assistant": "Assistant"}
    text = "".join(f"\n\n{speakers[turn['role']]}: {turn['text']}" for turn in rest)
    assert conversation_of({"chosen": text, "rejected": "x"})[0] == expected(rest)


@given(before=SPACE, open_space=SPACE, thought=TEXT, close_space=SPACE, between=SPACE, answer=TEXT)
def test_thinking_is_set_apart(before, open_space, thought, close_space, between, answer):
    if not (thought + answer).strip():
        thought = "x"
    content = f"{before}<think>{open_space}{thought}{close_space}</think>{between}{answer}"
    row = {"messages": [Q, {"role": "assistant", "content": content}]}
    conversation, _, _ = conversation_of(row)
    assert conversation.filled()[1] == row["messages"][1]
    said = [("reasoning", thought.strip()), ("assistant", answer.lstrip())]
    assert contents(row)[1:] == [(role, text) for role, text in said if text.strip()]


def test_the_frame_of_a_thought():
    conversation, _, _ = conversation_of({"prompt": "Hi", "response": "<think>\nWell.\n</think>\n\nHello."})
    assert conversation.messages[1] == {"role": "assistant", "content": ["<think>\n", 1, "\n</think>\n\n", 2]}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"instruction": "I", "input": "X", "output": "O"}, [("user", "I\n\nX"), ("assistant", "O")]),
        ({"instruction": "I", "input": " ", "output": "O"}, [("user", "I"), ("assistant", "O")]),
        ({"instruction": "", "input": "X", "output": "O"}, [("user", "X"), ("assistant", "O")]),
        (
            {"prompt": "P", "instruction": "I", "context": "X", "output": ["O", "o"]},
            [("user", "I\n\nX"), ("assistant", "O")],
        ),
        ({"messages": [], "prompt": "P", "completion": "C"}, [("user", "P"), ("assistant", "C")]),
        ({"messages": "none", "prompt": "P", "completion": "C"}, [("user", "P"), ("assistant", "C")]),
        ({"prompt": [Q], "completion": "C"}, [("user", "Hi"), ("assistant", "C")]),
        ({"prompt": "P", "completion": [A]}, [("user", "P"), ("assistant", "Hello.")]),
        ({"prompt": "P", "messages": [Q, A], "chosen": [Q, A]}, [("user", "Hi"), ("assistant", "Hello.")]),
        (
            {"prompt": [{"role": "system", "content": "S"}, Q], "chosen": [Q, A]},
            [("system", "S"), ("user", "Hi"), ("assistant", "Hello.")],
        ),
        (
            {"system": "S", "messages": [{"role": "system", "content": "S"}, Q, A]},
            [("system", "S"), ("user", "Hi"), ("assistant", "Hello.")],
        ),
        (
            {"prompt": "P", "response": "R", "reasoning_content": "Why"},
            [("user", "P"), ("reasoning", "Why"), ("assistant", "R")],
        ),
    ],
)
def test_what_each_form_says(row, said):
    assert contents(row) == said


def test_named_fields_are_read_alone():
    row = {"messages": [Q, A], "question": "Q", "answer": "A", "instruction": "I", "key": "k"}
    fields = FieldsConfig(form="prompt", prompt="question", response="answer", id="key")
    conversation, used, unused = conversation_of(row, fields)
    assert asked_and_told(conversation) == [("user", "Q"), ("assistant", "A")]
    assert (used, unused) == ({"question", "answer", "key"}, {"messages", "instruction"})
    turns_in = FieldsConfig(form="conversation", messages="talk")
    assert asked_and_told(conversation_of({"talk": [Q, A], "prompt": "P"}, turns_in)[0])[0] == ("user", "Hi")
    with pytest.raises(RowError, match=r"^the row has no `talk`"):
        conversation_of({"messages": [Q, A]}, turns_in)


def test_empty_and_white_contents_stay_and_are_no_contents():
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": " \n"}, A]
    conversation, _, _ = conversation_of({"messages": messages})
    assert conversation.filled() == messages
    assert [content.text for content in conversation.contents] == ["Hello."]


def test_names_and_ids_of_calls_stay():
    messages = [
        Q | {"name": "Ada"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "noon", "tool_call_id": "c1", "name": "clock"},
        A,
    ]
    conversation, _, _ = conversation_of({"messages": messages, "tools": [TOOL]})
    assert conversation.filled() == messages
    assert conversation.tools == (TOOL,)


SYSTEM = {"role": "system", "content": "S"}
THINKS = {"role": "assistant", "content": "Then.", "reasoning_content": "Why"}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
NOON = {"role": "tool", "content": "noon"}
LAST = ("assistant", "Hello.")


@pytest.mark.parametrize(
    ("messages", "options", "told"),
    [
        ([Q, Q, A, A], {"merge_turns": True}, [("user", "Hi\n\nHi"), ("assistant", "Hello.\n\nHello.")]),
        (
            [SYSTEM, SYSTEM, Q, A],
            {"merge_turns": True},
            [("system", "S\n\nS"), ("user", "Hi"), ("assistant", "Hello.")],
        ),
        ([{"role": "user", "content": " "}, Q, A], {"merge_turns": True}, [("user", " Hi"), ("assistant", "Hello.")]),
        (
            [Q, A, CALLS, NOON, NOON, A],
            {"merge_turns": True},
            [("user", "Hi"), ("assistant", "Hello."), ("tool", "noon"), ("tool", "noon"), ("assistant", "Hello.")],
        ),
        ([SYSTEM, Q, A], {"system_into_user": True}, [("user", "S\n\nHi"), ("assistant", "Hello.")]),
        ([SYSTEM, A], {"system_into_user": True}, [("user", "S"), ("assistant", "Hello.")]),
        ([Q, SYSTEM, Q, A], {"system_into_user": True}, [("user", "Hi"), ("user", "S\n\nHi"), ("assistant", "Hello.")]),
        (
            [Q, CALLS | {"content": ""}, CALLS | {"content": ""}, A],
            {},
            [("user", "Hi"), *[("assistant", "")] * 2, LAST],
        ),
        (
            [Q, CALLS | {"content": ""}, CALLS | {"content": ""}, NOON, A],
            {"merge_turns": True},
            [("user", "Hi"), ("assistant", ""), ("tool", "noon"), LAST],
        ),
        (
            [Q, SYSTEM, Q, A],
            {"system_into_user": True, "merge_turns": True},
            [("user", "Hi\n\nS\n\nHi"), ("assistant", "Hello.")],
        ),
        (
            [Q, CALLS, CALLS, NOON, A],
            {"merge_turns": True},
            [("user", "Hi"), ("assistant", None), ("tool", "noon"), ("assistant", "Hello.")],
        ),
    ],
)
def test_turns_joined_and_moved(messages, options, told):
    conversation, _, _ = conversation_of({"messages": messages}, **options)
    assert asked_and_told(conversation) == told
    calls = [call for message in conversation.messages for call in message.get("tool_calls", [])]
    assert calls == [call for message in messages for call in message.get("tool_calls", [])]
    plain = [
        content.text
        for message in messages
        if (content := Content(message["role"], message["content"] or "")).text.strip()
    ]
    assert [content.text for content in conversation.contents] == plain
    assert Conversation.from_json(conversation.to_json(), conversation.contents) == conversation


@given(drawn=turns(), data=st.data(), merge_turns=st.booleans(), system_into_user=st.booleans())
def test_joining_and_moving_lose_and_reorder_nothing(drawn, data, merge_turns, system_into_user):
    options = {"merge_turns": merge_turns, "system_into_user": system_into_user}
    row = {"messages": openai(data, drawn)}
    assert contents(row, **options) == contents(row)
    roles = [message["role"] for message in conversation_of(row, **options)[0].messages]
    assert not (system_into_user and "system" in roles)
    assert not (merge_turns and any(one == other != "tool" for one, other in pairwise(roles)))


@given(drawn=turns(), data=st.data(), merge_turns=st.booleans(), system_into_user=st.booleans())
def test_a_conversation_arranged_anew_is_that_of_the_row_read_so(drawn, data, merge_turns, system_into_user):
    drawn = [turn for turn in drawn for _ in range(data.draw(st.integers(1, 2)) if turn["role"] == "user" else 1)]
    options = {"merge_turns": merge_turns, "system_into_user": system_into_user}
    row = {"messages": openai(data, drawn)}
    conversation, read_so = conversation_of(row)[0], conversation_of(row, **options)[0]
    assert arranged_anew(conversation, **options) == read_so
    assert arranged_anew(conversation) == conversation
    for number in range(len(conversation.messages)):  # also of a beginning, whoever ends it
        assert arranged_anew(conversation.before(number)) == conversation.before(number)


#: Names that data sets use, wherever in a row.
NAMES = [
    "role", "from", "content", "value", "text", "type", "name", "id", "key", "index", "weight", "train",
    "loss_mask", "loss", "trainable", "train_detail", "label", "reasoning", "reasoning_content", "thinking",
    "tool_calls", "tool_call_id", "function_call", "function", "arguments", "parameters", "tools", "functions",
    "system", "system_prompt", "history", "prompt", "instruction", "input", "context", "output", "response",
    "completion", "chosen", "rejected", "messages", "conversations", "image", "images", "audio", "video",
    "refusal", "source", "cache_control", "description",
]  # fmt: skip
VALUES_TO_LOSE = (
    "SECRET",
    ["SECRET"],
    {"SECRET": 1},
    {"deep": ["SECRET"]},
    [{"role": "user", "content": "SECRET"}],
    '["SECRET"]',
)


def full_row() -> dict[str, Any]:
    said = [{"type": "text", "text": "Hi"}]
    call = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": {}}}
    messages = [
        {"role": "user", "content": said},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "noon"},
        {"role": "assistant", "content": "Noon."},
    ]
    return {"messages": messages, "tools": [json.loads(json.dumps(TOOL))]}


PLACES = {
    "": lambda row: row,
    "messages[].": lambda row: row["messages"][0],
    "messages[]. ": lambda row: row["messages"][3],
    "messages[].content[].": lambda row: row["messages"][0]["content"][0],
    "messages[].tool_calls[].": lambda row: row["messages"][1]["tool_calls"][0],
    "messages[].tool_calls[]. ": lambda row: row["messages"][1]["tool_calls"][0]["function"],
    "tools[].": lambda row: row["tools"][0],
    "tools[]. ": lambda row: row["tools"][0]["function"],
}


@pytest.mark.parametrize("field", ["documents", "chat_template_kwargs", "images", "Images", "image_url", "History"])
def test_what_a_template_would_be_told_beside_the_messages_rejects_the_row(field):
    row = {"messages": [Q, A], field: [{"text": "The mill was sold in May."}]}
    with pytest.raises(RowError, match=f"has no place for `{field}`"):
        conversation_of(row)
    _, used, _ = conversation_of(row, taken=(field,))
    assert used == {"messages", field}


@pytest.mark.parametrize("place", PLACES)
def test_nothing_that_a_row_says_vanishes(place):
    accepted = 0
    for key in NAMES:
        for value in VALUES_TO_LOSE:
            row = full_row()
            PLACES[place](row)[key] = value
            try:
                conversation, used, unused = conversation_of(row)
            except RowError:
                continue
            accepted += 1
            said = json.dumps(conversation.filled()) + json.dumps(conversation.tools)
            own = row["id"] if "id" in used else ""
            assert "SECRET" in said + own or f"{place.strip()}{key}" in unused, (place, key, value)
    assert accepted > len(NAMES) / 2


@pytest.mark.parametrize("key", NAMES)
def test_nothing_beside_a_question_and_its_answer_vanishes(key):
    for ask, answer in (
        ("instruction", "output"),
        ("prompt", "response"),
        ("input", "completion"),
        ("prompt", "chosen"),
    ):
        for value in VALUES_TO_LOSE:
            row = {ask: "Hi", answer: "Hello."}
            if key in row:
                continue
            row[key] = value
            try:
                conversation, used, unused = conversation_of(row)
            except RowError:
                continue
            said = (
                json.dumps(conversation.filled())
                + json.dumps(conversation.tools)
                + str(row["id"] if "id" in used else "")
            )
            left = [name for name in row if name not in used]
            assert {name.removesuffix("[1:]") for name in unused} >= set(left)
            assert "SECRET" in said or key in unused


BAD = Unusable.of("x\ud800", "unpaired surrogate", "\\ud800")


def turn(**keys: Any) -> dict[str, Any]:
    return {"messages": [Q, {"role": "assistant", "content": "Hello.", **keys}]}


def call(value: Any) -> dict[str, Any]:
    return turn(tool_calls=[value])


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"messages": [Q]}, "`messages` has no turn of the assistant"),
    ({"messages": [Q, A, Q]}, "`messages` ends with a turn that is not the assistant's: turn 3: user"),
    ({"messages": [Q, CALLS, NOON]}, "`messages` ends with a turn that is not the assistant's: turn 3: tool"),
    ({"messages": []}, "`messages` is empty"),
    ({"messages": 3}, "`messages` is a number, a list of turns is wanted"),
    ({"messages": "Hi"}, "`messages` is a string, a list of turns is wanted"),
    ({"messages": '[{"role": '}, "`messages` is no JSON: Expecting value"),
    ({"messages": BAD}, "unpaired surrogate: field `messages`, \\ud800"),
    ({"messages": [None, A]}, "a turn of `messages` is null, an object with role and content is wanted: turn 1"),
    ({"messages": [BAD, A]}, "unpaired surrogate: turn 1 of `messages`"),
    ({"messages": [{"content": "x"}, A]}, "a turn of `messages` has no role: turn 1"),
    ({"messages": [{"role": 1, "content": "x"}, A]}, "the role of a turn of `messages` is a number, text is wanted"),
    (
        {"messages": [{"role": "narrator", "content": "x"}, A]},
        "a turn of `messages` has a role that is not known: turn 1: `narrator`",
    ),
    ({"messages": [SYSTEM, SYSTEM, Q, A]}, "a conversation has two turns of the system: turn 2 of `messages`"),
    ({"messages": [SYSTEM, Q, A], "system": "T"}, "a conversation has two turns of the system: turn 1 of `messages`"),
    ({"messages": [Q, A], "system": "T", "system_prompt": "U"}, "`system` and `system_prompt` differ"),
    ({"messages": [Q, A], "system": ["T"]}, "`system` is a list, text is wanted"),
    (turn(content=""), "a turn of the assistant in `messages` is empty: turn 2"),
    (turn(content=None), "a turn of the assistant in `messages` is empty: turn 2"),
    (turn(content=" \n", reasoning=" "), "a turn of the assistant in `messages` is empty: turn 2"),
    (turn(content="<think>\n</think> "), "a turn of the assistant in `messages` is empty: turn 2"),
    (turn(content="<think> Well"), "the reasoning of a turn of `messages` does not end: turn 2 has <think> without"),
    (turn(content={"a": 1}), "the content of a turn of `messages` is an object, text is wanted: turn 2"),
    (turn(content="x\ud800"), "unpaired surrogate: \\ud800 in the content of a turn of `messages`, turn 2"),
    (turn(content=BAD), "unpaired surrogate: the content of a turn of `messages`, turn 2"),
    (
        turn(content=[{"type": "image_url", "image_url": {"url": "x"}}]),
        "the content of a turn of `messages` has a part that is no text: turn 2: of the type `image_url`",
    ),
    (turn(content=[None]), "the content of a turn of `messages` has a part that is null: turn 2"),
    (turn(content=[{"type": "text"}]), "the content of a turn of `messages` has a part that is null: turn 2"),
    (turn(content=[3]), "a part of the content of a turn of `messages` is a number, text is wanted: turn 2"),
    (turn(images=["x.png"]), "a turn of `messages` has `images`, for which a conversation has no place: turn 2"),
    ({"messages": [Q, A], "image": "x.png"}, "a conversation of this form has no place for `image`"),
    ({"messages": [Q, A], "history": [["a", "b"]]}, "a conversation of this form has no place for `history`"),
    ({"messages": [Q, A], "loss_mask": [0, 1]}, "a conversation of this form has no place for `loss_mask`"),
    (turn(name=3), "`name` of a turn of `messages` is a number, text is wanted: turn 2"),
    (turn(reasoning="a", thinking="b"), "a turn has reasoning of more than one kind: turn 2"),
    (turn(reasoning=["a"]), "`reasoning` of a turn is a list, text is wanted: turn 2"),
    (
        {"messages": [Q | {"thinking": "x"}, A]},
        "a turn of `messages` that is not the assistant's reasons: turn 1: user",
    ),
    ({"messages": [Q | {"tool_calls": [CALL]}, A]}, "a turn of `messages` that is not the assistant's calls a tool"),
    ({"messages": [Q | {"weight": 1}, A]}, "a turn of `messages` that is not the assistant's is to be learnt: turn 1"),
    (turn(weight=0.5), "`weight` of a turn is neither 0 nor 1: turn 2"),
    (turn(train="no"), "`train` of a turn is neither 0 nor 1: turn 2"),
    (turn(weight=0, train=True), "`weight` and `train` of a turn contradict each other: turn 2"),
    (turn(weight=0), "no turn of `messages` is to be learnt"),
    (
        {"messages": [Q, {"role": "thinking", "content": "x"}]},
        "a turn of reasoning in `messages` has no answer behind it",
    ),
    (
        {"messages": [{"role": "thinking", "content": "x"}, Q, A]},
        "a turn of reasoning in `messages` has no answer behind it: turn 1",
    ),
    (
        {"messages": [Q, {"role": "thinking", "content": "x", "weight": 0}, A]},
        "a turn of reasoning in `messages` is told apart from its answer: turn 2",
    ),
    (call(3), "a call of a tool is a number, an object is wanted: turn 2"),
    (call({"type": "custom", "custom": {}}), "a call is of no function: turn 2: `custom`"),
    (call({"function": {"arguments": {}}}), "a call of a tool has no name: turn 2"),
    (call({"function": {"name": "f", "arguments": "{"}}), "what a tool is called with is no JSON: turn 2, "),
    (
        call({"function": {"name": "f", "arguments": '{"a": NaN}'}}),
        "what a tool is called with is no JSON: turn 2, NaN",
    ),
    (call({"function": {"name": "f", "arguments": '{"a": 1, "a": 2}'}}), "is no JSON: turn 2, a key stands twice"),
    (
        call({"function": {"name": "f", "arguments": "[1]"}}),
        "what a tool is called with is a list, an object is wanted",
    ),
    (
        call({"function": {"name": "f", "arguments": '{"a": "\\ud800"}'}}),
        "unpaired surrogate: \\ud800 in what a tool is",
    ),
    (call({"function": {"name": "f", "arguments": {"a": float("inf")}}}), "a number that is not finite: turn 2"),
    (
        call({"function": {"name": "f", "arguments": {"a": b"x"}}}),
        "a value of type bytes, which JSON cannot hold: turn 2",
    ),
    (
        call({"function": {"name": "f", "arguments": "[" * 50_000}}),
        "what a tool is called with is no JSON: turn 2, nested",
    ),
    (call({"id": 3, "function": {"name": "f"}}), "the id of a call is a number, a string is wanted: turn 2"),
    (
        turn(tool_calls=[CALL], function_call={"name": "f"}),
        "a turn of `messages` has its calls twice: turn 2: `tool_calls`",
    ),
    ({"messages": [Q, {"role": "function_call", "content": "call me"}]}, "a call of a tool is no JSON: turn 2"),
    ({"messages": [Q, A], "tools": [{"type": "function", "function": {}}]}, "a tool of `tools` has no name: tool 1"),
    ({"messages": [Q, A], "tools": [TOOL, {"type": "web_search"}]}, "a tool of `tools` has no name: tool 2"),
    ({"messages": [Q, A], "tools": ["clock"]}, "a tool of `tools` is a string, an object is wanted: tool 1"),
    ({"messages": [Q, A], "tools": "clock"}, "`tools` is no JSON: Expecting value"),
    ({"messages": [Q, A], "tools": {"name": "f"}}, "`tools` is an object, a list of tools is wanted"),
    ({"messages": [Q, A], "tools": [TOOL], "functions": [{"name": "f"}]}, "`tools` and `functions` differ"),
    (
        {"prompt": "P"},
        "the row has no `messages`, `conversations`, `response`, `completion`, `output` or `chosen`: its fields are `prompt`",
    ),
    ({"text": "T"}, "the row has no `messages`, `conversations`, `response`, `completion`, `output` or `chosen`"),
    ({"response": "R"}, "the row has no `messages`, `conversations`, `instruction`, `input`, `context` or `prompt`"),
    ({"completion": [A]}, "the row has no `messages`, `conversations`, `instruction`"),
    ({"prompt": "P", "response": " "}, "`response` is empty"),
    ({"prompt": "", "response": "R"}, "`prompt` is empty"),
    ({"prompt": "P", "response": ["", "x"]}, "`response` is empty"),
    ({"prompt": "P", "response": 3}, "`response` is a number, text is wanted"),
    ({"prompt": 3, "response": "R"}, "`prompt` is a number, text is wanted"),
    ({"prompt": BAD, "response": "R"}, "unpaired surrogate: `prompt`"),
    (
        {"prompt": "P", "response": "R", "history": [["a"]]},
        "`history` is no list of pairs of question and answer: pair 1",
    ),
    ({"prompt": "P", "response": "R", "history": [["a", ""]]}, "a turn of the assistant in `history` is empty: turn 2"),
    (
        {"prompt": "P", "response": "R", "history": [["a", 3]]},
        "a text of `history` is a number, text is wanted: pair 1",
    ),
    (
        {"prompt": "P", "response": "R", "tool_calls": [CALL]},
        "a conversation of this form has no place for `tool_calls`",
    ),
    ({"prompt": "Other", "chosen": [Q, A]}, "the conversation in `chosen` is not that of `prompt`"),
    ({"prompt": [Q], "chosen": [A, Q, A]}, "the conversation in `chosen` is not that of `prompt`"),
    (
        {"prompt": [Q, A | {"weight": 0}, Q], "chosen": [Q, A, Q, A]},
        "the conversation in `chosen` is not that of `prompt`",
    ),
    ({"prompt": [A, Q], "chosen": [Q, A]}, "the conversation in `chosen` is not that of `prompt`"),
]


@pytest.mark.parametrize(("row", "reason"), REFUSED)
def test_what_is_refused_and_in_which_words(row, reason):
    with pytest.raises(RowError) as raised:
        conversation_of(row)
    assert reason in str(raised.value)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([Q | {"name": "Ada"}, Q | {"name": "Bob"}, A], "their names differ: turn 2"),
        ([Q, A, A | {"weight": 0}], "one of them is not to be learnt: turn 3"),
        ([Q, A, THINKS], "reasoning would follow what it led to: turn 3"),
        ([Q, CALLS, A], "an answer would come before the calls that it follows: turn 3"),
    ],
)
def test_what_cannot_be_joined(messages, reason):
    assert conversation_of({"messages": messages})
    with pytest.raises(RowError, match=reason):
        conversation_of({"messages": messages}, merge_turns=True)


def test_a_system_prompt_that_has_a_name_stays_the_systems():
    row = {"messages": [SYSTEM | {"name": "rules"}, Q, A]}
    assert conversation_of(row)
    with pytest.raises(
        RowError, match=r"^the system's turn in `messages` has a name, and cannot be the user's: turn 1"
    ):
        conversation_of(row, system_into_user=True)


def test_what_is_told_of_a_row():
    part = {"type": "text", "text": "Hi", "cache_control": "x"}
    messages = [{"role": "user", "content": [part], "mood": "fine"}, A | {"value": "too"}]
    row = {"id": "r1", "messages": messages, "source": "web", "rejected": "no", "weight": 0.7, "empty": ""}
    _, used, unused = conversation_of(row)
    assert used == {"id", "messages"}
    assert unused == {
        "messages[].content[].cache_control",
        "messages[].mood",
        "messages[].value",
        "source",
        "rejected",
        "weight",
    }
