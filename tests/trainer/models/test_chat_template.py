"""Chat templates: renderings are transformers' own, and contents, turns and ends are where they stand in them."""

import copy

import pytest
from hypothesis import given, settings

from chat_kinds import KINDS, conversation, exchanges
from trainer.models.chat_template import BUILT_IN, ChatTemplate
from trainer.models.tokenizer import load_tokenizer

CALL = {
    "type": "function",
    "id": "abcdefghi",
    "function": {"name": "weather", "arguments": {"city": "Ulm <|end|>", "days": 3}},
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("embedded:sentencepiece-bpe", None, "Tokenizer")


def native(tokenizer, text):
    """The template `text` as a tokenizer's own."""
    own = copy.copy(tokenizer)
    own.chat_template = text
    for token in ("<|end|>", "<|return|>", "<|assistant|>", "<|user|>"):
        own.add_tokens(token, special_tokens=True)
    return ChatTemplate("native", own, "Student tokenizer 'x'", "2024-07-26")


@pytest.fixture(scope="module")
def templates(tokenizer):
    kinds = {name: native(tokenizer, kind.text) for name, kind in KINDS.items()}
    return kinds | {name: ChatTemplate(name, tokenizer, "Student", "2024-07-26") for name in BUILT_IN}


def check(template, row):
    """What holds of every layout."""
    layout = template.layout(row)
    assert layout.text == template.render(row)
    for content, place, (first, last) in zip(row.contents, layout.places, layout.shown, strict=True):
        if place >= 0:
            assert layout.text[place : place + last - first] == content.text[first:last]
            assert content.text.strip() in content.text[first:last]
    flat = layout.turns.ravel().tolist()
    assert flat == sorted(flat)
    assert flat[-1] <= len(layout.text)
    numbers = {
        part: n
        for n, m in enumerate(row.messages)
        for key in ("reasoning_content", "content")
        for part in m.get(key) or ()
        if isinstance(part, int)
    }
    for turn, (start, end), ending in zip(row.turns(), layout.turns, layout.endings, strict=True):
        assert start <= ending <= end
        for content, (place, (first, last)) in enumerate(zip(layout.places, layout.shown, strict=True)):
            if place >= 0:
                inside = start <= place and place + last - first <= end
                assert inside == (numbers[content] == turn)
                assert not inside or place + last - first <= ending
    return layout


@pytest.mark.parametrize("kind", [*KINDS, *BUILT_IN])
@settings(max_examples=20)
@given(messages=exchanges())
def test_contents_and_turns_are_found(templates, kind, messages):
    row = conversation(*messages)
    layout = check(templates[kind], row)
    known = KINDS.get(kind)
    for turn, (start, end), ending in zip(row.turns(), layout.turns, layout.endings, strict=True):
        if known is None or known.prefix:
            assert templates[kind].render(row.before(turn), add_generation_prompt=True) == layout.text[:start]
        if known is not None:
            assert layout.text[ending:end].startswith(known.end)
