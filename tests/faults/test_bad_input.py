"""Bad input ends in a sentence with place and remedy, a non-zero exit, and nothing lost."""

import json
import os

import pytest

from pipeline.dataset.prepare import SAMPLE_ROWS, prepare
from schemas.errors import Exit

#: A bad row behind those that are looked at before the run.
ROWS, BAD = SAMPLE_ROWS + 10, SAMPLE_ROWS + 7
TOKENIZERS = ["--teacher", "embedded:sentencepiece-bpe", "--student", "embedded:bytelevel-bpe"]


@pytest.fixture
def said(command):
    """Runs `mta-prep`: (exit code, everything it said, white space folded)."""

    def run(*arguments):
        code, out, err = command(*arguments)
        return code, " ".join((out + err).split())

    return run


def rows(path, count, bad=None):
    lines = [json.dumps({"instruction": f"Say {number}.", "output": f"It is {number}."}) for number in range(count)]
    if bad is not None:
        number, text = bad
        lines[number - 1] = text
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n")
    return path


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["parse"], Exit.USAGE, "--out"),
        (["parse", "{tmp}/none.jsonl", "-o", "{tmp}/o", *TOKENIZERS], Exit.INPUT, "none.jsonl"),
        (["parse", "{tmp}/good.jsonl", "-o", "{tmp}/o", *TOKENIZERS, "--text-field", "body"], Exit.INPUT, "`body`"),
        (["parse", "{tmp}/empty.jsonl", "-o", "{tmp}/o", *TOKENIZERS], Exit.INPUT, "empty"),
        (
            ["parse", "{tmp}/good.jsonl", "-o", "{tmp}/o", "--teacher", "{tmp}", "--student", "x"],
            Exit.INPUT,
            "holds no tokenizer",
        ),
        (
            ["parse", "{tmp}/good.jsonl", "-o", "{tmp}/o", "--teacher", "nobody/nothing", *TOKENIZERS[2:]],
            Exit.RESOURCE,
            "nobody/nothing",
        ),
        (["parse", "nobody/nothing", "-o", "{tmp}/o", *TOKENIZERS], Exit.RESOURCE, "nobody/nothing"),
        (
            ["parse", "{tmp}/good.jsonl", "-o", "{tmp}/o", *TOKENIZERS, "--parser-model", "benepar_en9"],
            Exit.RESOURCE,
            "benepar_en9",
        ),
        (
            ["parse", "{tmp}/good.jsonl", "-o", "{tmp}/o", *TOKENIZERS, "--parser-model", "{tmp}"],
            Exit.INPUT,
            "config.json",
        ),
        (["parse", "{tmp}/good.jsonl", "-o", "{tmp}/o", *TOKENIZERS, "--template", "alpca"], Exit.USAGE, "alpaca"),
        (["parse", "{tmp}/good.jsonl", "-o", "{tmp}/good.jsonl", *TOKENIZERS], Exit.STATE, "is a file"),
        (["parse", "{tmp}/good.jsonl", "-o", "{tmp}/o", "--max-lenght", "5"], Exit.USAGE, "--max-lenght"),
        (
            ["parse", "{tmp}/good.jsonl", "-o", "{tmp}/o", *TOKENIZERS, "--set", "teacher.max_length=0"],
            Exit.USAGE,
            "equal to 2",
        ),
        (
            ["parse", "{tmp}/good.jsonl", "-o", "{tmp}/o", *TOKENIZERS, "--max-prompt-length", "0"],
            Exit.USAGE,
            "equal to 1",
        ),
        (["inspect", "{tmp}"], Exit.STATE, "manifest.json"),
        (["verify", "{tmp}/nowhere"], Exit.STATE, "no folder"),
        (["align", "{tmp}/nowhere"], Exit.USAGE, "--student"),
    ],
)
def test_a_sentence_and_an_exit_code(said, tmp_path, arguments, code, expected):
    rows(tmp_path / "good.jsonl", 3)
    (tmp_path / "empty.jsonl").write_bytes(b"")
    found, text = said(*(argument.replace("{tmp}", str(tmp_path)) for argument in arguments))
    assert (found, expected in text) == (code, True), text
    assert "Traceback" not in text
    assert not (tmp_path / "o" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [(b'{"instruction": "x", "output": ', "JSON"), (b'{"instruction": "x", "output": "caf\xe9"}', "UTF-8")],
)
def test_a_bad_line_is_named_and_the_others_are_prepared(said, tmp_path, bad, reason):
    path = rows(tmp_path / "rows.jsonl", ROWS, bad=(BAD, bad))
    arguments = ["parse", path, "-o", tmp_path / "o", *TOKENIZERS, "--workers", "1"]
    code, text = said(*arguments)
    assert code == Exit.REJECTED, text[-700:]
    assert "1 rejected" in text
    assert "rejected.jsonl" in text
    (entry,) = map(json.loads, (tmp_path / "o" / "rejected.jsonl").read_text(encoding="utf-8").splitlines())
    assert entry["line"] == BAD
    assert reason in entry["reason"]
    assert json.loads((tmp_path / "o" / "manifest.json").read_text(encoding="utf-8"))["rows_out"] == ROWS - 1
    assert said("verify", tmp_path / "o", "--quick")[0] == Exit.OK


def test_a_slow_tokenizer_is_refused_by_name(said, tmp_path):
    folder = tmp_path / "slow"
    folder.mkdir()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CTRLTokenizer"}))
    (folder / "vocab.json").write_text(json.dumps({"a</w>": 0, "<unk>": 1}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    path = rows(tmp_path / "rows.jsonl", 3)
    code, text = said("parse", path, "-o", tmp_path / "o", "--teacher", folder, *TOKENIZERS[2:])
    assert code == Exit.INPUT
    assert "slow" in text
    assert "teacher" in text


def test_a_folder_that_cannot_be_written(said, tmp_path):
    path = rows(tmp_path / "rows.jsonl", 3)
    if os.geteuid() == 0:  # root may write anywhere but where the kernel forbids it
        out = "/sys/mta-prep"
    else:
        (tmp_path / "closed").mkdir(mode=0o500)
        out = tmp_path / "closed" / "o"
    code, text = said("parse", path, "-o", out, *TOKENIZERS)
    assert code == Exit.RESOURCE
    assert str(out) in text


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_full_disk_loses_nothing(on_full_disk, settings_for, prepared, contents, tmp_path):
    """The kernel refuses to let a file grow past the limit, as a full disk does; the run then goes on without it."""
    file, out = tmp_path / "config.yaml", tmp_path / "out"
    file.write_text(settings_for().to_yaml(), encoding="utf-8")
    sizes = sorted(path.stat().st_size for path in prepared.glob("data-*.arrow"))
    assert sizes[0] < sizes[-1]

    code, said = on_full_disk(["parse", "--config", file, "--out", out, "--workers", 1], sizes[-1] - 1)
    assert code == Exit.RESOURCE, said
    assert "No room left" in said
    assert not (out / "manifest.json").exists()
    assert not list(out.glob("*.partial"))
    prepare(settings_for(), out, workers=1, quiet=True)
    assert contents(out) == contents(prepared)
