"""Texts without end: time grows with their length and not with its square, and what cannot be done is said before."""

import io
import json
import time
from functools import partial

import numpy as np
import pytest
from rich.console import Console

from pipeline.dataset import assemble, view
from pipeline.dataset.prepare import PrepareStage, prepare
from pipeline.dataset.realign import realign
from pipeline.dataset.verify import verify
from pipeline.parse.engine import Engine
from pipeline.read.fields import resolve_fields
from pipeline.read.records import Record
from pipeline.read.template import resolve_templates
from pipeline.report.rows import drawn_rows
from pipeline.text import Constituents
from schemas import console
from schemas.manifest import read_manifest

#: Characters of the short text, and how many times as many the long one has.
CHARACTERS, TIMES = 6_000, 8
#: What the square of the length would take is 64 times the time; linear is 8, and clocks are not exact.
MOST = 24.0
WORDS = ["the", "old", "dog", "has", "been", "sleeping", "on", "a", "sofa", "and", "wants", "to", "stay"]


def words(joint, count):
    return joint.join(WORDS[place % len(WORDS)] for place in range(count))


#: Texts of about so many characters, by what they are made of.
TEXTS = {
    "no full stop": lambda count: words(" ", count // 5),
    "a word a line": lambda count: words("\n", count // 5),
    "a word a cell": lambda count: words(" | ", count // 7),
    "addresses": lambda count: words(" http://a.b/", count // 16),
    "at signs": lambda count: words("@", count // 5),
    "one letter": lambda count: "a" * count,
    "digits and stops": lambda count: "1." * (count // 2),
    "brackets": lambda count: "(" * (count // 2) + "a" + ")" * (count // 2),
    "quote marks": lambda count: "> " * (count // 2) + "x",
    "fences": lambda count: "```\n" * (count // 4),
    "white space": lambda count: "a" + " " * count + "b",
    "marks on a letter": lambda count: "a" + "\u0301" * count,
    "invisible": lambda count: "\u200b" * count + "a",
    "ideographs": lambda count: "".join(chr(0x4E00 + place % 5000) for place in range(count)),
    "joined emoji": lambda count: "\U0001f469\u200d\U0001f467" * (count // 3),
}


def parsed(self, sentences):
    """Stands for the network, whose work is bounded by the words of a piece: a tree of as many nodes as it has words."""
    return [
        Constituents(
            np.array([[word, len(sentence.words)] for word in range(len(sentence.words))], dtype=np.int32),
            tuple(("VP", "NP")[word % 2] for word in range(len(sentence.words))),
            None,
        )
        for sentence in sentences
    ]


@pytest.fixture(scope="module")
def stage(settings_for):
    config = settings_for(parser={"keep_trees": False})
    fields = resolve_fields(config.fields, [Record(0, "rows", 1, {"id": "a", "text": "A text."})])
    made = PrepareStage(resolve_templates(config.model_copy(update={"fields": fields})))
    made.parser.engine.constituents = partial(parsed, made.parser.engine)
    run(made, "A text, before the clock runs.")
    return made


def run(stage, text):
    began = time.process_time()
    output = stage.run([Record(0, "rows", 1, {"id": "a", "text": text})])
    return output, time.process_time() - began


@pytest.mark.parametrize("name", TEXTS)
def test_time_grows_with_the_length(stage, name):
    """A row that is left out for a reason is as good: it has been looked at."""
    _, short = run(stage, TEXTS[name](CHARACTERS))
    output, long = run(stage, TEXTS[name](CHARACTERS * TIMES))
    assert output.rows + len(output.left_out) == 1
    assert long < MOST * max(short, 0.02), (
        f"{CHARACTERS} characters take {short:.3f} s, {TIMES} times as many {long:.3f}"
    )


@pytest.fixture(scope="module")
def datasets(settings_for, tmp_path_factory):
    """A short document and a long one, prepared."""
    folder = tmp_path_factory.mktemp("long")
    for name, count in (("short", CHARACTERS // 4), ("long", CHARACTERS // 4 * TIMES)):
        rows = folder / f"{name}.jsonl"
        rows.write_text(json.dumps({"id": name, "text": words(". The ", count // 10)}) + "\n", encoding="utf-8")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Engine, "constituents", parsed)
            prepare(settings_for(inputs=[str(rows)]), folder / name, workers=1, quiet=True)
    return folder


def checked(folder):
    assert verify(folder, quick=False, moved={}).problems == []


def shown(folder):
    view.show(view.find_row(folder, 0, None), folder)


@pytest.mark.parametrize("look", [checked, shown, lambda folder: drawn_rows(folder, [0])])
def test_to_look_at_a_document_takes_time_that_grows_with_its_length(datasets, monkeypatch, look):
    monkeypatch.setattr(console, "stdout", Console(file=io.StringIO(), width=200))
    look(datasets / "short")
    times = []
    for name in ("short", "long"):
        began = time.process_time()
        look(datasets / name)
        times.append(time.process_time() - began)
    assert times[1] < MOST * max(times[0], 0.02), times


def test_inspect_says_what_it_does_not_show(datasets, monkeypatch):
    said = io.StringIO()
    monkeypatch.setattr(console, "stdout", Console(file=said, width=200))
    monkeypatch.setattr(view, "SHOWN", 300)
    shown(datasets / "long")
    text = view.find_row(datasets / "long", 0, None).values["text"]
    assert len(said.getvalue()) < 10_000
    assert "the first 300 characters: --json gives the whole row" in said.getvalue()
    monkeypatch.setattr(view, "SHOWN", len(text))
    shown(datasets / "short")
    assert "--json" not in said.getvalue().rpartition("row 0")[2]


def test_tokens_too_many_for_edit_distance_are_left_out_by_name(prepared, monkeypatch, tmp_path):
    """Its time is the product of the numbers of both sides, hours for a million tokens each."""
    monkeypatch.setattr(assemble, "MOST_CELLS", 40**2)
    realign(prepared, tmp_path / "mined", {}, None, mined="exact", workers=1, overwrite=False, quiet=True)
    before, after = read_manifest(prepared), read_manifest(tmp_path / "mined")
    (reason,) = after.dropped.keys() - before.dropped.keys()
    assert reason == "too many tokens to be aligned by edit distance"
    assert after.rows_out == before.rows_out - after.dropped[reason] > 0
    lines = (tmp_path / "mined" / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert sum("--max-length sets a limit" in json.loads(line)["reason"] for line in lines) == after.dropped[reason]
    assert verify(tmp_path / "mined", quick=False, moved={}).problems == []
