"""Tokens that two vocabularies share, by what they spell: cases by hand, the embedded tokenizers, and the file."""

import numpy as np
import pytest

from pipeline.align.vocabulary import SideVocabulary, read_side, shared_tokens, vocabulary_file
from pipeline.read.tokenizers import OffsetTokenizer
from schemas import embedded
from schemas.config import SideConfig
from schemas.vocabulary import VOCABULARY


def side(*spelled, special=(), end=()):
    return SideVocabulary(tuple(spelled), tuple(special), tuple(end))


def shared(student, teacher):
    return shared_tokens({"student": student, "teacher": teacher}).tolist()


def opened(name):
    return OffsetTokenizer("student", embedded.side(SideConfig(tokenizer=f"embedded:{name}")), "truncate")


def test_the_lowest_of_alike_ids_is_taken_and_nothing_spells_nothing():
    assert shared(side(b"b", b"", b" a", b"b"), side(b"", b" a", b"c", b" a", b"b", b"b")) == [[0, 4], [2, 1]]


@pytest.mark.parametrize(("fallback", "other"), [((0, 1, 2), 4), ((), 1)])
def test_a_byte_token_is_taken_where_there_is_no_other(fallback, other):
    """Byte tokens stand before all others: `.` as a character is the one that a text is cut into."""
    teacher = SideVocabulary((b"-", b".", b"\xff", b"a", b"."), (), (), fallback)
    assert shared(side(b".", b"\xff", b"-"), teacher) == [[0, other], [1, 2], [2, 0]]


@pytest.mark.parametrize(
    ("ours", "theirs", "pairs"),
    [((2,), (0,), [[0, 1], [2, 0]]), ((), (0,), [[0, 1]]), ((2,), (), [[0, 1]])],
)
def test_special_tokens_are_the_same_by_their_role_alone(ours, theirs, pairs):
    student = side(b"a", b"<s>", b"</s>", special=(1, 2), end=ours)
    teacher = side(b"<end>", b"a", b"<s>", b"</s>", special=(0, 2, 3), end=theirs)
    assert shared(student, teacher) == pairs


def test_of_the_embedded_tokenizers():
    """Against what each library says that its tokens are: letters of bytes, marks for spaces, tokens of one byte."""
    student, teacher = opened("bytelevel-bpe"), opened("sentencepiece-bpe")
    pairs = shared(SideVocabulary.of(student), SideVocabulary.of(teacher))
    assert len(pairs) > 1000
    for one, other in pairs:
        if one == student.end()[0]:
            assert other == teacher.end()[0]
            continue
        piece = teacher.backend.id_to_token(other)
        said = student.backend.decode([one])
        if piece.startswith("<0x"):
            assert said not in teacher.backend.get_vocab()
            assert said in (bytes([int(piece[3:5], 16)]).decode("utf-8", errors="replace"),)
        else:
            assert said == piece.replace("▁", " ")
    by_writing = student.backend.get_vocab().keys() & teacher.backend.get_vocab().keys()
    assert len(pairs) > len(by_writing)
    assert len({one for one, _ in pairs}) == len({other for _, other in pairs}) == len(pairs)


def test_a_tokenizer_shares_all_of_its_spellings_with_itself():
    own = SideVocabulary.of(opened("bytelevel-bpe"))
    pairs = shared(own, own)
    assert all(one == other for one, other in pairs)
    assert {own.spelled[one] for one, _ in pairs[1:]} == {
        text for index, text in enumerate(own.spelled) if text and index not in own.special
    }


def test_the_file_gives_back_what_it_was_made_of(tmp_path):
    student = SideVocabulary((b" \xf0", b"", b"ab"), (1,), (1,), (0,))
    sides = {"student": student, "teacher": side(b"ab")}
    content = vocabulary_file(sides, shared_tokens(sides))
    (tmp_path / VOCABULARY).write_bytes(content)
    assert {name: read_side(tmp_path, name) for name in sides} == sides
    assert content == vocabulary_file(sides, shared_tokens(sides))


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", vocabulary_file({"student": side(b"a"), "teacher": side()}, np.zeros((0, 2), np.int32))[:-1]],
)
def test_another_file(tmp_path, content):
    (tmp_path / VOCABULARY).write_bytes(content)
    with pytest.raises(ValueError, match=r"vocabulary\.safetensors is not the student's tokens"):
        read_side(tmp_path, "student")
