"""Pickled weights: tensors are read, anything else and what is damaged is refused with the file's name, and nothing is run."""

import errno
import re
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.parse import model as parser_model
from schemas.config import ModelConfig
from schemas.errors import UserError
from trainer.models.loading import load_model
from trainer.models.pickles import read_pickle


class Touches:
    """Unpickled without care, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def cut(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


DAMAGE = {
    "code": lambda path: torch.save({"weight": torch.ones(2), "other": Touches(path.with_name("touched"))}, path),
    "cut": cut,
    "text": lambda path: path.write_text("hello"),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.fixture(params=DAMAGE)
def damage(request):
    return DAMAGE[request.param]


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def saved(request, tmp_path):
    """A file of tensors, in either of torch's formats."""
    path = tmp_path / "pytorch_model.bin"
    values = {"weight": torch.arange(6.0).reshape(2, 3), "name": "a", "sizes": [1, 2]}
    torch.save(values, path, _use_new_zipfile_serialization=request.param)
    return path, values


def test_what_was_saved_is_read(saved):
    path, values = saved
    found = read_pickle(path)
    assert torch.equal(found.pop("weight"), values.pop("weight"))
    assert found == values


def refusal(load, path):
    with pytest.raises(UserError, match=r"is damaged, or holds more than tensors.*safetensors") as error:
        load()
    assert str(path) in str(error.value)
    assert "weights_only" not in str(error.value)
    assert not path.with_name("touched").exists()


def test_what_is_no_tensor_or_damaged_is_refused(saved, damage):
    path, _ = saved
    damage(path)
    refusal(lambda: read_pickle(path), path)


def test_a_file_that_is_missing_or_not_ours_is_not_told_as_damaged(tmp_path, monkeypatch):
    path = tmp_path / "best.pt"
    with pytest.raises(UserError, match=f"^There is no file {re.escape(str(path))}\\.$"):
        read_pickle(path)

    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(torch, "load", refused)
    with pytest.raises(PermissionError):
        read_pickle(path)


def test_a_model_whose_weights_are_such_a_file(tiny_teacher, tmp_path, damage):
    folder = tmp_path / "model"
    shutil.copytree(tiny_teacher, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": torch.ones(2)}, folder / "pytorch_model.bin")
    damage(folder / "pytorch_model.bin")
    refusal(lambda: load_model(ModelConfig(model=str(folder)), None), folder / "pytorch_model.bin")


def test_a_parser_that_is_such_a_file(tmp_path, damage):
    path = tmp_path / "parser.pt"
    torch.save({"config": {}}, path)
    damage(path)
    refusal(lambda: parser_model.load(str(path)), path)
