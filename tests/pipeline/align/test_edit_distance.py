"""MinED's alignment against plain loops: the published oracle, any tokens of any vocabularies, and tables done in blocks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.align import edit_distance
from pipeline.align.edit_distance import EditAlignment
from pipeline.align.vocabulary import SideVocabulary
from pipeline.read.tokenizers import OffsetTokenizer
from schemas import embedded
from schemas.config import SideConfig


def distance(one, other):
    """Levenshtein's, by its definition."""
    table = {(i, j): max(i, j) for i in range(len(one) + 1) for j in range(len(other) + 1) if not i or not j}
    for i, a in enumerate(one, 1):
        for j, b in enumerate(other, 1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a != b))
    return table[len(one), len(other)]


def path_of(student, teacher):
    """The total of the best path of two lists of byte strings, and its (teacher's, student's) pairs."""
    far = float("inf")
    sums = {(0, 0): distance(student[0], teacher[0])}
    came = {}
    for i, mine in enumerate(student):
        for j, theirs in enumerate(teacher):
            if i or j:
                steps = [(i - 1, j - 1), (i, j - 1), (i - 1, j)]
                best = min(steps, key=lambda step: sums.get(step, far))
                came[i, j], sums[i, j] = best, sums[best] + distance(mine, theirs)
    cell = len(student) - 1, len(teacher) - 1
    total, path = sums[cell], [cell]
    while path[-1] != (0, 0):
        path.append(came[path[-1]])
    return total, [(j, i) for i, j in reversed(path)]


def partners_of(student, teacher):
    """Of each of the student's tokens the one that the path has it with alone, or -1."""
    if not student or not teacher:
        return [-1] * len(student)
    of_student = [[j for j, i in path_of(student, teacher)[1] if i == line] for line in range(len(student))]
    return [theirs[0] if len(theirs) == 1 else -1 for theirs in of_student]


def vocabulary(*spelled, special=()):
    return SideVocabulary(tuple(spelled), tuple(special), tuple(special[:1]))


def aligned(student, teacher, ours, theirs):
    edits = EditAlignment.of({"student": student, "teacher": teacher})
    return edits.partners(np.array(ours, dtype=np.int32), np.array(theirs, dtype=np.int32)).tolist()


def test_the_oracle():
    student, teacher = [b"unbeliev", b"able", b"story"], [b"un", b"believ", b"able", b"story"]
    assert path_of(student, teacher) == (8, [(0, 0), (1, 0), (2, 1), (3, 2)])
    marked = vocabulary(b"unbeliev", b"able", b" story"), vocabulary(b"un", b"believ", b"able", b"story")
    assert aligned(*marked, range(3), range(4)) == [-1, 2, 3]


#: Tokens as tokenizers have them: words and parts of words, with spaces before and in them, bytes of a character, nothing.
PIECES = [
    b"",
    b" ",
    b"  ",
    b"a",
    b" a",
    b"ab",
    b" ab c",
    b"b",
    b"ba",
    b"\n",
    b"\xf0",
    b"\x9f\x98",
    b"\x80",
    "é".encode(),
]
#: Special on either side, which spell nothing, whatever their name.
SPECIAL = [b"<s>", b"</s>", b"<|endoftext|>"]


@st.composite
def sides(draw):
    """Tokens of a vocabulary, special ones in front, in the order of their ids; and ids."""
    special = draw(st.lists(st.sampled_from(SPECIAL), max_size=2))
    pieces = draw(st.lists(st.sampled_from(PIECES) | st.binary(max_size=5), min_size=1, max_size=8))
    spelled = [*special, *pieces]
    order = draw(st.permutations(range(len(spelled))))
    return spelled, len(special), order, draw(st.lists(st.integers(0, len(spelled) - 1), max_size=12))


def numbered(side):
    """The vocabulary, and the ids in it."""
    spelled, special, order, ids = side
    own = vocabulary(
        *(spelled[index] for index in order), special=[n for n, index in enumerate(order) if index < special]
    )
    return own, [order.index(index) for index in ids]


def bare(own, ids):
    return [b"" if index in own.special else own.spelled[index].replace(b" ", b"") for index in ids]


@given(sides(), sides(), st.booleans())
def test_partners_are_those_of_a_plain_loop(one, other, in_blocks):
    (student, ours), (teacher, theirs) = numbered(one), numbered(other)
    with pytest.MonkeyPatch.context() as patch:
        if in_blocks:
            patch.setattr(edit_distance, "CELLS", 3 * max(1, len(theirs)))
        found = aligned(student, teacher, ours, theirs)
    assert found == partners_of(bare(student, ours), bare(teacher, theirs))


@given(sides(), sides())
def test_numbers_of_tokens_are_names(one, other):
    spelled, special, order, ids = one
    (student, ours), (again, moved) = numbered(one), numbered((spelled, special, order[::-1], ids))
    teacher, theirs = numbered(other)
    assert aligned(again, teacher, moved, theirs) == aligned(student, teacher, ours, theirs)


@given(sides())
def test_a_text_with_itself_is_token_with_token(one):
    own, ids = numbered(one)
    assert aligned(own, own, ids, ids) == list(range(len(ids)))


def test_compiled_and_interpreted_loops_say_the_same(monkeypatch):
    generator = np.random.default_rng(0)
    own = vocabulary(*(generator.bytes(size) for size in generator.integers(0, 6, 40)))
    ours, theirs = (generator.integers(0, 40, size).tolist() for size in (70, 90))
    edits = EditAlignment.of({"student": own, "teacher": own})
    results = []
    for loops in (edit_distance._LOOPS.interpreted, edit_distance._LOOPS.compiled):
        monkeypatch.setattr(edit_distance._LOOPS, "for_work", lambda _, loops=loops: loops)
        results.append(edits.partners(np.array(ours, dtype=np.int32), np.array(theirs, dtype=np.int32)).tolist())
    assert results[0] == results[1]
    assert -1 in results[0]


def test_directions_of_a_long_document_are_not_all_in_memory(monkeypatch):
    made = []
    empty = np.empty

    def noted(shape, dtype):
        made.append(int(np.prod(shape)))
        return empty(shape, dtype=dtype)

    ids = np.arange(600, dtype=np.int32) % 7
    edits = EditAlignment([chr(97 + index) for index in range(7)], [chr(97 + index) for index in range(7)])
    monkeypatch.setattr(edit_distance, "CELLS", 6000)
    monkeypatch.setattr(edit_distance.np, "empty", noted)
    assert edits.partners(ids, ids).tolist() == list(range(600))
    assert max(made) == 6000


def test_an_id_of_no_vocabulary_spells_nothing():
    own = vocabulary(b"a")
    assert aligned(own, own, [0, 5], [0, 7]) == [0, 1]


def opened(name):
    return OffsetTokenizer("student", embedded.side(SideConfig(tokenizer=f"embedded:{name}")), "truncate")


@pytest.mark.parametrize("text", ["The unbelievable story: 😀 naïve — 東京", "a", "  two  spaces\n\nand lines"])
def test_of_real_tokenizers(text):
    """Word markers, byte tokens, and whole characters on the other side."""
    tokenizers = opened("bytelevel-bpe"), opened("sentencepiece-bpe")
    sides = [SideVocabulary.of(tokenizer) for tokenizer in tokenizers]
    ids = [tokenizer.backend.encode(text, add_special_tokens=False).ids for tokenizer in tokenizers]
    found = aligned(*sides, *ids)
    assert found == partners_of(*(bare(own, of) for own, of in zip(sides, ids, strict=True)))
    assert any(index >= 0 for index in found)
