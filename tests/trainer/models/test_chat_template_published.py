"""The same of published tokenizers: those in the folders that MTA_PREP_TOKENIZERS holds, each as its library saves it."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings

from chat_kinds import ASKED, TOOL, check, conversation, exchanges
from schemas.rows import RowError
from trainer.models.chat_refusal import explained
from trainer.models.chat_template import BUILT_IN, ChatTemplate
from trainer.models.tokenizer import load_tokenizer

pytestmark = pytest.mark.slow
FOLDERS = sorted(Path(os.environ["MTA_PREP_TOKENIZERS"]).iterdir()) if "MTA_PREP_TOKENIZERS" in os.environ else []
if not FOLDERS:
    pytest.skip("MTA_PREP_TOKENIZERS names no folder of tokenizers", allow_module_level=True)

#: What every template takes, and what only some do.
TAKEN = {
    "one turn": [("user", "How warm?"), ("assistant", "Three degrees.")],
    "turns": [("user", " How warm?\n"), ("assistant", "\n Three."), ("user", "And now?"), ("assistant", "Four. ")],
    "same words": [("user", "Go on."), ("assistant", "Go on.")] * 3,
    "empty question": [("user", ""), ("assistant", "Three.")],
    "long": [("user", "How warm? " * 20_000), ("assistant", "Three.\n\n" * 20_000)],
    "markers": [
        ("user", "<|im_end|>\n<|im_start|>assistant\n<|eot_id|></s>[/INST]<end_of_turn>"),
        ("assistant", "<|im_end|></s><|eot_id|><|end_of_text|><end_of_turn>\n<｜end▁of▁sentence｜>Yes."),
        ("user", "More."),
        ("assistant", "No."),
    ],
}
SOME = {
    "system": [("system", "Be kind."), *TAKEN["turns"]],
    "system alone": [("system", "Be kind."), ("assistant", "Hello.")],
    "calls": ASKED,
    "call with content": [("user", "How warm?"), ("assistant", "Let me see.", ASKED[1][2]), *ASKED[2:]],
    "reasoning": [
        ("user", "a"),
        ("assistant", "b", {"reasoning": "R"}),
        ("user", "c"),
        ("assistant", "d", {"reasoning": "S"}),
    ],
    "assistant first": [("assistant", "Hello."), ("user", "Hi."), ("assistant", "How are you?")],
    "two answers": [("user", "Hi."), ("assistant", "One."), ("assistant", "Two.")],
    "thought in the question": [
        ("user", "</think> and <think>"),
        ("assistant", "Yes."),
        ("user", "c"),
        ("assistant", "d"),
    ],
    "thought in the answer": [("user", "a"), ("assistant", "<think> is a tag, </think> too.")],
}


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def tokenizer(request):
    return load_tokenizer(str(request.param), None, "Tokenizer")


def template_of(tokenizer, name):
    if name == "native" and not tokenizer.chat_template:
        pytest.skip("it has no chat template")
    return ChatTemplate(name, tokenizer, "Tokenizer", "2024-07-26")


def by_transformers(tokenizer, template, row, **options):
    return tokenizer.apply_chat_template(
        row.filled(), tools=list(row.tools) or None, chat_template=template.text, **options
    )


@pytest.mark.parametrize("name", ["native", *BUILT_IN])
def test_renderings_are_those_of_transformers(tokenizer, name, capsys):
    template, refused = template_of(tokenizer, name), []
    rows = [(case, conversation(*messages)) for case, messages in (TAKEN | SOME).items()]
    rows.append(("tools", conversation(*ASKED, tools=[TOOL])))
    for case, row in rows:
        try:
            layout = check(template, row)
        except RowError as error:
            if case in TAKEN:
                raise
            refused.append(f"{case} ({error.reason.kind.partition(': ')[2]}: {error.reason.detail})")
            continue
        assert all(template.render(row.before(n), True) for n in row.turns() if n)
        if all(message["content"] is not None for message in row.messages):
            assert layout.text == by_transformers(tokenizer, template, row, tokenize=False)
            ids = by_transformers(tokenizer, template, row, tokenize=True, return_dict=False)
            assert tokenizer(layout.text, add_special_tokens=False)["input_ids"] == ids
    with capsys.disabled():
        print(
            f"\n{Path(tokenizer.name_or_path).name}, {name}: {len(rows) - len(refused)} of {len(rows)}; refused: {refused}"
        )


@pytest.mark.parametrize("name", ["native", *BUILT_IN])
@settings(max_examples=60)
@given(messages=exchanges())
def test_exchanges_are_taken_by_all(tokenizer, name, messages):
    template = template_of(tokenizer, name)
    row = conversation(*messages)
    try:
        layout = check(template, row)
    except RowError as error:  # Mistral's drops a system prompt where no question ends the conversation
        if (messages[0][0], error.reason.detail) != ("system", "message 1 (system)"):
            raise
        return
    assert layout.text == by_transformers(tokenizer, template, row, tokenize=False)


@pytest.mark.parametrize("case", ["system", "two questions"])
def test_what_helps_with_a_refusal_is_named(tokenizer, case):
    template = template_of(tokenizer, "native")
    turns = [("system", "Be kind."), *TAKEN["one turn"]] if case == "system" else [("user", "Hi."), *TAKEN["one turn"]]
    row, flag = conversation(*turns), "--system-into-user" if case == "system" else "--merge-turns"
    try:
        template.layout(row)
    except RowError as error:
        refusal = error
    else:
        pytest.skip("it takes both")
    assert f" … {flag}` reads it so" in str(explained(refusal, row, template.layout, "mta-prep parse"))
