"""Common boundaries and exact tokens against plain loops, on any cuts of any texts, inside of characters as well."""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.batches.shared_tokens import BothSides
from trainer.maths.alignment import (
    LearntTexts,
    LearntTokens,
    byte_ends,
    common_spans,
    exact_pairs,
    prefix_keys,
    visible_ends,
)

#: What is written between a document's texts.
BETWEEN = "\n\n"


@dataclass(frozen=True)
class Turn:
    """A side's tokens of one text: where its UTF-8 bytes are cut, how many tokens are left, and whether an end follows."""

    cuts: tuple[int, ...]
    left: int
    ends: bool


@st.composite
def turns(draw, text):
    size = len(text.encode())
    cuts = draw(st.sets(st.integers(1, max(1, size - 1)), max_size=8)) if size > 1 else set()
    cuts = (0, *sorted(cuts), size) if size else ()
    whole = draw(st.booleans())
    count = max(0, len(cuts) - 1)
    left = count if whole else draw(st.integers(0, count))
    return Turn(cuts, left, whole and draw(st.booleans()))


@st.composite
def documents(draw):
    texts = draw(st.lists(st.text("aé 東\n😀", max_size=6), min_size=1, max_size=3))
    return texts, [[draw(turns(text)) for text in texts] for _ in range(2)]


def ranges_of(text, turn):
    """Characters that each of a turn's tokens touches, white space before them not counted."""
    bounds = [0]
    for character in text:
        bounds.append(bounds[-1] + len(character.encode()))
    ranges = []
    for first, last in list(pairwise(turn.cuts))[: turn.left]:
        start, end = bisect_right(bounds, first) - 1, bisect_right(bounds, last - 1)
        visible = [place for place in range(start, end) if not text[place].isspace()]
        ranges.append((visible[0] if visible else start, end))
    return ranges


def side_of(texts, chosen, side, before=2):
    """Columns of a side: template tokens before each turn, and its end behind it; and the tokens' plain values."""
    offsets, rows, spans, span_rows, lengths = [], [0], [], [0], []
    told = []  # of every document, of every text: (place, start, end, bytes up to the end), and the place of the turn's end
    for words, sides in chosen:
        begin, at, of_document = len(offsets), 0, []
        for text, turn in zip(words, sides[side], strict=True):
            offsets += [(-1, -1)] * before
            lengths += [0] * before
            first, tokens = len(offsets), []
            for (start, end), (low, high) in zip(ranges_of(text, turn), pairwise(turn.cuts), strict=False):
                tokens.append((len(offsets), start, end, high))
                offsets.append((at + start, at + end))
                lengths.append(high - low)
            end_place = len(offsets) if turn.ends else None
            if turn.ends:
                offsets.append((-1, -1))
                lengths.append(3)
            if len(offsets) > first:
                spans.append((first - begin, len(offsets) - begin))
            of_document.append((text, tokens, end_place))
            at += len(text) + len(BETWEEN)
        rows.append(len(offsets))
        span_rows.append(len(spans))
        told.append(of_document)
    table = np.array(offsets, dtype=np.int32).reshape(-1, 2)
    tokens = LearntTokens.of(
        texts,
        table,
        np.array(rows),
        np.array(spans, dtype=np.int32).reshape(-1, 2),
        np.array(span_rows),
        table[:, 0] < 0,
    )
    return tokens, np.array(lengths, dtype=np.int64), told


def learnt(chosen):
    spans, rows, texts = [], [0], []
    for words, _ in chosen:
        at = 0
        for word in words:
            spans.append((at, at + len(word)))
            at += len(word) + len(BETWEEN)
        rows.append(len(spans))
        texts.append(BETWEEN.join(words))
    return LearntTexts.of(texts, np.array(spans), np.array(rows))


def visible(text):
    return sum(not character.isspace() for character in text)


def walk(ours, theirs, measure):
    """Spans of one text as the specification walks them: the side that ends earlier goes on, equal ends close."""
    spans, first, i, j = [], (0, 0), 0, 0
    ends = [[measure(token) for token in side] for side in (ours, theirs)]
    while i < len(ours) and j < len(theirs):
        if ends[0][i] == ends[1][j]:
            while i + 1 < len(ours) and ends[0][i + 1] == ends[0][i]:
                i += 1
            while j + 1 < len(theirs) and ends[1][j + 1] == ends[1][j]:
                j += 1
            i, j = i + 1, j + 1
            spans.append(([ours[first[0]][0], ours[i - 1][0] + 1], [theirs[first[1]][0], theirs[j - 1][0] + 1]))
            first = i, j
        elif ends[0][i] < ends[1][j]:
            i += 1
        else:
            j += 1
    return spans


def ends_of(student, teacher, number):
    """End tokens of the same turn: in these cases turns with tokens of their text on both sides are."""
    (_, ours, one), (_, theirs, other) = student[number], teacher[number]
    return [(one, other)] if one is not None and other is not None and ours and theirs else []


@given(st.lists(documents(), min_size=1, max_size=3), st.booleans())
def test_spans_are_those_of_a_walk(chosen, in_bytes):
    texts = learnt(chosen)
    (student, our_bytes, ours), (teacher, their_bytes, theirs) = (side_of(texts, chosen, side) for side in (0, 1))
    ends = visible_ends(texts, student), visible_ends(texts, teacher)
    if in_bytes:
        *ends, exact = byte_ends(texts, student, teacher, our_bytes[student.places], their_bytes[teacher.places])
        assert exact.all()
    found = common_spans(texts, student, teacher, *ends, 1024)
    wanted, own = [], []
    for mine, other in zip(ours, theirs, strict=True):
        for number, ((text, one, _), (_, two, _)) in enumerate(zip(mine, other, strict=True)):
            own.append(text)
            wanted += walk(one, two, lambda token: token[3] if in_bytes else visible(own[-1][: token[2]]))
            wanted += [([a, a + 1], [b, b + 1]) for a, b in ends_of(mine, other, number)]
    pairs = [
        pair
        for pair in zip(found[0].tolist(), found[1].tolist(), strict=True)
        if all(text for text in own) or pair in wanted  # ends of turns without text are told apart below
    ]
    textful = {(a[0], b[0]) for a, b in wanted}
    assert [pair for pair in pairs if (pair[0][0], pair[1][0]) in textful] == wanted
    assert found[2][-1] == len(found[0])


@given(st.lists(documents(), min_size=1, max_size=3), st.integers(0, 2))
def test_chunks_are_the_positions_before_a_walks_spans(chosen, before):
    """Without ends of turns; not what holds a document's first token, before which nothing is."""
    texts = learnt(chosen)
    sides = [side_of(texts, chosen, side, before) for side in (0, 1)]
    positions = [learnt_positions(told, before) for *_, told in sides]
    both = BothSides(texts, *(tokens for tokens, *_ in sides))
    sizes = [lengths[tokens.places] for tokens, lengths, _ in sides]
    chunks = both.chunks(*(torch.tensor(each, dtype=torch.int64) for each in positions), tuple(sizes))
    assert both.spelled(tuple(sizes)) == len(texts.spans)
    wanted, counts = [], []
    for mine, other in zip(*(told for *_, told in sides), strict=True):
        count = len(wanted)
        for (_, one, _), (_, two, _) in zip(mine, other, strict=True):
            for spans in walk(one, two, lambda token: token[3]):
                predicting = [[place - 1 for place in range(*span)] for span in spans]
                if all(set(each) <= set(of_side) for each, of_side in zip(predicting, positions, strict=True)):
                    wanted.append(
                        [
                            [of_side.index(each[0]), of_side.index(each[-1]) + 1]
                            for each, of_side in zip(predicting, positions, strict=True)
                        ]
                    )
        counts.append(len(wanted) - count)
    assert torch.stack([chunks.student, chunks.teacher], 1).tolist() == wanted
    assert chunks.rows.diff().tolist() == counts


def learnt_positions(told, before):
    """Tokens before learnt ones, of the same document."""
    positions, at = [], 0
    for document in told:
        places = [place for _, tokens, end in document for place in [*(token[0] for token in tokens), end]]
        positions += [place - 1 for place in places if place is not None and place > at]
        at += sum(before + len(tokens) + (end is not None) for _, tokens, end in document)
    return positions


@given(st.lists(documents(), min_size=1, max_size=3))
def test_pairs_are_those_of_a_double_loop(chosen):
    texts = learnt(chosen)
    (student, _, ours), (teacher, _, theirs) = (side_of(texts, chosen, side) for side in (0, 1))
    found = {tuple(pair) for pair in exact_pairs(texts, student, teacher).tolist()}
    ends = {(a, b) for a in student.end_places.tolist() for b in teacher.end_places.tolist()}
    wanted = set()
    for mine, other in zip(ours, theirs, strict=True):
        for (text, one, _), (_, two, _) in zip(mine, other, strict=True):
            for a in alone(one):
                for b in alone(two):
                    cover = [(visible(text[: token[1]]), visible(text[: token[2]])) for token in (a, b)]
                    if cover[0] == cover[1] and cover[0][0] < cover[0][1]:
                        wanted.add((a[0], b[0]))
    assert found - ends == wanted


def alone(tokens):
    """Those that share no character with another."""
    return [token for token in tokens if not any(other is not token and meets(token, other) for other in tokens)]


def meets(one, other):
    return max(one[1], other[1]) < min(one[2], other[2])


def of_ends(ends):
    """Tokens of one text that end at these characters."""
    starts = [0, *ends[:-1]]
    return [[min(a, b - 1), b] for a, b in zip(starts, ends, strict=True)]


def one_document(text, ours, theirs, ends=(True, True)):
    texts = LearntTexts.of([text], np.array([[0, len(text)]]), np.array([0, 1]))
    sides = []
    for ranges, closed in zip((ours, theirs), ends, strict=True):
        offsets = np.array([*ranges, *([[-1, -1]] if closed else [])], dtype=np.int32).reshape(-1, 2)
        turn = np.array([[0, len(offsets)]], dtype=np.int32)
        sides.append(
            LearntTokens.of(texts, offsets, np.array([0, len(offsets)]), turn, np.array([0, 1]), offsets[:, 0] < 0)
        )
    return texts, *sides


def spans_of(texts, student, teacher, most=1024):
    ends = visible_ends(texts, student), visible_ends(texts, teacher)
    ours, theirs, _ = common_spans(texts, student, teacher, *ends, most)
    return ours.tolist(), theirs.tolist()


@pytest.mark.parametrize(
    ("ours", "theirs", "spans"),
    [
        ([2, 5, 9], [5, 7, 9], ([[0, 2], [2, 3]], [[0, 1], [1, 3]])),
        ([1, 1, 2], [1, 2], ([[0, 2], [2, 3]], [[0, 1], [1, 2]])),
        ([9], [9], ([[0, 1]], [[0, 1]])),
        ([4], [5], ([], [])),
    ],
)
def test_published_oracles(ours, theirs, spans):
    assert spans_of(*one_document("a" * 9, of_ends(ours), of_ends(theirs), (False, False))) == spans


@pytest.mark.parametrize(("ends", "count"), [((True, True), 1), ((True, False), 0), ((False, True), 0)])
def test_ends_are_a_span_and_a_pair_where_both_sides_have_one(ends, count):
    case = one_document("ab", [[0, 2]], [[0, 2]], ends)
    assert len(spans_of(*case)[0]) == 1 + count
    assert exact_pairs(*case).tolist() == [[0, 0], [1, 1]][: 1 + count]


def test_an_empty_response_has_its_end_alone():
    case = one_document("", [], [])
    assert spans_of(*case) == ([[0, 1]], [[0, 1]])
    assert exact_pairs(*case).tolist() == [[0, 0]]


@pytest.mark.parametrize("most", [1, 2, 3, 7, 50])
def test_of_too_many_boundaries_every_so_manieth_stands(most):
    case = one_document("a" * 40, of_ends(range(1, 41)), of_ends(range(1, 41)))
    ours, theirs = spans_of(*case, most)
    assert ours == theirs
    assert len(ours) == min(most, 41)
    if most > 1:  # nothing is lost: the spans follow one another up to the end
        assert ours[0][0] == 0
        assert ours[-1] == [40, 41]
        assert all(before[1] == after[0] for before, after in pairwise(ours))


def chunks_of(text, ours, theirs, ends=(True, True), sizes=None):
    """Of a text behind one template token: tokens of each side by their characters, and the bytes that they spell."""
    texts = LearntTexts.of([text], np.array([[0, len(text)]]), np.array([0, 1]))
    sides, positions = [], []
    for ranges, closed in zip((ours, theirs), ends, strict=True):
        offsets = np.array([[-1, -1], *ranges, *([[-1, -1]] if closed else [])], dtype=np.int32).reshape(-1, 2)
        turn, rows = np.array([[1, len(offsets)]], dtype=np.int32), np.array([0, len(offsets)])
        sides.append(LearntTokens.of(texts, offsets, rows, turn, np.array([0, 1]), offsets[:, 0] < 0))
        positions.append(torch.arange(len(offsets) - 1))
    if sizes is not None:
        sizes = tuple(map(np.array, sizes))
    chunks = BothSides(texts, *sides).chunks(*positions, sizes)
    return chunks.student.tolist(), chunks.teacher.tolist()


def test_the_published_chunks():
    """Byte ends [5, 12] and [3, 5, 12]; both sides' ends of the turn are in none."""
    case = "hello, world", of_ends([5, 12]), of_ends([3, 5, 12])
    expected = [[0, 1], [1, 2]], [[0, 2], [2, 3]]
    assert chunks_of(*case, sizes=([5, 7], [3, 2, 7])) == expected
    assert chunks_of(*case) == expected


@pytest.mark.parametrize("ends", [(True, True), (True, False), (False, True), (False, False)])
def test_what_was_cut_off_is_in_no_chunk_and_no_token_is_taken_for_an_end(ends):
    """One side has lost the last token: what the other has of it is left over, whoever has an end."""
    assert chunks_of("abcdef", of_ends([2, 4]), of_ends([2, 4, 6]), ends, ([2, 2], [2, 2, 2])) == (
        [[0, 1], [1, 2]],
        [[0, 1], [1, 2]],
    )


def test_a_character_in_several_tokens():
    """An emoji of four bytes as one token, as bytes, in halves, and as bytes of which the last were cut off."""
    one, bytes_, halves = [[0, 1], [1, 2]], [[0, 1], [1, 2], [1, 2], [1, 2], [1, 2]], [[0, 1], [1, 2], [1, 2]]
    whole = ([[0, 1], [1, 2]], [[0, 1], [1, 5]])
    assert chunks_of("a😀", one, bytes_, sizes=([1, 4], [1, 1, 1, 1, 1])) == whole
    assert chunks_of("a😀", halves, bytes_, sizes=([1, 2, 2], [1, 1, 1, 1, 1])) == (
        [[0, 1], [1, 2], [2, 3]],
        [[0, 1], [1, 3], [3, 5]],
    )
    cut = chunks_of("a😀", one, bytes_[:3], (True, False), ([1, 4], [1, 1, 1]))
    assert cut == ([[0, 1]], [[0, 1]])


def test_a_space_is_of_the_token_that_has_consumed_it():
    """ "a b" as "▁a", "▁b", whose first has a space that the text lacks, and as "a", " ", "b"."""
    case = "a b", [[0, 1], [2, 3]], [[0, 1], [1, 2], [2, 3]]
    assert chunks_of(*case, sizes=([2, 2], [1, 1, 1])) == ([[0, 1], [1, 2]], [[0, 1], [1, 3]])
    # "a ", "b" beside "a", " b": visible characters would tell no difference
    case = "a b", [[0, 2], [2, 3]], [[0, 1], [2, 3]]
    assert chunks_of(*case, sizes=([2, 1], [1, 2])) == ([[0, 2]], [[0, 2]])
    assert chunks_of(*case) == ([[0, 1], [1, 2]], [[0, 1], [1, 2]])


def test_texts_that_tokens_do_not_spell_are_counted_in_visible_characters():
    """A tokenizer that takes spaces away."""
    case = "a  b", [[0, 1], [3, 4]], [[0, 1], [3, 4]]
    assert chunks_of(*case, sizes=([1, 1], [1, 3])) == ([[0, 1], [1, 2]], [[0, 1], [1, 2]])


def test_nothing_in_common_gives_no_chunk():
    assert chunks_of("abcd", of_ends([3]), of_ends([2]), sizes=([3], [2])) == ([], [])
    assert chunks_of("", [], []) == ([], [])
    assert chunks_of("abcd", of_ends([4]), of_ends([1, 2, 4]), sizes=([4], [1, 1, 2])) == ([[0, 1]], [[0, 3]])


@given(st.lists(documents(), min_size=1, max_size=3))
def test_prefixes_are_the_same_where_as_many_bytes_of_a_text_are_read(chosen):
    texts = learnt(chosen)
    (student, our_bytes, ours), (teacher, their_bytes, theirs) = (side_of(texts, chosen, side) for side in (0, 1))
    *ends, _ = byte_ends(texts, student, teacher, our_bytes[student.places], their_bytes[teacher.places])
    keys = [
        prefix_keys(texts, side, of, len(lengths)).tolist()
        for side, of, lengths in zip((student, teacher), ends, (our_bytes, their_bytes), strict=True)
    ]
    read = [read_before(told) for told in (ours, theirs)]
    for side, before in zip(keys, read, strict=True):
        assert {place for place, key in enumerate(side) if key != -1} >= set(before)
    for a, mine in read[0].items():
        for b, other in read[1].items():
            assert (keys[0][a] == keys[1][b]) == (mine == other)
    own = [set(range(len(side))) - set(before) for side, before in zip(keys, read, strict=True)]
    wanted = {pair for n, mine in enumerate(ours) for k in range(len(mine)) for pair in ends_of(mine, theirs[n], k)}
    found = {(a, b) for a in own[0] for b in own[1] if keys[0][a] == keys[1][b] != -1}
    assert wanted <= found
    assert {(a, b) for a, b in found if a in student.end_places and b in teacher.end_places} == found


def read_before(told):
    """Of each token of a text (document, text, bytes of it before the token)."""
    return {
        token[0]: (document, number, before)
        for document, of_document in enumerate(told)
        for number, (_, tokens, _) in enumerate(of_document)
        for token, before in zip(tokens, [0, *(token[3] for token in tokens)], strict=False)
    }


def test_a_shared_character_is_read_only_behind_its_last_token():
    """Ends in characters, as where tokens do not spell their text."""
    texts, student, teacher = one_document("aéb", [[0, 1], [1, 2], [1, 2], [2, 3]], [[0, 2], [2, 3]])
    ends = visible_ends(texts, student), visible_ends(texts, teacher)
    ours, theirs = (prefix_keys(texts, side, of, 8) for side, of in zip((student, teacher), ends, strict=True))
    assert (ours[:5] != -1).tolist() == [True, True, False, True, True]
    assert (ours[0], ours[3], ours[4]) == (theirs[0], theirs[1], theirs[2])
    assert ours[1] not in theirs[:3]


def test_what_a_cut_text_begins_with_is_not_known():
    texts, student, teacher = one_document("abcd", [[1, 2], [2, 4]], [[0, 2], [2, 4]])
    ends = visible_ends(texts, student), visible_ends(texts, teacher)
    ours, theirs = (prefix_keys(texts, side, of, 3) for side, of in zip((student, teacher), ends, strict=True))
    assert ours[0] == -1
    assert ours[1:].tolist() == theirs[1:].tolist()
