"""README and docs are true: their commands run, their code runs, what they print is printed, their links lead somewhere.

Commands run in one folder, page after page, with embedded tokenizers and models in place of those of a hub. What needs
several GPUs, a cluster, a student or a treebank is parsed with its own parser and not run; tests of their own run it.
"""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer

from documented import BLOCK, PAGES, QUICK_START, ROOT, blocks_of, commands_of
from pipeline import cli
from schemas import embedded
from trainer import train
from trainer.config import load_config

#: Local stand-ins for what has to be fetched, and for devices that are not here.
STAND_INS = {
    "Qwen/Qwen2.5-7B": "embedded:teacher",
    "openai-community/gpt2": "embedded:bytelevel-bpe",
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": "embedded:sentencepiece-bpe",
    "cuda": "cpu",
}
#: `mta-prep` commands that take a student, a treebank, minutes, or a hub (tests/pipeline/hub runs those of its page).
PARSED_ONLY = {"evaluate", "push", "pull", "eval-parser", "export-parser", "train-parser", "bench"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a reader's commands run: a few rows of the sample as their data."""
    path = tmp_path_factory.mktemp("reader")
    rows = Path(embedded.resolve("embedded:sample")).read_text(encoding="utf-8").splitlines(keepends=True)
    (path / "data.jsonl").write_text("".join(rows[:6]), encoding="utf-8")
    return path


def parsed(app: typer.Typer, words: list[str]) -> None:
    """Take a command line apart as its own command would, without running it."""
    command, arguments = typer.main.get_command(app), words
    context = command.make_context("command", [], resilient_parsing=True)
    while hasattr(command, "commands"):
        name, *arguments = arguments
        command = command.get_command(context, name)
        assert command is not None, name
    command.make_context("command", [*arguments])  # which takes its list apart


def run_words(words: list[str], command) -> str:
    """Run, or where that takes what is not here, check a command line; what it printed."""
    match words:
        case ["mta-prep", *arguments] if any(word.startswith("hf://") for word in arguments):
            pass  # tests/pipeline/hub runs it
        case ["mta-prep", name, *rest] if name in PARSED_ONLY or "--engine" in rest:
            parsed(cli.app, words[1:])
        case ["mta-prep", "train", *arguments] | [
            "deepspeed",
            "--num_gpus",
            _,
            "--module",
            "trainer.train",
            *arguments,
        ]:
            parsed(train.app, arguments)
            flags = list(zip(arguments[::2], arguments[1::2], strict=True))
            (config,) = (value for flag, value in flags if flag == "--config")
            load_config(Path(config), [value for flag, value in flags if flag == "--set"])
        case ["mta-prep", *arguments]:
            code, out, err = command(*(STAND_INS.get(word, word) for word in arguments))
            assert code == 0, err
            return out
        case ["torchrun", "--nproc-per-node", _, "-m", "pipeline", *arguments] | [
            "srun",
            "--kill-on-bad-exit",
            "mta-prep",
            *arguments,
        ]:
            parsed(cli.app, arguments)
        case ["make", target, *variables]:
            subprocess.run(
                ["make", "--dry-run", "--silent", target, *variables], cwd=ROOT, check=True, capture_output=True
            )
        case ["python", *files]:
            assert all((ROOT / file).exists() for file in files), files
        case [".venv/bin/pre-commit", "install"]:
            pass
        case ["pytest", folder]:
            assert (ROOT / folder).is_dir()
        case _:
            pytest.fail(f"no test knows the command {shlex.join(words)}")
    return ""


@pytest.fixture(scope="module")
def ran(folder):
    """Commands that ran already in the folder: pages repeat each other."""
    return {}


@pytest.mark.xdist_group("docs")
@pytest.mark.parametrize("block", blocks_of("sh"), ids=str)
def test_commands_run(block, folder, ran, command, monkeypatch):
    monkeypatch.chdir(folder)
    for words in commands_of(block):
        line = shlex.join(words)
        if block.page == QUICK_START and words[0] == "mta-prep":
            parsed(cli.app, words[1:])
        elif line not in ran:
            ran[line] = run_words(words, command)


@pytest.mark.xdist_group("docs")
@pytest.mark.parametrize("block", blocks_of("python"), ids=str)
def test_code_runs(block, folder, ran, monkeypatch):
    if not ran:
        pytest.skip("runs on what the commands leave; run the whole file")
    monkeypatch.chdir(folder)
    exec(compile(block.body, str(block), "exec"), {})


@pytest.mark.xdist_group("docs")
@pytest.mark.parametrize("block", [block for block in blocks_of("text") if block.command], ids=str)
def test_what_is_printed(block, folder, ran, command, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "400")
    printed = [line.rstrip() for line in run_words(shlex.split(block.command), command).splitlines()]
    assert [line for line in block.body.splitlines() if line not in printed] == []


def links_of(page: Path) -> list[str]:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    return [link for link in links if "://" not in link]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    missing = [link for link in links_of(page) if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:schemas|pipeline|trainer|tests|data|docs)/[\w./-]+)(?:::(\w+))?`", text)
    missing = sorted(
        f"{path} {test}"
        for path, test in set(named)
        if not (ROOT / path).exists() or (test and f"def {test}(" not in (ROOT / path).read_text(encoding="utf-8"))
    )
    assert not missing
