"""Reading a cache: the same numbers as the signals of each row alone, from any process, or a sentence that helps."""

import dataclasses
import functools
import json
import multiprocessing
import pickle
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from pipeline.cache.shard import LearntRows, ShardRows, ShardTensors, layer_rows, pack
from pipeline.cache.specs import Counts, LayerCounts, specs
from schemas import files
from schemas import signals as names
from schemas.config import CacheConfig
from schemas.errors import DamagedError, StateError, UsageError
from schemas.manifest import MANIFEST, CacheManifest, OtherFile, ShardFile, read_cache_manifest, read_manifest
from schemas.signals import LAYER_SIGNALS, SCALARS, Signal
from trainer.cache import TeacherCache
from trainer.cache_folder import CacheFolder
from trainer.maths.geometry import units_with_span
from trainer.maths.layer_signals import layer_signals
from trainer.maths.pairs import cosines_of, later_in_document
from trainer.maths.quantization import DTYPES, decode, encode
from trainer.maths.ragged import pointers
from trainer.maths.triangle import later_units

EVERY = get_args(Signal)
LAYERS = {7: "chunks", 2: "words"}  # in no order but the config's
#: tokens of each row, and its units as a dataset holds them; rows of one token, of no unit, of one, of none with a span
LENGTHS = [4, 1, 7, 3, 1, 5]
SPANS = {
    2: [[[0, 1], [-1, -1], [1, 4]], [[0, 1]], [[0, 2], [2, 3], [5, 7]], [], [[-1, -1]], [[0, 3], [3, 4], [4, 5]]],
    7: [[[0, 4]], [], [[-1, -1], [0, 7], [1, 3]], [[2, 3]], [[0, 1]], [[0, 5], [1, 2]]],
}
#: what is learnt of each row: from its beginning, one span right behind another, with tokens before, between and behind
RESPONSES = [[[2, 4]], [[0, 1]], [[2, 3], [3, 4], [6, 7]], [[1, 2]], [[0, 1]], [[0, 2], [4, 5]]]
SHARDS = [[0, 1, 2], [3], [4, 5]]
HIDDEN, VOCABULARY, K = 8, 11, 3
SHA = "0" * 64
MAPS = Path("/proc/self/maps")


def config_of(**values):
    base = {
        "dataset": "data/my set",
        "teacher": {"model": "org/teacher"},
        "layers": [{"layer": layer, "granularity": name} for layer, name in LAYERS.items()],
        "signals": EVERY,
        "sorted": K,
    }
    return CacheConfig.parse(base | values, "test")


def document(row, layer):
    return torch.randn(LENGTHS[row], HIDDEN, generator=torch.Generator().manual_seed(100 * row + layer))


def flat_spans(layer, rows):
    spans = [span for row in rows for span in SPANS[layer][row]]
    return torch.tensor(spans, dtype=torch.int32).reshape(-1, 2), pointers([len(SPANS[layer][row]) for row in rows])


def live(row, layer, config):
    """The signals of one row, as a live teacher gives them."""
    rows = pointers([LENGTHS[row]])
    units = units_with_span(*flat_spans(layer, [row]), rows)
    want = frozenset(config.signals) & LAYER_SIGNALS
    learnt = learnt_of([row]) if config.response_only else None
    signals = layer_signals(
        document(row, layer), rows, units.spans, units.rows, want, config.state_tokens, config.weights, learnt
    )
    return units, signals


def learnt_of(rows):
    """Whether a token is learnt or before one that is, in plain Python."""
    marks = []
    for row in rows:
        learnt = {token for first, last in RESPONSES[row] for token in range(first, last)}
        marks += [token in learnt or token + 1 in learnt for token in range(LENGTHS[row])]
    return torch.tensor(marks)


def kept_of(values, row, config):
    """Of values of a row's tokens, those that are kept."""
    return values[learnt_of([row])] if config.response_only else values


def attention_of(row, layer):
    return document(row, layer).abs().softmax(0)[:, 0]


def topk_of(row):
    found = document(row, 9).log_softmax(1).topk(K)
    return found.indices.to(torch.int32), found.values


def scalars_of(row):
    """Some number for each token."""
    last = document(row, 9).abs()
    return {"entropy": last[:, 0], "argmax": last[:, 1].to(torch.int32), "logprob": -last[:, 2]}


def embedding_tensors():
    ids = torch.tensor([0, 3, 4, 9])
    return {"weight": torch.randn(len(ids), HIDDEN, generator=torch.Generator().manual_seed(8)), "ids": ids}


def head_tensors():
    generator = torch.Generator().manual_seed(7)
    return {
        "weight": torch.randn(VOCABULARY, HIDDEN, generator=generator),
        "bias": torch.randn(VOCABULARY, generator=generator),
    }


def write_index(folder, columns):
    table = pa.table({name: list(values) for name, values in columns.items()}, schema=names.index_schema())
    with pa.ipc.new_file(str(folder / names.INDEX), table.schema) as writer:
        writer.write_table(table, max_chunksize=4)


def file_entry(path):
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": files.sha256_of(path)}


def write_cache(folder, config, logits=None, head=None):
    """A cache of the six rows, in three shards."""
    (folder / names.SHARDS).mkdir(parents=True)
    layers = [each.layer for each in config.layers]
    entries, places = [], []
    totals = Counts(0, 0, 0, {layer: LayerCounts(0, 0, 0) for layer in layers})
    for number, rows in enumerate(SHARDS):
        token_rows = pointers([LENGTHS[row] for row in rows])
        state_tokens = config.state_tokens if "states" in config.signals else None
        learnt = LearntRows.of(learnt_of(rows), token_rows) if config.response_only else None
        parts = {layer: layer_rows(*flat_spans(layer, rows), token_rows, state_tokens, learnt) for layer in layers}
        shard_rows = ShardRows([f"id-{row}" for row in rows], token_rows, parts, learnt)
        counts = shard_rows.counts()
        totals = totals + counts
        expected = specs(
            counts,
            config.signals,
            config.storage,
            config.state_tokens,
            lambda _: HIDDEN,
            K,
            config.response_only,
            most=config.sorted,
        )
        shard = ShardTensors(shard_rows, expected)
        for place, row in enumerate(rows):
            batch = pack(
                {layer: live(row, layer, config)[1] for layer in layers},
                config.storage,
                attention={each: attention_of(row, each) for each in layers if "attention" in config.signals},
                final=kept_of(document(row, 9), row, config) if "final" in config.signals else None,
                topk=tuple(kept_of(part, row, config) for part in topk_of(row)) if "topk" in config.signals else None,
                scalars={
                    name: kept_of(values, row, config)
                    for name, values in scalars_of(row).items()
                    if name in config.signals
                },
                falling=kept_of(topk_of(row)[1].exp(), row, config) if "sorted" in config.signals else None,
            )
            shard.place([place], batch)
            places.append((f"id-{row}", number, place, LENGTHS[row]))
        file = folder / names.SHARDS / f"{number:05d}.safetensors"
        save_file(shard.tensors(), file)
        entries.append(ShardFile(rows=len(rows), **file_entry(file)))
    write_index(folder, dict(zip(names.index_schema().names, zip(*places, strict=True), strict=True)))
    head_file = None
    if "final" in config.signals:
        save_file(head or head_tensors(), folder / names.HEAD)
        head_file = OtherFile(**file_entry(folder / names.HEAD))
    embeddings_file = None
    if "embeddings" in config.signals:
        save_file(embedding_tensors(), folder / names.EMBEDDINGS)
        embeddings_file = OtherFile(**file_entry(folder / names.EMBEDDINGS))
    manifest = CacheManifest(
        teacher_fingerprint=SHA,
        versions={"mta-prep": "0"},
        config=config.model_dump(mode="json"),
        teacher={
            "name": "teacher",
            "revision": None,
            "sha256": SHA,
            "architecture": "Tiny",
            "depth": 9,
            "hidden_size": HIDDEN,
            "vocabulary": VOCABULARY,
        },
        logits=(logits or {"soft_cap": None, "scale": None}) if head_file else None,
        rows=len(places),
        tokens=sum(LENGTHS),
        counts={
            "learnt": totals.learnt,
            "layers": {
                str(layer): dataclasses.asdict(of) | {"units_without_span": 0} for layer, of in totals.layers.items()
            },
        },
        index=OtherFile(**file_entry(folder / names.INDEX)),
        head=head_file,
        embeddings=embeddings_file,
        shards=tuple(entries),
    )
    (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_cache(tmp_path / "cache", config_of())


@pytest.fixture
def cache(folder):
    return TeacherCache(folder)


def change_manifest(folder, change):
    path = folder / "manifest.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


# what is read is what was live


@pytest.mark.parametrize("response_only", [False, True])
@pytest.mark.parametrize("state_tokens", ["covered", "all"])
@pytest.mark.parametrize("storage", DTYPES)
def test_every_signal_of_every_row(tmp_path, storage, state_tokens, response_only):
    vectors = dict.fromkeys(("units", "states", "final"), storage)
    config = config_of(storage=vectors, state_tokens=state_tokens, response_only=response_only)
    cache = TeacherCache(write_cache(tmp_path / "cache", config))

    def stored(values):
        encoded = encode(values, storage)
        return decode(encoded.stored, encoded.scale)

    assert len(cache) == len(LENGTHS)
    for row, length in enumerate(LENGTHS):
        for layer in LAYERS:
            units, signals = live(row, layer, config)
            count = len(units.index)
            assert torch.equal(cache.unit_index(row, layer), units.index)
            assert torch.equal(cache.unit_weights(row, layer), signals.unit_weights)
            matrix = cache.relations(row, layer)
            assert matrix.shape == (count, count)
            assert torch.equal(matrix, matrix.T)
            assert torch.equal(matrix.diagonal(), torch.ones(count))
            left, right = torch.triu_indices(count, count, offset=1)
            assert torch.equal(matrix[left, right], cache.triangle(row, layer))
            assert bool(((cache.triangle(row, layer) - signals.relations).abs() < 1.53e-5).all())
            assert torch.equal(cache.units(row, layer), stored(signals.units))
            assert torch.equal(cache.states(row, layer), stored(signals.states))
            assert torch.equal(cache.token_weights(row, layer), signals.token_weights)
            kept = torch.arange(length) if signals.state_index is None else signals.state_index
            assert torch.equal(cache.state_index(row, layer), kept)
            assert torch.equal(cache.attention(row, layer), attention_of(row, layer))
        assert cache.learnt_index(row).tolist() == kept_of(torch.arange(length), row, config).tolist()
        assert torch.equal(cache.final(row), kept_of(stored(document(row, 9)), row, config))
        indices, logprobs = cache.topk(row)
        assert torch.equal(indices, kept_of(topk_of(row)[0].long(), row, config))
        assert torch.equal(logprobs, kept_of(topk_of(row)[1].half().float(), row, config))
        assert torch.equal(cache.sorted(row), kept_of(topk_of(row)[1].exp().half().float(), row, config))
        for name, values in scalars_of(row).items():
            assert torch.equal(
                getattr(cache, name)(row), kept_of(values, row, config).to(getattr(cache, name)(row).dtype)
            )
        before = [[max(first - 1, 0), max(last - 1, 0)] for first, last in RESPONSES[row]]
        index = cache.learnt_index(row)
        for (first, last), part in zip(before, cache.parts_of(row, torch.tensor(before)), strict=True):
            assert index[part].tolist() == list(range(first, last))


@pytest.mark.parametrize("response_only", [False, True])
def test_arrays_say_what_tensors_say(tmp_path, response_only):
    """Also of rows that have nothing, wherever in their shard."""
    config = config_of(signals=("relations", *SCALARS), response_only=response_only)
    write_cache(tmp_path / "cache", config)
    arrays, tensors = CacheFolder(tmp_path / "cache"), TeacherCache(tmp_path / "cache")
    for row in range(len(LENGTHS)):
        for layer in LAYERS:
            for part in ("unit_index", "unit_weights", "relations"):
                assert arrays.values(row, part, layer).tolist() == tensors.values(row, part, layer).tolist()
            units = len(tensors.unit_index(row, layer))
            assert np.array_equal(cosines_of(arrays.values(row, "relations", layer)), tensors.triangle(row, layer))
            assert later_in_document(units, None).tolist() == later_units(pointers([units])).tolist()
        for name in SCALARS:
            assert arrays.values(row, name).tolist() == tensors.values(row, name).tolist()
        assert arrays.learnt_tokens(row) == len(tensors.learnt_index(row))


@pytest.mark.parametrize(
    ("reader", "name", "numbers"),
    [
        (CacheFolder, "layer2.unit_rows", torch.zeros(3, dtype=torch.bfloat16)),
        (TeacherCache, "layer2.unit_rows", torch.zeros(3, dtype=torch.bfloat16)),
        (CacheFolder, "layer2.unit_weights", torch.zeros(3, dtype=torch.bfloat16)),
        (CacheFolder, "layer2.unit_weights", torch.zeros(())),
        (TeacherCache, "layer2.unit_weights", torch.zeros(())),
    ],
)
def test_numbers_of_another_kind(folder, reader, name, numbers):
    file = folder / names.SHARDS / "00002.safetensors"
    tensors = load_file(file)
    save_file(tensors | {name: numbers}, file)
    manifest = json.loads((folder / MANIFEST).read_bytes())
    manifest["shards"][2] |= file_entry(file)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DamagedError, match=r"00002.safetensors"):
        reader(folder).values(5, "unit_weights", 2)


def test_tokens_that_a_response_only_cache_lacks(tmp_path):
    config = config_of(response_only=True)
    cache = TeacherCache(write_cache(tmp_path / "cache", config))
    row = max(range(6), key=lambda row: LENGTHS[row])
    assert len(cache.learnt_index(row)) < LENGTHS[row]
    with pytest.raises(StateError, match=f"lacks tokens of row {row} that the dataset says are learnt"):
        cache.parts_of(row, torch.tensor([[0, LENGTHS[row]]]))


def test_unit_weights_add_up_to_one(cache):
    for row in range(len(cache)):
        for layer in cache.layers:
            weights = cache.unit_weights(row, layer)
            assert not len(weights) or weights.sum().item() == pytest.approx(1, rel=1e-6)


def test_layers_come_in_the_order_of_the_config(cache):
    assert list(cache.layers.items()) == [(7, "chunks"), (2, "words")]


def test_ids_are_found(cache):
    assert cache.ids == [f"id-{row}" for row in range(6)]
    assert [cache.row_of(each) for each in cache.ids] == list(range(6))
    assert cache.index["tokens"].to_pylist() == LENGTHS


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("soft_cap", "scale"), [(None, None), (3.0, None), (None, 0.25), (3.0, 0.25)])
def test_logits_are_the_models(tmp_path, soft_cap, scale, bias):
    config = config_of(signals=["final"], layers=[], storage={"final": "fp32"})
    head = head_tensors() if bias else {"weight": head_tensors()["weight"]}
    cache = TeacherCache(write_cache(tmp_path / "cache", config, {"soft_cap": soft_cap, "scale": scale}, head))
    for row in range(6):
        expected = document(row, 9) @ head["weight"].T + (head["bias"] if bias else 0)
        expected = expected if scale is None else expected * scale
        expected = expected if soft_cap is None else soft_cap * (expected / soft_cap).tanh()
        torch.testing.assert_close(cache.logits(row), expected)


def test_what_is_read_may_be_written_to(cache):
    readers = [cache.unit_index, cache.unit_weights, cache.triangle, cache.relations, cache.units]
    readers += [cache.states, cache.token_weights, cache.attention, cache.state_index]
    for read in readers:
        before = read(2, 2).clone()
        read(2, 2).zero_()
        assert torch.equal(read(2, 2), before)


@pytest.mark.skipif(not MAPS.exists(), reason="only Linux tells what is mapped")
def test_shards_are_mapped_not_read(folder, cache):
    cache.states(5, 2)
    shard = cache._shards[2]
    file = str(folder / names.SHARDS / "00002.safetensors")
    maps = [line.split() for line in MAPS.read_text(encoding="utf-8").splitlines() if line.endswith(file)]
    ranges = [tuple(int(end, 16) for end in entry[0].split("-")) for entry in maps]
    assert shard._parts
    for tensor in shard._parts.values():
        assert any(first <= tensor.data_ptr() < last for first, last in ranges)
    assert set(cache._shards) == {2}


# processes


def test_pickled_with_a_shard_open(cache):
    expected = cache.relations(0, 2)
    again = pickle.loads(pickle.dumps(cache))
    assert not again._shards
    assert torch.equal(again.relations(0, 2), expected)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on machines of one core
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_data_loader_workers(cache, context):
    expected = [cache.states(row, 2) for row in range(4)]  # two shards are open before the workers are there
    loader = DataLoader(
        range(6),  # type: ignore[arg-type]
        batch_size=None,
        collate_fn=functools.partial(TeacherCache.states, cache, layer=2),
        num_workers=2,
        multiprocessing_context=multiprocessing.get_context(context),
    )
    found = list(loader)
    assert len(found) == 6
    for row, states in enumerate(found):
        assert torch.equal(states, cache.states(row, 2))
    assert all(torch.equal(a, b) for a, b in zip(expected, found[:4], strict=True))


# what is not there


def commands(message):
    return re.findall(r"`(mta-prep [^`]*)`", message)


def test_an_unknown_layer_is_told_with_the_command_that_caches_it(cache):
    with pytest.raises(UsageError, match=r"has 7 \(chunks\), 2 \(words\), not layer 6") as caught:
        cache.relations(0, 6)
    assert commands(str(caught.value)) == [
        f"mta-prep cache-teacher --config {cache.folder}/config.yaml --layers 7:chunks,2:words,6:chunks -o OTHER"
    ]


@pytest.mark.parametrize("signal", EVERY)
def test_an_unknown_signal_is_told_with_the_command_that_caches_it(tmp_path, signal):
    others = [each for each in EVERY if each != signal]
    cache = TeacherCache(write_cache(tmp_path / "cache", config_of(signals=others)))
    asked = {
        "relations": [cache.relations, cache.triangle],
        "units": [cache.units],
        "states": [cache.states, cache.token_weights, cache.state_index],
        "attention": [cache.attention],
        "final": [lambda row, _: cache.final(row), lambda row, _: cache.logits(row)],
        "topk": [lambda row, _: cache.topk(row)],
        "sorted": [lambda row, _: cache.sorted(row)],
        "entropy": [lambda row, _: cache.entropy(row)],
        "argmax": [lambda row, _: cache.argmax(row)],
        "logprob": [lambda row, _: cache.logprob(row)],
        "embeddings": [lambda *_: cache.embeddings],
    }
    for read in asked[signal]:
        with pytest.raises(UsageError, match=f"not `{signal}`") as caught:
            read(0, 2)
        assert f"--signals {','.join([*others, signal])} -o" in commands(str(caught.value))[0]
    assert len(cache.unit_weights(0, 2)) == 2


@pytest.mark.parametrize("row", [-1, 6, 10**9])
def test_unknown_rows(cache, row):
    for read in (cache.final, cache.logits, cache.topk, functools.partial(cache.units, layer=2)):
        with pytest.raises(UsageError, match=f"has rows 0 to 5, not {row};"):
            read(row)


def test_unknown_id(cache):
    with pytest.raises(UsageError, match="no row with id 'id-6'") as caught:
        cache.row_of("id-6")
    assert commands(str(caught.value)) == [
        f"mta-prep cache-teacher DATASET --config {cache.folder}/config.yaml -o OTHER"
    ]


def test_a_limited_cache_names_the_command_with_a_higher_limit(tmp_path):
    cache = TeacherCache(write_cache(tmp_path / "cache", config_of(limit=6)))
    with pytest.raises(UsageError, match="with a limit of 6") as caught:
        cache.final(6)
    assert commands(str(caught.value))[0].endswith("config.yaml --set limit=7 -o OTHER")
    with pytest.raises(UsageError) as caught:
        cache.row_of("nobody")
    assert commands(str(caught.value))[0].endswith("config.yaml --set limit=12 -o OTHER")


def test_a_cache_without_layers(tmp_path):
    cache = TeacherCache(write_cache(tmp_path / "cache", config_of(layers=[], signals=["final"])))
    assert cache.layers == {}
    assert cache.final(0).shape == (4, HIDDEN)
    for read, signal in ((cache.unit_weights, "relations"), (cache.states, "states")):
        with pytest.raises(UsageError, match="has no layer, not layer 3") as caught:
            read(0, 3)
        # layers with the signal `final` alone would be refused
        assert f"--layers 3:chunks --signals final,{signal} -o" in commands(str(caught.value))[0]


# folders that are no cache, or no longer


def test_no_folder(tmp_path):
    with pytest.raises(StateError, match="There is no folder"):
        TeacherCache(tmp_path / "none")


def test_an_unfinished_cache(folder):
    (folder / "manifest.json").unlink()
    with pytest.raises(StateError, match=r"no manifest\.json: it is no teacher cache, or .* `mta-prep cache-teacher`"):
        TeacherCache(folder)


def test_a_dataset_is_no_cache_and_a_cache_no_dataset(folder):
    with pytest.raises(StateError, match="is a teacher cache, not a prepared dataset; `mta-prep parse` makes those"):
        read_manifest(folder)
    change_manifest(folder, lambda values: values.update(format="mta-prep/dataset"))
    with pytest.raises(StateError, match="is a prepared dataset, not a teacher cache; `mta-prep cache-teacher`"):
        TeacherCache(folder)


def test_another_format_version(folder):
    change_manifest(folder, lambda values: values.update(format_version=99))
    with pytest.raises(StateError, match="format version 99"):
        TeacherCache(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": "mta-prep/teacher-cache"}', "\xff"])
def test_a_damaged_manifest(folder, text):
    (folder / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(StateError, match=r"manifest\.json"):
        TeacherCache(folder)


@pytest.mark.parametrize("name", ["../00000.safetensors", "/etc/passwd", "a/b", "..", ".hidden", "a\n", ""])
@pytest.mark.parametrize("entry", ["shards", "index", "head"])
def test_a_path_out_of_the_folder_is_refused(folder, entry, name):
    def change(values):
        (values["shards"][1] if entry == "shards" else values[entry])["file"] = name

    change_manifest(folder, change)
    with pytest.raises(StateError, match="damaged or not the manifest"):
        read_cache_manifest(folder)


@pytest.mark.parametrize("name", ["shards/00001.safetensors", names.INDEX, names.HEAD])
@pytest.mark.parametrize("how", ["missing", "short"])
def test_missing_and_truncated_files(folder, name, how):
    file = folder / name
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(StateError, match=rf"is damaged: {re.escape(name)} (is missing|has \d+ bytes)") as caught:
        TeacherCache(folder)
    assert commands(str(caught.value)) == [
        f"mta-prep verify {folder}",
        f"mta-prep cache-teacher --config {folder}/config.yaml -o OTHER",
    ]


def test_a_shard_that_is_no_safetensors(folder, cache):
    file = folder / names.SHARDS / "00000.safetensors"
    file.write_bytes(b"\xff" * file.stat().st_size)
    cache = TeacherCache(folder)
    assert cache.final(3).shape == (3, HIDDEN)  # another shard
    with pytest.raises(StateError, match=r"shards/00000\.safetensors cannot be read"):
        cache.final(0)


def test_a_shard_that_lacks_a_tensor(folder):
    def change(values):
        values["config"]["layers"].append({"layer": 9, "granularity": "words"})
        values["counts"]["layers"]["9"] = values["counts"]["layers"]["2"]

    change_manifest(folder, change)
    with pytest.raises(StateError, match=r"shards/00000\.safetensors has no layer9\.unit_rows"):
        TeacherCache(folder).relations(0, 9)


@pytest.mark.parametrize(("column", "value"), [("shard", 3), ("shard", -1), ("row", 3), ("row", -1)])
def test_an_index_that_points_nowhere(folder, column, value):
    columns = TeacherCache(folder).index.to_pydict()
    columns[column][0] = value
    write_index(folder, columns)
    change_manifest(folder, lambda values: values["index"].update(file_entry(folder / names.INDEX)))
    with pytest.raises(StateError, match="puts row 0 where its shards have none"):
        TeacherCache(folder).final(0)


@pytest.mark.parametrize("content", [b"nothing", b""])
def test_an_index_that_is_no_arrow_file(folder, content):
    (folder / names.INDEX).write_bytes(content)
    change_manifest(folder, lambda values: values["index"].update(file_entry(folder / names.INDEX)))
    with pytest.raises(StateError, match="its index cannot be read"):
        TeacherCache(folder).final(0)


def test_counts_that_contradict_each_other(folder):
    change_manifest(folder, lambda values: values.update(rows=7))
    with pytest.raises(StateError, match="do not add up"):
        TeacherCache(folder)
    change_manifest(folder, lambda values: values["shards"][0].update(rows=4))
    with pytest.raises(StateError, match="does not list the 7 rows"):
        TeacherCache(folder).final(0)
