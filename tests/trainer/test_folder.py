"""A run's folder: one trainer at a time, one config, and nothing of anybody else's."""

import pytest
import torch.distributed as dist
from filelock import FileLock

from schemas.errors import ResourceError, StateError
from schemas.training import TrainConfig
from trainer.folder import CONFIG, LOCK, claim, held, require_ours


@pytest.fixture(autouse=True, scope="module")
def only_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def config(**values):
    return TrainConfig.parse(
        {"student": {"model": "s"}, "data": {"dataset": "d"}, "objectives": {"ce": {}}} | values, ""
    )


def test_a_folder_has_one_trainer_at_a_time(tmp_path):
    with (
        held(tmp_path / "out"),
        pytest.raises(StateError, match="Another trainer is at work in"),
        held(tmp_path / "out"),
    ):
        raise AssertionError
    with held(tmp_path / "out"):
        assert FileLock(tmp_path / "out" / LOCK).lock_file


def test_a_run_that_is_refused_leaves_what_was_there(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").write_text("mine")
    for name in ("there", "deep/in/new"):
        with pytest.raises(RuntimeError), held(tmp_path / name):
            raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == ["there", "notes.txt"]


def test_what_was_written_stays(tmp_path):
    with held(tmp_path / "new"):
        claim(tmp_path / "new", config(), overwrite=False)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [CONFIG]
    assert TrainConfig.parse(TrainConfig.from_yaml(tmp_path / "new" / CONFIG), "") == config()


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ResourceError, match=r"Nothing can be written to .*Choose another `out`"), held(place):
            raise AssertionError


def begun(out):
    claim(out, config(), overwrite=False)
    (out / "metrics.jsonl").write_text("{}\n")


def test_a_run_of_another_config_is_not_gone_on_from(tmp_path):
    begun(tmp_path)
    require_ours(tmp_path, config(log={"every": 3}), overwrite=False)
    with pytest.raises(StateError, match=r"`seed` is 42, now it is 7.*--overwrite"):
        require_ours(tmp_path, config(seed=7), overwrite=False)
    require_ours(tmp_path, config(seed=7), overwrite=True)


def test_a_run_that_ended_before_its_first_step_owns_nothing(tmp_path):
    claim(tmp_path, config(), overwrite=False)
    (tmp_path / "metrics.jsonl").touch()
    require_ours(tmp_path, config(seed=7), overwrite=False)


@pytest.mark.parametrize("name", ["checkpoints", "student", "metrics.jsonl"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_files_of_no_run_are_left_alone(tmp_path, name, overwrite):
    (tmp_path / name).mkdir()
    with pytest.raises(StateError, match=f"holds {name} and no config.yaml"):
        require_ours(tmp_path, config(), overwrite)


def test_overwriting_removes_what_a_run_wrote_and_nothing_else(tmp_path):
    begun(tmp_path)
    for name in ("checkpoints/step-00000001", "student", "tensorboard", "mine"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").touch()
    for name in ("curves.png", "wandb-id", "notes.txt"):
        (tmp_path / name).touch()
    claim(tmp_path, config(seed=7), overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG, "mine", "notes.txt"]
    assert TrainConfig.from_yaml(tmp_path / CONFIG)["seed"] == 7
