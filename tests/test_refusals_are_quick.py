"""A wrong path, name or option is refused, help is given, and a look taken, with nothing imported that takes seconds."""

import json
import subprocess
import sys

import pytest
import yaml

from pipeline.cli import app
from pipeline.dataset.view import find_row
from schemas.errors import Exit
from schemas.manifest import CACHE_FORMAT, MANIFEST

#: Each takes from a third of a second to some seconds.
HEAVY = ("torch", "transformers", "datasets", "spacy", "benepar", "nltk", "numba", "pandas", "scipy", "deepspeed")
TOKENIZERS = ["--teacher", "embedded:sentencepiece-bpe", "--student", "embedded:bytelevel-bpe"]
#: By program: command lines in a folder that holds a dataset `dataset`, a cache `cache` and rows `rows.jsonl`; and what
#: they end with. Everything named `nope` is not there.
REFUSED: dict[str, list[tuple[list[str], Exit]]] = {
    "pipeline.cli": [
        (["parse", "nope.jsonl", *TOKENIZERS, "-o", "out"], Exit.INPUT),
        (["parse", "dataset", *TOKENIZERS, "-o", "out"], Exit.USAGE),
        (["parse", "rows.jsonl", *TOKENIZERS], Exit.USAGE),
        (["parse", "rows.jsonl", *TOKENIZERS, "-o", "out", "--lenght", "5"], Exit.USAGE),
        (["parse", "rows.jsonl", *TOKENIZERS, "-o", "out", "--config", "nope.yaml"], Exit.USAGE),
        (["parse", "rows.jsonl", *TOKENIZERS, "-o", "out", "--set", "nope=1"], Exit.USAGE),
        (["parse", "rows.jsonl", *TOKENIZERS, "-o", "out", "--template", "nope"], Exit.USAGE),
        (["parse", "rows.jsonl", *TOKENIZERS, "-o", "out", "--parser-model", "nope"], Exit.INPUT),
        (["parse", "rows.jsonl", "--teacher", "./nope", *TOKENIZERS[2:], "-o", "out"], Exit.INPUT),
        (["align", "nope", "--student", "embedded:bytelevel-bpe"], Exit.STATE),
        (["align", "dataset"], Exit.USAGE),
        (["align", "dataset", "--student", "./nope"], Exit.INPUT),
        (["inspect", "nope"], Exit.STATE),
        (["info", "nope"], Exit.STATE),
        (["verify", "nope"], Exit.STATE),
        (["verify", "dataset", "--dataset", "dataset"], Exit.USAGE),
        (["verify", "cache", "--dataset", "nope"], Exit.STATE),
        (["verify", "cache", "--teacher", "nope"], Exit.USAGE),
        (["cache-teacher", "nope", "--teacher", "embedded:teacher", "-o", "out"], Exit.STATE),
        (["cache-teacher", "dataset", "--teacher", "./nope", "-o", "out"], Exit.INPUT),
        (["cache-teacher", "dataset", "--teacher", "embedded:teacher"], Exit.USAGE),
        (["cache-teacher", "dataset", "--teacher", "embedded:teacher", "-o", "out", "--recipe", "nope"], Exit.USAGE),
        (["cache-teacher", "dataset", "--teacher", "embedded:teacher", "-o", "out", "--signals", "nope"], Exit.USAGE),
        (["cache-teacher", "dataset", "--teacher", "embedded:teacher", "-o", "out", "--layers", "nope"], Exit.USAGE),
        (
            ["cache-teacher", "dataset", "--teacher", "embedded:teacher", "-o", "out", "--student-layers", "1"],
            Exit.USAGE,
        ),
        (["generate", "nope.jsonl", "--model", "embedded:teacher", "-o", "out.jsonl"], Exit.INPUT),
        (["generate", "rows.jsonl", "--model", "./nope", "-o", "out.jsonl"], Exit.INPUT),
        (["generate", "rows.jsonl", "--model", "embedded:teacher"], Exit.USAGE),
        (["generate", "rows.jsonl", "--model", "embedded:teacher", "-o", "out"], Exit.USAGE),
        (["generate", "rows.jsonl", "--model", "embedded:teacher", "-o", "rows.jsonl"], Exit.STATE),
        (["generate", "rows.jsonl", "--model", "embedded:teacher", "-o", "o.jsonl", "--template", "nope"], Exit.USAGE),
        (["generate", "rows.jsonl", "--model", "embedded:teacher", "-o", "o.jsonl", "--set", "nope=1"], Exit.USAGE),
        (["generate", "trees.jsonl", "--model", "embedded:teacher", "-o", "o.jsonl"], Exit.INPUT),
        (["train", "--config", "nope"], Exit.USAGE),
        (["train", "--config", "mta"], Exit.STATE),
        (["evaluate", "run", "embedded:teacher", "--held-out", "nope"], Exit.STATE),
        (["report", "nope"], Exit.STATE),
        (["doctor", "--nope"], Exit.USAGE),
        (["push", "nope", "owner/name"], Exit.STATE),
        (["push", "dataset", "owner/name"], Exit.USAGE),
        (["push", "dataset", "a name"], Exit.USAGE),
        (["pull", "a name"], Exit.USAGE),
        (["info", "hf://models/owner/name"], Exit.USAGE),
        (["eval-parser", "nope"], Exit.INPUT),
        (["eval-parser", "trees.ptb", "--parser-model", "nope"], Exit.INPUT),
        (["train-parser", "nope", "-o", "out", "--state", "state"], Exit.INPUT),
        (["export-parser", "out", "--model", "nope"], Exit.INPUT),
        (["bench", "parser", "nope.jsonl"], Exit.INPUT),
        (["bench", "parser", "--parser-model", "nope"], Exit.INPUT),
    ],
    "trainer.evaluate": [
        (["run", "./nope", "rows.jsonl"], Exit.INPUT),
        (["run", "embedded:teacher", "nope.jsonl"], Exit.INPUT),
        (["run", "embedded:teacher"], Exit.USAGE),
        (["run", "embedded:teacher", "rows.jsonl", "--template", "nope"], Exit.USAGE),
        (["run", "embedded:teacher", "--held-out", "nope"], Exit.STATE),
        (["run", "embedded:teacher", "rows.jsonl", "--out", "nope/result.json"], Exit.USAGE),
        (["compare", "nope.json", "other.json"], Exit.INPUT),
    ],
    "trainer.train": [
        (["--config", "nope.yaml"], Exit.USAGE),
        (["--config", "train.yaml", "--set", "nope=1"], Exit.USAGE),
        (["--config", "train.yaml", "--set", "data.dataset=nope"], Exit.STATE),
        (["--config", "train.yaml", "--set", "data.caches=[nope]"], Exit.STATE),
        (["--config", "train.yaml", "--set", "student.model=./nope"], Exit.INPUT),
    ],
}
COMMANDS = [
    "parse",
    "align",
    "inspect",
    "info",
    "verify",
    "cache-teacher",
    "train",
    "generate",
    "report",
    "doctor",
    "push",
    "pull",
    "eval-parser",
    "train-parser",
    "export-parser",
]
HELP: dict[str, list[list[str]]] = {
    "pipeline.cli": [
        ["--help"],
        ["--version"],
        ["bench", "parser", "--help"],
        ["evaluate", "run", "--help"],
        *([name, "--help"] for name in COMMANDS),
    ],
    "trainer.evaluate": [["--help"], ["run", "--help"], ["compare", "--help"]],
    "trainer.train": [["--help"]],
}
#: Looks at what is there, in the same folder, where `relations` is a cache with two layers of them and of each token's entropy;
#: ID is that of a row.
LOOKS = [
    [*look, *output]
    for folder in ("dataset", "relations")
    for look in (
        ["info", folder],
        ["verify", "--quick", folder],
        ["inspect", folder, "--row", "1"],
        ["inspect", folder, "--id", "ID"],
    )
    for output in ([], ["--json"])
] + [["verify", "--quick", "relations", "--dataset", "dataset"]]
#: All in one process: what one command line imports would be seen from there on, and is told of that one alone.
RUN = """
import contextlib, importlib, io, json, sys
heavy = set(json.loads(sys.argv[1]))
for program, arguments in json.loads(sys.stdin.read()):
    sys.argv = ["program", *arguments]
    module = importlib.import_module(program)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            module.main()
        except SystemExit as ended:
            code = ended.code
    imported = sorted(heavy & sys.modules.keys())
    heavy -= set(imported)
    print(json.dumps([code, imported, said.getvalue()]))
"""


@pytest.fixture(scope="module")
def outcomes(prepared, make_cache, tmp_path_factory):
    """Of every command line: its exit code, what it imported, what it said."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "dataset").symlink_to(prepared)
    (folder / "relations").symlink_to(make_cache(signals=["relations", "entropy"]))
    (folder / "cache").mkdir()
    (folder / "cache" / MANIFEST).write_text(json.dumps({"format": CACHE_FORMAT}))
    (folder / "rows.jsonl").write_text(json.dumps({"prompt": "What is it?", "response": "A mill."}) + "\n")
    (folder / "trees.jsonl").write_text(json.dumps({"tree": "(S (NP (DT A) (NN mill)))"}) + "\n")
    (folder / "trees.ptb").write_text("(S (NP (DT A) (NN mill)))\n")
    student = {"model": "embedded:teacher"}
    values = {"out": "run", "data": {"dataset": "dataset"}, "student": student, "objectives": {"ce": {}}, "steps": 1}
    (folder / "train.yaml").write_text(yaml.safe_dump(values))
    lines = [(program, line) for program, refused in REFUSED.items() for line, _ in refused]
    lines += [(program, line) for program, helps in HELP.items() for line in helps]
    lines += [("pipeline.cli", line) for line in LOOKS]
    given = json.dumps(lines).replace('"ID"', json.dumps(find_row(prepared, 2, None).values["id"]))
    run = [sys.executable, "-c", RUN, json.dumps(HEAVY)]
    done = subprocess.run(run, cwd=folder, input=given, capture_output=True, text=True, check=True)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    return {(program, *line): outcome for (program, line), outcome in zip(lines, told, strict=True)}


@pytest.mark.parametrize("program", REFUSED)
def test_a_refusal_imports_nothing_that_takes_seconds(outcomes, program):
    for line, expected in REFUSED[program]:
        code, imported, said = outcomes[program, *line]
        assert (code, imported) == (expected, []), f"{program} {' '.join(line)}: {said}"
        assert said.startswith(("Error:", "Usage:")), said


@pytest.mark.parametrize("program", HELP)
def test_help_imports_nothing_that_takes_seconds(outcomes, program):
    for line in HELP[program]:
        assert outcomes[program, *line][:2] == [Exit.OK, []]


def test_a_look_imports_nothing_that_takes_seconds(outcomes):
    for line in LOOKS:
        assert outcomes["pipeline.cli", *line][:2] == [Exit.OK, []], " ".join(line)


def test_every_command_is_tried():
    names = {command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands}
    assert set(COMMANDS) == names
    assert names | {"bench", "evaluate"} == {line[0] for line, _ in REFUSED["pipeline.cli"]}
