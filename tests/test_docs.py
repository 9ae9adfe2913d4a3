"""README and docs are true: commands run, code runs, what is shown as printed is printed, links lead somewhere.

Commands run in one folder, page after page, with embedded tokenizers and models in place of those of a hub. What needs
several GPUs, a cluster, a student or a treebank is parsed with its own parser and not run; tests of their own run it.
Every block is of a kind that is held so: `test_every_block_is_held_to_something` knows no other.
"""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from declared_flags import COMMAND, FLAG, PIPELINE
from documented import BLOCK, BY_CODE, PAGES, QUICK_START, ROOT, Block, blocks_of, blocks_on, commands_of, output_of
from pipeline import cli
from schemas import embedded
from schemas.training import TrainConfig
from trainer import train
from trainer.config import load_config
from trainer.objectives import REGISTRY

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
def test_code_runs(block, folder, ran, monkeypatch, capsys):
    if not ran:
        pytest.skip("runs on what the commands leave; run the whole file")
    monkeypatch.chdir(folder)
    exec(compile(block.body, str(block), "exec"), {})
    printed = capsys.readouterr().out
    assert printed == (output_of(block) or "")


@pytest.mark.xdist_group("docs")
@pytest.mark.parametrize("block", [block for block in blocks_of("text") if block.command], ids=str)
def test_what_is_printed(block, folder, ran, command, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "400")
    printed = [line.rstrip() for line in run_words(shlex.split(block.command), command).splitlines()]
    assert [line for line in block.body.splitlines() if line not in printed] == []


(TREE,) = blocks_of("", PAGES[:1])
CONFIGS = [block for block in blocks_of("yaml") if block.page.name == "training.md"]
CLUSTERS = [block for block in blocks_of("yaml") if block.page.name == "clusters.md"]


@pytest.mark.parametrize("block", CONFIGS, ids=str)
def test_a_config_is_one(block):
    values = yaml.safe_load(block.body)
    config = TrainConfig.parse({"student": {"model": "m"}} | values, str(block))
    for name, options in config.objectives.items():
        REGISTRY[options.get("term", name)].options.parse(dict(options), f"{block}: {name}")


@pytest.mark.parametrize("block", CLUSTERS, ids=str)
def test_a_cluster_mounts_what_it_has_and_is_of_the_tested_version(block):
    spec = yaml.safe_load(block.body)["spec"]
    assert f"ray=={spec['rayVersion']}" in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pods = [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    for pod in pods:
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def held_to(block: Block) -> bool:
    """Whether something here or elsewhere runs a block, reads it, or makes what it shows."""
    match block.kind, (block.source or "").split(": ", 1):
        case "sh" | "python" | "math", _:  # above, and the equations in tests/test_site.py
            return True
        case "yaml", _:
            return block in (*CONFIGS, *CLUSTERS)
        case "text", ["printed by", _]:
            return True
        case "text", ["printed by a run", target]:
            return any(words == shlex.split(target) for block in blocks_of("sh") for words in commands_of(block))
        case "text", [source]:
            test = ROOT / source.removeprefix("shown by ")
            return source == BY_CODE or (test.is_file() and block.page.name in test.read_text(encoding="utf-8"))
        case _:
            return block == TREE


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_held_to_something(page):
    assert [str(block) for block in blocks_on(page) if not held_to(block)] == []


def test_the_tree_in_the_readme_is_that_of_the_repository():
    shown, top = set(), Path()
    for line in TREE.body.splitlines():
        names = re.split(r"\s{2,}", line.strip())[0].split()
        top = top if line.startswith(" ") else Path(names[0])
        shown |= {top / name for name in names} if line.startswith(" ") else {top}
    assert [str(path) for path in shown if not (ROOT / path).exists()] == []
    files = [path for package in ("pipeline", "trainer") for path in ROOT.glob(f"{package}/*/*.*")]
    folders = {file.parent.relative_to(ROOT) for file in files if file.parent.name != "__pycache__"}
    assert folders - shown == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_sentences_exist_with_their_flags(page):
    spans = re.findall(r"`(mta-prep [^`]+)`", BLOCK.sub("", page.read_text(encoding="utf-8")))
    wrong = []
    for span in spans:
        for name, rest in COMMAND.findall(span):
            known = PIPELINE.get(name, set())
            wrong += [span] if not known or not set(FLAG.findall(rest)) <= known | {"--debug"} else []
    assert wrong == []


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
