"""What reaches the terminal: all that is not ours is shown as it is, and none of it steers anything."""

import io
import json
import os
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import console
from schemas.errors import QUOTED_LIMIT, Exit, UserError, quoted

#: What a terminal acts on; styles are the console's own and off here.
ACTS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
HOSTILE = st.text(
    st.one_of(st.sampled_from("[]/:\\=\x1b\x07\x08\x0b\x9b\u202e\ud800 \t\n"), st.characters()), max_size=40
)


@pytest.fixture
def written(capsys):
    """What both consoles have written since."""

    def read():
        streams = capsys.readouterr()
        return streams.out + streams.err

    return read


@given(text=HOSTILE)
def test_nothing_of_a_text_steers_the_terminal(text):
    file = io.StringIO()
    view = console._Terminal(file=file, markup=False, emoji=False, soft_wrap=True, highlight=False)
    view.print(text)
    view.print(console.Text(text))
    view.print(console.Text.assemble(("row ", "dim"), text) if text else "")
    shown = file.getvalue()
    assert not ACTS.search(shown.replace("\t", ""))
    shown.encode()  # surrogates are shown, too


@given(text=st.text(st.characters(exclude_categories=["C", "Z"]), max_size=40))
def test_what_is_printable_stays_as_it_is(text):
    assert console.harmless(text) == text
    file = io.StringIO()
    console._Terminal(file=file, markup=False, emoji=False, soft_wrap=True, highlight=False).print(text)
    assert file.getvalue() == text + "\n"


@pytest.mark.parametrize("name", ["[/b]", "a[/x]", "[red]", "[lr=1]", ":car:", "[link=http://x]y[/link]", "\\[a]"])
def test_brackets_and_colons_are_no_markup(written, name):
    console.stdout.print(name)
    console.stderr.print(f"Written to {name}")
    console.table(f"Table {name}", [name, "n"], [[name, name]])
    console.explain(UserError(name), debug=False)
    text = written()
    assert text.count(name) == 7
    assert "Internal" not in text


def test_every_control_character_is_shown(written):
    console.stdout.print(console.Text("".join(map(chr, range(0x20))).replace("\n", "").replace("\t", "")))
    assert written().strip("\n") == "".join(chr(0x2400 + code) for code in range(0x20) if code not in (0x09, 0x0A))


@given(text=HOSTILE)
def test_json_says_the_same_and_steers_nothing(text):
    stream, standard = io.StringIO(), sys.stdout
    sys.stdout = stream
    try:
        console.emit_json({"text": text})
    finally:
        sys.stdout = standard
    line = stream.getvalue()
    assert not ACTS.search(line)
    line.encode()
    assert json.loads(line) == {"text": text}


def test_messages_have_an_end(written):
    console.explain(UserError("x" * 100_000), debug=False)
    assert len(written()) < 1.2 * console.MESSAGE_LIMIT


def test_a_value_is_quoted_without_being_spelled_out():
    bomb = ["lol"] * 10
    for _ in range(12):
        bomb = [bomb] * 10  # a terabyte as text
    assert len(quoted(bomb)) <= QUOTED_LIMIT + 1
    assert quoted("short") == "'short'"
    assert len(quoted("x" * 10_000)) <= QUOTED_LIMIT + 1
    assert quoted({"lr": 2e-4}) == "{'lr': 0.0002}"


@pytest.mark.parametrize("use", [open, os.mkdir, os.stat])
def test_a_name_too_long_for_any_file_is_the_users_error(use, written):
    with pytest.raises(OSError, match="too long") as error:
        use("x" * 300)
    assert console.explain(error.value, debug=False) == Exit.USAGE
    told = written()
    assert "longer than names of files can be" in told
    assert len(told) < 2 * QUOTED_LIMIT
