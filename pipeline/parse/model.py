"""Parser models on disk: ours (safetensors, int8 rows), benepar's release folders, benepar's single-file checkpoints.

Our format is a Hugging Face folder: `config.json` (the encoder's, with benepar's own settings under `benepar`),
`tokenizer.json`, and `parser.safetensors`. A matrix `W` is stored as int8 with one scale a row, `W ≈ W.int8 · W.scale`;
all else in half precision. Benepar's files are pickles, of which nothing but tensors and plain values is read
(`trainer.models.pickles`).
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor

from pipeline.parse import network
from pipeline.parse.places import WEIGHTS, locate
from pipeline.parse.stored import StoredParser, is_bert, open_tokenizer
from schemas.errors import UserError, first_line
from schemas.files import make_folder, written
from trainer.models.pickles import read_pickle

#: benepar builds the encoder with BERT's pooler, which no parser reads; our files leave it out.
UNREAD = re.compile(r"^pretrained_model\.pooler\.")


@dataclass(frozen=True)
class LoadedParser:
    """A parser ready to run, and what names it in a manifest."""

    network: network.Network
    name: str
    sha256: str


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raises `UserError` for whatever a damaged parser, or something else in its place, makes libraries and us raise."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # without a number it is a library's own
            raise
        raise UserError(
            f"The parser model {path} is damaged, or no parser ({type(error).__name__}: {first_line(error)}). Copy or download "
            "it again, or choose another one."
        ) from error


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 rows and their float32 scales, symmetric: the largest absolute value of a row becomes 127."""
    rows = weight.reshape(weight.shape[0], -1).float()
    scale = rows.abs().amax(1).clamp(min=1e-12) / 127
    return (rows / scale[:, None]).round().to(torch.int8).reshape(weight.shape), scale


def rows_of(name: str, weight: Tensor) -> Tensor:
    """View in which a row has values of like size: benepar's attention weights mix heads, inputs and q/k/v."""
    if ".w_qkv_" in name:  # [head, input, 3, feature] -> one row per head, of q, k and v, and feature
        return weight.permute(0, 2, 3, 1)
    if ".w_o_" in name:  # [head, feature, output] -> one row per head and output
        return weight.permute(0, 2, 1)
    return weight


def rows_back(name: str, weight: Tensor) -> Tensor:
    """Inverse of `rows_of`."""
    if ".w_qkv_" in name:
        return weight.permute(0, 3, 1, 2).contiguous()
    if ".w_o_" in name:
        return weight.permute(0, 2, 1).contiguous()
    return weight


def pack(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in the stored form."""
    packed: dict[str, Tensor] = {}
    for name, weight in state.items():
        if UNREAD.match(name) or not weight.is_floating_point():
            continue
        if weight.dim() < 2:
            packed[name] = weight.half().contiguous()
            continue
        rows = rows_of(name, weight)
        values, scale = quantise(rows.reshape(-1, rows.shape[-1]))
        packed[f"{name}.int8"] = values.reshape(rows.shape).contiguous()
        packed[f"{name}.scale"] = scale
    return packed


def unpack(packed: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `pack`, in float32."""
    state: dict[str, Tensor] = {}
    for name, value in packed.items():
        if name.endswith(".scale"):
            continue
        if name.endswith(".int8"):
            name = name.removesuffix(".int8")
            rows = value.float().reshape(-1, value.shape[-1]) * packed[f"{name}.scale"][:, None]
            state[name] = rows_back(name, rows.reshape(value.shape))
        else:
            state[name] = value.float()
    return state


def save(parser: network.Network, encoder: Path, folder: Path) -> None:
    """Write `parser` in our format; `encoder` is the folder its tokenizer and encoder config came from."""
    make_folder(folder)
    config = json.loads((encoder / "config.json").read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    settings = {key: parser.config[key] for key in ("label_vocab", "tag_vocab", "char_vocab")}
    hparams = {**parser.config["hparams"], "pretrained_model": "."}
    config["benepar"] = {**settings, "hparams": hparams}
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(encoder / name, folder / name)
    with written(folder / WEIGHTS) as stream:
        stream.write(serialise(pack({name: value.cpu() for name, value in parser.state_dict().items()})))


def export_for_benepar(folder: Path, target: Path) -> None:
    """Write a model of ours as stock benepar's release folder: `benepar.Parser(str(target))` opens it."""
    make_folder(target)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, target / name)
    torch.save(_network(folder).state_dict(), target / "benepar_model.bin")


def _build(settings: dict[str, Any], folder: Path | None, state: dict[str, Tensor]) -> network.Network:
    network.supply_what_transformers_dropped()
    from benepar.nkutil import HParams
    from benepar.parse_chart import ChartParser

    hparams = {"force_root_constituent": True, **settings["hparams"]}
    vocabularies = {key: settings[key] for key in ("label_vocab", "tag_vocab", "char_vocab")}
    where = str(folder) if folder is not None else None
    parser = ChartParser(**vocabularies, hparams=HParams(**hparams), pretrained_model_path=where)
    blank = {name: torch.zeros_like(value) for name, value in parser.state_dict().items() if UNREAD.match(name)}
    # transformers 4 stored position ids as a buffer; today's encoders compute them
    known = {name: value for name, value in state.items() if not name.endswith(".position_ids")}
    parser.load_state_dict(blank | known)
    parser.eval()
    return parser


def _from_folder(folder: Path) -> network.Network:
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no parser model: there is no config.json in it.")
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("benepar")
    if settings is None:
        raise UserError(f"{folder}: config.json has no `benepar` entry, so this is no exported parser.")
    if (folder / WEIGHTS).exists():
        return _build(settings, folder, unpack(load_file(folder / WEIGHTS)))
    released = folder / "benepar_model.bin"
    if not released.exists():
        raise UserError(f"{folder}: neither {WEIGHTS} nor benepar_model.bin is in it.")
    return _build(settings, folder, read_pickle(released))


def _from_file(path: Path) -> network.Network:
    data = read_pickle(path)
    if not isinstance(data, dict) or not {"config", "state_dict"} <= data.keys():
        raise UserError(f"{path}: not a benepar checkpoint (no `config` and `state_dict` in it).")
    return _build(data["config"], None, data["state_dict"])


def _network(path: Path) -> network.Network:
    with reading(path):
        return _from_folder(path) if path.is_dir() else _from_file(path)


def digest(path: Path) -> str:
    """sha256 over the names and bytes of all that decides a model's output."""
    total = hashlib.sha256()
    files = (
        [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in {".json", ".safetensors", ".bin"})
    )
    for file in files:
        with file.open("rb") as stream:
            total.update(file.name.encode() + b"\0" + hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def _name(model: str, path: Path) -> str:
    return model if model == "embedded" or not Path(model).exists() else path.name


def _stored(folder: Path) -> StoredParser | None:
    """The parser of a folder in our format with a BERT encoder; None for all else, and for what is damaged."""
    if not (folder / WEIGHTS).is_file() or not (folder / "config.json").is_file():
        return None
    try:
        with reading(folder):
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            tokenizer = open_tokenizer(folder) if is_bert(config) else None
            return None if tokenizer is None else StoredParser(config, tokenizer, unpack(load_file(folder / WEIGHTS)))
    except UserError:  # `load` says what is wrong with it, if anything is
        return None


def load(model: str) -> LoadedParser:
    """Load `model` (see `locate`) in float32 on the CPU; raises `UserError` where it is missing or not a parser."""
    path = locate(model)
    parser = _network(path)
    if parser.pretrained_model is None:
        raise UserError(f"Parser model {model!r} has no pretrained encoder; character-LSTM models are not supported.")
    return LoadedParser(parser, _name(model, path), digest(path))


def load_for_inference(model: str) -> LoadedParser:
    """`load`, for an `Engine` alone: a stored parser on BERT needs no import of benepar or transformers."""
    path = locate(model)
    stored = _stored(path)
    if stored is None:
        return load(model)
    return LoadedParser(stored, _name(model, path), digest(path))
