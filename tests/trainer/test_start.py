"""The start of a run: it looks before it writes, and following what a refusal advises works."""

import shutil
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from safetensors.torch import load_file, save_file

from launching import metrics, told
from schemas.config import ModelConfig
from trainer.models.hub import identity

pytestmark = pytest.mark.xdist_group("trainer")

STEPS = 2
PAIRS = [{"student": 1, "teacher": 2, "granularity": "words"}]


@pytest.fixture(scope="module")
def started(config, folders, make_cache, tmp_path_factory):
    """Commands one after the other in one process, by name: output folder, exit code, what was said."""
    base = tmp_path_factory.mktemp("started")
    first, later = map(str, folders["caches"])
    short = {"steps": STEPS, "data": {"held_out": 0}}
    units = {**short, "layers": PAIRS, "objectives": {"hidden": {"level": "unit"}}}
    # both fall to the last layer of a student of two
    layers = [{"layer": 3, "granularity": "words"}, {"layer": 4, "granularity": "chunks"}]
    two_layers = str(make_cache(layers=layers, signals=["relations", "final"]))
    near = {"steps": STEPS, "layers": None, "data": {"held_out": 0, "caches": [two_layers]}}
    other = _another_teacher(folders["teacher"], base / "other-teacher")
    live = {"teacher": "live", "teacher_model": {"model": str(other)}}
    configs = {
        # the second cache has what the first lacks
        "lacking": config(base / "advised", **{**units, "data": {"caches": [first], "held_out": 0}}),
        "advised": config(base / "advised-2", **{**units, "data": {"caches": [first, later], "held_out": 0}}),
        "no-layers": config(base / "no-layers", **near, objectives={"ce": {}, "srkl": {}}),
        "layers": config(base / "layers", **near, objectives={"ce": {}, "dsa": {}}),
        "live": config(base / "live", **short, **live),
        "untaught": config(base / "untaught", **short, objectives={"ce": {}}),
    }
    # the same folder, as following the advice has it
    values = yaml.safe_load(configs["advised"].read_text()) | {"out": str(base / "advised")}
    configs["advised"].write_text(yaml.safe_dump(values))
    outs = [Path(yaml.safe_load(file.read_text())["out"]) for file in configs.values()]
    return dict(zip(configs, zip(outs, *zip(*told(*configs.values()), strict=True), strict=True), strict=True)) | {
        "other-teacher": other
    }


def _another_teacher(folder, place):
    shutil.copytree(folder, place)
    weights = load_file(place / "model.safetensors")
    save_file({name: value * 1.01 for name, value in weights.items()}, place / "model.safetensors", {"format": "pt"})
    return place


def test_what_a_refusal_advises_works_in_the_same_folder(started):
    out, code, said = started["lacking"]
    assert code == 2
    assert "name it there as well" in said
    out, code, said = started["advised"]
    assert (code, said.count("Error")) == (0, 0)
    assert metrics(out)[-1]["step"] == STEPS


def test_terms_without_layers_need_no_pairs(started):
    assert started["no-layers"][1] == 0
    _, code, said = started["layers"]
    assert code == 2
    assert "Teacher layers 3 and 4 both fall to layer 2" in " ".join(said.split())


def test_the_card_names_the_teacher_that_taught(started):
    live, cached, untaught = (
        (started[name][0] / "student" / "README.md").read_text() for name in ("live", "no-layers", "untaught")
    )
    other = identity(ModelConfig(model=str(started["other-teacher"])))
    assert f"`other-teacher` (sha256 `{other['sha256']}`)" in live
    assert "sha256" in cached
    assert other["sha256"] not in cached
    assert "sha256" not in untaught


def test_the_config_that_is_kept_makes_the_same_run(started):
    out, _, _ = started["live"]
    kept = yaml.safe_load((out / "config.yaml").read_text())
    assert kept["steps"] == STEPS
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


def test_a_second_trainer_is_refused_with_one_sentence(config, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with FileLock(out / ".lock"):
        ((code, said),) = told(config(out))
    assert code == 4
    assert f"Another trainer is at work in {out}" in " ".join(said.split())
