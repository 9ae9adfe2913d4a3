"""Byte and character arithmetic on cases worked out by hand, and a check that notices every single error."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, normalizers

from pipeline.read.normalization import NormalizationMap
from pipeline.read.offsets import TokenRanges, locate, match_visible, misplaced, misspelled, next_visible
from trainer.maths.characters import code_points, is_space, utf8_widths


def array(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def located(text: str, *tokens: bytes) -> TokenRanges:
    assert b"".join(tokens) == text.encode()
    points = code_points(text)
    return locate(is_space(points), utf8_widths(points), array(*map(len, tokens)))


def pairs(ranges: TokenRanges) -> list[tuple[int, int]]:
    return list(zip(ranges.starts.tolist(), ranges.ends.tolist(), strict=True))


def ranges_of(*spans: tuple[int, int]) -> TokenRanges:
    starts, ends = array(*(a for a, _ in spans)), array(*(b for _, b in spans))
    return TokenRanges(starts, starts, ends)


@settings(derandomize=True, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_code_points_are_those_of_python(text):
    points = code_points(text)
    assert points.tolist() == [ord(c) for c in text]
    assert is_space(points).tolist() == [c.isspace() for c in text]
    assert utf8_widths(points).tolist() == [len(c.encode()) for c in text]


def test_no_white_space_lies_beyond_the_table():
    assert not any(chr(point).isspace() for point in range(0x3001, 0x110000))


def test_next_visible_counts_the_end():
    assert next_visible(np.array([True, False, True, True])).tolist() == [1, 1, 4, 4, 4]


@pytest.mark.parametrize(
    ("text", "tokens", "expected"),
    [
        ("a bc", (b"a", b" bc"), [(0, 1), (2, 4)]),
        ("a  b", (b"a", b" ", b" b"), [(0, 1), (1, 2), (3, 4)]),  # white space alone keeps its own range
        ("é👍", (b"\xc3", b"\xa9", b"\xf0\x9f", b"\x91\x8d"), [(0, 1), (0, 1), (1, 2), (1, 2)]),
        ("é👍", (b"\xc3\xa9\xf0", b"\x9f\x91\x8d"), [(0, 2), (1, 2)]),
        ("\u3000a", (b"\xe3\x80", b"\x80a"), [(0, 1), (1, 2)]),
        ("ab", (b"", b"a", b"", b"b", b""), [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2)]),
        ("", (), []),
    ],
)
def test_ranges_are_the_smallest_that_hold_the_bytes(text, tokens, expected):
    assert pairs(located(text, *tokens)) == expected


def test_a_text_is_not_cut_inside_a_character_even_a_blank_one():
    assert located("a👍", b"a", b"\xf0\x9f", b"\x91\x8d").separable().tolist() == [True, True, False, True]
    assert located("\u3000a", b"\xe3\x80", b"\x80a").separable().tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("spelled", "written", "expected"),
    [
        (" ab", "ab", [(0, 0), (0, 1), (1, 2)]),  # a dummy prefix has no place of its own
        (" a b", "a   b", [(0, 0), (0, 1), (3, 4), (4, 5)]),  # collapsed space stands before the word
        ("a  b", "a b", [(0, 1), (1, 1), (1, 2), (2, 3)]),
        ("a ", "a", [(0, 1), (1, 1)]),
        ("ab", " a b ", [(1, 2), (3, 4)]),
        ("  ", "", [(0, 0), (0, 0)]),
    ],
)
def test_white_space_is_matched_from_the_character_it_precedes(spelled, written, expected):
    origins = np.array([(i, i + 1) for i in range(len(written))], dtype=np.int64).reshape(-1, 2)
    found = match_visible(is_space(code_points(spelled)), is_space(code_points(written)), origins, len(written))
    assert list(map(tuple, found.tolist())) == expected


def faults(text: str, tokens: tuple[bytes, ...], ranges: TokenRanges) -> bool:
    points, whole = code_points(text), array(0, len(tokens))
    space, token_bytes = is_space(points), array(*map(len, tokens))
    if misplaced(ranges, space, array(0, len(text)), whole)[0]:
        return True
    written = np.frombuffer(text.encode(), dtype=np.uint8)
    spelled = np.frombuffer(b"".join(tokens), dtype=np.uint8)
    return bool(misspelled(ranges, utf8_widths(points), written, spelled, token_bytes, whole, array(0) > 0)[0])


@settings(max_examples=100)
@given(data=st.data())
def test_the_check_notices_any_one_wrong_end(data):
    """Texts of distinct visible characters: there every change of a range shows."""
    text = "".join(data.draw(st.permutations("abcéß猫日👍")))
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, len(raw) - 1), min_size=1)))
    tokens = tuple(raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True))
    right = located(text, *tokens)
    assert not faults(text, tokens, right)
    starts, ends = right.starts.copy(), right.ends.copy()
    which = data.draw(st.sampled_from([starts, ends]))
    at = data.draw(st.integers(0, len(tokens) - 1))
    which[at] += data.draw(st.sampled_from([-2, -1, 1, 2]))
    assert faults(text, tokens, TokenRanges(starts, starts, ends))


def test_one_piece_at_fault_does_not_taint_the_others():
    text, tokens = "abcabc", (b"ab", b"c", b"ab", b"c")
    points = code_points(text)
    ranges = ranges_of((0, 2), (2, 3), (3, 4), (5, 6))
    pieces, bounds = array(0, 3, 6), array(0, 2, 4)
    assert misplaced(ranges, is_space(points), pieces, bounds).tolist() == [False, True]
    swapped = misspelled(
        ranges_of((0, 2), (2, 3), (3, 4), (4, 6)),
        utf8_widths(points),
        np.frombuffer(text.encode(), dtype=np.uint8),
        np.frombuffer(b"".join(tokens), dtype=np.uint8),
        array(2, 1, 2, 1),
        bounds,
        array(0, 0) > 0,
    )
    assert swapped.tolist() == [False, True]


@pytest.mark.parametrize(
    ("normalizer", "text", "written", "origins"),
    [
        (normalizers.NFC(), "xe\u0301y", "xéy", [(0, 1), (1, 3), (3, 4)]),
        (normalizers.NFKC(), "ﬁ½", "fi1\u20442", [(0, 1), (0, 1), (1, 2), (1, 2), (1, 2)]),
        (normalizers.NFC(), "\u1112\u1161\u11aba", "한a", [(0, 3), (3, 4)]),
        (normalizers.BertNormalizer(lowercase=True), "É\x00a", "ea", [(0, 1), (2, 3)]),
        (
            normalizers.BertNormalizer(lowercase=True),
            "xe\u0301\u0316 \u0301 y",
            "xe  y",
            [(0, 1), (1, 4), (4, 5), (6, 7), (7, 8)],
        ),
        (normalizers.Replace("ab", "x"), "cabd", "cxd", [(0, 1), (1, 3), (3, 4)]),
        (None, "Ab", "Ab", [(0, 1), (1, 2)]),
    ],
)
def test_normalised_characters_know_where_they_come_from(normalizer, text, written, origins):
    found = NormalizationMap(normalizer, None).write(text, [])
    assert found is not None
    assert found.text == written
    assert list(map(tuple, found.origins.tolist())) == origins


def test_literals_are_not_normalised():
    found = NormalizationMap(normalizers.Lowercase(), None).write("AB[SEP]C", [(2, 7)])
    assert found is not None
    assert found.text == "ab[SEP]c"
    assert found.origins.tolist() == [[i, i + 1] for i in range(8)]


def test_a_normaliser_that_looks_beyond_words_has_no_way_back():
    assert NormalizationMap(normalizers.Replace(Regex(r"(?<=a )b"), "xyz"), None).write("a b", []) is None
