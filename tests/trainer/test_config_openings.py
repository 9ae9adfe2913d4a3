"""Every config that comes along begins with the commands that make its data: they are understood, and make what it needs."""

import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
import typer

from pipeline import cli
from schemas.training import TrainConfig
from trainer.batches.documents import Documents
from trainer.student.model import Student
from trainer.teacher.cached import CachedTeacher
from trainer.teacher.caches import Caches
from trainer.terms import needs_of, terms_of

CONFIGS = sorted((Path(__file__).parents[2] / "trainer" / "configs").glob("*.yaml"))
ROWS = 3
#: Of teachers that configs name.
DEPTHS = {"openai-community/gpt2-xl": 48, "Qwen/Qwen1.5-1.8B": 24, "Qwen/Qwen2.5-7B": 28}
SIZES = {"n_embd": 8, "n_head": 2, "vocab_size": 4096, "n_positions": 2048, "bos_token_id": 1, "eos_token_id": 1}


def openings(path):
    """The commands, as words: `parse`, …"""
    return [line.split()[1:] for line in re.findall(r"^#\s+(mta-prep .*)$", path.read_text(encoding="utf-8"), re.M)]


@pytest.fixture(scope="module")
def teachers(tiny_teacher, tmp_path_factory):
    """As deep as those that configs name, by name."""
    folders = {}
    for name, depth in DEPTHS.items():
        folders[name] = tmp_path_factory.mktemp("deep") / "teacher"
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=depth, **SIZES))
        model.save_pretrained(folders[name])
        for file in tiny_teacher.glob("tokenizer*"):
            shutil.copy(file, folders[name])
    return folders


@pytest.fixture(scope="module")
def student():
    """As deep as GPT-2, which they name."""
    torch.manual_seed(1)
    return Student(transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=12, **SIZES)))


@pytest.fixture(scope="module")
def cached(teachers, tmp_path_factory):
    """Runs `cache-teacher` on some rows with the rest of its arguments, once for all that say the same; the cache."""
    made = {}

    def run(command, dataset, arguments):
        arguments = [dataset, *arguments[1:]]
        named = arguments.index("--teacher") + 1
        arguments[named] = str(teachers[arguments[named]])
        place = arguments.index("--out")
        key = (*arguments[:place], *arguments[place + 2 :])
        if key not in made:
            made[key] = arguments[place + 1] = str(tmp_path_factory.mktemp("caches") / "cache")
            code, _, said = command("cache-teacher", *arguments, "--limit", ROWS)
            assert code == 0, said
        return made[key]

    return run


def test_all_that_have_a_teacher_say_how_to_make_its_cache():
    caching = {path.stem for path in CONFIGS if any(words[0] == "cache-teacher" for words in openings(path))}
    with_caches = {path.stem for path in CONFIGS if "caches:" in path.read_text(encoding="utf-8")}
    assert caching == with_caches - {"demo"}  # whose data `make demo` makes
    assert len(caching) >= 14


@pytest.mark.parametrize("path", [path for path in CONFIGS if openings(path)], ids=lambda path: path.stem)
def test_the_opening_makes_what_the_config_needs(path, command, cached, student, same, mined):
    app, made = typer.main.get_command(cli.app), {}
    for words in openings(path):
        name, *arguments = words
        with app.commands[name].make_context(
            name, list(arguments)
        ) as context:  # every flag is known, and takes its value
            out = str(context.params["out"])
        if name == "parse":
            models = [arguments[arguments.index(flag) + 1].split("-")[0] for flag in ("--teacher", "--student")]
            made[out] = str(same if models[0] == models[1] else mined)
        if name == "cache-teacher":
            # of a dataset made for another config, where none is parsed here
            made[out] = cached(command, made.get(arguments[0], str(same)), arguments)
    config = TrainConfig.parse(TrainConfig.from_yaml(path), path.name)
    datasets = {
        name: Caches(
            [made[cache] for cache in each.caches], Documents(Path(made.get(each.dataset, str(same))), each.limit)
        )
        for name, each in config.data.datasets.items()
    }
    terms = terms_of(config, student, datasets)
    for name, needs in needs_of(config, terms, datasets).items():
        batch = CachedTeacher(datasets[name], needs).fetch(range(ROWS))
        assert len(batch.targets)
