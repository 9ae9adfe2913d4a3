"""Shared by all tests: no network, one hypothesis profile, the embedded parser loaded once."""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from browsing import browser  # noqa: F401  # a fixture
from disks import small_disk  # noqa: F401  # a fixture
from forks import forked_workers, killed_after, killed_at, on_full_disk, on_ranks, signalled_at  # noqa: F401  # fixtures
from hub_stand_in import hub  # noqa: F401  # a fixture
from same_folders import pytest_collect_directory  # noqa: F401  # a hook
from whole_files import pytest_xdist_make_scheduler  # noqa: F401  # a hook

_ALWAYS = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("project", max_examples=50, derandomize=True, **_ALWAYS)
settings.register_profile("thorough", max_examples=1000, **_ALWAYS)  # pytest --hypothesis-profile=thorough
settings.load_profile("project")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def embedded_parser():
    """The embedded model, loaded once a process."""
    from pipeline.parse import model

    return model.load("embedded")


class LargestTensor(TorchDispatchMode):
    """Records the most elements that any operation returned."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.numel())
        return result


@pytest.fixture
def largest_tensor():
    """A context that records how large a tensor any operation in it returned."""
    return LargestTensor()


SAMPLE_ROWS = 24


@pytest.fixture(scope="session")
def sample_file(tmp_path_factory):
    """Some rows of the embedded sample: prose, code, scripts, emoji."""
    from schemas import embedded

    lines = Path(embedded.resolve("embedded:sample")).read_text(encoding="utf-8").splitlines(keepends=True)
    path = tmp_path_factory.mktemp("sample") / "rows.jsonl"
    path.write_text("".join(lines[:: len(lines) // SAMPLE_ROWS][:SAMPLE_ROWS]), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def settings_for(sample_file):
    """Makes a config on the sample; keyword arguments override."""
    from schemas.config import ParseConfig

    def make(**values):
        base = {
            "inputs": [str(sample_file)],
            "teacher": {"tokenizer": "embedded:sentencepiece-bpe"},
            "student": {"tokenizer": "embedded:bytelevel-bpe"},
            "parser": {"keep_trees": True},
            "shard_rows": 5,
        }
        return ParseConfig.parse(base | values, "test")

    return make


@pytest.fixture(scope="session")
def prepared(settings_for, tmp_path_factory):
    """An uninterrupted run of the sample in one process."""
    from pipeline.dataset.prepare import prepare

    out = tmp_path_factory.mktemp("prepared") / "out"
    prepare(settings_for(), out, workers=1, quiet=True)
    return out


@pytest.fixture(scope="session")
def shard_a_row(settings_for, tmp_path_factory):
    """Makes a config of so many short rows, a shard each, and an uninterrupted run of it."""
    from pipeline.dataset.prepare import prepare

    def make(row_count):
        folder = tmp_path_factory.mktemp("short")
        rows = [
            {"instruction": f"Name {row} birds.", "output": "The owl and the wren sing."} for row in range(row_count)
        ]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        config = settings_for(inputs=[str(folder / "rows.jsonl")], shard_rows=1)
        prepare(config, folder / "out", workers=1, quiet=True)
        return config, folder / "out"

    return make


@pytest.fixture(scope="session")
def contents():
    """Every file below a folder, by relative path."""

    def read(folder):
        return {
            str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
        }

    return read


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `mta-prep` in this process, without others but those it is told to start: (exit code, standard output, standard
    error)."""
    from pipeline import cli
    from pipeline.shards import pool

    monkeypatch.setattr(pool, "default_workers", lambda: 1)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mta-prep", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory):
    """Folder of a random Llama of 4 layers that has the sample's teacher tokenizer as its own."""
    import shutil

    from transformers import LlamaConfig, LlamaForCausalLM

    from schemas import embedded

    folder = tmp_path_factory.mktemp("tiny-teacher") / "llama"
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=2048,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in Path(embedded.resolve("embedded:sentencepiece-bpe")).glob("tokenizer*.json"):
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="session")
def cache_plan(prepared, tiny_teacher):
    """Plans a teacher cache of the prepared sample; keyword arguments override the config."""
    from pipeline.cache import plan
    from schemas.config import CacheConfig
    from trainer.teacher.shape import shape_of

    def make(**values):
        base = {
            "dataset": str(prepared),
            "teacher": {"model": str(tiny_teacher)},
            "layers": [{"layer": 2, "granularity": "words"}, {"layer": 4, "granularity": "chunks"}],
            "signals": ["relations"],
            "token_budget": 1024,
            "shard_tokens": 1500,
        }
        config = CacheConfig.parse(base | values, "test")
        return plan.plan_cache(config, [], shape_of(config.teacher))

    return make


@pytest.fixture(scope="session")
def make_cache(cache_plan, tmp_path_factory):
    """Caches of the prepared sample, each made once; keyword arguments override the config."""
    from pipeline.cache import plan

    made = {}

    def make(**values):
        key = json.dumps(values, sort_keys=True)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("cache") / "out"
            plan.cache(cache_plan(**values), made[key], workers=1, quiet=True)
        return made[key]

    return make


@pytest.fixture(scope="session")
def source_of_all_terms(make_cache, same):
    """Batches of the sample with what every term of `cached_batches.TERMS` needs of the teacher."""
    from cached_batches import source_of_everything

    return source_of_everything(make_cache, same)


@pytest.fixture(scope="session")
def student_of_three(tiny_teacher):
    """Three of the tiny teacher's layers, as a config's `student` with some values has them; for all tests the same."""
    import functools

    from schemas.training import StudentConfig
    from trainer.student.model import load_student

    @functools.cache
    def make(**values):
        config = {"model": str(tiny_teacher), "init": {"layers": [0, 1, 3]}}
        return load_student(StudentConfig.parse(config | values, "test"), seed=0)

    return make


@pytest.fixture(scope="session")
def mined(prepared, tmp_path_factory):
    """The sample with its tokens aligned by edit distance."""
    from pipeline.dataset.realign import realign

    out = tmp_path_factory.mktemp("mined") / "out"
    realign(prepared, out, {}, None, mined="exact", workers=1, overwrite=False, quiet=True)
    return out


@pytest.fixture(scope="session")
def same(prepared, tmp_path_factory):
    """The sample for a student that has the teacher's tokenizer."""
    from pipeline.dataset.realign import realign

    out = tmp_path_factory.mktemp("same") / "out"
    sides = {"student": {"tokenizer": "embedded:sentencepiece-bpe"}}
    realign(prepared, out, sides, None, workers=1, overwrite=False, quiet=True)
    return out
