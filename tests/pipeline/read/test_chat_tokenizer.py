"""Conversations on one side: the template's own ids, offsets that tell the truth, and turns that are learnt whole."""

import dataclasses
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chat_kinds import ALTERNATING, ENDING_ELSEWHERE, KINDS, conversation, exchanges
from pipeline.align.spans import Ragged, Texts, Tokens
from pipeline.dataset.decoding import Decoder
from pipeline.dataset.verify_rows import offset_problem, row_problem, token_problem
from pipeline.read.chat_tokenizer import ChatTokenizer
from pipeline.read.contents import learnt_contents, placed
from pipeline.read.segment import Segmenter
from pipeline.read.tokenizers import Encoding
from pipeline.text import Rendered
from schemas import embedded
from schemas.config import SegmentConfig, SideConfig
from schemas.rows import Reason

TOKENIZERS = ["sentencepiece-bpe", "bytelevel-bpe"]
DATE = "2024-07-26"
LEARN = ["all", "last", "no-reasoning"]


@pytest.fixture(scope="module")
def open_tokenizer(tmp_path_factory):
    """An embedded tokenizer with a template of a kind as its own, its real own (`native`), or a built-in one."""
    base = tmp_path_factory.mktemp("tokenizers")
    kinds = KINDS | ENDING_ELSEWHERE | {"alternating": ALTERNATING}

    @cache
    def opened(name, kind, learn="all", overflow="truncate", max_length=None):
        folder = base / f"{name}-{kind}"
        if not folder.exists():
            shutil.copytree(Path(embedded.resolve(f"embedded:{name}")), folder)
            if kind in kinds:
                (folder / "chat_template.jinja").write_text(kinds[kind].text)
        template = "native" if kind in kinds else kind
        side = SideConfig(tokenizer=str(folder), template=template, max_length=max_length)
        tokenizer = ChatTokenizer("student", side, overflow, learn, DATE)
        assert kind not in kinds or tokenizer.template.text == kinds[kind].text
        return tokenizer

    return opened


def row_of(told, learn="all"):
    text, messages = placed(told)
    spans = tuple((messages[number].start, messages[number].end) for number in learnt_contents(told, learn))
    return Rendered("row", text, spans, messages, told)


#: Words among which a tokenizer's merges, spaces and marks of a template meet.
SAID = (
    st.lists(
        st.sampled_from(
            ["The cat", " sleeps", "\n", "naïve", "界", "🎈", "<|end|>", "3.14", "don't", "  ", ":", "[/Q]", "x" * 9]
        ),
        min_size=1,
        max_size=6,
    )
    .map("".join)
    .filter(str.strip)
)
CONVERSATIONS = st.lists(st.tuples(SAID, SAID), min_size=1, max_size=3).map(
    lambda turns: [message for asked, told in turns for message in (("user", asked), ("assistant", told))]
)


def own_ids(tokenizer, told):
    """What transformers gives, and the eos where the template ends with no special token."""
    library = tokenizer.library
    return library.apply_chat_template(
        told.filled(), chat_template=tokenizer.template.text, tokenize=True, return_dict=False
    )


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(
    "kind", ["header", "stripped", "system-late", "question-as-title", "native", "alpaca", "plain", "chatml"]
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=CONVERSATIONS | exchanges())
def test_a_conversation_as_the_model_sees_it(open_tokenizer, name, kind, messages):
    tokenizer, row = open_tokenizer(name, kind), row_of(conversation(*messages))
    [encoding] = tokenizer.encode([row])
    if isinstance(encoding, Reason):  # of what a template shows otherwise than it is
        assert "template" in encoding.kind or "offsets" in encoding.kind, encoding
        return
    assert isinstance(encoding, Encoding)
    ids = own_ids(tokenizer, row.conversation)
    closing = encoding.input_ids.tolist()[len(ids) :]
    assert encoding.input_ids.tolist()[: len(ids)] == ids
    assert closing in ([], [tokenizer.library.eos_token_id])
    assert row_problem(row) is None
    assert token_problem(encoding) is None
    assert offset_problem(row, encoding) is None
    assert_turns(tokenizer, row, encoding)
    assert_units(tokenizer, row, encoding)


def assert_turns(tokenizer, row, encoding):
    """Each answer is learnt whole, with what ends it, and nothing that somebody else said is."""
    turns = row.conversation.turns()
    assert len(encoding.responses) == len(turns)
    for (first, last), turn in zip(encoding.responses.tolist(), turns, strict=True):
        own = [row.messages[number] for number in row.conversation.contents_of(turn)]
        for start, end in encoding.offsets[first:last].tolist():
            assert start < 0 or any(content.start <= start and end <= content.end for content in own)
        said = tokenizer.library.decode(encoding.input_ids[first:last])
        for content in own:
            assert visible(row.text[content.start : content.end]) in visible(said)
    outside = np.ones(len(encoding.input_ids), dtype=bool)
    for first, last in encoding.responses:
        outside[first:last] = False
    answers = [message for message in row.messages if message.role == "assistant"]
    for start, end in encoding.offsets[outside].tolist():
        assert start < 0 or not any(content.start <= start < end <= content.end for content in answers)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("turns", [1, 3])
def test_an_eos_in_front_of_the_next_message_ends_an_answer(open_tokenizer, name, turns):
    tokenizer = open_tokenizer(name, "eos-before-headers")
    row = row_of(conversation(*[("user", "So?"), ("assistant", "The cat sleeps.")] * turns))
    [encoding] = tokenizer.encode([row])
    own, eos = own_ids(tokenizer, row.conversation), tokenizer.library.eos_token_id
    assert encoding.input_ids.tolist() == [*own, eos]
    for first, last in encoding.responses.tolist():
        *said, end = encoding.input_ids[first:last].tolist()
        assert tokenizer.library.decode(said).strip() == "The cat sleeps."
        assert end == eos
    assert len(encoding.responses) == turns
    assert offset_problem(row, encoding) is None


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_others_said_behind_an_answer_is_not_learnt(open_tokenizer, name):
    row = row_of(conversation(("system", "Be kind."), ("user", "So?"), ("assistant", "The cat sleeps.")))
    tokenizer = open_tokenizer(name, "reversed")
    [encoding] = tokenizer.encode([row])
    assert encoding.input_ids.tolist() == own_ids(tokenizer, row.conversation)
    assert_turns(tokenizer, row, encoding)
    ((first, last),) = encoding.responses.tolist()
    assert encoding.input_ids[last - 1] == tokenizer.library.eos_token_id
    assert tokenizer.library.decode(encoding.input_ids[first : last - 1]).strip() == "The cat sleeps."
    [reason] = open_tokenizer(name, "reversed-without-ends").encode([row])
    assert "it shows what others said behind an answer that no token ends" in str(reason)
    # as it was learnt once, up to the last end token
    assert offset_problem(row, encoding) is None
    longer = dataclasses.replace(encoding, responses=np.array([[first, len(encoding.input_ids)]], np.int32))
    assert offset_problem(row, longer).startswith("responses hold what the user says, at token")


def visible(text):
    return "".join(text.split())


def assert_units(tokenizer, row, encoding):
    """Words with a span are what its tokens decode to; the others meet a token of the template, or several contents."""
    [document] = SEGMENTER.segment([row.text], [row.borders])
    tokens = Tokens.of(Ragged.join([encoding.offsets]), Texts.of([row.text]))
    spans = {"words": (document.word_spans, tokens.spans_of(Ragged.join([document.word_spans]))[0].spans)}
    decoder = Decoder(tokenizer)
    assert decoder.refusal() is None
    assert decoder.problem(row, encoding, spans) is None


SEGMENTER = Segmenter(SegmentConfig())


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_limit_cuts_the_end_on_a_token(open_tokenizer, monkeypatch, name):
    row = row_of(
        conversation(("user", "Hi"), ("assistant", "The cat sleeps."), ("user", "So?"), ("assistant", "Good."))
    )
    tokenizer = open_tokenizer(name, "header")
    [whole] = tokenizer.encode([row])
    for limit in range(2, len(whole.input_ids)):
        monkeypatch.setattr(tokenizer, "config", tokenizer.config.model_copy(update={"max_length": limit}))
        [cut] = tokenizer.encode([row])
        if limit <= whole.responses[0, 0]:
            assert cut == Reason("student: max_length cuts every response away")
            continue
        length = len(cut.input_ids)
        assert limit - 3 <= length <= limit
        assert cut.truncated
        assert np.array_equal(cut.input_ids, whole.input_ids[:length])
        assert np.array_equal(cut.offsets, whole.offsets[:length])
        expected = [(first, min(last, length)) for first, last in whole.responses.tolist() if first < length]
        assert cut.responses.tolist() == [list(span) for span in expected]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_row_over_the_limit_is_dropped_where_that_is_asked(open_tokenizer, name):
    row = row_of(conversation(("user", "Hi"), ("assistant", "The cat sleeps.")))
    [whole] = open_tokenizer(name, "header").encode([row])
    length = len(whole.input_ids)
    [encoding] = open_tokenizer(name, "header", max_length=length, overflow="drop").encode([row])
    assert np.array_equal(encoding.input_ids, whole.input_ids)
    [dropped] = open_tokenizer(name, "header", max_length=length - 1, overflow="drop").encode([row])
    assert dropped == Reason("student: row longer than max_length")


def test_what_is_learnt_is_chosen(open_tokenizer):
    told = conversation(
        ("user", "Hi"),
        ("assistant", "Hello.", {"reasoning": "A greeting."}),
        ("user", "And?"),
        ("assistant", "Good.", {"reasoning": "A question."}),
    )
    said = {}
    for learn in LEARN:
        tokenizer, row = open_tokenizer("sentencepiece-bpe", "chatml", learn), row_of(told, learn)
        [encoding] = tokenizer.encode([row])
        said[learn] = [tokenizer.library.decode(encoding.input_ids[first:last]) for first, last in encoding.responses]
        learnt = [row.text[start:end] for start, end in row.responses]
        assert all(any(text in turn for turn in said[learn]) for text in learnt)
    assert [turn.startswith("<think>") for turn in said["all"]] == [True, True]
    assert said["last"] == said["all"][1:]
    assert [turn.split("<|im_end|>")[0].strip() for turn in said["no-reasoning"]] == ["Hello.", "Good."]
    assert all(turn.endswith(ending[-8:]) for turn, ending in zip(said["no-reasoning"], said["all"], strict=True))


def test_rows_that_a_template_refuses_have_its_words(open_tokenizer):
    row = row_of(conversation(("user", "Hi"), ("assistant", "Hello."), tools=({"name": "f"},)))
    [reason] = open_tokenizer("bytelevel-bpe", "alpaca").encode([row])
    assert str(reason).endswith("there is no place for tools")  # which no other reading helps


def test_what_would_help_with_a_refusal_is_said_of_the_side(open_tokenizer):
    row = row_of(conversation(("user", "Hi"), ("user", "So?"), ("assistant", "Good.")))
    [reason] = open_tokenizer("bytelevel-bpe", "alternating").encode([row])
    assert reason.kind == "student: chat template native: it refuses the conversation"
    assert reason.detail == "roles must alternate; `mta-prep parse … --merge-turns` reads it so that it is taken"


def test_no_row_bears_on_another(open_tokenizer):
    rows = [row_of(conversation(("user", f"Question {n}"), ("assistant", "x " * n + "."))) for n in range(5)]
    tokenizer = open_tokenizer("bytelevel-bpe", "chatml")
    for row, together in zip(rows, tokenizer.encode(rows), strict=True):
        [alone] = tokenizer.encode([row])
        assert np.array_equal(alone.input_ids, together.input_ids)
        assert np.array_equal(alone.offsets, together.offsets)
        assert np.array_equal(alone.responses, together.responses)
