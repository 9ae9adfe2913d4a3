"""The best student: whole or not there, the lowest loss and of equals the first, checked when it is read."""

import pytest
import torch

from schemas.errors import ResourceError, StateError
from trainer.engine.best import Best, BestStudent
from trainer.engine.checkpoint import FOLDER


def student(step):
    return {"weight": torch.full((2, 3), float(step)), "tied": torch.arange(6.0).view(2, 3).T}


def kept(out, *losses):
    best = BestStudent(out)
    for step, loss in enumerate(losses, 1):
        best.keep(Best(step=step, held_out=loss), student(step))
    return best


def test_one_is_kept_and_read_back(tmp_path):
    best = kept(tmp_path, 3.0, 1.0)
    assert best.known() == Best(step=2, held_out=1.0)
    assert all(torch.equal(value, student(2)[name]) for name, value in best.load().items())
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["best-00000002"]
    assert BestStudent(tmp_path / "other").known() is None


def test_cut_off_between_writing_one_and_removing_another(tmp_path):
    first = kept(tmp_path / "a", 2.0)
    kept(tmp_path / "b", 9.0, 1.0)
    (tmp_path / "b" / FOLDER / "best-00000002").rename(tmp_path / "a" / FOLDER / "best-00000002")
    assert first.known().step == 2
    (tmp_path / "a" / FOLDER / "best-00000002" / "SHA256SUMS").unlink()
    assert first.known().step == 1


def test_a_damaged_one_is_told(tmp_path):
    best = kept(tmp_path, 1.0)
    file = tmp_path / FOLDER / "best-00000001" / "student.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(StateError, match=r"The best student, .*best-00000001, is damaged"):
        best.load()


def test_one_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    best = kept(tmp_path, 2.0)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.engine.best.save_file", full)
    with pytest.raises(ResourceError, match="step 2, the best so far, cannot be written"):
        best.keep(Best(step=2, held_out=1.0), student(2))
    assert best.known().step == 1
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["best-00000001"]
