"""What of a response is scored."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.evaluation.answers import Answer, Decoder, answer_of, opens_reasoning
from trainer.models.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("embedded:sentencepiece-bpe", None, "Tokenizer")


@settings(max_examples=40)
@given(st.text(st.sampled_from("ab <>/\nthink"), max_size=12), st.text("cd \n", max_size=6))
def test_reasoning_is_no_part_of_an_answer(thought, answer):
    thought = thought.replace("</think>", "")
    for response, thinking in ((f"<think>{thought}</think>{answer}", False), (f"{thought}</think>{answer}", True)):
        assert answer_of(response, thinking) == Answer(answer.strip(), True, True)
    for response, thinking in ((f" <think>{thought}", False), (thought, True)):
        assert answer_of(response, thinking) == Answer("", True, False)
    assert answer_of(answer) == Answer(answer, False, True)
    mention = f"a{thought}</think>{answer}"
    assert answer_of(mention) == Answer(mention, False, True)


def test_a_prompt_may_have_opened_it():
    assert opens_reasoning("<|assistant|><think>\n")
    assert not opens_reasoning("<|assistant|><think>\n\n</think>\n\n")
    assert not opens_reasoning("What does <think> mean?\n[assistant]\n")


@pytest.mark.parametrize("special", [False, True])
def test_special_tokens_are_not_shown_but_those_of_reasoning(tokenizer, special):
    own = copy.deepcopy(tokenizer)
    own.add_tokens(["<think>", "</think>"], special_tokens=special)
    own.add_tokens(["<|end|>"], special_tokens=True)
    ids = own("<s><think>cats</think> dogs<|end|></s>", add_special_tokens=False)["input_ids"]
    assert answer_of(Decoder(own)(ids)) == Answer("dogs", True, True)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 255), max_size=8))
def test_otherwise_texts_are_the_tokenizer_s(tokenizer, ids):
    assert Decoder(tokenizer)(ids) == tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_what_a_template_writes_before_the_end_token_is_taken_away(tokenizer):
    decoded = Decoder(tokenizer, "<|im_end|>")
    for text in ("cats and dogs<|im_end|>", "cats and dogs <|im_end|>\n", "cats and dogs"):
        assert decoded(tokenizer(text, add_special_tokens=False)["input_ids"]) == "cats and dogs"
