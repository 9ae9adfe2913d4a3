"""What holds for the segmentation of any text: spans tell the truth, nothing is lost, nothing is counted twice."""

import itertools
import re
import textwrap
import unicodedata

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.read.markup import blocks
from pipeline.read.segment import Segmenter
from pipeline.read.sentence_rules import sentence_ends
from pipeline.text import Document
from rows import borders
from schemas.config import SegmentConfig

SEGMENTER = Segmenter(SegmentConfig())
HARD, SOFT = (Segmenter(SegmentConfig(line_breaks=kind)) for kind in ("hard", "soft"))
#: What no parser sees inside a sentence.
HIDDEN = re.compile(r"(?:[*_~`]{1,3}|!?\[|</?[a-z]+[^<>]*>|<!--.*?-->|&(?:nbsp|#\d+);)*", re.IGNORECASE | re.DOTALL)
#: Format characters that belong to the character before them: joiners and emoji tags.
JOINERS = {"\u200c", "\u200d", *map(chr, range(0xE0020, 0xE0080))}

#: Stretches that exercise markup, abbreviations, clitics, scripts and invisible characters.
STRETCHES = st.sampled_from(
    [
        *(
            "\n",
            "\r\n",
            "\r",
            "\u2028",
            "\f",
            "\n\n",
            " ",
            "  ",
            "\t",
            "\u00a0",
            "\u200b",
            "\u200d",
            "\x00",
            "\ufeff",
            "\u0301",
        ),
        *(
            "|",
            "| a ",
            "|---|:-:|\n",
            "```",
            "```\n",
            "~~~\n",
            "- ",
            "* [x] ",
            "1. ",
            "(2) ",
            "a) ",
            "> ",
            "## ",
            "\\|",
        ),
        *(
            "don't",
            "cannot",
            "gonna",
            "it's",
            "Dr. ",
            "e.g. ",
            "U.S. ",
            "J. ",
            "3.14",
            "10km",
            "etc. ",
            "?!",
            "...",
            ".[3] ",
        ),
        *(
            "<b>",
            "</b>",
            "<br>",
            '<p class="x y">',
            "<|user|>",
            "[INST] ",
            "<!-- a. B -->",
            "<name>",
            "&amp;",
            "&nbsp;",
            "&#8203;",
        ),
        *("$x^2 - 1$", "$", "$5", "\\(", "\\) ", "**", "*", "***", "`", "`a b`", "~~", "_", "__init__", "[a b](c/d.e)"),
        *("https://x.org/a_(b)?c=d ", "(www.a.com).", "me@x.org", "http://", "@", "'", '"', ")", "]", "”", ". ", "."),
        *(
            "Привет. ",
            "今日は。",
            "한국어 ",
            "हिन्दी। ",
            "العربية؟ ",
            "עברית",
            "e\u0301",
            "❤\ufe0f",
            "👨‍👩‍👧",
            "👍🏽",
            "🇩🇪",
            "ß",
            "İ",
            "①",
            "½",
        ),
    ]
)
TEXTS = st.lists(STRETCHES | st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=30).map("".join)


@st.composite
def texts_with_start(draw: st.DrawFn) -> tuple[str, int]:
    text = draw(TEXTS)
    return text, draw(st.integers(0, len(text)))


def segment(text: str, response_start: int) -> Document:
    return SEGMENTER.segment([text], [borders(response_start)])[0]


def cover(spans: np.ndarray, length: int) -> np.ndarray:
    count = np.zeros(length + 1, int)
    np.add.at(count, spans[:, 0], 1)
    np.add.at(count, spans[:, 1], -1)
    return np.cumsum(count)[:length]


def blank(text: str, response_start: int) -> list[bool]:
    """White space, and invisible characters with nothing but those between them and white space or an end."""
    found = [c.isspace() for c in text]
    invisible = [unicodedata.category(c) in ("Cc", "Cf") and c not in JOINERS and not c.isspace() for c in text]
    for order in (range(len(text)), reversed(range(len(text)))):
        before = True
        for i in order:
            edge = i == response_start if order.__class__ is range else i == response_start - 1
            found[i] |= invisible[i] and (before or edge)
            before = found[i]
    return found


@given(texts_with_start())
def test_sentences_hold_every_visible_character_once(case: tuple[str, int]) -> None:
    text, response_start = case
    found = segment(text, response_start)
    spans = found.sentence_spans
    assert len(spans) == len(found.sentences)
    assert (spans[:, 0] < spans[:, 1]).all()
    assert (spans[1:, 0] >= spans[:-1, 1]).all()
    counts = cover(spans, len(text))
    assert all(count == 1 for count, c in zip(counts, text, strict=True) if not c.isspace())
    for start, end in spans:
        assert text[start:end] == text[start:end].strip()
        assert not start < response_start < end


@given(texts_with_start())
def test_tokens_are_the_text_at_their_spans(case: tuple[str, int]) -> None:
    text, response_start = case
    found, blanks = segment(text, response_start), blank(text, response_start)
    for sentence, (start, end) in zip(found.sentences, found.sentence_spans, strict=True):
        tokens, spans = sentence.words, sentence.spans
        assert len(tokens.words) == len(tokens.space_after) == len(spans)
        assert tokens.words == tuple(text[a:b] for a, b in spans)
        assert all(word and not word.isspace() for word in tokens.words)
        assert sentence.parse <= bool(tokens.words)
        if len(spans):
            assert start <= spans[0, 0]
            assert spans[-1, 1] <= end
            # Between the first and the last token nothing visible is left out but what is hidden.
            assert all(cover(spans, len(text)) <= 1)
            for (_, before), (after, _) in itertools.pairwise(spans.tolist()):
                assert HIDDEN.fullmatch("".join(text[i] for i in range(before, after) if not blanks[i]))
            # And no character is parted from its marks.
            for b, after in itertools.pairwise(spans[:, 0].tolist()):
                assert not (text[after - 1].isalnum() and unicodedata.combining(text[after])), (b, after)
    seen = [span for sentence in found.sentences for span in sentence.spans.tolist()]
    spaces = [space for sentence in found.sentences for space in sentence.words.space_after]
    for space, (_, before), (after, _) in zip(spaces, seen, [*seen[1:], (len(text), 0)], strict=False):
        assert space == (before < after)


@given(texts_with_start())
def test_words_hold_every_letter_and_digit_once(case: tuple[str, int]) -> None:
    text, response_start = case
    found = segment(text, response_start)
    spans = found.word_spans
    assert (spans[:, 0] < spans[:, 1]).all()
    assert (spans[1:, 0] >= spans[:-1, 1]).all()
    counts = cover(spans, len(text))
    assert all(count == 1 for count, c in zip(counts, text, strict=True) if c.isalnum())
    owner = np.searchsorted(found.sentence_spans[:, 0], spans[:, 0], side="right") - 1
    assert (spans[:, 1] <= found.sentence_spans[owner, 1]).all()
    for start, end in spans:
        assert not any(map(str.isspace, text[start:end]))
        assert not all(c in "!\"#%&'()*,-./:;?@[\\]_{}" for c in text[start:end])


@given(texts_with_start())
def test_line_breaks_move_borders_of_sentences_and_nothing_else(case: tuple[str, int]) -> None:
    text, response_start = case
    hard, auto, soft = (each.segment([text], [borders(response_start)])[0] for each in (HARD, SEGMENTER, SOFT))
    assert all(len(text[a:b].splitlines()) == 1 for a, b in hard.sentence_spans)
    for found in (auto, soft):
        np.testing.assert_array_equal(found.word_spans, hard.word_spans)


WORDS = ("the", "of", "and", "house", "river", "old", "went", "slowly", "many", "because", "into", "small", "again")
PROSE = st.lists(
    st.lists(st.sampled_from(WORDS), min_size=4, max_size=30).map(lambda words: " ".join(words).capitalize() + "."),
    min_size=3,
    max_size=8,
).map(" ".join)


@given(PROSE, st.integers(55, 100))
def test_prose_wrapped_at_any_width_is_cut_as_if_it_were_not(text: str, width: int) -> None:
    wrapped = textwrap.fill(text, width)
    assume(wrapped.count("\n") > 1)
    lower, upper = (
        sum(map(test, (line[0] for line in wrapped.splitlines()[1:]))) for test in (str.islower, str.isupper)
    )
    assume(lower >= upper)
    found = [" ".join(wrapped[a:b].split()) for a, b in segment(wrapped, 0).sentence_spans]
    assert found == [text[a:b] for a, b in segment(text, 0).sentence_spans]


@given(st.lists(texts_with_start(), max_size=4))
def test_documents_do_not_touch_each_other(cases: list[tuple[str, int]]) -> None:
    together = SEGMENTER.segment([text for text, _ in cases], [borders(start) for _, start in cases])
    for found, (text, start) in zip(together, cases, strict=True):
        alone = segment(text, start)
        np.testing.assert_array_equal(found.sentence_spans, alone.sentence_spans)
        np.testing.assert_array_equal(found.word_spans, alone.word_spans)
        assert [s.words for s in found.sentences] == [s.words for s in alone.sentences]
        assert [s.parse for s in found.sentences] == [s.parse for s in alone.sentences]


@given(texts_with_start())
def test_a_response_is_segmented_as_if_alone(case: tuple[str, int]) -> None:
    text, start = case
    found, prompt, response = segment(text, start), segment(text[:start], 0), segment(text[start:], 0)
    np.testing.assert_array_equal(
        found.sentence_spans, np.concatenate([prompt.sentence_spans, response.sentence_spans + np.int32(start)])
    )
    np.testing.assert_array_equal(
        found.word_spans, np.concatenate([prompt.word_spans, response.word_spans + np.int32(start)])
    )


@given(texts_with_start())
def test_blocks_are_ordered_and_trimmed(case: tuple[str, int]) -> None:
    text, response_start = case
    found = blocks(text, borders(response_start), "hard")
    for line_breaks in ("auto", "soft"):
        joined = blocks(text, borders(response_start), line_breaks)
        assert {block.span_start for block in joined} <= {block.span_start for block in found}
        assert {block.span_end for block in joined} <= {block.span_end for block in found}
    for block in found:
        assert block.span_start <= block.start <= block.end <= block.span_end
        assert text[block.start : block.end] == text[block.start : block.end].strip()
    for one, other in itertools.pairwise(found):
        assert one.span_end <= other.span_start


@given(TEXTS)
def test_sentence_ends_are_inside_and_after_white_space_or_a_stop(line: str) -> None:
    line = " ".join(line.split())
    ends = sentence_ends(line)
    assert ends == sorted(set(ends))
    for end in ends:
        assert 0 < end < len(line)
        assert not line[end].isspace()
        assert line[:end].rstrip()[-1] in ".!?…。！？｡।॥۔؟\"'”’»)]}*_」』）》】〉"


@pytest.mark.parametrize("text", ["I don't know.", "He can not, she cannot."])
def test_joined_pieces_are_what_spacy_split(text: str) -> None:
    found = segment(text, 0)
    tokens = {tuple(span) for s in found.sentences for span in s.spans.tolist()}
    words = {tuple(span) for span in found.word_spans.tolist()}
    assert words - tokens
    assert all(any(a == c for c, _ in tokens) and any(b == d for _, d in tokens) for a, b in words)
