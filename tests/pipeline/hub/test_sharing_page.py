"""The page about sharing is true: its commands run against the stand-in, and print what it shows."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[3] / "docs" / "sharing.md"
BLOCK = re.compile(r"^```(sh|text)\n(.*?)^```$", re.M | re.S)
STAND_INS = {"TinyLlama/TinyLlama-1.1B-Chat-v1.0": "embedded:sentencepiece-bpe"}


def shape(line):
    """A line without numbers, which are other ones of other rows."""
    return re.sub(r"commit \w+|\d[\d.]*( \wiB)?", "N", line)


@pytest.mark.xdist_group("trainer")
def test_the_commands_run(hub, command, prepared, make_cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(prepared, "prepared")
    shutil.copytree(make_cache(), "cache")
    printed = set()
    for kind, body in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if kind == "text":
            assert [line for line in body.splitlines() if shape(line) not in printed] == []
            continue
        for words in map(shlex.split, body.splitlines()):
            if "runs/mta/student" in words:  # a run's, which tests/trainer/hub pushes
                continue
            code, out, err = command(*(STAND_INS.get(word, word) for word in words[1:]))
            assert code == 0, err
            printed |= set(map(shape, out.splitlines()))
