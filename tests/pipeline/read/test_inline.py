"""What stands inside a line and is no prose: which characters, and how long finding them takes."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.read.inline import NAMES, PARTING, Kind, marks


@pytest.mark.parametrize(
    ("line", "hidden", "whole"),
    [
        ("Click <b>Save</b> now.", ["<b>", "</b>"], []),
        ('<a href="x.html" class=c>here</A>', ['<a href="x.html" class=c>', "</A>"], []),
        ("Dear <name>, is 3 <b and c> 2?", [], []),
        ("a<!-- no. Nothing -->b", ["<!-- no. Nothing -->"], []),
        ("Tom &amp; Jerry &#8212; R&D; AT&T", [], ["&amp;", "&#8212;"]),
        ("a&nbsp;b &nosuchname; c", ["&nbsp;"], []),
        ("**Note:** use `a b`, *not* ~~this~~, __or__ that", ["**", "**", "`", "`", "*", "*", "~~", "~~"], []),
        ("2 * 3 * 4, 2*3*4, a_b_c and __init__", [], []),
        ("Let $n$ be $a_1^2$ for $5 or $6, not US$.", [], ["$n$", "$a_1^2$"]),
        (r"the number \(n\) and \[x=1\], \$a\$", [], [r"\(n\)", r"\[x=1\]"]),
        ("see [the guide](docs/guide.md) or ![it](a.png)", ["[", "!["], ["](", "docs/guide.md", "](", "a.png"]),
        ("[see](https://x.org/a_b_c)", ["["], ["]("]),
    ],
)
def test_which_characters(line, hidden, whole):
    of_kind = {kind: [line[mark.start : mark.end] for mark in marks(line) if mark.kind is kind] for kind in Kind}
    assert of_kind[Kind.HIDDEN] == hidden
    assert of_kind[Kind.WHOLE] + of_kind[Kind.FORMULA] == whole


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("Call `fit` or ``a.b(c)``, not `git commit` and not `->`.", ["fit", "a.b(c)"]),
        ("Solve $x^2 - 5x + 6 = 0$ for $x$.", ["$x^2 - 5x + 6 = 0$", "$x$"]),
        (r"Is \(n > 2\) or \[ a  b \] one?", [r"\(n > 2\)"]),
        ("It is $$ E = m c^2 $$ here.", ["$$ E = m c^2 $$"]),
        ("It costs $5 or $6 = €5, not US$ 4 (= $7).", []),
        ("Pay $a and $b = c $ or $ x = 1$.", []),
        ("See www.y.net or me@x.org.", ["www.y.net", "me@x.org"]),
        ("Tom &amp; Jerry, **bold** and *it*", []),
        ("Half a formula: $x^2 +\n1$", []),
    ],
)
def test_which_are_names(line, names):
    assert [line[mark.start : mark.end] for mark in marks(line) if mark.kind in NAMES] == names


def test_urls_end_where_their_sentence_does():
    line = "See (https://x.org/a_(b)), www.y.net. Or me@x.org!"
    assert [line[m.start : m.end] for m in marks(line)] == ["https://x.org/a_(b)", "www.y.net", "me@x.org"]


@pytest.mark.parametrize(
    "tag", ["<br>", "<BR/>", '<p class="a">', "</li>", "<|im_start|>", "[/INST]", "<<SYS>>", "</think>", "<s>"]
)
def test_what_parts_sentences(tag):
    assert PARTING.fullmatch(tag)


@pytest.mark.parametrize("words", ["<name>", "< br", "<|", "[INSTALL]", "<spam>", "a < b", "<present>"])
def test_what_does_not(words):
    assert not PARTING.search(words)


PIECES = st.sampled_from(
    [*"<>&;$*_~`\\()[]!/| .a1", "<b>", "br", "&amp;", "](", "https://x.org", "$$", "\\(", "<!--", "-->"]
)


@given(st.lists(PIECES, max_size=30).map("".join))
def test_marks_are_disjoint_ordered_and_not_empty(line):
    edges = [edge for mark in marks(line) for edge in (mark.start, mark.end)]
    assert edges == sorted(edges)
    assert all(0 <= mark.start < mark.end <= len(line) for mark in marks(line))
    for mark in marks(line):
        if mark.kind in (Kind.WHOLE, Kind.FORMULA):
            assert not any(map(str.isspace, line[mark.start : mark.end]))


@pytest.mark.parametrize(
    "piece",
    [
        "<b ",
        "<a x",
        "<!--",
        "&a",
        "$a",
        "$ ",
        "$_",
        "**a ",
        "*",
        "_a ",
        "`",
        "``a`",
        "~~a",
        "\\(",
        "\\( a",
        "$a = ",
        "\\[x",
        "[a",
        "[a](",
        "www.",
        "a@",
    ],
)
def test_the_time_is_linear(piece):
    def seconds(times):
        line = piece * times
        began = time.process_time()
        marks(line)
        PARTING.findall(line)
        return time.process_time() - began

    short = min(seconds(4_000) for _ in range(3))
    assert min(seconds(32_000) for _ in range(2)) < max(
        0.05, short * 8 * 4
    )  # eight times as long; four is slack for noise
