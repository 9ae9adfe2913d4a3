"""`generate --backend vllm`: what it refuses anywhere; and, where vLLM is installed, that it answers as transformers does."""

import json
from collections import Counter
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.generate import place
from pipeline.generate.plan import planned
from pipeline.generate.vllm_engine import installed, seed_of
from pipeline.shards.ranks import Rank
from schemas.config import GenerateConfig
from schemas.errors import Exit, UsageError
from schemas.responses import read_responses_manifest

ASKED = [
    {"id": "a", "prompt": "The people of the city"},
    {"id": "b", "instruction": "Name a colour."},
    {"id": "c", "instruction": "Name a colour."},
    {"id": "d", "instruction": "Say it in one word.", "context": "It rains, and nobody knows when it will end."},
    {"id": "e", "prompt": "Once upon a time"},
]
with_vllm = pytest.mark.skipif(not installed(), reason="vLLM is not installed")


def config_of(tmp_path, **values):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ASKED), encoding="utf-8")
    base = {"inputs": [str(rows)], "model": {"model": "embedded:teacher"}, "max_new_tokens": 8, "unfinished": "keep"}
    return GenerateConfig.parse(base | {"backend": "vllm", "shard_rows": 2} | values, "test")


def generate(config, out, **options):
    with planned(config, out) as plan:
        return place.generate(plan, **{"workers": 1, "quiet": True} | options)


def answers(path):
    return [row["output"] for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())]


@pytest.mark.skipif(installed(), reason="vLLM is installed")
def test_without_vllm_it_says_how_to_get_it(command, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(ASKED[0]), encoding="utf-8")
    line = ["generate", tmp_path / "rows.jsonl", "--model", "embedded:teacher", "-o", tmp_path / "out.jsonl"]
    code, _, err = command(*line, "--backend", "vllm")
    assert (code, "pip install 'mta-prep[vllm]'" in err) == (Exit.USAGE, True), err
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ({"model": "embedded:teacher", "quantization": "8bit"}, {}, "takes whole models alone"),
        ({"model": "embedded:teacher", "device_map": "auto"}, {}, "takes whole models alone"),
        ({"model": "a.gguf"}, {}, "takes whole models alone"),
        ({"model": "embedded:teacher"}, {"workers": 2}, "runs in one process"),
        ({"model": "embedded:teacher"}, {"rank": Rank(0, 2)}, "runs in one process"),
    ],
)
def test_what_it_does_not_do(monkeypatch, tmp_path, model, options, message):
    monkeypatch.setattr("pipeline.generate.vllm_engine.installed", lambda: True)
    monkeypatch.setattr("pipeline.generate.vllm_engine.vllm_version", lambda: "0")
    with pytest.raises(UsageError, match=message):
        generate(config_of(tmp_path, model=model), tmp_path / "out.jsonl", **options)


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**40))
def test_every_row_has_a_seed_of_its_own(seed, row):
    seeds = Counter(seed_of(*pair) for pair in ((seed, row), (seed, row + 1), ((seed + 1) % 2**63, row)))
    assert set(seeds.values()) == {1}
    assert all(0 <= each < 2**63 for each in seeds)


@with_vllm
def test_greedy_answers_are_those_of_transformers(tmp_path):
    out = {name: tmp_path / f"{name}.jsonl" for name in ("vllm", "transformers")}
    for name, path in out.items():
        generate(config_of(tmp_path, backend=name, sampling={"greedy": True}), path)
    assert out["vllm"].read_bytes() == out["transformers"].read_bytes()


@with_vllm
def test_drawn_answers_depend_on_the_row_and_the_seed_alone(tmp_path, killed_at):
    plain = tmp_path / "plain.jsonl"
    generate(config_of(tmp_path), plain)
    assert read_responses_manifest(plain).versions["vllm"]
    first, second, third = answers(plain)[:3]
    assert second != third, "the same prompt"
    killed = tmp_path / "killed.jsonl"
    killed_at("00001.rows", "before", partial(generate, config_of(tmp_path), killed))
    generate(config_of(tmp_path), killed)
    assert killed.read_bytes() == plain.read_bytes()
    for name, values in {"other": {"batch_size": 1, "shard_rows": 5}, "seed": {"sampling": {"seed": 43}}}.items():
        generate(config_of(tmp_path, **values), tmp_path / f"{name}.jsonl")
        assert (answers(tmp_path / f"{name}.jsonl") == answers(plain)) == (name == "other")
    assert first


@with_vllm
@pytest.mark.parametrize(("device", "message"), [("cuda", "vLLM here was built for cpu, not for --device cuda")])
def test_a_device_that_it_was_not_built_for(tmp_path, device, message):
    model = {"model": "embedded:teacher", "device": device}
    with pytest.raises(UsageError, match=message):
        generate(config_of(tmp_path, model=model), tmp_path / "out.jsonl")
