"""Files that `torch.save` wrote: pickles, which can run code, so nothing but tensors and plain values is read of them."""

import zipfile
from pathlib import Path
from typing import Any

import torch

from schemas.errors import UserError


def read_pickle(path: Path) -> Any:
    """What is in it, on the CPU, mapped where the file can be. Raises `UserError` for a file that is missing, damaged, or
    holds anything else, and `PermissionError`."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError as error:
        raise UserError(f"There is no file {path}.") from error
    except PermissionError:  # nothing is known of what is in it
        raise
    except Exception as error:  # damaged pickles make the library raise anything from KeyError to RuntimeError
        raise UserError(
            f"{path} is damaged, or holds more than tensors and plain values. It is a pickle, which can run code, so it is not "
            "opened further; download it again, or get the same weights as safetensors."
        ) from error


def require_readable_pickles(folder: Path) -> None:
    """Raises `UserError` naming the first of a model folder's files of pickled weights that cannot be read."""
    for path in sorted(folder.glob("pytorch_model*.bin")):
        read_pickle(path)
