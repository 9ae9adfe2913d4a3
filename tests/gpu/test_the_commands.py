"""The commands on a card: a teacher cache, generation, and a training run under the launcher that is stopped and goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from a_card import NEEDS_A_CARD
from launching import TRAIN, free_port, metrics
from launching import command as train_command
from schemas import embedded
from schemas.training import TrainConfig
from trainer.cache import TeacherCache
from trainer.evaluation.generate import Generator, Prompt, Sampling

pytestmark = NEEDS_A_CARD
DEVICE = "cuda:0"
#: What a cache of everything holds; `make_cache` makes the same one on the CPU.
EVERYTHING = {"signals": ["relations", "units", "states", "final", "topk", "attention"], "state_tokens": "all"}
#: Of sums in float32 through four layers of weights that are large, as parts of a vector's largest element.
ROUNDING = 1e-4
PROMPTS, NEW_TOKENS = 24, 32
PATIENCE = 120  # seconds


def test_a_cache_made_on_the_card(command, same, make_cache, tiny_teacher, tmp_path):
    """The command's cache holds the CPU's values: two roundings to bfloat16 apart, and sums in another order."""
    expected = TeacherCache(make_cache(**EVERYTHING))
    layers = ",".join(f"{layer}:{granularity}" for layer, granularity in expected.layers.items())
    flags = ["--teacher", tiny_teacher, "--layers", layers, "--signals", ",".join(EVERYTHING["signals"])]
    out = tmp_path / "out"
    on_card = ["--device", DEVICE, "--workers", 1, "--set", "state_tokens=all"]
    code, _, errors = command("cache-teacher", same, *flags, *on_card, "--out", out)
    assert code == 0, errors
    cache = TeacherCache(out)
    assert cache.ids == expected.ids
    assert cache.layers == expected.layers
    for row in range(len(cache.ids)):
        for layer in cache.layers:
            assert torch.equal(cache.unit_index(row, layer), expected.unit_index(row, layer))
            relations = cache.relations(row, layer), expected.relations(row, layer)
            torch.testing.assert_close(*relations, rtol=0, atol=3.2e-5 + ROUNDING)  # stored in steps of 2⁻¹⁵
            assert_stored_alike(cache.units(row, layer), expected.units(row, layer))
            assert_stored_alike(cache.states(row, layer), expected.states(row, layer))
            weights = cache.token_weights(row, layer), expected.token_weights(row, layer)
            torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-6)
            attention = cache.attention(row, layer), expected.attention(row, layer)
            torch.testing.assert_close(*attention, rtol=1e-3, atol=1e-5)
        assert_stored_alike(cache.final(row), expected.final(row))
        # which of two nearly equal ones is the last of them is no matter, their probabilities are
        torch.testing.assert_close(cache.topk(row)[1], expected.topk(row)[1], rtol=2.0**-10, atol=1e-3)


def assert_stored_alike(vectors, expected):
    """Either was rounded to bfloat16's 8 bits once, by at most half a step of 2⁻⁸ of its size."""
    peak = expected.abs().amax(1, keepdim=True)
    assert bool(((vectors - expected).abs() <= 2.0**-7 * expected.abs() + 2 * ROUNDING * peak).all())


@pytest.fixture(scope="module")
def prompts():
    tokenizer = AutoTokenizer.from_pretrained(embedded.resolve("embedded:teacher"))
    lines = Path(embedded.resolve("embedded:sample")).read_text(encoding="utf-8").splitlines()[:PROMPTS]
    ids = [tuple(tokenizer(json.loads(line)["instruction"])["input_ids"]) for line in lines]
    assert len({len(prompt) for prompt in ids}) > 3, "rows are padded"
    return [Prompt(prompt, row, seed=10) for row, prompt in enumerate(ids)]


def responses(prompts, device, dtype, size):
    model = AutoModelForCausalLM.from_pretrained(embedded.resolve("embedded:teacher"), dtype=dtype).eval().to(device)
    generator = Generator(model, [], NEW_TOKENS, Sampling(temperature=0.8, top_p=0.95))
    firsts = range(0, len(prompts), size)
    return [response.ids for first in firsts for response in generator(prompts[first : first + size])]


def test_responses_in_float32_depend_on_neither_batch_nor_device(prompts):
    """The noise is the host's; logits differ by some 1e-6, and a token where two are as near: in 768 tokens that is rare."""
    on_card = {size: responses(prompts, DEVICE, torch.float32, size) for size in (3, 8, PROMPTS)}
    assert on_card[3] == on_card[8] == on_card[PROMPTS]
    assert on_card[PROMPTS] == responses(prompts, "cpu", torch.float32, PROMPTS)


def test_responses_in_bfloat16_are_the_same_again(prompts, record_property):
    once, again = (responses(prompts, DEVICE, torch.bfloat16, 8) for _ in range(2))
    assert once == again
    one_batch = responses(prompts, DEVICE, torch.bfloat16, PROMPTS)
    record_property(
        "responses that another batch size changes", sum(a != b for a, b in zip(once, one_batch, strict=True))
    )


def test_generate(command, tmp_path):
    """The command: a response for every row, on the card as on the CPU."""
    pytest.importorskip("rouge_score.rouge_scorer")
    lines = Path(embedded.resolve("embedded:sample")).read_text(encoding="utf-8").splitlines(keepends=True)[:4]
    (tmp_path / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    written = []
    for device in (DEVICE, "cpu"):
        out = tmp_path / f"{len(written)}.jsonl"
        flags = ["--model", "embedded:teacher", "--max-new-tokens", 16, "--unfinished", "keep", "--device", device]
        code, _, errors = command("generate", tmp_path / "rows.jsonl", *flags, "--dtype", "float32", "--out", out)
        assert code == 0, errors
        written.append([json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()])
    assert len(written[0]) == 4
    assert written[0] == written[1]


def demo(dataset, cache, student, out):
    """`make demo`'s training config with a student and data of the tests, in bfloat16 and with ZeRO-2."""
    config = yaml.safe_load((TRAIN.parent / "configs" / "demo.yaml").read_text(encoding="utf-8"))
    assert config["deepspeed"] == "zero2"
    config["student"] = {"model": str(student), "init": {"layers": [0, 1, 3]}}
    config["data"] = {"dataset": str(dataset), "caches": [str(cache)], "batch_size": 12, "workers": 0}
    config |= {"precision": "bf16", "steps": 40, "out": str(out), "log": {"every": 1, "tensorboard": False}}
    config["checkpoint"] = {"every": 20}
    return TrainConfig.parse(config, "test").model_dump(mode="json", exclude_unset=True)


def test_a_run_that_is_stopped_and_goes_on(same, make_cache, tiny_teacher, tmp_path):
    """Stopped by SIGTERM in its steps, then begun again under DeepSpeed's launcher: every step once, and the loss falls."""
    pytest.importorskip("deepspeed")
    out = tmp_path / "out"
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(demo(same, make_cache(**EVERYTHING), tiny_teacher, out)), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    log, lines = tmp_path / "first.log", out / "metrics.jsonl"
    with log.open("wb") as told:
        run = subprocess.Popen(train_command(1, "--config", file), env=environment, stdout=told, stderr=told)
        began = time.monotonic()
        while run.poll() is None and not (lines.exists() and b"\n" in lines.read_bytes()):
            assert time.monotonic() - began < PATIENCE, log.read_text()[-4000:]
            time.sleep(0.02)
        run.send_signal(signal.SIGTERM)
        code = run.wait(PATIENCE)
    assert code not in (0, -signal.SIGTERM), log.read_text()[-4000:]
    steps = [record["step"] for record in metrics(out)]
    assert 0 < len(steps) < 40

    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "1", "--master_port", str(free_port())]
    launched = [*launcher, str(TRAIN), "--config", str(file)]
    ended = subprocess.run(launched, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 0, (ended.stdout + ended.stderr)[-6000:]
    records = [record for record in metrics(out) if "loss" in record]
    assert [record["step"] for record in records] == list(range(1, 41))
    losses = [record["loss"] for record in records]
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5]), losses
    assert (out / "student" / "model.safetensors").is_file()
