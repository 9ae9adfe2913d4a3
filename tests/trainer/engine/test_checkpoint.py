"""Checkpoints: whole or not there, the right ones kept, and never gone on from one that was damaged."""

import json
import math
import os
import resource
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import ResourceError, StateError
from schemas.files import sha256_of
from trainer.engine.checkpoint import FOLDER, STATE, Checkpoints, State
from trainer.engine.whole_files import SUMS

pytestmark = pytest.mark.usefixtures("alone")


class Engine:
    """Stands for DeepSpeed's: writes what it is given through its checkpoint engine, and reads nothing."""

    def __init__(self, numbers=64):
        self.checkpoint_engine = None
        self.values = {"weights.pt": torch.arange(float(numbers)), "optimizer.pt": [torch.ones(8), 3]}

    def save_checkpoint(self, folder, tag, client_state, save_latest):
        assert not client_state
        assert not save_latest
        place = Path(folder) / tag
        self.checkpoint_engine.makedirs(place, exist_ok=True)
        for name, value in self.values.items():
            self.checkpoint_engine.save(state_dict=value, path=str(place / name))
        (Path(folder) / "script.py").write_text("# written by itself\n")


def state(step, held_out=None):
    return State(step=step, ranks=1, zero_stage=0, held_out=held_out, sources={"data.dataset": {"fingerprint": "f"}})


def save(out, *states, keep=100):
    """Checkpoints of these states, one after the other."""
    checkpoints = Checkpoints(out, keep)
    for each in states:
        checkpoints.save(Engine(), each)
    return checkpoints


def steps(out):
    return sorted(path.name for path in (out / FOLDER).iterdir())


def name(step):
    return f"step-{step:08d}"


def test_what_was_saved_is_there(tmp_path):
    checkpoints = save(tmp_path, state(3, 2.5), state(6))
    path, newest = checkpoints.newest()
    assert (path.name, newest) == (name(6), state(6))
    assert list(checkpoints.complete().values()) == [state(3, 2.5), state(6)]
    assert torch.equal(torch.load(path / "deepspeed" / "weights.pt"), torch.arange(64.0))
    assert steps(tmp_path) == [name(3), name(6)]


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum here")
def test_checksums_are_read_by_the_usual_tool_and_name_every_file(tmp_path):
    path, _ = save(tmp_path, state(1)).newest()
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=path, check=True, capture_output=True)
    named = {line.split("  ")[1] for line in (path / SUMS).read_text().splitlines()}
    assert named == {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} - {SUMS}


def test_a_loss_that_is_no_number_is_never_saved():
    with pytest.raises(ValueError, match="finite number"):
        state(1, math.nan)


@pytest.mark.parametrize(("keep", "expected"), [(1, [4]), (2, [3, 4]), (9, [1, 2, 3, 4])])
def test_the_newest_are_kept(tmp_path, keep, expected):
    save(tmp_path, *map(state, [1, 2, 3, 4], [3.0, 1.0, 2.0, 2.0]), keep=keep)
    assert steps(tmp_path) == [name(step) for step in expected]


def test_what_is_no_checkpoint_is_let_alone(tmp_path):
    for other in ("mine", "step-1", "step-00000002-copy", "step-00000009.damaged"):
        (tmp_path / FOLDER / other).mkdir(parents=True)
        (tmp_path / FOLDER / other / STATE).write_text(state(9).model_dump_json())
    checkpoints = save(tmp_path, state(1), state(2), keep=1)
    assert checkpoints.newest()[1].step == 2
    assert len(steps(tmp_path)) == 5


def truncated(file):
    os.truncate(file, file.stat().st_size // 2)


def flipped(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


FILES = [STATE, SUMS, "deepspeed/weights.pt", "deepspeed/optimizer.pt", "script.py"]


@pytest.mark.parametrize("damage", [truncated, flipped, Path.unlink])
@pytest.mark.parametrize("file", FILES)
def test_one_that_was_damaged_is_told_and_set_aside_for_the_one_before(tmp_path, capsys, file, damage):
    checkpoints = save(tmp_path, state(1), state(2), state(3))
    damage(tmp_path / FOLDER / name(3) / file)
    damage(tmp_path / FOLDER / name(2) / file)
    path, newest = checkpoints.newest()
    assert (path.name, newest.step) == (name(1), 1)
    assert steps(tmp_path) == [name(1), name(2), name(3)]  # a run that is refused after all has touched nothing
    told = " ".join(capsys.readouterr().err.split())
    checkpoints.set_aside_after(path)
    assert steps(tmp_path) == [name(1), f"{name(2)}.damaged", f"{name(3)}.damaged"]
    assert f"{name(3)} is damaged: " in told
    assert f"goes on from {name(1)}, which is whole" in told
    assert checkpoints.newest()[1].step == 1
    assert capsys.readouterr().err == ""


@settings(max_examples=40)
@given(data=st.data())
def test_no_bit_can_change_unseen(sealed_checkpoint, data):
    """Also not one of the list of checksums: then a file is not as it says, or has gone."""
    file = sealed_checkpoint / data.draw(st.sampled_from(FILES))
    before = file.read_bytes()
    place = data.draw(st.integers(0, len(before) - 1))
    changed = bytearray(before)
    changed[place] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(changed)
    with pytest.raises(StateError, match="is damaged"):
        Checkpoints(sealed_checkpoint.parents[1], 1).newest()
    file.write_bytes(before)
    assert Checkpoints(sealed_checkpoint.parents[1], 1).newest() is not None


@pytest.fixture(scope="module")
def sealed_checkpoint(alone, tmp_path_factory):
    return save(tmp_path_factory.mktemp("sealed"), state(1)).newest()[0]


def test_where_none_is_whole_nothing_is_begun_anew_by_itself(tmp_path):
    checkpoints = save(tmp_path, state(1), state(2))
    before = steps(tmp_path)
    for step in (1, 2):
        truncated(tmp_path / FOLDER / name(step) / "deepspeed" / "weights.pt")
    for _ in range(2):
        with pytest.raises(StateError, match=rf"{name(2)} is damaged: weights\.pt .*nor is any older one.*--overwrite"):
            checkpoints.newest()
    assert steps(tmp_path) == before


def test_one_of_another_version_is_told_from_a_damaged_one(tmp_path):
    checkpoints = save(tmp_path, state(1))
    path = tmp_path / FOLDER / name(1)
    old = json.loads((path / STATE).read_text()) | {"colour": "red"}
    before = (path / SUMS).read_text()
    (path / STATE).write_text(json.dumps(old))
    line = next(line for line in before.splitlines() if line.endswith(STATE))
    (path / SUMS).write_text(before.replace(line, f"{sha256_of(path / STATE)}  {STATE}"))
    with pytest.raises(StateError, match="another version"):
        checkpoints.newest()


@pytest.fixture
def small_disk():
    """No file can become larger than so many bytes: what a full disk is like, for this process alone."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("older", [True, False])
def test_a_full_disk_is_one_sentence_that_names_the_older_one(tmp_path, small_disk, older):
    checkpoints = save(tmp_path, *[state(1)] * older)
    small_disk(100_000)
    with pytest.raises(ResourceError) as told:
        checkpoints.save(Engine(numbers=100_000), state(2))
    small_disk(resource.RLIM_INFINITY)
    assert f"{name(2)} cannot be written (File too large); once it can, the same command" in str(told.value)
    assert (f"goes on from {tmp_path / FOLDER / name(1)}, which is whole" in str(told.value)) == older
    assert steps(tmp_path) == [name(1)] * older
    checkpoints.save(Engine(numbers=100_000), state(2))
    assert checkpoints.newest()[1].step == 2


def test_an_error_that_is_not_the_disks_stays_what_it_is(tmp_path):
    engine = Engine()
    engine.values["weights.pt"] = lambda: None
    with pytest.raises((AttributeError, TypeError), match="pickle"):
        Checkpoints(tmp_path, 1).save(engine, state(1))


def test_what_an_interrupted_save_left_is_no_checkpoint_and_goes_with_the_next(tmp_path, monkeypatch):
    checkpoints = save(tmp_path, state(1))
    with monkeypatch.context() as broken:
        broken.setattr("trainer.engine.checkpoint.seal", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(Engine(), state(2))
    assert f".{name(2)}.part" in steps(tmp_path)
    assert checkpoints.newest()[1].step == 1
    checkpoints.save(Engine(), state(4))
    assert steps(tmp_path) == [name(1), name(4)]


def test_folders_are_in_the_order_of_their_steps(tmp_path):
    checkpoints = save(tmp_path, *map(state, [9, 10, 99_999_999, 100_000_000]))
    found = [each.step for each in checkpoints.complete().values()]
    assert all(a < b for a, b in pairwise(found))
