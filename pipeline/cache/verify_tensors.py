"""What every shard of a teacher cache holds, looked at number by number (`pipeline.cache.verify`).

Names, types and shapes of tensors, pointers, values finite and within their bounds, weights that add up to 1, indices that
rise within their row; with the dataset, that units and tokens are the dataset's, row by row.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int64
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.cache import sizes
from pipeline.cache.documents import Rows, TeacherSide
from pipeline.cache.specs import Counts, LayerCounts, Spec
from pipeline.dataset.findings import Findings
from schemas import arrow
from schemas import signals as names
from schemas.config import CacheConfig
from schemas.manifest import CacheManifest, read_manifest
from schemas.signals import tensor_name
from trainer.maths.pairs import ONE
from trainer.maths.quantization import TYPES
from trainer.maths.ragged import check_pointers, spread, sum_rows
from trainer.maths.triangle import pair_rows
from trainer.teacher.shape import TeacherShape

#: By a tensor of places within their row: which has its pointers.
_POINTERS_OF_INDEX = {"unit_index": "unit_rows", "state_index": "state_rows", names.LEARNT_INDEX: names.LEARNT_ROWS}
#: float32 sums of a row's weights are this close to 1.
TOLERANCE = 1e-4


def check_tensors(
    folder: Path,
    manifest: CacheManifest,
    config: CacheConfig,
    index: pa.Table,
    dataset: Path | None,
    findings: Findings,
) -> None:
    """Look at every shard, and at the matrices beside them; `dataset`: that the cache is of, if that is to be looked at."""
    shape, expected = sizes.told(manifest)
    documents = None if dataset is None else TeacherSide.of(dataset, read_manifest(dataset), config.limit)
    bounds = np.cumsum([0, *(shard.rows for shard in manifest.shards)])
    totals = sizes.nothing(config)
    for number, shard in enumerate(manifest.shards):
        first, last = int(bounds[number]), int(bounds[number + 1])
        tokens = arrow.numbers(index.column("tokens"))[first:last]
        place = f"{names.SHARDS}/{shard.file}"
        try:
            tensors = load_file(folder / place)
        except SafetensorError as error:
            findings.problem(f"{place} cannot be read ({error}).")
            continue
        counts = _check_shard(place, tensors, config, shape, tokens, findings)
        if counts is None:
            continue
        totals += counts
        findings.checked["rows"] += counts.rows
        findings.checked["tokens"] += counts.tokens
        findings.checked["units"] += sum(of.units for of in counts.layers.values())
        if documents is not None:
            _check_against(
                place,
                tensors,
                documents.read(sizes.granularities(config), first, last, response_only=config.response_only),
                config,
                findings,
            )
    if not findings.found and totals != expected:
        findings.problem("Rows, tokens, learnt tokens, units or states in the manifest are not those of the shards.")
    if manifest.head is not None:
        _check_head(folder / manifest.head.file, shape, findings)
    if manifest.embeddings is not None:
        _check_embeddings(folder / manifest.embeddings.file, shape, documents, findings)


def _check_shard(
    place: str,
    tensors: Mapping[str, Tensor],
    config: CacheConfig,
    shape: TeacherShape,
    tokens: np.ndarray,
    findings: Findings,
) -> Counts | None:
    """Everything that a shard can be asked by itself; its counts, or None if it is not built as one."""
    try:
        counts = _counts(tensors, config)
    except (KeyError, ValueError) as error:
        findings.problem(f"{place}: row pointers are missing or wrong ({error}).")
        return None
    expected = sizes.tensors(config, shape, counts)
    odd = sorted(expected.keys() ^ tensors.keys())
    odd += [
        name
        for name, spec in expected.items()
        if name in tensors and (tensors[name].dtype, tuple(tensors[name].shape)) != (TYPES[spec.number], spec.shape)
    ]
    if odd:
        findings.problem(f"{place}: {', '.join(odd[:3])}: not what the manifest's config makes, or not of that shape.")
        return None
    if not np.array_equal(tensors[names.ROW_POINTERS].diff().numpy(), tokens):
        findings.problem(f"{place}: its rows have other tokens than {names.INDEX} says.")
        return None
    for name, spec in expected.items():
        wrong = _problem(name, spec, tensors, config, shape)
        findings.checked["numbers"] += tensors[name].numel()
        if wrong is not None:
            findings.problem(f"{place}: {name} {wrong}.")
    return counts


def _counts(tensors: Mapping[str, Tensor], config: CacheConfig) -> Counts:
    rows = _pointers(tensors, names.ROW_POINTERS)
    layers = {}
    for each in config.layers:
        units = _pointers(tensors, tensor_name("unit_rows", each.layer))
        states = _state_rows(tensors, config, each.layer)
        layers[each.layer] = LayerCounts(
            int(units[-1]), int(pair_rows(units, config.window)[-1]), 0 if states is None else int(states[-1])
        )
    return Counts(len(rows) - 1, int(rows[-1]), int(_learnt_rows(tensors, config)[-1]), layers)


def _learnt_rows(tensors: Mapping[str, Tensor], config: CacheConfig) -> Int64[Tensor, " pointers"]:
    return _pointers(tensors, names.LEARNT_ROWS if config.response_only else names.ROW_POINTERS)


def _state_rows(tensors: Mapping[str, Tensor], config: CacheConfig, layer: int) -> Int64[Tensor, " pointers"] | None:
    if "states" not in config.signals:
        return None
    if config.state_tokens == "all":
        return _learnt_rows(tensors, config)
    return _pointers(tensors, tensor_name("state_rows", layer))


def _pointers(tensors: Mapping[str, Tensor], name: str) -> Int64[Tensor, " pointers"]:
    """Raises KeyError or ValueError where there are none."""
    rows = tensors[name]
    if rows.dtype != torch.int64 or rows.ndim != 1:
        raise ValueError(f"{name} is {rows.dtype} {tuple(rows.shape)}")
    check_pointers(rows)
    return rows


def _problem(
    name: str, spec: Spec, tensors: Mapping[str, Tensor], config: CacheConfig, shape: TeacherShape
) -> str | None:
    """What is wrong with a tensor of the right shape."""
    values = tensors[name]
    if values.is_floating_point() and not bool(values.to(torch.float32).isfinite().all()):
        return "holds NaN or infinite values"
    part = name.rpartition(".")[2]
    if part == "scale" and bool((values <= 0).any()):
        return "holds scales that are not positive"
    if part == "relations" and bool((values < -ONE).any()):
        return "holds cosines below -1"
    if part in ("unit_weights", "attention", "token_weights"):
        return _weights_problem(part, spec, tensors, config)
    if part in _POINTERS_OF_INDEX:
        rows = tensors[tensor_name(_POINTERS_OF_INDEX[part], spec.layer)]
        return _index_problem(values, rows, tensors, of_tokens=part != "unit_index")
    if name in (names.TOPK_INDICES, names.ARGMAX) and bool(((values < 0) | (values >= shape.vocabulary)).any()):
        return f"names tokens outside the vocabulary of {shape.vocabulary}"
    if name == names.ENTROPY and bool(((values < 0) | (values > math.log(shape.vocabulary) + TOLERANCE)).any()):
        return f"holds entropies that a distribution over {shape.vocabulary} tokens cannot have"
    if name == names.LOGPROB and bool((values > TOLERANCE).any()):
        return "are no log-probabilities"
    if name == names.SORTED:
        return _sorted_problem(values.to(torch.float32))
    if name == names.TOPK_LOGPROBS and bool(((values > 0).any()) | (values.diff(dim=1) > 0).any()):
        return "are no log-probabilities, best first"
    return None


def _sorted_problem(values: Tensor) -> str | None:
    if bool(((values < 0) | (values > 1)).any() | (values.diff(dim=1) > 0).any()):
        return "are no probabilities, likeliest first"
    # float16 is within 2^-11 of a number, and of small ones within 2^-25
    most = 1 + 2.0**-10 + values.shape[1] * 2.0**-25
    return "add up to more than 1" if bool((values.sum(1) > most).any()) else None


def _weights_problem(part: str, spec: Spec, tensors: Mapping[str, Tensor], config: CacheConfig) -> str | None:
    assert spec.layer is not None
    values = tensors[tensor_name(part, spec.layer)]
    if bool(((values < 0) | (values > 1 + TOLERANCE)).any()):
        return "are not all between 0 and 1"
    partial = part == "token_weights" and (config.state_tokens == "covered" or config.response_only)
    rows: Tensor | None = tensors[names.ROW_POINTERS]
    if part == "unit_weights":
        rows = tensors[tensor_name("unit_rows", spec.layer)]
    elif part == "token_weights":
        rows = _state_rows(tensors, config, spec.layer)
    assert rows is not None
    totals = sum_rows(values, rows)[rows.diff() > 0]
    # of states that are only some of a row's, the weights are only some of the row's
    wrong = totals > 1 + TOLERANCE if partial else (totals - 1).abs() > TOLERANCE
    return "do not add up to 1 in every row" if bool(wrong.any()) else None


def _index_problem(values: Tensor, rows: Tensor, tensors: Mapping[str, Tensor], of_tokens: bool) -> str | None:
    if bool((values < 0).any()):
        return "holds negative places"
    row = spread(torch.arange(len(rows) - 1), rows)
    if bool(((values.diff() <= 0) & (row.diff() == 0)).any()):
        return "does not rise within a row"
    if of_tokens and bool((values >= tensors[names.ROW_POINTERS].diff()[row]).any()):
        return "names tokens that its row does not have"
    return None


def _check_against(
    place: str, tensors: Mapping[str, Tensor], rows: Rows, config: CacheConfig, findings: Findings
) -> None:
    for name, expected in rows.shard(config.layers, sizes.state_tokens(config), config.window).structure().items():
        if not torch.equal(tensors[name], expected):
            findings.problem(f"{place}: {name} does not follow from the dataset.")


def _check_head(path: Path, shape: TeacherShape, findings: Findings) -> None:
    tensors = _matrices(path, findings)
    if tensors is None:
        return
    width = shape.width(None)
    expected = {"weight": (shape.vocabulary, width), "bias": (shape.vocabulary,)}
    expected |= dict.fromkeys((names.NORM_WEIGHT, names.NORM_BIAS), (width,))
    if "weight" not in tensors or any(expected.get(name) != tensor.shape for name, tensor in tensors.items()):
        findings.problem(f"{path.name} is no output matrix [{shape.vocabulary}, {shape.width(None)}].")


def _check_embeddings(path: Path, shape: TeacherShape, documents: TeacherSide | None, findings: Findings) -> None:
    tensors = _matrices(path, findings)
    if tensors is None:
        return
    weight, ids = tensors.get("weight"), tensors.get("ids")
    if (
        weight is None
        or ids is None
        or tensors.keys() != {"weight", "ids"}
        or ids.dtype != torch.int64
        or ids.ndim != 1
        or weight.shape != (len(ids), shape.embedding_width)
    ):
        findings.problem(f"{path.name} is no matrix of embeddings [tokens, {shape.embedding_width}] with its `ids`.")
    elif bool((ids.diff() <= 0).any() | (ids < 0).any() | (ids >= shape.vocabulary).any()):
        findings.problem(f"{path.name}: `ids` are no rising tokens of the vocabulary of {shape.vocabulary}.")
    elif documents is not None and not np.array_equal(ids.numpy(), documents.token_ids()):
        findings.problem(f"{path.name}: `ids` are not the tokens that occur in {documents.folder}.")


def _matrices(path: Path, findings: Findings) -> dict[str, Tensor] | None:
    """A file's tensors; None if it cannot be read, or what they hold is not finite, which is then told."""
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        findings.problem(f"{path.name} cannot be read ({error}).")
        return None
    if not all(bool(tensor.to(torch.float32).isfinite().all()) for tensor in tensors.values()):
        findings.problem(f"{path.name} holds NaN or infinite values.")
        return None
    return tensors
