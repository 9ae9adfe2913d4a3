"""Chat templates: renderings are transformers' own, and contents, turns and ends are where they stand in them."""

import copy
import datetime
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from chat_kinds import ASKED, CALLING, KINDS, TOOL, check, conversation, exchanges
from runaway_templates import BY_CHANCE, TOO_MUCH
from schemas import limits
from schemas.alpaca import alpaca
from schemas.conversations import Content, Conversation
from schemas.errors import UsageError, UserError
from schemas.rows import RowError
from schemas.sandbox import Sandbox
from trainer.models.chat_template import BUILT_IN, ChatTemplate, _in_our_sandbox
from trainer.models.tokenizer import load_tokenizer


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


@pytest.mark.parametrize("kind", CALLING)
def test_calls_are_shown_in_the_shape_that_the_template_takes(tokenizer, kind):
    row = conversation(*ASKED, tools=[TOOL])
    layout = check(native(tokenizer, CALLING[kind]), row)
    call, answer = (layout.text[start:end] for start, end in layout.turns)
    assert call.startswith("<call>")
    assert '{"city": "Ulm <|end|>", "days": 3}' in call
    assert call.endswith("</call><|end|>\n")
    assert layout.text[layout.endings[0] :].startswith(
        '", "days": 3}'
    )  # the end token in the call does not end the turn
    assert answer == "Three.<|end|>\n"


@pytest.mark.parametrize("kind", CALLING)
def test_a_question_with_tools_is_a_prompt(tokenizer, kind):
    row, template = conversation(*ASKED, tools=[TOOL]), native(tokenizer, CALLING[kind])
    layout = template.layout(row)
    for turn, (start, _) in zip(row.turns(), layout.turns, strict=True):
        assert template.render(row.before(turn), add_generation_prompt=True) == layout.text[:start]


def test_a_result_written_as_json_is_text_of_the_template(tokenizer):
    layout = native(tokenizer, CALLING["result-as-json"]).layout(conversation(*ASKED))
    assert r'"{\"t\": \"3\"}"' in layout.text
    assert (layout.places >= 0).tolist() == [True, False, True]


@pytest.mark.parametrize("kind", ["header", "always-prompted", "last-ends-otherwise"])
def test_calls_and_tools_that_a_template_leaves_out_reject_the_row(tokenizer, kind):
    template = native(tokenizer, KINDS[kind].text)
    with pytest.raises(RowError, match=r"chat template native: it leaves out calls of tools: message 2"):
        template.layout(conversation(*ASKED))
    with pytest.raises(RowError, match=r"it has no place for tools"):
        template.render(conversation(("user", "a"), ("assistant", "b"), tools=[TOOL]))


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_templates_refuse_tools(templates, name):
    for row in (conversation(*ASKED), conversation(("user", "a"), ("assistant", "b"), tools=[TOOL])):
        with pytest.raises(RowError, match="there is no place for"):
            templates[name].layout(row)


def test_a_template_speaks_for_itself_when_it_refuses(tokenizer):
    text = "{% for m in messages %}{{ raise_exception('no ' + m['content']) }}{% endfor %}"
    with pytest.raises(RowError) as told:
        native(tokenizer, text).layout(conversation(("user", "x" * 500), ("assistant", "b")))
    assert told.value.reason.kind == "chat template native: it refuses the conversation"
    assert told.value.reason.detail == "no " + "x" * 197


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{% for m in messages %}[{{ m['content']|upper }}]{% endfor %}", "it rewrites a content: message 1 .user."),
        ("{% for m in messages %}[{{ m['content'][:9] }}]{% endfor %}", "it rewrites a content: message 2 .assistant."),
        ("{% for m in messages[-1:] %}[{{ m['content'] }}]{% endfor %}", "it leaves out a content: message 1 .user."),
        (
            "{% for m in messages %}[{{ m['content'] + m['extra'] }}]{% endfor %}",
            "it fails: 'dict object' has no attribute",
        ),
        ("{% for m in messages %}{{ m['content']|join('-') }}{% endfor %}", "it rewrites a content: message 1"),
        (
            "{% for m in messages %}[{{ m['content']|length }}{{ m['content'] }}]{% endfor %}",
            "it rewrites a content: message 1",
        ),
        (
            "{% for m in messages %}[{{ 'long' if 'nine' in m['content'] else '' }}{{ m['content'] }}]\n{% endfor %}",
            "it rewrites a content: message 2 .assistant.",
        ),
    ],
)
def test_a_content_that_is_not_shown_as_it_stands_rejects_the_row(tokenizer, text, reason):
    with pytest.raises(RowError, match=reason):
        native(tokenizer, text).layout(conversation(("user", "short"), ("assistant", "longer than nine")))


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_given_under_the_name_that_the_template_asks_for(tokenizer, key):
    template = native(
        tokenizer,
        "{% for m in messages %}{% if loop.last and not add_generation_prompt and 'KEY' in m %}"
        "{{ '<analysis>' + m.KEY + '</analysis>' }}{% endif %}{{ m['content'] + '<|end|>' }}{% endfor %}"
        "{# a word of reasoning is no name of it #}".replace("KEY", key),
    )
    row = conversation(
        ("user", "a"), ("assistant", "b", {"reasoning": "R"}), ("user", "c"), ("assistant", "d", {"reasoning": "S"})
    )
    layout = check(template, row)
    messages = [{key if name == "reasoning_content" else name: said[name] for name in said} for said in row.filled()]
    assert layout.text == template._tokenizer.apply_chat_template(messages, tokenize=False)
    assert layout.text == "a<|end|>b<|end|>c<|end|><analysis>S</analysis>d<|end|>"
    assert template.prompt(row.before(3)) == "a<|end|>b<|end|>c<|end|>"


def test_reasoning_is_left_out_by_templates_that_know_it_alone(tokenizer):
    row = conversation(
        ("user", "a"), ("assistant", "b", {"reasoning": "R"}), ("user", "c"), ("assistant", "d", {"reasoning": "S"})
    )
    layout = check(native(tokenizer, KINDS["empty-thought"].text), row)
    assert layout.places[[1, 4]].tolist() == [-1, layout.text.index("S\n</think>")]
    assert [layout.text[start:end] for start, end in layout.turns] == [
        "b<|end|>\n",
        "<think>\nS\n</think>\n\nd<|end|>\n",
    ]
    with pytest.raises(RowError, match=r"it leaves out a content: message 2 .reasoning."):
        native(tokenizer, KINDS["header"].text).layout(row)


def test_thoughts_within_a_content_are_left_out_of_it(tokenizer):
    contents = (Content("user", "a"), Content("reasoning", "R"), Content("assistant", "b"))
    messages = ({"role": "user", "content": [0]}, {"role": "assistant", "content": ["<think>\n", 1, "\n</think>", 2]})
    layout = native(tokenizer, KINDS["thought-prompted"].text).layout(Conversation(messages, contents))
    assert layout.text == "<|user|>a<|assistant|>b<|end|>"
    assert layout.places.tolist() == [8, -1, 22]
    assert layout.turns.tolist() == [[22, 30]]


@pytest.mark.parametrize(
    "kind", [kind for kind in [*KINDS, *BUILT_IN] if kind not in ("system-late", "question-as-title")]
)
@pytest.mark.parametrize("first", [[("assistant", "Hello.")], [("system", "Be kind."), ("assistant", "Hello.")]])
def test_the_assistant_may_speak_first_and_twice(templates, kind, first):
    row = conversation(*first, ("user", "Hi."), ("assistant", "One."), ("assistant", "Two."))
    layout = check(templates[kind], row)
    turns = [layout.text[start:end].removeprefix("<think>\n\n</think>\n\n") for start, end in layout.turns]
    assert [turn.startswith(said) for turn, said in zip(turns, ("Hello.", "One.", "Two."), strict=True)] == [True] * 3


def test_turns_that_a_template_joins(tokenizer):
    text = (
        "{% for m in messages %}{{ ('<|' + m['role'] + '|>\n') if loop.first or loop.previtem['role'] != m['role'] else '\n' }}"
        "{{ m['content'] }}{{ '<|end|>\n' if loop.last or loop.nextitem['role'] != m['role'] else '' }}{% endfor %}"
        "{{ '<|assistant|>\n' if add_generation_prompt else '' }}"
    )
    layout = check(native(tokenizer, text), conversation(("user", "a"), ("assistant", "b"), ("assistant", "c")))
    assert [layout.text[start:end] for start, end in layout.turns] == ["b", "\nc<|end|>\n"]


def test_empty_contents_have_a_place_in_the_template_alone(templates):
    layout = check(
        templates["header"], conversation(("user", ""), ("assistant", "b"), ("user", ""), ("assistant", "c"))
    )
    assert [layout.text[start:end] for start, end in layout.turns] == ["b<|end|>\n", "c<|end|>\n"]


def test_the_same_content_may_stand_twice(templates):
    row = conversation(("system", "S"), ("user", "q"), ("assistant", "a"))
    assert check(templates["system-repeated"], row).places[0] == len("<|system|>\n")
    titled = check(templates["question-as-title"], conversation(("user", "q"), ("assistant", "a")))
    assert titled.places[0] == len("# q\n<|user|>\n")


def test_the_date_is_the_one_that_is_told(tokenizer, monkeypatch):
    date = "{{ strftime_now('%d %b %Y, %-d.%m, %A') }}"
    text = f"\n  {{% if strftime_now is defined %}}{date}{{% endif %}}\n{{{{ messages[0]['content'] }}}}"
    template = native(tokenizer, text)
    row = conversation(("user", "a"))
    assert template.identity()["date"] == "2024-07-26"
    assert "date" not in native(tokenizer, KINDS["header"].text).identity()

    class Frozen(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2024, 7, 26)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Frozen)
    own = copy.copy(tokenizer)
    own.chat_template = text
    assert (
        template.render(row) == own.apply_chat_template(row.filled(), tokenize=False) == "\n26 Jul 2024, 26.07, Fridaya"
    )


def test_named_templates_are_chosen_as_transformers_does(tokenizer):
    named = {"default": KINDS["header"].text, "tool_use": CALLING["mapping"], "rag": "x"}
    template = native(tokenizer, named)
    assert template.text == named["default"]
    assert "<call>" in template.render(conversation(*ASKED, tools=[TOOL]))
    assert template.identity() != native(tokenizer, named | {"rag": "y"}).identity()
    with pytest.raises(UserError, match=r"several chat templates \(rag\), none of which is its default"):
        native(tokenizer, {"rag": "x"})


def test_alpaca_asks_as_alpaca_does(templates):
    row = conversation(("user", "Name a fruit."), ("assistant", "Pear."))
    assert templates["alpaca"].layout(row).text == f"<s>{alpaca('Name a fruit.')}Pear.</s>"
    assert templates["alpaca"].render(row.before(1), add_generation_prompt=True) == f"<s>{alpaca('Name a fruit.')}"


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_templates_begin_as_the_tokenizer_does_and_end_answers_with_its_eos(name):
    own = load_tokenizer("embedded:sentencepiece-bpe", None, "Tokenizer")
    row = conversation(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d", {"reasoning": "R"}))
    layout = check(ChatTemplate(name, own, "Student", "2024-07-26"), row)
    assert layout.text.startswith("<s>")
    assert layout.text.count("<s>") == 1
    assert layout.text.count("</s>") == 2
    assert "<think>\nR\n</think>\n\nd" in layout.text
    own.eos_token = None
    assert "</s>" not in ChatTemplate(name, own, "Student", "2024-07-26").render(row)
    own.add_tokens("<|im_end|>", special_tokens=True)
    own.eos_token = "<|im_end|>"
    assert ChatTemplate(name, own, "Student", "2024-07-26").render(row).count("<|im_end|>") == (
        4 if name == "chatml" else 2
    )


def test_a_template_that_is_none(tokenizer, tmp_path):
    own = copy.copy(tokenizer)
    own.chat_template = None
    with pytest.raises(
        UserError, match=r"^Student tokenizer 'x' has no chat template .* --student-template: alpaca, plain, chatml"
    ):
        ChatTemplate("native", own, "Student tokenizer 'x'", "2024-07-26")
    with pytest.raises(UsageError, match="Did you mean alpaca"):
        ChatTemplate("alpacca", own, "Student", "2024-07-26")
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}", encoding="utf-8")
    with pytest.raises(UsageError, match=r"mine\.jinja: .*endfor"):
        ChatTemplate(str(file), own, "Student", "2024-07-26")
    file.write_text(KINDS["header"].text, encoding="utf-8")
    template = ChatTemplate(str(file), own, "Student", "2024-07-26")
    assert template.text == KINDS["header"].text
    assert template.identity()["source"] == "mine.jinja"


def test_a_template_that_does_not_end_is_told_of(tokenizer, monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.3)
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(UserError, match=r"^Student tokenizer 'x', chat template native: it takes more than"):
        native(tokenizer, loop)


@pytest.mark.parametrize("body", TOO_MUCH)
def test_a_template_that_asks_for_too_much_is_told_of(tokenizer, body, monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.3)
    began = time.process_time()
    with pytest.raises((UsageError, UserError, RowError), match="chat template native: it "):
        native(tokenizer, body).render(conversation(("user", "What?"), ("assistant", "That.")))
    assert time.process_time() - began < 3


def test_threads_do_not_take_the_sandbox_from_each_other():
    """One leaves while another is within, which would compile what follows for jinja2's, or leave ours behind for everybody."""
    from transformers.utils import chat_template_utils

    def kind():
        return type(chat_template_utils.ImmutableSandboxedEnvironment())

    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        threads = first, second
        within = [_in_our_sandbox(), _in_our_sandbox()]
        for thread, ours in zip(threads, within, strict=True):
            thread.submit(ours.__enter__).result()
        assert [thread.submit(kind).result() for thread in threads] == [Sandbox, Sandbox]
        assert kind() is ImmutableSandboxedEnvironment
        first.submit(within[0].__exit__, None, None, None).result()
        assert [thread.submit(kind).result() for thread in threads] == [ImmutableSandboxedEnvironment, Sandbox]
        second.submit(within[1].__exit__, None, None, None).result()
        assert [thread.submit(kind).result() for thread in threads] == [ImmutableSandboxedEnvironment] * 2


@pytest.mark.parametrize("body", BY_CHANCE)
def test_a_template_that_gives_another_text_at_every_run_is_refused(tokenizer, body):
    told = r"^Student tokenizer 'x', chat template native: .*(another text|is another) at every run"
    with pytest.raises(UsageError, match=told):
        native(tokenizer, body).render(conversation(("user", "What?"), ("assistant", "That.")))


@settings(max_examples=20)
@given(text=st.text(st.sampled_from(" \n\ta"), min_size=1, max_size=8).filter(str.strip))
def test_white_space_is_shown_or_stripped(templates, text):
    row = conversation(("user", text), ("assistant", text), ("user", text), ("assistant", text))
    for kind, strip in (("header", str), ("stripped", str.strip), ("line-feeds-stripped", lambda t: t.lstrip("\n"))):
        layout = check(templates[kind], row)
        assert [text[first:last] for first, last in layout.shown] == [strip(text)] * 4


def test_a_long_conversation_of_blanks_is_placed_in_time(templates):
    row = conversation(*[("user", " \n x\n \n"), ("assistant", "\n \n.\n ")] * 150)
    assert len(check(templates["stripped"], row).turns) == 150
