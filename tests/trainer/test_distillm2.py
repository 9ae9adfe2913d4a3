"""DistiLLM-2 as its configs have it, from prompts to the student: responses of both models, datasets, caches, training, and
the same losses when it was interrupted."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from launching import compared, finish, launch, metrics
from schemas.training import TrainConfig
from trainer.config import require_datasets_used

pytestmark = pytest.mark.xdist_group("trainer")

CONFIGS = sorted((Path(__file__).parents[2] / "trainer" / "configs").glob("distillm2*.yaml"))
STEPS = 4
LAYERS = [
    {"student": 1, "teacher": 3, "granularity": "words"},
    {"student": 2, "teacher": 6, "granularity": "chunks"},
]
TERMS = {"distillm2": ["sfkl", "srkl"], "distillm2-mta": ["sfkl", "srkl", "dsa", "hidden"]}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_configs_say_what_the_paper_does(path):
    config = TrainConfig.parse(TrainConfig.from_yaml(path), path.name)
    require_datasets_used(config, path.name)
    assert list(config.objectives) == TERMS[path.stem]
    assert config.data.join == "prompt"
    both = {"weight": 1.0, "skew": 0.1, "reduce": "document"}
    assert config.objectives["sfkl"] == both
    assert config.objectives["srkl"] == both | {"detach_mixture": True, "data": "student"}
    opening = [line.removeprefix("#   ").split() for line in path.read_text().splitlines() if line.startswith("#   ")]
    assert [line[1] for line in opening[:-1]] == [*["generate"] * 2, *["parse"] * 2, *["cache-teacher"] * 2]
    made = [line[line.index("--out") + 1] for line in opening[:-1]]
    assert [line[2] for line in opening[2:-1]] == made[:4]  # each reads what the one two before it has made
    datasets = config.data.datasets.values()
    assert [each.dataset for each in datasets] == made[2:4]
    assert [each.caches for each in datasets] == [(cache,) for cache in made[4:]]


@pytest.fixture(scope="module")
def answering(tmp_path_factory):
    """The embedded teacher, and a student that is half of it, for both of which an `e` ends a response, too."""
    from transformers import AutoModelForCausalLM

    from schemas import embedded

    base = tmp_path_factory.mktemp("answering")
    folders = {"teacher": base / "teacher", "student": base / "student"}
    shutil.copytree(embedded.resolve("embedded:teacher"), folders["teacher"])
    model = AutoModelForCausalLM.from_pretrained(folders["teacher"])
    model.model.layers = model.model.layers[:2]
    model.config.num_hidden_layers = 2
    model.save_pretrained(folders["student"])
    vocabulary = json.loads((folders["teacher"] / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    for folder in folders.values():
        for file in folders["teacher"].glob("token*"):
            if folder != folders["teacher"]:
                shutil.copy(file, folder)
        settings = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
        settings["eos_token_id"] = [2, vocabulary[","], vocabulary["e"], vocabulary["."]]
        (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folders


@pytest.mark.slow
def test_from_prompts_to_the_student(answering, command, tmp_path):
    prompts = tmp_path / "train.jsonl"
    rows = [{"id": f"{row}", "instruction": f"Tell me of the {row} old mills by the sea."} for row in range(20)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    teacher = answering["teacher"]
    kept = ["--signals", "relations,states,final", "--layers"]
    layers = ",".join(f"{pair['teacher']}:{pair['granularity']}" for pair in LAYERS)
    for side, model in answering.items():
        said, prepared, cache = (
            tmp_path / f"said-{side}.jsonl",
            tmp_path / f"prepared-{side}",
            tmp_path / f"cache-{side}",
        )
        sampling = ["--temperature", 0.8, "--top-p", 0.95, "--max-new-tokens", 48, "--allow-rejected"]
        for arguments in (
            ["generate", prompts, "--model", model, *sampling, "--out", said],
            ["parse", said, "--teacher", teacher, "--student", teacher, "--out", prepared],
            ["cache-teacher", prepared, "--teacher", teacher, *kept, layers, "--out", cache],
        ):
            code, _, told = command(*arguments)
            assert code == 0, told
    for path in CONFIGS:
        train(path, tmp_path, answering["student"])


def train(path, base, student):
    """A run to its end, and one that goes on from its middle."""
    values = TrainConfig.from_yaml(path)
    values["student"] = {"model": str(student)}
    values["data"] |= {"dataset": str(base / "prepared-teacher"), "caches": [str(base / "cache-teacher")]}
    more = {"dataset": str(base / "prepared-student"), "caches": [str(base / "cache-student")]}
    values["data"] |= {"more": {"student": more}, "batch_size": 4, "held_out": 2, "workers": 0}
    values |= {"steps": STEPS, "precision": "fp32", "checkpoint": {"every": 2}}
    values |= {"log": {"every": 1, "tensorboard": False}}
    if "layers" in values:
        values["layers"] = LAYERS
    whole, halved = base / path.stem, base / f"{path.stem}-halved"
    for out in (whole, halved):
        out.with_suffix(".yaml").write_text(yaml.safe_dump(values | {"out": str(out)}), encoding="utf-8")
    launch(1, finish, whole.with_suffix(".yaml"))
    shutil.copytree(whole, halved)
    shutil.rmtree(halved / "student")
    shutil.rmtree(halved / "checkpoints" / f"step-{STEPS:08d}")
    recorded = yaml.safe_load((whole / "config.yaml").read_text(encoding="utf-8"))
    (halved / "config.yaml").write_text(yaml.safe_dump(recorded | {"out": str(halved)}), encoding="utf-8")
    launch(1, finish, halved.with_suffix(".yaml"))
    records = [*map(compared, metrics(whole))]
    assert [*map(compared, metrics(halved))] == records
    assert records[0].keys() >= {*TERMS[path.stem]}
    assert all(records[0][name] > 0 for name in TERMS[path.stem])
    assert (halved / "student" / "model.safetensors").read_bytes() == (
        whole / "student" / "model.safetensors"
    ).read_bytes()
