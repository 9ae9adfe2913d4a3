"""Training that goes on, or must not: in this process, on one rank, in few steps."""

import json
import math
import resource
import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.nn import functional

from launching import finish, launch
from schemas.errors import ResourceError, StateError, UserError
from schemas.files import sha256_of
from schemas.training import TrainConfig

# what DeepSpeed imports is deprecated here and there
pytestmark = [pytest.mark.xdist_group("trainer"), pytest.mark.filterwarnings("ignore")]

STEPS = 4
STUDENT = {
    "model_type": "llama",
    "vocab_size": 8192,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
STAGES = ["zero2", "zero3"]
TIMES = {"tokens_per_second", "memory_gb"}


def config(dataset, out):
    return {
        "student": {"init": "config", "config": STUDENT},
        "data": {"dataset": str(dataset), "batch_size": 4, "workers": 0, "held_out": 4},
        "objectives": {"ce": {}},
        "optim": {"lr": 1e-3, "warmup": 2},
        "steps": STEPS,
        "checkpoint": {"every": 2},
        "log": {"every": 1, "tensorboard": False},
        "out": str(out),
    }


@pytest.fixture(scope="module")
def trained(alone, prepared):
    """Trains in this process; keyword arguments override the config. Curves are drawn by `tests/trainer/test_run.py`."""
    from trainer import train as command
    from trainer.engine import monitor

    def run(out, **values):
        from trainer.run import train

        # ZeRO-3 puts a function of its own in the place of this one, for all that the process does after
        with pytest.MonkeyPatch.context() as torch_itself:
            torch_itself.setattr(functional, "linear", functional.linear)
            train(TrainConfig.parse(config(prepared, out) | values, "test"), overwrite=False)

    with pytest.MonkeyPatch.context() as environment:
        for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29512"}.items():
            environment.setenv(name, value)
        environment.setattr(monitor, "draw_curves", lambda *files: None)
        command.start_ranks(0)
        yield run


def metrics(out):
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name not in TIMES} for record in records]


def weights(out):
    return load_file(out / "student" / "model.safetensors")


def checkpoints(out):
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def name(step):
    return f"step-{step:08d}"


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory):
    """A run from its first step to its last, by ZeRO stage."""
    runs = {}

    def run(stage):
        if stage not in runs:
            runs[stage] = tmp_path_factory.mktemp("whole") / stage
            trained(runs[stage], deepspeed=stage)
        return runs[stage]

    return run


def cut_off(run, out, *, after=2):
    """The same run as it lies there if it was killed when a checkpoint was written."""
    shutil.copytree(run, out)
    shutil.rmtree(out / "student")
    for path in (out / "checkpoints").iterdir():
        if path.name > name(after):
            shutil.rmtree(path)
    resolved = out / "config.yaml"
    resolved.write_text(resolved.read_text().replace(f"out: {run}", f"out: {out}"))
    return out


def assert_same_run(out, run):
    assert metrics(out) == metrics(run)
    for mine, theirs in zip(weights(out).values(), weights(run).values(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("stage", STAGES)
def test_the_best_student_is_exported_without_going_back_to_it(trained, whole, tmp_path, monkeypatch, stage):
    """Losses that are lowest at step 2: the student of the end is that of a run of two steps."""
    from trainer.step import Stepper

    whole(stage)  # by losses as they are
    real, losses = Stepper.validate, iter([1.0, 5.0, 5.0])

    def validate(self, batches):
        return replace(real(self, batches), total=next(losses))

    monkeypatch.setattr(Stepper, "validate", validate)
    best = {"checkpoint": {"every": 2, "best": True}, "deepspeed": stage}
    trained(tmp_path / "four", **best)
    assert checkpoints(tmp_path / "four") == ["best-00000002", name(2), name(4)]
    early = cut_off(whole(stage), tmp_path / "early")
    two = weights(tmp_path / "four")
    monkeypatch.setattr(Stepper, "validate", real)
    trained(early, deepspeed=stage)
    four = weights(early)
    assert any(not torch.equal(mine, theirs) for mine, theirs in zip(two.values(), four.values(), strict=True))
    state = load_file(tmp_path / "four" / "checkpoints" / "best-00000002" / "student.safetensors")
    assert all(torch.equal(two[name], value) for name, value in state.items() if name in two)


def test_a_validation_that_a_stop_left_out_is_made_up_for(trained, whole, tmp_path):
    """As where SIGTERM was heard at a step that was due: saved without the loss on the rows held out."""
    out = cut_off(whole("zero2"), tmp_path / "out")
    file = out / "checkpoints" / name(2) / "state.json"
    before = sha256_of(file)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"held_out": None}))
    sums = file.with_name("SHA256SUMS")
    sums.write_text(sums.read_text().replace(before, sha256_of(file)))
    lines = [record for record in (out / "metrics.jsonl").read_text().splitlines() if json.loads(record)["step"] <= 2]
    (out / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines if "held_out_loss" not in line))
    trained(out, deepspeed="zero2")
    assert_same_run(out, whole("zero2"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_universal_checkpoint_is_gone_on_from_exactly(trained, whole, tmp_path, stage):
    """As from another number of ranks, which alone would change the order of sums; also where a path looks like a pattern."""
    out = cut_off(whole(stage), tmp_path / "run [1]+(2)")
    checkpoint = out / "checkpoints" / name(2)
    before = sha256_of(checkpoint / "state.json")
    state = json.loads((checkpoint / "state.json").read_text()) | {"ranks": 2}
    (checkpoint / "state.json").write_text(json.dumps(state))
    sums = (checkpoint / "SHA256SUMS").read_text()
    (checkpoint / "SHA256SUMS").write_text(sums.replace(before, sha256_of(checkpoint / "state.json")))
    trained(out, deepspeed=stage)
    assert_same_run(out, whole(stage))
    assert checkpoints(out) == [name(2), name(4)]


@pytest.fixture(scope="module")
def on_two_ranks(whole, prepared, tmp_path_factory):
    """Runs by ZeRO stage: from the first step on two ranks, and gone on from one rank's checkpoint on two."""
    base = tmp_path_factory.mktemp("two")
    begun = {stage: base / f"begun-{stage}" for stage in STAGES}
    gone_on = {stage: cut_off(whole(stage), base / f"gone-on-{stage}") for stage in STAGES}
    files = []
    for stage, out in [*begun.items(), *gone_on.items()]:
        files.append(out.with_suffix(".yaml"))
        files[-1].write_text(yaml.safe_dump(config(prepared, out) | {"deepspeed": stage}))
    launch(2, finish, *files)
    return begun, gone_on


@pytest.mark.parametrize("stage", STAGES)
def test_another_number_of_ranks_goes_on_with_the_same(trained, whole, on_two_ranks, tmp_path, stage):
    begun, gone_on = on_two_ranks
    back = cut_off(begun[stage], tmp_path / "back")
    trained(back, deepspeed=stage)
    for out in (begun[stage], gone_on[stage], back):
        for mine, theirs in zip(metrics(out), metrics(whole(stage)), strict=True):
            losses = {name for name in theirs if "loss" in name}
            assert {name: mine[name] for name in losses} == pytest.approx(
                {name: theirs[name] for name in losses}, rel=2e-7
            )


def test_a_damaged_checkpoint_is_left_for_the_one_before(trained, whole, tmp_path, capsys):
    out = cut_off(whole("zero2"), tmp_path / "run", after=4)
    damaged = next((out / "checkpoints" / name(4) / "deepspeed").glob("*optim_states.pt"))
    damaged.write_bytes(damaged.read_bytes()[:1000])
    trained(out, deepspeed="zero2")
    assert f"{name(4)} is damaged: {damaged.name} is not what was written" in " ".join(capsys.readouterr().err.split())
    assert_same_run(out, whole("zero2"))
    assert checkpoints(out) == [name(2), name(4), f"{name(4)}.damaged"]


def test_another_dataset_in_its_place_is_refused(trained, whole, prepared, same, tmp_path):
    place = shutil.copytree(prepared, tmp_path / "dataset")
    data = {"dataset": str(place), "batch_size": 4, "workers": 0, "held_out": 4}
    out = cut_off(whole("zero2"), tmp_path / "run")
    resolved = out / "config.yaml"
    resolved.write_text(resolved.read_text().replace(str(prepared), str(place)))
    shutil.rmtree(place)
    shutil.copytree(same, place)
    with pytest.raises(StateError, match=r"^`data\.dataset` is not what the run in .* has learned from in its 2 steps"):
        trained(out, deepspeed="zero2", data=data)
    assert checkpoints(out) == [name(2)]


@pytest.fixture
def spoil(monkeypatch):
    """Makes something of what the student gives in a training step, and in every validation from that step on."""
    from trainer.student.distiller import Distiller

    plain = Distiller.forward

    def spoil_at(step, change, *, training=True):
        done = 0

        def forward(self, batch, denominators, weights):
            nonlocal done
            done += self.training
            loss, terms = plain(self, batch, denominators, weights)
            return change(loss, terms) if self.training == training and done == step else (loss, terms)

        monkeypatch.setattr(Distiller, "forward", forward)

    return spoil_at


def nothing(loss, terms):
    return loss * math.nan, terms * math.nan


def only_its_gradient(loss, terms):
    return loss + 0 * (loss - loss.detach()).sqrt(), terms


@pytest.mark.parametrize(
    ("stage", "step", "change", "training", "told"),
    [
        ("zero0", 3, nothing, True, "Step 3 of 4: the term `ce` is nan. "),
        ("zero2", 4, nothing, False, "Step 4 of 4: held out, the term `ce` is nan. "),
        ("zero2", 3, only_its_gradient, True, "Step 3 of 4: the norm of the gradient is "),
        ("zero3", 3, only_its_gradient, True, "Step 3 of 4: the norm of the gradient is "),
    ],
)
def test_the_first_number_that_is_not_finite_ends_a_run(trained, spoil, tmp_path, stage, step, change, training, told):
    out = tmp_path / "run"
    spoil(step, change, training=training)
    with pytest.raises(UserError) as error:
        trained(out, deepspeed=stage)
    assert str(error.value).startswith(told)
    assert f"The last good checkpoint is {out / 'checkpoints' / name(2)}. " in str(error.value)
    assert checkpoints(out) == [name(2)]
    assert not (out / "student").exists()
    records = metrics(out)
    assert all(math.isfinite(value) for record in records for value in record.values())
    assert {record["step"] for record in records if "loss" in record} == set(range(1, step if training else step + 1))


def test_weights_that_are_not_finite_are_never_saved(trained, spoil, prepared, tmp_path):
    """Without clipping nobody looks at the gradient, and the loss is still that of the weights before."""
    spoil(2, only_its_gradient)
    data = {"dataset": str(prepared), "batch_size": 4, "workers": 0}
    with pytest.raises(UserError, match=r"^Step 2 of 4: a weight of the student .* There is no checkpoint before it"):
        trained(tmp_path / "run", optim={"clip": 0}, data=data)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_full_disk_ends_a_run_that_goes_on_when_there_is_room(trained, whole, tmp_path):
    out = cut_off(whole("zero2"), tmp_path / "run")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(
            ResourceError, match=rf"{name(4)} cannot be written \(File too large\); .*{name(2)}, which is whole"
        ):
            trained(out, deepspeed="zero2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoints(out) == [name(2)]
    trained(out, deepspeed="zero2")
    assert_same_run(out, whole("zero2"))
