"""The same output whatever the road (invariant 2): workers, threads, ranks and configs read back change no byte.

Interruption and resume: `test_4_nothing_half_written_is_whole.py`, `tests/faults/test_cache_faults.py`. Training, in
which sums come in another order: `tests/trainer/test_run.py`.
"""

import json
import pickle
from functools import partial

import pytest

from pipeline.cache.plan import cache, make_stage
from pipeline.dataset.prepare import prepare
from pipeline.shards import pool
from pipeline.shards.workspace import CONFIG
from schemas.config import ParseConfig

EVERY = ["relations", "units", "states", "final", "topk", "attention"]


def test_the_number_of_workers_changes_no_byte(settings_for, prepared, contents, tmp_path):
    """The workers are as they are for users: started anew, with everything handed to them pickled."""
    prepare(settings_for(), tmp_path / "out", workers=2, quiet=True)
    assert contents(tmp_path / "out") == contents(prepared)


def test_the_resolved_config_gives_the_same_dataset(prepared, contents, tmp_path):
    values = ParseConfig.from_yaml(prepared / CONFIG)
    prepare(ParseConfig.parse(values, "config.yaml"), tmp_path / "out", workers=1, quiet=True)
    assert contents(tmp_path / "out") == contents(prepared)


@pytest.fixture(scope="module")
def plan(cache_plan):
    return cache_plan(signals=EVERY)


@pytest.fixture(scope="module")
def whole(plan, tmp_path_factory):
    """Every signal, by one process with one thread."""
    out = tmp_path_factory.mktemp("cache") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "default_workers", lambda: 1)
        cache(plan, out, workers=1, quiet=True)
    return out


def test_threads_change_no_byte_of_a_cache(plan, whole, contents, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "default_workers", lambda: 3)
    assert plan.shards >= 4
    cache(plan, tmp_path / "out", workers=1, quiet=True)
    assert contents(tmp_path / "out") == contents(whole)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_change_no_byte_of_a_cache(forked_workers, plan, whole, contents, tmp_path):
    assert pickle.loads(pickle.dumps(partial(make_stage, plan, 0, 1))).args == (plan, 0, 1)  # for workers started anew
    cache(plan, tmp_path / "out", workers=2, quiet=True)
    assert contents(tmp_path / "out") == contents(whole)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_ranks_write_what_one_process_writes(on_ranks, whole, contents, tmp_path):
    first, second = on_ranks("cache-teacher", "--config", whole / CONFIG, "--out", tmp_path / "out", "--json")
    assert contents(tmp_path / "out") == contents(whole)
    assert json.loads(first)["rows"] == 24
    assert second == "", "rank 0 tells, and nobody else"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_ranks_parse_and_align_what_one_process_does(on_ranks, prepared, same, contents, tmp_path):
    first, second = on_ranks(
        "parse", "--config", prepared / CONFIG, "--workers", 1, "--out", tmp_path / "out", "--json"
    )
    assert contents(tmp_path / "out") == contents(prepared)
    assert (json.loads(first)["rows_in"], second) == (24, "")
    sides = ["--student", "embedded:sentencepiece-bpe", "--workers", 1]
    first, second = on_ranks("align", tmp_path / "out", *sides, "--out", tmp_path / "same", "--json")
    assert contents(tmp_path / "same") == contents(same)
    assert (json.loads(first)["rows_in"], second) == (24, "")
