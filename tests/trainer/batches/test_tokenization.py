"""A tokenizer that gives a dataset's tokens is known as its own, and any other is not."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from schemas import embedded
from trainer.batches.documents import Documents
from trainer.batches.tokenization import differing_row
from trainer.student.export import student_tokenizer
from turns import conversations

OWN, OTHER = "embedded:bytelevel-bpe", "embedded:sentencepiece-bpe"


@pytest.fixture(scope="module")
def tokenizers():
    return {name: AutoTokenizer.from_pretrained(embedded.resolve(name)) for name in (OWN, OTHER)}


@pytest.fixture(scope="module")
def cut(settings_for, tmp_path_factory):
    """The sample with prompts that lose their beginning and texts that lose their end."""
    from pipeline.dataset.prepare import prepare

    out = tmp_path_factory.mktemp("cut") / "out"
    sides = {"student": {"tokenizer": OWN, "max_length": 30, "max_prompt_length": 12}}
    prepare(settings_for(**sides), out, workers=1, quiet=True)
    return out


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Texts without prompts, short and cut."""
    from pipeline.dataset.prepare import prepare
    from schemas.config import ParseConfig

    folder = tmp_path_factory.mktemp("plain")
    rows = folder / "rows.jsonl"
    rows.write_text('{"text": "A cat sat."}\n{"text": "Two dogs ran, and all of them barked at the moon."}\n')
    side = {"tokenizer": OTHER, "max_length": 12}
    values = {"inputs": [str(rows)], "teacher": side, "student": side}
    prepare(ParseConfig.parse(values, "test"), folder / "out", workers=1, quiet=True)
    return folder / "out"


def test_prompts(prepared, cut, tokenizers):
    for folder in (prepared, cut):
        documents = Documents(folder)
        assert differing_row(documents, tokenizers[OWN]) is None
        assert differing_row(documents, tokenizers[OTHER]) == 0
    lengths = documents.responses("student", np.arange(len(documents)))[0][:, 0]
    assert int((lengths == 12).sum()) > 3, "prompts were cut"


def test_texts_without_a_prompt(plain, tokenizers):
    documents = Documents(plain)
    assert documents.lengths("student").max() == 12
    assert differing_row(documents, tokenizers[OTHER]) is None
    assert differing_row(documents, tokenizers[OWN]) == 0


def test_conversations(tmp_path, tokenizers):
    """Rendered by the dataset's own template, whatever the tokenizer's is; also where rows have lost their end."""
    whole = Documents(conversations(tmp_path / "whole"))
    longest = int(whole.lengths("student").max())
    side = {"tokenizer": OTHER, "max_length": longest - 20}
    short = Documents(conversations(tmp_path / "short", student=side))
    assert short.lengths("student").max() < longest
    for documents in (whole, short):
        assert tokenizers[OTHER].chat_template != student_tokenizer(documents.manifest).chat_template
        assert differing_row(documents, tokenizers[OTHER]) is None
        assert differing_row(documents, student_tokenizer(documents.manifest)) is None
        assert differing_row(documents, tokenizers[OWN]) == 0


def test_conversations_by_a_template_that_is_the_tokenizers_own(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(embedded.resolve(OTHER))
    tokenizer.chat_template = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "own")
    side = {"tokenizer": str(tmp_path / "own")}
    documents = Documents(conversations(tmp_path / "out", template="native", teacher=side, student=side))
    assert documents.lengths("student")[1] == len(documents.tokens("student", np.array([1]))[0])
    assert differing_row(documents, tokenizer) is None
    for template in (
        None,
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",
        "{{ raise_exception('no') }}",
    ):
        tokenizer.chat_template = template
        assert differing_row(documents, tokenizer) == 0


def test_the_same_tokenizer_with_another_template_gives_other_tokens(tmp_path):
    same = conversations(tmp_path / "same")
    other = conversations(tmp_path / "other", student={"tokenizer": OTHER, "template": "alpaca"})
    assert [Documents(folder).same_tokens for folder in (same, other)] == [True, False]


def test_only_the_last_of_many_rows_differs(prepared, tokenizers):
    """Rows that are compared lie all over the dataset."""
    documents = Documents(prepared)
    last = documents.texts(np.array([len(documents) - 1]))[0].text

    def tokenizer(text, add_special_tokens):
        found = tokenizers[OWN](text, add_special_tokens=add_special_tokens)
        return {"input_ids": [0]} if last.startswith(text) else found

    assert differing_row(documents, tokenizer) == len(documents) - 1
