"""A smaller parser out of a stored one, to be trained further: fewer layers, hidden units and word pieces.

Kept are the first layers of the encoder and the first of the parser's own, and of the label head the hidden units whose
outputs weigh most. What is kept stays as it is stored, number by number; the tree of a sentence does not, before training.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor

from pipeline.parse.model import reading
from pipeline.parse.places import WEIGHTS
from pipeline.parse.vocabulary import kept_pieces, write_tokenizer
from schemas.errors import UserError
from schemas.files import written

#: Layers of the encoder and of the parser's own, by their numbers.
_LAYER = re.compile(r"(?P<stack>pretrained_model\.encoder\.layer|encoder\.layers)\.(?P<number>\d+)\.")
_PIECES = "pretrained_model.embeddings.word_embeddings.weight"
#: The label head's outputs, a column for each of its hidden units, in 8 bits and with a scale a row.
_OUTPUTS = "f_label.3.weight"
#: What there is of the label head for each of its hidden units, a row each.
_UNITS = ("f_label.0.weight.int8", "f_label.0.weight.scale", "f_label.0.bias", "f_label.1.weight", "f_label.1.bias")


@dataclass(frozen=True)
class Size:
    """How much of a parser is kept; None: all."""

    encoder_layers: int | None = None
    layers: int | None = None
    label_hidden: int | None = None
    frequent: int | None = None  # word pieces, beside those that are in use (`vocabulary.kept_pieces`)


def _smaller(what: str, wanted: int | None, present: int) -> int:
    if wanted is not None and wanted > present:
        raise UserError(f"{what} {wanted} is more than the parser to start with has: {present}.")
    return present if wanted is None else wanted


def _units(weights: dict[str, Tensor], count: int) -> Tensor:
    """Hidden units of the label head that weigh most, in their order."""
    outputs = weights[f"{_OUTPUTS}.int8"].float() * weights[f"{_OUTPUTS}.scale"][:, None]
    heaviest: Tensor = outputs.norm(dim=0).topk(count).indices.sort().values
    return heaviest


def _without_layers(weights: dict[str, Tensor], encoder_layers: int, layers: int) -> dict[str, Tensor]:
    kept = {"pretrained_model.encoder.layer": encoder_layers, "encoder.layers": layers}

    def stays(name: str) -> bool:
        layer = _LAYER.match(name)
        return layer is None or int(layer["number"]) < kept[layer["stack"]]

    return {name: weight for name, weight in weights.items() if stays(name)}


def cut(source: Path, target: Path, size: Size, texts: Iterable[str]) -> dict[str, int]:
    """Write the stored parser at `source` (a BERT encoder) to `target` in this size; returns what it has of each.

    Raises `UserError` where more is wanted than there is, or `source` is damaged.
    """
    with reading(source):
        config: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
        hparams, stored = config["benepar"]["hparams"], load_file(source / WEIGHTS)
        config["num_hidden_layers"] = _smaller("--encoder-layers", size.encoder_layers, config["num_hidden_layers"])
        hparams["num_layers"] = _smaller("--layers", size.layers, hparams["num_layers"])
        hparams["d_label_hidden"] = _smaller("--label-hidden", size.label_hidden, hparams["d_label_hidden"])
        weights = _without_layers(stored, config["num_hidden_layers"], hparams["num_layers"])
        units = _units(weights, hparams["d_label_hidden"])
        weights |= {name: weights[name][units] for name in _UNITS}
        weights[f"{_OUTPUTS}.int8"] = weights[f"{_OUTPUTS}.int8"][:, units].contiguous()
        pieces = kept_pieces(source, texts, size.frequent)
        rows = torch.tensor([old for old, _ in pieces])
        weights |= {f"{_PIECES}.{part}": weights[f"{_PIECES}.{part}"][rows] for part in ("int8", "scale")}
        config["vocab_size"] = len(pieces)
        write_tokenizer(source, target, pieces)
        (target / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        with written(target / WEIGHTS) as stream:
            stream.write(serialise(weights))
    return {
        "encoder_layers": config["num_hidden_layers"],
        "layers": hparams["num_layers"],
        "label_hidden": hparams["d_label_hidden"],
        "word_pieces": len(pieces),
    }
