"""Every command as its user types it: help, tables, JSON and nothing but JSON."""

import json
import sys
from importlib.metadata import version

import pytest
from datasets import load_from_disk

from schemas.columns import GRANULARITIES, SIDES
from schemas.config import ParseConfig
from schemas.errors import Exit

TOKENIZERS = ["--teacher", "embedded:sentencepiece-bpe", "--student", "embedded:bytelevel-bpe"]
COMMANDS = [
    "parse",
    "align",
    "generate",
    "cache-teacher",
    "train",
    "evaluate",
    "inspect",
    "verify",
    "info",
    "report",
    "doctor",
    "push",
    "pull",
    "train-parser",
    "eval-parser",
    "export-parser",
    "bench",
]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(command, name):
    code, out, err = command(name, "--help")
    assert (code, err) == (0, "")
    assert f"mta-prep {name}" in out


def test_without_a_command_all_are_listed(command):
    _, out, _ = command("--help")
    assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "function", "told"),
    [
        (["train", "--config", "mta"], "trainer.config.require_named", "The same command goes on."),
        (["evaluate", "compare", "a", "b"], "trainer.evaluation.results.compare", "Interrupted; nothing was kept."),
        (["verify", "prepared"], "pipeline.dataset.verify.verify", "Finished shards are kept"),
    ],
)
def test_what_an_interrupted_command_keeps_is_told(command, monkeypatch, prepared, arguments, function, told):
    def interrupted(*values, **options):
        raise KeyboardInterrupt

    monkeypatch.chdir(prepared.parent)
    monkeypatch.setattr(function, interrupted)
    code, _, err = command(*(prepared.name if word == "prepared" else word for word in arguments))
    assert code == Exit.INTERRUPTED
    assert told in err


def test_the_version_is_told(command):
    assert command("--version") == (0, f"mta-prep {version('mta-prep')}\n", "")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["parse", ""], "The argument is empty"),
        (["parse", "rows.jsonl", *TOKENIZERS, "-o", ""], "The argument behind -o is empty"),
        (["parse", "rows.jsonl", *TOKENIZERS, "--out="], "The argument behind --out is empty"),
        (
            ["parse", "rows.jsonl", "--teacher", "", "--student", "s", "-o", "o"],
            "The argument behind --teacher is empty",
        ),
        (
            ["parse", "rows.jsonl", *TOKENIZERS, "-o", "o", "--set", "teacher.tokenizer=''"],
            "`teacher.tokenizer`: string",
        ),
        (
            ["parse", "rows.jsonl", *TOKENIZERS, "-o", "o", "--csv-escape", ""],
            "The argument behind --csv-escape is empty",
        ),
        (["cache-teacher", "", "--teacher", "t", "-o", "o"], "The argument is empty"),
        (["cache-teacher", "prepared", "--teacher", "", "-o", "o"], "The argument behind --teacher is empty"),
        (["align", "", "--student", "s"], "The argument is empty"),
        (["verify", ""], "The argument is empty"),
        (["report", ""], "The argument is empty"),
        (["inspect", "prepared", "--id", ""], "The argument behind --id is empty"),
    ],
)
def test_an_empty_argument_is_not_the_current_folder(command, arguments, told):
    code, out, err = command(*arguments)
    assert (code, out) == (Exit.USAGE, "")
    assert told in err


@pytest.mark.parametrize("quote", [["--csv-quote", ""], ["--csv-quote="]])
def test_a_quote_of_csv_may_be_none(command, tmp_path, quote):
    path = tmp_path / "rows.csv"
    path.write_text('instruction,output\nName a tree.,An "oak.\n')
    code, _, err = command("parse", path, *TOKENIZERS, "-o", tmp_path / "o", "--workers", 1, *quote)
    assert code == 0, err


def test_a_config_is_set_by_file_flags_and_keys_in_that_order(command, sample_file, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("limit: 9\nteacher: {max_length: 50, max_prompt_length: 30}\nparser: {max_words: 70}\n")
    arguments = ["parse", sample_file, "-o", tmp_path / "o", *TOKENIZERS, "--config", file, "--workers", 1]
    arguments += ["--max-length", 90, "--limit", 3, "--set", "student.max_length=80", "--set", "parser.max_words=20"]
    code, _, err = command(*arguments, "--set", "teacher.max_prompt_length=null", "--set", "fields.form=instruction")
    assert code == 0, err
    config = ParseConfig.parse(ParseConfig.from_yaml(tmp_path / "o" / "config.yaml"), "o")
    assert (config.limit, config.parser.max_words, config.fields.form) == (3, 20, "instruction")
    assert (config.teacher.max_length, config.teacher.max_prompt_length, config.student.max_length) == (90, None, 80)


@pytest.mark.parametrize("name", ["parse", "cache-teacher"])
@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("limit", "--set 'limit' is no assignment; write it like optim.lr=2e-4."),
        ("limti=3", "command line: unknown key `limti`; did you mean `limit`?"),
        ("teacher.revisoin=main", "command line: unknown key `teacher.revisoin`; did you mean `revision`?"),
        ("limit=many", "command line: `limit`: input should be a valid integer"),
        ("limit=0", "command line: `limit`: input should be greater than or equal to 1, got 0."),
        ("teacher=3", "command line: `teacher`: a mapping of keys to values is wanted, got 3."),
        ("teacher=null", "Nothing given for --teacher"),
        ("limit.rows=3", "`limit` is 2 and has no keys, so none is `limit.rows`."),
    ],
)
def test_what_cannot_be_set_is_told_in_a_sentence(command, sample_file, tmp_path, name, assignment, told):
    teacher = {"parse": [*TOKENIZERS], "cache-teacher": ["--teacher", "embedded:teacher"]}[name]
    code, out, err = command(name, sample_file, *teacher, "-o", tmp_path / "o", "--limit", 2, "--set", assignment)
    assert (code, out) == (Exit.USAGE, "")
    assert told in " ".join(err.split())
    assert not (tmp_path / "o").exists()


def test_inspect_shows_a_row_by_number_or_id(command, prepared):
    row = load_from_disk(str(prepared))[2]
    code, out, err = command("inspect", prepared, "--row", 2)
    assert (code, err) == (0, "")
    assert row["id"] in out
    assert all(name in out for name in (*GRANULARITIES, *SIDES))
    assert command("inspect", prepared, "--id", row["id"])[1] == out
    code, _, err = command("inspect", prepared, "--row", 99)
    assert code != 0
    assert "24 rows" in err
    code, _, err = command("inspect", prepared, "--id", "nobody")
    assert code != 0
    assert "nobody" in err


def test_inspect_never_sends_control_characters_to_the_terminal(command, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        json.dumps({"text": "A red\x1b[31m cat \x07 sits [bold]here[/bold]. It\x00 sleeps."}) + "\n", encoding="utf-8"
    )
    assert command("parse", path, "-o", tmp_path / "o", *TOKENIZERS, "--workers", 1)[0] == 0
    code, out, err = command("inspect", tmp_path / "o")
    assert code == 0, err
    assert not set("\x1b\x07\x00") & set(out)
    assert "[bold]here" in out


def test_json_is_one_object_and_nothing_else(command, prepared):
    row = json.loads(command("inspect", prepared, "--row", 1, "--json")[1])
    assert row["chunks_text"] == [row["text"][a:b] for a, b in row["chunks"]]
    assert len(row["student_tokens"]) == len(row["student_input_ids"])
    info = json.loads(command("info", prepared, "--json")[1])
    assert info["rows_out"] == 24
    found = json.loads(command("verify", prepared, "--json")[1])
    assert found["ok"]
    assert found["checked"]["rows"] == 24
    assert found["retokenized"] == {"teacher": "every row", "student": "every row"}


def test_info_and_verify_say_it_in_words(command, prepared):
    code, out, _ = command("info", prepared)
    assert code == 0
    assert all(word in out for word in ("24 rows in, 24 rows out", "sentencepiece-bpe", "bytelevel-bpe", "embedded"))
    code, out, _ = command("verify", prepared)
    assert code == 0
    assert "nothing wrong" in out
    assert "student tokens decoded: every row" in out


def test_a_tokenizer_that_moved_can_be_named(command, prepared, tmp_path):
    _, out, _ = command("verify", prepared, "--teacher", tmp_path / "nope")
    (told,) = [line for line in out.splitlines() if line.startswith("teacher tokenized again: no: ")]
    assert told.endswith(".")
    assert not told.endswith("..")
    code, out, _ = command("verify", prepared, "--student", tmp_path)
    assert code == 0
    assert "student tokenized again: no:" in out
    code, out, _ = command("verify", prepared, "--student", "embedded:sentencepiece-bpe")
    assert "another one" in out


def test_dry_run_in_words_and_json(command, sample_file, tmp_path):
    arguments = ["parse", sample_file, "-o", tmp_path / "o", *TOKENIZERS, "--dry-run"]
    _, out, _ = command(*arguments)
    assert "24 rows" in out
    assert json.loads(command(*arguments, "--json")[1])["shards"] == 1
    assert not (tmp_path / "o").exists()


def test_standard_input_gives_what_the_file_gives(command, sample_file, tmp_path, monkeypatch):
    parse = ["parse", *TOKENIZERS, "--limit", 6, "--workers", 1, "--json"]
    with sample_file.open(encoding="utf-8") as piped:
        monkeypatch.setattr(sys, "stdin", piped)
        code, out, err = command(*parse, "-", "-o", tmp_path / "a")
    assert (code, err) == (0, "")
    one, two = json.loads(out), json.loads(command(*parse, sample_file, "-o", tmp_path / "b")[1])
    assert one["fingerprint"] == two["fingerprint"]
    assert [file["name"] for file in one["inputs"]] == ["-"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def without_progress(err):
    return [line for line in err.splitlines() if " rows/s, " not in line]


def test_rows_left_out_count_in_the_exit_code_and_are_told(command, tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"instruction": "Name a tree.", "output": "Oak."},
        {"instruction": "Name a tree that grows by a river. " * 9, "output": "Willow.", "text": "Willow."},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    long = ["parse", path, *TOKENIZERS, "--workers", 1, "--overflow", "drop", "--max-length", 90]
    code, out, err = command(*long, "-o", tmp_path / "dropped")
    assert code == 6
    assert "2 rows in, 1 row out." in out
    assert "1 dropped: teacher: row longer than max_length" in out
    assert "Read: `instruction`, `output` in 2 rows." in out
    assert "Not read: `text` in 1 row." in out
    assert f"1 row left out; see {tmp_path / 'dropped' / 'rejected.jsonl'}" in err.replace("\n", "")
    assert command(*long, "-o", tmp_path / "dropped", "--allow-rejected")[0] == 0
    again, out_again, err_again = command(*long, "-o", tmp_path / "dropped")
    assert (again, err_again.splitlines()) == (6, without_progress(err))
    assert "already finished" in out_again
    assert out_again.partition("\n")[2] == out[out.index("2 rows in") : out.index("Units and")]
    told = json.loads(command(*long, "-o", tmp_path / "dropped", "--json")[1])["warnings"]
    assert told == without_progress(err)

    code, _, _ = command("parse", path, *TOKENIZERS, "--workers", 1, "-o", tmp_path / "whole")
    assert code == 0
    shorter = ["align", tmp_path / "whole", "--student", "embedded:sentencepiece-bpe", "--workers", 1]
    shorter += ["--overflow", "drop", "--max-length", 90]
    assert command(*shorter, "-o", tmp_path / "shorter")[0] == 6
    assert command(*shorter, "-o", tmp_path / "shorter", "--allow-rejected")[0] == 0
    # what had been left out before is no loss of this run
    same = ["align", tmp_path / "dropped", "--student", "embedded:sentencepiece-bpe", "--workers", 1]
    code, _, err = command(*same, "-o", tmp_path / "same")
    assert code == 0
    assert "1 row the earlier run had left out already" in " ".join(err.split())
    assert command(*same, "-o", tmp_path / "same")[2].splitlines() == without_progress(err)
    code, out, nothing = command(*same, "-o", tmp_path / "same", "--json")
    assert (code, nothing) == (0, "")
    assert json.loads(out)["warnings"] == without_progress(err)
    # which the earlier teacher refused, and is not tried again by another student
    assert "tries them again" not in err
    other = ["align", tmp_path / "dropped", "--teacher", "embedded:bytelevel-bpe", "--workers", 1]
    code, _, err = command(*other, "-o", tmp_path / "other")
    assert code == 0
    again = f"mta-prep parse --config {tmp_path / 'other' / 'config.yaml'} --out OTHER"
    assert f"1 row by the earlier teacher's tokenizer or template: `{again}` tries" in " ".join(err.split())


def test_align_writes_beside_the_old_dataset(command, prepared, tmp_path):
    code, out, _ = command("align", prepared, "--student", "embedded:sentencepiece-bpe", "--workers", 1, "--json")
    assert code == 0
    folder = prepared.with_name("out--sentencepiece-bpe")
    assert json.loads(out)["out"] == str(folder)
    assert command("verify", folder, "--quick")[0] == 0


def test_any_key_of_a_side_can_be_set_by_align(command, prepared, sample_file, tmp_path, contents):
    """As `parse` has it, also without another tokenizer; over flags, and nothing lifts a limit."""
    limits = ["--set", "student.max_length=40", "--set", "student.eos=null"]
    align = ["align", prepared, "--workers", 1, "--allow-rejected"]
    assert command(*align, *limits, "-o", tmp_path / "shorter")[0] == 0
    lengths = [len(row["student_input_ids"]) for row in load_from_disk(str(tmp_path / "shorter"))]
    assert max(lengths) == 40
    assert [row["teacher_input_ids"] for row in load_from_disk(str(tmp_path / "shorter"))][:3] == [
        row["teacher_input_ids"] for row in load_from_disk(str(prepared))
    ][:3]
    longer = ["align", tmp_path / "shorter", "--workers", 1, "--student", "embedded:bytelevel-bpe", "--max-length", 30]
    assert command(*longer, "--set", "student.max_length=null", "-o", tmp_path / "longer")[0] == 0
    assert contents(tmp_path / "longer") == contents(prepared)


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("student.max_lenght=40", "unknown key `student.max_lenght`; did you mean `max_length`?"),
        ("student.max_length=many", "`student.max_length`: input should be a valid integer"),
        ("student=40", "`student` is no key that `mta-prep align` changes"),
        ("limti=40", "`limti` is no key that `mta-prep align` changes"),
        ("limit=40", "parses anew"),
        ("overflow=drop", "Nothing to change"),
        ("student.max_length=40", "pass --out"),
    ],
)
def test_what_align_cannot_set_is_told_in_a_sentence(command, prepared, tmp_path, assignment, told):
    folder = [] if told == "pass --out" else ["-o", tmp_path / "out"]
    code, out, err = command("align", prepared, "--workers", 1, "--set", assignment, *folder)
    assert (code, out) == (Exit.USAGE, "")
    assert told in " ".join(err.split())
    if told == "parses anew":
        assert f"`mta-prep parse --config {prepared / 'config.yaml'} -o OTHER --set limit=40`" in " ".join(err.split())


def test_bench_parser_measures_and_finds_no_difference(command, sample_file, tmp_path):
    few = tmp_path / "rows.jsonl"
    few.write_bytes(b"".join(sample_file.read_bytes().splitlines(keepends=True)[:3]))
    code, out, err = command("bench", "parser", few, "--rounds", 1, "--longest", 30, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["trees_differ"] == 0
    assert found["sentences"] >= found["sentences_distinct"] > 5
    assert set(found["by_length"]) >= {"10", "20"}
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["instructions"]
    assert {"float32", "bf16"} <= set(found["tiers"])
    assert found["tiers"]["float32"]["trees_changed"] == 0
    assert all(rate > 0 for rate in found["sentences_per_second"].values())


def test_names_with_brackets_and_escapes_pass_through_every_command(command, tmp_path):
    rows = [{"id": f"a[/b]\x1b[31m{row}", "prompt[/x]": "What?", "response[/x]": "The cat sleeps."} for row in range(2)]
    rows.append({"id": "empty[red]", "prompt[/x]": "What?"})  # rejected, and told
    source, out, moved = (tmp_path / name for name in ("rows[bold].jsonl", "exp[lr=1]", "moved[/b]"))
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    fields = ["--prompt-field", "prompt[/x]", "--response-field", "response[/x]"]
    printed = []
    for arguments, expected in [
        (["parse", source, *fields, *TOKENIZERS, "-o", out], Exit.REJECTED),
        (["info", out], Exit.OK),
        (["verify", out], Exit.OK),
        (["inspect", out, "--row", "1"], Exit.OK),
        (["inspect", out, "--id", "no[/such]\x1b[31m"], Exit.USAGE),
        (["align", out, "--student", "embedded:sentencepiece-bpe", "-o", moved], Exit.OK),
        (["info", tmp_path / "none[/here]\x1b[31m"], Exit.STATE),
    ]:
        code, stdout, stderr = command(*arguments)
        assert code == expected, stderr
        printed += [stdout, stderr]
    assert "\x1b" not in "".join(printed)
    assert any("exp[lr=1]" in text for text in printed)
    assert any("moved[/b]" in text for text in printed)
    assert any("a[/b]" in text for text in printed)
