"""The trainer as it is run: from a cache as with the teacher live, on one rank as on two, interrupted as not."""

import json
import os
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from launching import (
    STEPS,
    assert_same,
    command,
    compared,
    ended,
    environment,
    finish,
    launch,
    metrics,
    start,
    told,
    train_command,
)

# one process has the runs that all of these look at
pytestmark = pytest.mark.xdist_group("trainer")

HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, **HEADS}
#: Where the documents are dealt to other micro-batches or ranks, sums are in another order; some steps amplify that.
ANOTHER_ORDER = 1e-4
#: Relative, of invariant 1: relations are cached as int16.
CACHED = 1e-4
SHORT = {
    "init": "config",
    "config": {
        "model_type": "gpt2",
        "vocab_size": 4096,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 40,
        "bos_token_id": 1,
        "eos_token_id": 1,
    },
}
FDD = {"srkl": {}, "fdd": {}, "fdd_normed": {"term": "fdd", "norm": True}}
SORTED = 256
#: Of `uld` from the signal `sorted`, absolute: float16 moves a probability p by 2^-11 p, or 2^-25 where that is more. A distance
#: Σ_v |p^S_v − p^T_v| + |rest^S − rest^T| moves by the sum of that over the likeliest tokens, of which p is at most 1, and
#: once more by that of the rest, which is what these leave of 1; and a mean of distances by no more than the largest.
OF_SORTED = {"uld_sorted": 2 * (2**-11 + SORTED * 2**-25)}
#: Of terms that need no common tokens: one with the least that can turn over by a last bit.
SPACES = {
    "ce": {},
    "dwa": {"divergence": "fkl"},
    "dskd": {"gate": "none"},
    "dskd_eta": {"gate": "none"},
    "soft_dtw": {"weight": 0.2, "gamma": {"start": 2.0, "end": 0.8}},
    "span_cos": {"layers": [{"student": 1, "teacher": 2}, {"student": 2, "teacher": 4}], "delta": True},
    "span_geometry": {"weight": 50},
    "span_kl": {"reduce": "mean"},
    "dsa": {"weight": 0.1},
    "soft_dtw_whole": {"term": "soft_dtw", "weight": 0.1, "positions": "all", "on": ["hidden"]},
    "uld": {"alignment": "chunks", "k": 256},
    # not learnt from, so that its rounding moves nothing but itself
    "uld_sorted": {"term": "uld", "source": "sorted", "k": SORTED, "weight": 0},
    "gold": {"beta": 0.5},
    "mined": {"prefix": "exact"},
}
UNITS = {"ce": {}, "hidden": {"level": "unit"}, "dsa": {"metric": "distance"}}


@pytest.fixture(scope="session")
def runs(config, folders, tmp_path_factory):
    """Runs that are compared with each other, by name."""
    base = tmp_path_factory.mktemp("runs")
    live = {"teacher": "live", "teacher_model": {"model": str(folders["teacher"])}}
    of_ranks = {
        1: {
            "cached": {},
            "learns": {"steps": 20, "validate_every": 8},
            "live": live,
            "parts": {"data": {"micro_batches": 2}},
            "cross": {"dataset": "other"},
            "cross-live": {"dataset": "other", **live},
            "zero2": {"deepspeed": "zero2"},
            "fdd": {"objectives": FDD},
            "fdd-live": {"objectives": FDD, **live},
            "units": {"dataset": "other", "objectives": UNITS},
            "units-live": {"dataset": "other", "objectives": UNITS, **live},
            "spaces": {"dataset": "other", "objectives": SPACES, "steps": 4},
            "spaces-live": {"dataset": "other", "objectives": SPACES, "steps": 4, **live},
        },
        2: {
            "two": {},
            "two-zero2": {"deepspeed": "zero2"},
            "two-zero2-live": {"deepspeed": "zero2", **live},
            "two-zero3": {"deepspeed": "zero3", "student": {"gradient_checkpointing": True}},
            "two-zero3-offload": {"deepspeed": "zero3-offload"},
            "two-lora": {"deepspeed": "zero2", "student": {"lora": {"r": 4}}},
            "two-lora-zero3": {"deepspeed": "zero3", "student": {"lora": {"r": 4}}},
            "two-cross-zero2": {"deepspeed": "zero2", "dataset": "other"},
            "two-cross-zero2-live": {"deepspeed": "zero2", "dataset": "other", **live},
            "two-spaces-zero2": {"deepspeed": "zero2", "dataset": "other", "objectives": SPACES, "steps": 4},
            "fails": {},
            "two-bf16": {"deepspeed": "zero2", "precision": "bf16"},
        },
    }
    student = {"model": str(folders["teacher"]), "init": {"layers": [0, 3]}}
    for ranks, every in of_ranks.items():
        files = []
        for name, values in every.items():
            values = {**values, "student": student | values.get("student", {})}
            files.append(config(base / name, **values))
        launch(ranks, finish, *files)
    return {name: base / name for every in of_ranks.values() for name in every}


@pytest.mark.parametrize(
    ("name", "other", "tolerance"),
    [
        ("live", "cached", CACHED),
        ("fdd-live", "fdd", CACHED),
        ("units-live", "units", CACHED),
        ("cross-live", "cross", CACHED),
        ("spaces-live", "spaces", CACHED),
        ("two-zero2-live", "two-zero2", CACHED),
        ("two-cross-zero2-live", "two-cross-zero2", CACHED),
        ("parts", "cached", ANOTHER_ORDER),
        ("zero2", "cached", ANOTHER_ORDER),
        ("two", "cached", ANOTHER_ORDER),
        ("two-zero2", "cached", ANOTHER_ORDER),
        ("two-zero3", "cached", ANOTHER_ORDER),
        ("two-zero3-offload", "cached", ANOTHER_ORDER),
        ("two-lora-zero3", "two-lora", ANOTHER_ORDER),
        ("two-cross-zero2", "cross", ANOTHER_ORDER),
        ("two-spaces-zero2", "spaces", ANOTHER_ORDER),
    ],
)
def test_every_logged_loss_is_the_same_whatever_the_road(runs, name, other, tolerance):
    assert_same(metrics(runs[name]), metrics(runs[other]), tolerance, OF_SORTED)


def test_what_one_rank_cannot_read_ends_all_of_them(runs):
    for rank in range(2):
        assert runs["fails"].with_suffix(f".{rank}.err").read_text() == "rank 1 cannot read its third batch"
    assert [record["step"] for record in metrics(runs["fails"])] == [1, 2]
    assert [path.name for path in (runs["fails"] / "checkpoints").iterdir()] == ["step-00000002"], (
        "what is done is kept"
    )


def test_half_precision_learns_the_same(runs):
    found, expected = metrics(runs["two-bf16"]), metrics(runs["cached"])
    assert found[0]["loss"] == pytest.approx(expected[0]["loss"], rel=0.02)
    assert found[-1]["held_out_loss"] == pytest.approx(expected[-1]["held_out_loss"], rel=0.02)


def test_it_learns_and_tells_every_term(runs):
    records = metrics(runs["learns"])
    steps = [record for record in records if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 21))
    assert {"ce", "srkl", "dsa", "hidden", "lr", "tokens_per_second", "memory_gb"} <= steps[0].keys()
    first, last = steps[0], steps[-1]
    assert sum(last[name] for name in ("ce", "hidden")) < sum(first[name] for name in ("ce", "hidden"))
    for record in steps:
        total = record["srkl"] + 2 * record["dsa"] + 0.2 * record["hidden"] + 0.5 * record["ce"]
        assert record["loss"] == pytest.approx(total, rel=1e-6)
    assert (runs["learns"] / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_it_validates_as_often_as_asked_and_at_the_end(runs):
    held_out = {record["step"]: record for record in metrics(runs["learns"]) if "held_out_loss" in record}
    assert list(held_out) == [8, 16, 20]
    assert held_out[20]["held_out_loss"] < held_out[8]["held_out_loss"]
    assert [record["step"] for record in metrics(runs["cached"]) if "held_out_loss" in record] == [STEPS]


@pytest.mark.parametrize("name", ["cached", "two-zero3"])
def test_the_student_is_a_plain_folder(runs, folders, name):
    folder = runs[name] / "student"
    student = AutoModelForCausalLM.from_pretrained(folder)
    assert student.config.num_hidden_layers == 2
    assert len(AutoTokenizer.from_pretrained(folder)) > 1000
    assert not any("proj" in key and "objective" in key for key in student.state_dict())
    other = AutoModelForCausalLM.from_pretrained(runs["two"] / "student")
    for mine, theirs in zip(student.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    manifest = json.loads((folders["same"] / "manifest.json").read_text())
    assert manifest["fingerprint"] in (folder / "README.md").read_text()


def test_adapters_learn_alone_and_end_in_plain_weights(runs, folders):
    teacher = AutoModelForCausalLM.from_pretrained(folders["teacher"])
    student = AutoModelForCausalLM.from_pretrained(runs["two-lora"] / "student").state_dict()
    begun = {  # layers 0 and 3
        name.replace(".layers.3.", ".layers.1."): value
        for name, value in teacher.state_dict().items()
        if ".layers.1." not in name and ".layers.2." not in name
    }
    assert student.keys() == begun.keys()
    moved = {name for name, value in student.items() if not torch.equal(value, begun[name])}
    linear = {name for name in begun if "_proj." in name}
    assert moved == linear
    losses = [record["loss"] for record in metrics(runs["two-lora"]) if "loss" in record]
    assert losses[-1] < losses[0]


def wait_for(out, step, alive):
    """Until a run has logged a step."""
    deadline = time.monotonic() + 240
    while not (out / "metrics.jsonl").is_file() or len(whole_lines(out)) < step:
        assert alive(), out.with_suffix(".log").read_text()[-6000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def whole_lines(out):
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [line for line in lines if line.endswith("}")]


def is_alive(pid):
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_killed_and_gone_on_is_the_same_as_never_killed(config, runs, tmp_path):
    out = tmp_path / "killed"
    file = config(out, checkpoint={"every": 2})
    for step in (3, 6):
        pids = start(out.with_suffix(".log"), 1, train_command, "--config", file)
        wait_for(out, step, partial(is_alive, *pids))
        os.kill(*pids, signal.SIGKILL)
        assert ended(pids) == [-signal.SIGKILL]
    launch(1, train_command, "--config", file)
    found = [record for record in metrics(out) if "loss" in record]
    expected = [record for record in metrics(runs["cached"]) if "loss" in record]
    assert [compared(record) for record in found] == [compared(record) for record in expected]
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-00000006", "step-00000008"]


def test_overwriting_begins_anew_and_leaves_what_is_anybody_elses(config, runs, tmp_path):
    out = tmp_path / "again"
    launch(1, train_command, "--config", config(out, seed=7, steps=2))
    (out / "notes.txt").write_text("mine")
    file = config(out)
    launch(1, train_command, "--config", file, "--overwrite")
    assert list(map(compared, metrics(out))) == list(map(compared, metrics(runs["cached"])))
    assert (out / "notes.txt").read_text() == "mine"
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"step-{STEPS:08d}"]


def group_is_alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_told_to_stop_it_saves_and_goes_on_with_other_ranks(config, runs, tmp_path):
    """The command itself, under the launcher; then on one rank. Of ZeRO's stages: `tests/trainer/test_resume.py`."""
    out = tmp_path / "stopped"
    file = config(out)
    with out.with_suffix(".log").open("wb") as log:
        arguments = command(2, "--config", file)
        running = subprocess.Popen(arguments, env=environment(), start_new_session=True, stdout=log, stderr=log)
    wait_for(out, 3, lambda: running.poll() is None)
    os.killpg(running.pid, signal.SIGTERM)  # as a scheduler does, and a terminal for Ctrl-C
    assert running.wait() != 0
    deadline = time.monotonic() + 120
    while group_is_alive(running.pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert out.with_suffix(".log").read_text().count("The same command goes on.") == 1
    (saved,) = (out / "checkpoints").iterdir()
    assert json.loads((saved / "state.json").read_text())["ranks"] == 2
    launch(1, train_command, "--config", file)
    assert_same(metrics(out), metrics(runs["cached"]), ANOTHER_ORDER)


#: What a config says, the exit code, and some of what is then said.
REFUSED = {
    "term": ({"objectives": {"dsaa": {}}}, 2, "did you mean `dsa`"),
    "layer": ({"layers": [{"student": 1, "teacher": 3, "granularity": "words"}]}, 2, "mta-prep cache-teacher"),
    "depth": (
        {"layers": [{"student": 9, "teacher": 4, "granularity": "words"}]},
        2,
        "layers 0 (embeddings) to 2, not 9",
    ),
    "tokens": ({"dataset": "other", "objectives": {"srkl": {}}}, 2, "token by token"),
    "portions": ({"data": {"batch_size": 1, "micro_batches": 2}}, 2, "data.batch_size"),
    "signals": (
        {"dataset": "other", "data": {"caches": []}, "objectives": {"dwa": {}}},
        2,
        "--signals final,entropy,embeddings --set response_only=true",
    ),
    "held-out": ({"data": {"held_out": 100}}, 2, "hold out fewer"),
    "zero": ({"deepspeed": "zero7"}, 2, "zero0"),
    "key": ({"optim": {"lr": 1e-3, "warmpu": 2}}, 2, "did you mean `warmup`"),
    "precision": ({"precision": "fp16"}, 2, "bf16"),
    "tracker": ({"log": {"wandb": True}}, 2, "`log.wandb` needs the package"),
    "dataset": ({"data": {"dataset": "no-such-dataset"}}, 4, "no-such-dataset"),
    "student": ({"student": {"model": "./no-such-student"}}, 3, "no-such-student"),
    "teacher": ({"teacher": "live", "teacher_model": {"model": "./no-such-teacher"}}, 3, "no-such-teacher"),
    "long": ({"student": SHORT, "objectives": {"ce": {}}}, 2, "takes, which is 40 tokens"),
    "tokenizer": (
        {"student": {"init": "config", "config": {"model_type": "qwen2", "vocab_size": 4096, **SIZES}}},
        2,
        "as its own Qwen2Tokenizer",
    ),
}


@pytest.fixture(scope="session")
def refusals(config, tmp_path_factory):
    """Output folder, exit code and what was said, by name."""
    base = tmp_path_factory.mktemp("refused")
    files = [config(base / name, **values) for name, (values, _, _) in REFUSED.items()]
    return {file.stem: (file.with_suffix(""), *outcome) for file, outcome in zip(files, told(*files), strict=True)}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_one_sentence_and_leaves_nothing(refusals, name):
    if name == "precision" and torch.ops.mkldnn._is_mkldnn_fp16_supported():
        pytest.skip("this processor computes in float16")
    out, code, said = refusals[name]
    assert code == REFUSED[name][1]
    assert REFUSED[name][2] in said
    assert "Traceback" not in said
    assert not out.exists()


def test_the_command_ends_as_it_says(config, tmp_path):
    values, code, message = REFUSED["key"]
    file = config(tmp_path / "out", **values)
    done = subprocess.run(command(1, "--config", file), env=environment(), capture_output=True, text=True)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
