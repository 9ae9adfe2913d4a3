"""Disks that are full at any moment, or read-only: a sentence from every command, and nothing that was computed is lost.

`parse`, `cache-teacher` and `report` on a full disk: `test_conditions.py`; `evaluate`:
`tests/trainer/evaluation/test_evaluate.py`; the trainer: `tests/trainer/engine/test_ranks.py`.
"""

import json
from pathlib import Path

import pytest

from pipeline.generate import place
from schemas import files
from schemas.errors import Exit
from schemas.manifest import MANIFEST
from schemas.responses import manifest_of

SIDES = ("--teacher", "embedded:sentencepiece-bpe", "--student", "embedded:bytelevel-bpe")
ROWS = [{"id": f"{number}", "instruction": f"Name {number} birds.", "output": "The wren."} for number in range(4)]
PAGE = 4096
#: Pages of a disk on which everything here has room.
AMPLE = 4000


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def pages_of(folder):
    return sum(-(-path.stat().st_size // PAGE) for path in folder.rglob("*") if path.is_file())


def until_it_fits(sized, pages, run, unfinished):
    """Runs a command on a disk that grows, and is full each time but the last; `unfinished` looks at what is left there."""
    for count in pages:
        sized(count * PAGE)
        code, _, said = run()
        assert code == Exit.RESOURCE, said
        assert "No room left on the disk" in " ".join(said.split())
        unfinished()
    sized(AMPLE * PAGE)
    code, _, said = run()
    assert code == Exit.OK, said


def test_a_disk_that_is_full_at_any_moment_of_generate(small_disk, rows, command, monkeypatch, contents, tmp_path):
    (folder, sized), make, made = small_disk, place.GenerateStage, []
    monkeypatch.setattr(place, "GenerateStage", lambda *how: made[0] if made else made.append(make(*how)) or made[0])
    settings = ["--max-new-tokens", 4, "--unfinished", "keep", "--set", "shard_rows=1"]

    def run(out=folder):
        return command("generate", rows, "--model", "embedded:teacher", *settings, "-o", out / "out.jsonl")

    (tmp_path / "whole").mkdir()
    assert run(tmp_path / "whole")[0] == Exit.OK

    def unfinished():
        assert not manifest_of(folder / "out.jsonl").exists()
        assert not list(folder.rglob(f"*{files.PARTIAL}"))

    until_it_fits(sized, (1, 3, 5, 9), run, unfinished)
    assert contents(folder) == contents(tmp_path / "whole")


def test_a_disk_that_is_full_at_any_moment_of_align(small_disk, prepared, same, command, contents):
    folder, sized = small_disk
    pages = pages_of(same)

    def run():
        return command(
            "align", prepared, "--student", "embedded:sentencepiece-bpe", "--workers", 1, "-o", folder / "out"
        )

    def unfinished():
        assert not (folder / "out" / MANIFEST).exists()
        assert not list(folder.rglob(f"*{files.PARTIAL}"))

    until_it_fits(sized, (1, pages // 3, pages - 2), run, unfinished)
    assert contents(folder / "out") == contents(same)


def test_a_disk_that_is_full_at_any_moment_of_pull(small_disk, hub, command, prepared, contents):
    folder, sized = small_disk
    assert command("push", prepared, "owner/sample", "--license", "mit", "--text-license", "mit")[0] == Exit.OK
    pages = pages_of(prepared)

    def run():
        return command("pull", "owner/sample", "-o", folder / "out")

    until_it_fits(sized, (1, 5, pages // 3, pages - 2), run, lambda: None)
    there, whole = contents(folder / "out"), contents(prepared)
    assert {name: there[name] for name in whole if name != "README.md"} == {
        name: data for name, data in whole.items() if name != "README.md"
    }


#: What each command writes to: a folder or file below `{disk}`.
WRITERS = [
    ("parse", "{rows}", *SIDES, "-o", "{disk}/out"),
    ("align", "{prepared}", "--student", "embedded:sentencepiece-bpe", "-o", "{disk}/out"),
    ("cache-teacher", "{prepared}", "--teacher", "{teacher}", "--layers", "2:words", "-o", "{disk}/out"),
    ("generate", "{rows}", "--model", "embedded:teacher", "-o", "{disk}/out.jsonl"),
    ("evaluate", "run", "embedded:teacher", "{rows}", "-o", "{disk}/out.json"),
    ("report", "{prepared}", "-o", "{disk}/out.html"),
    ("pull", "owner/sample", "-o", "{disk}/out"),
    ("export-parser", "{disk}/out"),
]


@pytest.mark.parametrize("arguments", WRITERS, ids=lambda arguments: arguments[0])
def test_a_read_only_disk_is_told(small_disk, hub, rows, prepared, tiny_teacher, command, arguments):
    folder, sized = small_disk
    sized(AMPLE * PAGE, "ro")
    names = {"{disk}": folder, "{rows}": rows, "{prepared}": prepared, "{teacher}": tiny_teacher}
    for name, path in names.items():
        arguments = [argument.replace(name, str(path)) for argument in arguments]
    code, _, said = command(*arguments)
    assert code == Exit.RESOURCE, said
    told = " ".join(said.split())
    assert f"{folder}/" in told
    assert "Traceback" not in told
    assert told.count("Error: ") == 1


PLACES = {
    "a file": lambda folder: folder / "file",
    "below a file": lambda folder: folder / "file" / "below",
    "a link to nowhere": lambda folder: folder / "link",
    "below a link to nowhere": lambda folder: folder / "link" / "below",
    "where files are the system's": lambda _: Path("/proc/below"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "arguments",
    [
        ["parse", "ROWS", *SIDES, "--parser", "spacy"],
        ["align", "PREPARED", "--student", "embedded:bytelevel-bpe"],
        ["cache-teacher", "PREPARED", "--teacher", "TEACHER", "--signals", "final"],
        ["export-parser"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_where_there_can_be_no_folder_a_command_says_so(
    arguments, place, rows, prepared, tiny_teacher, command, tmp_path
):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "at" / "all")
    out = PLACES[place](tmp_path)
    known = {"ROWS": rows, "PREPARED": prepared, "TEACHER": tiny_teacher}
    asked = [known.get(argument, argument) for argument in arguments]
    code, _, said = command(*asked, *([] if arguments[0] == "export-parser" else ["-o"]), out)
    assert code in (Exit.STATE, Exit.RESOURCE), said
    assert str(out) in said.replace("\n", "")
    assert "Internal error" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "rows.jsonl"]
