"""Conversations: the frame and the contents are the messages again, whatever they hold, and nothing else passes for them."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.conversations import SAID, Content, ContentRole, Conversation

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
FULL = TEXT.filter(str.strip)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=6,
)
HELD: dict[str, list[ContentRole]] = {
    "system": ["system"],
    "user": ["user", "system"],
    "assistant": ["assistant", "reasoning"],
    "tool": ["tool"],
}


@st.composite
def conversations(draw) -> tuple[Any, ...]:
    """What a conversation is made of, and its messages as they were said.

    It is made outside: what checks types in tests is random, which nothing may be that draws.
    """
    frame, said, contents = [], [], []

    def spoken(role: str) -> tuple[list[str | int], str]:
        parts: list[str | int] = []
        text = ""
        for content_role in draw(st.lists(st.none() | st.sampled_from(HELD[role]), max_size=3)):
            piece = draw(TEXT if content_role is None else FULL)
            parts.append(piece if content_role is None else len(contents))
            text += piece
            if content_role is not None:
                contents.append((content_role, piece))
        return parts, text

    for role in draw(st.lists(st.sampled_from(list(HELD)), max_size=5)):
        message, strings = {"role": role}, {"role": role}
        for key in SAID:
            if key == "content" or (role == "assistant" and draw(st.booleans())):
                message[key], strings[key] = spoken(role)
        if role == "assistant" and draw(st.booleans()):
            call = {"type": "function", "function": {"name": draw(FULL), "arguments": {"value": draw(JSON)}}}
            message["tool_calls"] = strings["tool_calls"] = [call]
            if not message["content"]:
                message["content"] = strings["content"] = None
        frame.append(message)
        said.append(strings)
    turns = [number for number, message in enumerate(frame) if message["role"] == "assistant"]
    unlearnt = frozenset(draw(st.sets(st.sampled_from(turns))) if turns else ())
    return frame, contents, draw(st.lists(JSON, max_size=2)), unlearnt, said


def made_of(drawn: tuple[Any, ...]) -> tuple[Conversation, list[dict[str, Any]]]:
    frame, contents, tools, unlearnt, said = drawn
    return Conversation(tuple(frame), tuple(Content(*content) for content in contents), tuple(tools), unlearnt), said


@given(conversations())
def test_filled_is_what_was_said_and_json_keeps_all_but_the_contents(drawn):
    conversation, said = made_of(drawn)
    skeleton = conversation.to_json()
    again = Conversation.from_json(skeleton, conversation.contents)
    assert again == conversation
    assert again.filled() == conversation.filled() == said
    texts = [f"\ue000{number}\ue001" for number in range(len(conversation.contents))]
    others = tuple(replace(content, text=text) for content, text in zip(conversation.contents, texts, strict=True))
    assert conversation.filled(texts) == Conversation.from_json(skeleton, others).filled()
    assert Conversation.from_json(skeleton, others).to_json() == skeleton


@given(conversations())
def test_what_is_before_a_message_is_the_beginning(drawn):
    conversation, said = made_of(drawn)
    texts = [content.text for content in conversation.contents]
    for number in range(len(said) + 1):
        beginning = conversation.before(number)
        assert beginning.filled() == beginning.filled(texts) == said[:number]
        assert beginning.contents == conversation.contents[: len(beginning.contents)]
        assert beginning.tools == conversation.tools
        assert beginning.turns() == [turn for turn in conversation.turns() if turn < number]
        assert beginning.unlearnt == conversation.unlearnt & set(range(number))
        assert Conversation.from_json(beginning.to_json(), beginning.contents) == beginning


@given(drawn=conversations(), data=st.data())
def test_other_contents_are_refused(drawn, data):
    conversation, _ = made_of(drawn)
    skeleton, contents = conversation.to_json(), conversation.contents
    with pytest.raises(ValueError, match="contents, each once and in order"):
        Conversation.from_json(skeleton, [*contents, Content("user", "more")])
    if contents:
        with pytest.raises(ValueError, match="contents, each once and in order"):
            Conversation.from_json(skeleton, contents[1:])
        number = data.draw(st.integers(0, len(contents) - 1))
        strange: ContentRole = "user" if contents[number].role in ("assistant", "reasoning", "tool") else "tool"
        wrong = [*contents[:number], Content(strange, "x"), *contents[number + 1 :]]
        with pytest.raises(ValueError, match=f"content {number} is of the role {strange}"):
            Conversation.from_json(skeleton, wrong)


ASSISTANT = {"role": "assistant", "content": [0]}


@pytest.mark.parametrize(
    "frame",
    [
        [],
        {},
        {"messages": [ASSISTANT]},
        {"messages": [ASSISTANT], "tools": [], "more": 1},
        {"messages": {"0": ASSISTANT}, "tools": []},
        {"messages": [ASSISTANT], "tools": None},
        {"messages": ["assistant"], "tools": []},
        {"messages": [{"content": [0]}], "tools": []},
        {"messages": [{"role": "assistant"}], "tools": []},
        {"messages": [{"role": "narrator", "content": [0]}], "tools": []},
        {"messages": [{"role": ["user"], "content": [0]}], "tools": []},
        {"messages": [{"role": "assistant", "content": "0"}], "tools": []},
        {"messages": [{"role": "assistant", "content": 0}], "tools": []},
        {"messages": [{"role": "assistant", "content": [False]}], "tools": []},
        {"messages": [{"role": "assistant", "content": [0.0]}], "tools": []},
        {"messages": [{"role": "assistant", "content": [[0]]}], "tools": []},
        {"messages": [{"role": "assistant", "content": [0, 0]}], "tools": []},
        {"messages": [{"role": "assistant", "content": [-1]}], "tools": []},
        {"messages": [{"role": "assistant", "content": [1]}], "tools": []},
        {"messages": [{"role": "assistant", "content": [0], "reasoning_content": None}], "tools": []},
        {"messages": [ASSISTANT], "tools": [], "unlearnt": [1]},
        {"messages": [ASSISTANT], "tools": [], "unlearnt": [False]},
        {"messages": [ASSISTANT], "tools": [], "unlearnt": 0},
    ],
)
def test_what_is_no_conversation_is_refused(frame):
    with pytest.raises(ValueError):
        Conversation.from_json(json.dumps(frame), [Content("assistant", "Hello.")])


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000])
def test_what_is_no_json_is_refused(text):
    with pytest.raises(ValueError):
        Conversation.from_json(text, [])


def test_the_whole_of_it():
    conversation = Conversation(
        ({"role": "user", "content": [0]}, {"role": "assistant", "content": ["<think>\n", 1, "\n</think>\n\n", 2]}),
        (Content("user", "Hi"), Content("reasoning", "A greeting."), Content("assistant", "Hello.")),
    )
    skeleton = conversation.to_json()
    assert json.loads(skeleton) == {"messages": list(conversation.messages), "tools": []}
    assert Conversation.from_json(skeleton, conversation.contents) == conversation
    assert conversation.turns() == [1]
    assert conversation.filled()[1]["content"] == "<think>\nA greeting.\n</think>\n\nHello."
