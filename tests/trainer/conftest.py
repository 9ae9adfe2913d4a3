"""Datasets of the sample as the trainer meets them, and configs to train on them."""

import pytest
import yaml

from launching import STEPS
from turns import with_turns

PAIRS = [
    {"student": 1, "teacher": 2, "granularity": "words"},
    {"student": 2, "teacher": 4, "granularity": "chunks"},
]


@pytest.fixture(scope="session")
def aligned(prepared, tmp_path_factory):
    """The sample for another student than caches of it were made beside; its limit cuts long rows, and drops none."""
    from datasets import load_from_disk

    from pipeline.dataset.realign import realign

    out = tmp_path_factory.mktemp("aligned") / "out"
    longest_prompt = max(spans[0][0] for spans in load_from_disk(str(prepared))["teacher_responses"])
    sides = {"student": {"tokenizer": "embedded:sentencepiece-bpe", "max_length": longest_prompt + 3}}
    realign(prepared, out, sides, None, workers=1, overwrite=False, quiet=True)
    return out


@pytest.fixture(scope="session")
def turns(same, tmp_path_factory):
    """The sample with the same tokens on both sides, in which several turns of each row are learnt."""
    return with_turns(same, tmp_path_factory.mktemp("turns") / "out")


@pytest.fixture(scope="session")
def folders(prepared, mined, same, turns, tiny_teacher, make_cache):
    """A dataset with the same tokens on both sides, one with different ones; one cache that serves both, and a second of
    the same teacher, made later for what the first lacks."""
    first = make_cache(
        signals=["relations", "states", "final"], storage={"states": "fp32", "final": "fp32", "units": "fp32"}
    )
    later = make_cache(
        signals=["units", "states", "attention", "sorted", "entropy", "argmax", "logprob", "embeddings"],
        storage={"states": "fp32", "units": "fp32"},
        state_tokens="all",
    )
    return {"caches": [first, later], "same": same, "other": mined, "turns": turns, "teacher": tiny_teacher}


@pytest.fixture(scope="session")
def config(folders):
    """Makes a training config; keyword arguments override."""

    def make(out, *, dataset="same", **values):
        same = {"srkl": {}, "dsa": {"weight": 2.0}, "hidden": {"weight": 0.2}, "ce": {"weight": 0.5}}
        base = {
            "student": {"model": str(folders["teacher"]), "init": {"layers": [0, 3]}},
            "data": {
                "dataset": str(folders[dataset]),
                "caches": list(map(str, folders["caches"])),
                "batch_size": 4,
                "workers": 0,
                "held_out": 4,
            },
            "layers": PAIRS,
            "objectives": same if dataset == "same" else {"ce": {}, "dsa": {"weight": 2.0}},
            "optim": {"lr": 1e-3, "warmup": 2},
            "steps": STEPS,
            "log": {"every": 1, "tensorboard": False},
            "out": str(out),
        }
        data = base["data"] | values.pop("data", {})
        file = out.with_suffix(".yaml")
        file.write_text(yaml.safe_dump(base | values | {"data": data}), encoding="utf-8")
        return file

    return make


@pytest.fixture(scope="module")
def alone():
    """This process is the only rank of a process group."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
