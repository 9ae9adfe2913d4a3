"""DeepSpeed's config: the files that come with the trainer, one's own, and what they may not say."""

import json

import pytest

from schemas.errors import UsageError
from schemas.training import TrainConfig
from trainer.engine.zero import deepspeed_config, offloads, stage


def config_of(deepspeed, **values):
    base = {"data": {"dataset": "d", "batch_size": 8, "micro_batches": 2}, "objectives": {"ce": {}}, "steps": 1}
    return TrainConfig.parse(
        base | {"deepspeed": str(deepspeed), "student": {"model": "m"}, "out": "o"} | values, "test"
    )


@pytest.mark.parametrize(
    ("name", "number", "offloaded"),
    [
        ("zero0", 0, False),
        ("zero1", 1, False),
        ("zero2", 2, False),
        ("zero2-offload", 2, True),
        ("zero3", 3, False),
        ("zero3-offload", 3, True),
    ],
)
def test_a_stage_by_its_name(name, number, offloaded):
    values = deepspeed_config(config_of(name, precision="bf16", optim={"lr": 1e-3, "clip": 0.5}))
    assert (stage(values), offloads(values)) == (number, offloaded)
    assert values["gradient_accumulation_steps"] == 2
    assert values["gradient_clipping"] == 0.5
    assert values["bf16"] == {"enabled": True}


def test_ones_own_file(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 1}, "wall_clock_breakdown": False}))
    assert stage(deepspeed_config(config_of(file))) == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"train_batch_size": 8}', "`train_batch_size` is set by `data.batch_size`"),
        ("[]", "no JSON object"),
        ("{", "is no JSON"),
        ("[" * 9999, "is no JSON"),
        (None, "one of zero0, zero1, zero2, zero2-offload, zero3, zero3-offload"),
    ],
)
def test_what_it_may_not_say(tmp_path, text, told):
    file = tmp_path / "mine.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UsageError, match=told):
        deepspeed_config(config_of(file))
