"""Training data: rows and signals joined, left-out units, order, portions, the loader, and errors that say what to do."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_from_disk
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cache import plan as caching
from pipeline.dataset import realign
from schemas.columns import GRANULARITIES
from schemas.errors import StateError, UsageError
from schemas.manifest import read_manifest, same_tokens
from schemas.training import DataConfig, PairConfig
from trainer.batches.batch import Batch
from trainer.batches.documents import Documents
from trainer.batches.loader import StepLoader
from trainer.batches.order import deal, held_out, order, stream
from trainer.batches.transfer import pack
from trainer.batches.units import shared_units
from trainer.cache import TeacherCache
from trainer.maths.layer_signals import LayerSignals
from trainer.maths.ragged import pointers
from trainer.objectives.base import Needs
from trainer.teacher.cached import CachedTeacher
from trainer.teacher.caches import Caches
from trainer.teacher.needs import teacher_needs
from trainer.teacher.targets import join_layer

ROWS = [5, 0, 23, 11, 11, 2]
WORDS = PairConfig(student=1, teacher=2, granularity="words")
CHUNKS = PairConfig(student=3, teacher=4, granularity="chunks")
TOP = {"signals": ["relations"], "layers": [{"layer": 4, "granularity": "chunks"}]}


@pytest.fixture(scope="module")
def aligned(prepared, tmp_path_factory):
    """The sample for another student than caches of it were made beside; its limit cuts long rows, and drops none."""
    out = tmp_path_factory.mktemp("aligned") / "out"
    longest_prompt = max(load_from_disk(str(prepared))["teacher_response_start"])
    sides = {"student": {"tokenizer": "embedded:sentencepiece-bpe", "max_length": longest_prompt + 3}}
    realign.realign(prepared, out, sides, None, workers=1, overwrite=False, quiet=True)
    return out


@pytest.fixture(scope="module")
def make_cache(cache_plan, tmp_path_factory):
    made = {}

    def make(**values):
        key = json.dumps(values, sort_keys=True)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("cache") / "out"
            caching.cache(cache_plan(**values), made[key], workers=1, quiet=True)
        return made[key]

    return make


def needing(documents, *pairs, needs=("relations",), weights="centrality", **term):
    layers = {pair.teacher: frozenset(needs) for pair in pairs}
    return teacher_needs({"dsa": Needs(layers, **term)}, pairs, weights, documents)


def source_of(folder, caches, *pairs, limit=None, **wanted):
    documents = Documents(folder, limit)
    return CachedTeacher(Caches(caches, documents), needing(documents, *pairs, **wanted))


def same_batch(one, two):
    assert one.layers.keys() == two.layers.keys()
    for mine, other in [(one, two), *((one.layers[layer], two.layers[layer]) for layer in one.layers)]:
        for each in fields(mine):
            a, b = getattr(mine, each.name), getattr(other, each.name)
            if isinstance(a, torch.Tensor):
                assert a.dtype == b.dtype
                assert torch.equal(a, b), each.name
            elif each.name != "layers":
                assert a is None
                assert b is None


# rows and signals


@pytest.mark.parametrize("dataset", ["prepared", "aligned"])
def test_a_batch_is_what_the_columns_say(request, make_cache, dataset):
    """Tokens, positions, units that both sides have, their weights and relations, recomputed row by row in plain Python.

    `aligned` is served by the cache that was made before it.
    """
    folder = request.getfixturevalue(dataset)
    cache = TeacherCache(make_cache())
    batch = source_of(folder, [make_cache()], WORDS, CHUNKS).fetch(ROWS)
    table = load_from_disk(str(folder))
    assert batch.documents.tolist() == ROWS
    ids, positions, targets, rows = [], [], [], [0]
    spans, weights, relations, unit_rows = ({2: [], 4: []} for _ in range(4))
    left_out = 0
    for row in ROWS:
        document = table[row]
        base, mine = len(ids), document["student_input_ids"]
        for place in range(document["student_response_start"], len(mine)):
            if place > 0:
                positions.append(base + place - 1)
                targets.append(mine[place])
        ids += mine
        rows.append(len(ids))
        for layer, name in ((2, "words"), (4, "chunks")):
            both = []
            columns = zip(document[f"teacher_{name}"], document[f"student_{name}"], strict=True)
            for unit, (teacher, student) in enumerate(columns):
                if teacher != [-1, -1] and student != [-1, -1]:
                    both.append(unit)
                    spans[layer].append([base + student[0], base + student[1]])
                elif teacher != [-1, -1]:
                    left_out += 1
            place = {unit: k for k, unit in enumerate(cache.unit_index(row, layer).tolist())}
            omega = [cache.unit_weights(row, layer).tolist()[place[unit]] for unit in both]
            weights[layer] += [each / sum(omega) for each in omega]
            matrix = cache.relations(row, layer).tolist()
            relations[layer] += [matrix[place[a]][place[b]] for i, a in enumerate(both) for b in both[i + 1 :]]
            unit_rows[layer].append(len(both))
    assert batch.ids.tolist() == ids
    assert batch.rows.tolist() == rows
    assert batch.positions.tolist() == positions
    assert batch.targets.tolist() == targets
    for layer, found in batch.layers.items():
        assert found.spans.tolist() == spans[layer]
        assert found.rows.diff().tolist() == unit_rows[layer]
        np.testing.assert_allclose(found.weights, weights[layer], rtol=1e-5)
        assert found.relations.tolist() == relations[layer]
    assert dataset == "prepared" or left_out > 0


@pytest.mark.parametrize("limit", [None, 7])
@pytest.mark.parametrize("dataset", ["prepared", "aligned"])
def test_units_left_out_are_counted(request, dataset, limit):
    folder = request.getfixturevalue(dataset)
    documents = Documents(folder, limit)
    table = load_from_disk(str(folder)).select(range(documents.rows))
    for name in GRANULARITIES:
        teacher, student = (
            [span == [-1, -1] for row in table[f"{side}_{name}"] for span in row] for side in ("teacher", "student")
        )
        found = documents.left_out(name)
        assert found.units == len(teacher)
        assert found.teacher == sum(teacher)
        assert found.student == sum(student)
        assert found.either == sum(a or b for a, b in zip(teacher, student, strict=True))
    assert dataset == "prepared" or found.student > 0


def test_plain_columns(prepared):
    documents = Documents(prepared)
    table = load_from_disk(str(prepared))
    assert len(documents) == documents.rows == len(table)
    assert documents.ids.to_pylist() == list(table["id"])
    assert documents.largest_student_id == max(max(ids) for ids in table["student_input_ids"])
    for side in ("teacher", "student"):
        assert documents.lengths(side).tolist() == [len(ids) for ids in table[f"{side}_input_ids"]]
    short = Documents(prepared, 3)
    assert len(short.ids) == len(short.lengths("student")) == short.rows == 3
    assert short.largest_student_id == max(max(ids) for ids in table[:3]["student_input_ids"])
    for rows in ([], [3], [-1]):
        with pytest.raises(ValueError):
            short.batch(np.array(rows, dtype=np.int64))


@given(data=st.data())
@settings(max_examples=40)
def test_shared_units_and_join_against_plain_loops(data):
    """Any pattern of missing spans: documents without units, units on one side only, none in common."""
    documents = data.draw(st.integers(1, 4))
    tokens = [data.draw(st.integers(1, 6)) for _ in range(documents)]
    counts = [data.draw(st.integers(0, 5)) for _ in range(documents)]
    missing = st.sampled_from([True, False, False])
    teacher, student, expected_spans, kept, kept_rows = [], [], [], [], []
    start = 0
    for length, count in zip(tokens, counts, strict=True):
        both = 0
        for _ in range(count):
            a, b = sorted(data.draw(st.lists(st.integers(0, length), min_size=2, max_size=2, unique=True)))
            sides = [[-1, -1] if data.draw(missing) else [a, b] for _ in range(2)]
            teacher.append(sides[0])
            student.append(sides[1])
            if sides == [[a, b], [a, b]]:
                kept.append(len(teacher) - 1)
                expected_spans.append([start + a, start + b])
                both += 1
        kept_rows.append(both)
        start += length
    rows = pointers(tokens)
    spans = [torch.tensor(each, dtype=torch.int32).reshape(-1, 2) for each in (teacher, student)]
    shared = shared_units(pointers(counts), *spans, rows)
    assert shared.spans.tolist() == expected_spans
    assert shared.rows.diff().tolist() == kept_rows
    of_teacher = [unit for unit, span in enumerate(teacher) if span != [-1, -1]]
    document = [d for d, count in enumerate(counts) for _ in range(count)]
    values = {unit: 1.0 + unit for unit in of_teacher}
    triangle = [(a, b) for i, a in enumerate(of_teacher) for b in of_teacher[i + 1 :] if document[a] == document[b]]
    signals = LayerSignals(
        unit_weights=torch.tensor([values[unit] for unit in of_teacher]),
        relations=torch.tensor([100.0 * a + b for a, b in triangle]),
        units=torch.tensor([[values[unit], -1.0] for unit in of_teacher]).reshape(-1, 2),
        states=torch.arange(2.0 * sum(tokens)).reshape(-1, 2),
        token_weights=torch.arange(float(sum(tokens))),
    )
    positions = torch.arange(0, sum(tokens), 2)
    found = join_layer(signals, shared, {"relations", "units", "states", "position_states"}, sum(tokens), positions)
    totals = [sum(values[unit] for unit in kept if document[unit] == d) for d in range(documents)]
    np.testing.assert_allclose(found.weights, [values[unit] / totals[document[unit]] for unit in kept], rtol=1e-6)
    assert found.relations.tolist() == [100.0 * a + b for a, b in triangle if a in kept and b in kept]
    assert found.units[:, 0].tolist() == [values[unit] for unit in kept]
    inside = sorted({token for a, b in expected_spans for token in range(a, b)})
    assert found.state_index.tolist() == inside
    assert found.states[:, 0].tolist() == [2.0 * token for token in inside]
    assert found.state_weights.tolist() == inside
    assert found.position_states[:, 0].tolist() == [2.0 * token for token in positions.tolist()]


def test_join_refuses_what_is_not_there():
    shared = shared_units(pointers([1]), torch.tensor([[0, 2]]), torch.tensor([[0, 2]]), pointers([3]))
    none = torch.zeros(0, dtype=torch.int64)
    signals = LayerSignals(torch.ones(1))
    for need in ("relations", "units", "states", "position_states"):
        with pytest.raises(ValueError, match="needed and not there"):
            join_layer(signals, shared, {need}, 3, none)
    with pytest.raises(ValueError, match="weights of 2 units, but 1 have"):
        join_layer(LayerSignals(torch.ones(2)), shared, (), 3, none)
    states = LayerSignals(
        torch.ones(1), states=torch.ones(1, 2), token_weights=torch.ones(1), state_index=torch.tensor([1])
    )
    with pytest.raises(ValueError, match="state of token 0"):
        join_layer(states, shared, {"states"}, 3, none)


# several caches


def test_layers_cached_on_different_days(make_cache, prepared):
    words = make_cache(layers=[{"layer": 2, "granularity": "words"}])
    chunks, units = make_cache(**TOP), make_cache(**TOP | {"signals": ["units"]})
    whole = make_cache(signals=["relations", "units"])
    merged = source_of(prepared, [words, chunks, units], WORDS, CHUNKS)
    same_batch(merged.fetch(ROWS), source_of(prepared, [whole], WORDS, CHUNKS).fetch(ROWS))
    for caches in ([chunks, units], [units, chunks]):
        both = source_of(prepared, caches, CHUNKS, needs=("relations", "units"))
        same_batch(both.fetch(ROWS), source_of(prepared, [whole], CHUNKS, needs=("relations", "units")).fetch(ROWS))
    caches = Caches([chunks, words], Documents(prepared))
    assert caches.layers == {2: "words", 4: "chunks"}
    assert (caches.teacher["depth"], caches.teacher["hidden_size"], caches.rows) == (4, 48, 24)


def test_a_cache_of_the_right_granularity_is_found_among_others(make_cache, prepared):
    phrases = make_cache(signals=["relations"], layers=[{"layer": 4, "granularity": "phrases"}])
    found = source_of(prepared, [phrases, make_cache(**TOP)], CHUNKS).fetch(ROWS)
    same_batch(found, source_of(prepared, [make_cache(**TOP)], CHUNKS).fetch(ROWS))


def test_a_pickled_source_carries_no_data(make_cache, prepared):
    source = source_of(prepared, [make_cache()], WORDS)
    expected = source.fetch(ROWS)
    stored = pickle.dumps(source)
    assert len(stored) < 5000
    same_batch(pickle.loads(stored).fetch(ROWS), expected)


# what does not fit


def command_in(error):
    (found,) = re.findall(r"`(mta-prep [^`]*)`", str(error.value))
    return found


def test_a_cache_of_another_dataset(make_cache, settings_for, tmp_path):
    from pipeline.dataset.prepare import prepare

    out = tmp_path / "other"
    prepare(settings_for(limit=5), out, workers=1, quiet=True)
    with pytest.raises(UsageError, match=r"is a cache of another dataset than .*teacher fingerprint") as error:
        Caches([make_cache()], Documents(out))
    assert command_in(error).startswith(f"mta-prep cache-teacher {out} --teacher ")


def test_ids_are_compared(make_cache, prepared, tmp_path):
    import pyarrow as pa

    folder = tmp_path / "cache"
    shutil.copytree(make_cache(), folder)
    table = TeacherCache(folder).index
    ids = table["id"].to_pylist()
    ids[9] = ids[9][:-1] + "#"
    with pa.ipc.new_file(str(folder / "index.arrow"), table.schema) as writer:
        writer.write_table(table.set_column(0, table.schema.field(0), pa.array(ids)))
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["index"]["bytes"] = (folder / "index.arrow").stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UsageError, match=r"Row 9 of .*#'"):
        Caches([folder], Documents(prepared))


def test_caches_of_different_teachers(make_cache, prepared, tmp_path):
    folder = tmp_path / "cache"
    shutil.copytree(make_cache(), folder)
    path = folder / "manifest.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"sha256": "', '"sha256": "0', 1), encoding="utf-8")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["teacher"]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UsageError, match="are of different teachers") as error:
        Caches([make_cache(), folder], Documents(prepared))
    assert "--layers 2:words,4:chunks --signals relations -o OTHER" in command_in(error)


def test_a_missing_layer(make_cache, prepared):
    with pytest.raises(UsageError, match="has teacher layer 2; make one, and name it there as well") as error:
        source_of(prepared, [make_cache(**TOP)], WORDS, CHUNKS)
    assert f"{prepared} --teacher " in command_in(error)
    assert command_in(error).endswith("--layers 2:words --signals relations -o OTHER")


def test_a_missing_signal(make_cache, prepared):
    with pytest.raises(UsageError, match="the signal `units` of teacher layer 4") as error:
        source_of(prepared, [make_cache(**TOP)], CHUNKS, needs=("relations", "units"))
    assert command_in(error).endswith("--layers 4:chunks --signals units -o OTHER")


def test_another_granularity(make_cache, prepared):
    pair = PairConfig(student=1, teacher=4, granularity="words")
    with pytest.raises(UsageError, match="has chunks at teacher layer 4, which the config pairs for words") as error:
        source_of(prepared, [make_cache()], pair)
    assert command_in(error).endswith("--layers 4:words --signals relations -o OTHER")


def test_other_weights(make_cache, prepared):
    with pytest.raises(
        UsageError, match="made with `weights: centrality`, and this config says `weights: uniform`"
    ) as error:
        source_of(prepared, [make_cache()], CHUNKS, weights="uniform")
    assert "--weights uniform" in command_in(error)


@pytest.fixture(scope="module")
def same(prepared, tmp_path_factory):
    out = tmp_path_factory.mktemp("same") / "out"
    sides = {"student": {"tokenizer": "embedded:sentencepiece-bpe"}}
    realign.realign(prepared, out, sides, None, workers=1, overwrite=False, quiet=True)
    return out


def test_final_and_states_of_all_tokens_that_no_cache_has(make_cache, same):
    with pytest.raises(UsageError, match="has the signal `final`;") as error:
        source_of(same, [make_cache()], final=True)
    assert command_in(error).endswith("--signals final -o OTHER")
    with pytest.raises(UsageError, match="has the signal `topk`;"):
        source_of(same, [make_cache()], topk=True)
    cache = make_cache(signals=["states"])
    with pytest.raises(UsageError, match=r"states of all tokens \(recipe fdd\) of teacher layer 4") as error:
        source_of(same, [cache], CHUNKS, needs=("position_states",))
    assert command_in(error).endswith("--layers 4:chunks --signals states --state-tokens all -o OTHER")
    with pytest.raises(UsageError, match="the teacher's output matrix") as error:
        source_of(same, [cache], CHUNKS, needs=("states",)).head  # noqa: B018  # it is looked for when asked for
    assert command_in(error).endswith("--signals final -o OTHER")


def test_the_commands_are_understood(make_cache, same, command, tmp_path):
    """What a message says to run, run as it stands, makes what was missing."""
    first = make_cache(**TOP)
    wanted = {"needs": ("relations", "states"), "final": True}
    with pytest.raises(UsageError) as error:
        source_of(same, [first], WORDS, CHUNKS, **wanted)
    words = command_in(error).replace("OTHER", str(tmp_path / "other")).split()
    assert command(*words[1:], "--json")[0] == 0
    batch = source_of(same, [first, tmp_path / "other"], WORDS, CHUNKS, **wanted).fetch(ROWS)
    assert batch.final is not None
    assert len(batch.layers[2].states)


def test_no_cache(prepared):
    documents = Documents(prepared)
    caches = Caches([], documents)
    with pytest.raises(UsageError, match=r"`data\.caches` names no cache"):
        _ = caches.teacher
    with pytest.raises(UsageError, match=r"--teacher MODEL --layers 4:chunks --signals relations -o OTHER"):
        CachedTeacher(caches, needing(documents, CHUNKS))
    batch = CachedTeacher(caches, needing(documents)).fetch(ROWS)  # cross-entropy alone
    assert batch.layers == {}


def test_token_level_terms_on_different_tokens(prepared, same, aligned):
    token, unit = Needs({4: frozenset({"states"})}), Needs({4: frozenset({"units"})})
    assert [same_tokens(read_manifest(each)) for each in (prepared, same, aligned)] == [False, True, False]
    for folder in (prepared, aligned):
        documents = Documents(folder)
        with pytest.raises(UsageError, match=r"^`hidden` compares .* set `level: unit` in `hidden`, or train") as error:
            teacher_needs({"dsa": unit, "hidden": token}, [CHUNKS], "centrality", documents)
        assert command_in(error) == f"mta-prep align {folder} --student embedded:sentencepiece-bpe -o NEW"
        with pytest.raises(UsageError, match=r"^`hidden` and `srkl` compare .* in `hidden` and leave out `srkl`, or"):
            teacher_needs({"hidden": token, "srkl": Needs(final=True)}, [CHUNKS], "centrality", documents)
        with pytest.raises(UsageError, match=r"limits; leave out `srkl`, or"):
            teacher_needs({"srkl": Needs(topk=True)}, [], "centrality", documents)
        assert teacher_needs({"hidden": unit}, [CHUNKS], "centrality", documents).layers == {4: {"units"}}
    found = teacher_needs(
        {"hidden": token, "dsa": unit, "srkl": Needs(final=True)}, [CHUNKS], "uniform", Documents(same)
    )
    assert found.layers == {4: {"states", "units"}}
    assert (found.final, found.topk, found.weights) == (True, False, "uniform")


def test_a_layer_for_two_kinds_of_units(prepared):
    pairs = [CHUNKS, PairConfig(student=2, teacher=4, granularity="words")]
    with pytest.raises(UsageError, match="layer 4 is paired for chunks and for words"):
        teacher_needs({"dsa": Needs({4: frozenset({"relations"})})}, pairs, "centrality", Documents(prepared))


def test_a_limited_cache(make_cache, prepared):
    cache = make_cache(limit=6)
    source = source_of(prepared, [cache, make_cache()], CHUNKS)
    assert source.rows == 6
    same_batch(source.fetch([5, 1]), source_of(prepared, [make_cache()], CHUNKS).fetch([5, 1]))
    with pytest.raises(ValueError):
        source.fetch([6])
    assert source_of(prepared, [cache], CHUNKS, limit=6).rows == 6
    assert source_of(prepared, [cache], CHUNKS, limit=4).rows == 4
    assert source_of(prepared, [make_cache()], CHUNKS, limit=1000).rows == 24
    with pytest.raises(UsageError, match=r"asks for 7 rows, .* the first 6; set `data.limit: 6`") as error:
        source_of(prepared, [cache], CHUNKS, limit=7)
    assert "--limit" not in command_in(error)


def test_a_damaged_dataset(prepared, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(prepared, folder)
    shard = sorted(folder.glob("*.arrow"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-8])
    with pytest.raises(StateError, match=r"is damaged: data-00001.* bytes, its manifest says"):
        Documents(folder)
    shard.write_bytes(bytes(len(content)))
    with pytest.raises(StateError, match=r"is damaged: data-00001.* cannot be read"):
        Documents(folder).lengths("student")
    shard.unlink()
    with pytest.raises(StateError, match=r"data-00001.* is missing"):
        Documents(folder)


# order and portions


@given(st.integers(1, 50), st.integers(0, 5), st.integers(1, 20))
@settings(max_examples=40)
def test_every_row_once_an_epoch(rows, seed, size):
    steps = -(-3 * rows // size)
    parts = [stream(rows, seed, step * size, (step + 1) * size) for step in range(steps)]
    assert all(len(part) == size for part in parts)
    whole = np.concatenate(parts)[: 3 * rows].reshape(3, rows)
    for epoch in range(3):
        assert sorted(whole[epoch]) == list(range(rows))
        assert whole[epoch].tolist() == np.random.default_rng([seed, epoch]).permutation(rows).tolist()


def test_orders_differ_by_seed_and_epoch():
    found = {tuple(order(20, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(found) == 25


@given(st.integers(2, 60), st.integers(0, 59), st.integers(0, 3))
@settings(max_examples=40)
def test_held_out_rows(rows, count, seed):
    if count >= rows:
        with pytest.raises(UsageError, match="hold out fewer"):
            held_out(rows, count, seed)
        return
    training, validation = held_out(rows, count, seed)
    assert len(validation) == count
    assert sorted([*training, *validation]) == list(range(rows))
    assert (np.diff(training) > 0).all()


@given(st.lists(st.integers(0, 500), min_size=1, max_size=64), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=40)
def test_dealing(lengths, ranks, micro_batches):
    if len(lengths) < ranks * micro_batches:
        with pytest.raises(UsageError, match=rf"{len(lengths)} documents .* {ranks} ranks of {micro_batches} micro"):
            deal(lengths, ranks, micro_batches)
        return
    dealt = deal(lengths, ranks, micro_batches)
    assert [len(mine) for mine in dealt] == [micro_batches] * ranks
    assert all(part for mine in dealt for part in mine)
    assert sorted(each for mine in dealt for part in mine for each in part) == list(range(len(lengths)))
    assert dealt == deal(lengths, ranks, micro_batches)
    # the greedy rule's bound, where no bin had to be served first: no bin exceeds another by more than one document
    if len(lengths) >= 4 * ranks * micro_batches and min(lengths) > 0 and max(lengths) <= 2 * min(lengths):
        totals = [sum(lengths[each] for part in mine for each in part) for mine in dealt]
        assert max(totals) - min(totals) <= max(lengths)
    for mine in dealt:
        parts = [sum(lengths[each] for each in part) for part in mine]
        assert parts == sorted(parts, reverse=True)


def test_dealing_real_lengths_is_even():
    lengths = np.random.default_rng(0).lognormal(4.5, 0.7, 64).astype(int).clip(10, 512).tolist()
    parts = [sum(lengths[each] for each in part) for mine in deal(lengths, 4, 2) for part in mine]
    assert max(parts) / (sum(parts) / len(parts)) < 1.03


# the loader


def loader_of(source, rank=0, ranks=1, **data):
    config = DataConfig.parse({"dataset": "", "batch_size": 4, "micro_batches": 2, "workers": 0} | data, "test")
    return StepLoader(source, config, rank=rank, ranks=ranks, pinned=False)


@pytest.fixture(scope="module")
def source(make_cache, prepared):
    return source_of(prepared, [make_cache()], WORDS, CHUNKS)


def rows_of(step):
    return [row for batch in step for row in batch.documents.tolist()]


def test_steps_are_the_same_on_any_number_of_ranks(source):
    expected = [sorted(rows_of(step)) for step in loader_of(source).training(0, 9)]
    for ranks, micro_batches in ((1, 1), (2, 2), (4, 1)):
        found = [[] for _ in expected]
        for rank in range(ranks):
            loader = loader_of(source, rank, ranks, micro_batches=micro_batches)
            for step, batches in enumerate(loader.training(0, 9)):
                assert len(batches) == micro_batches
                found[step] += rows_of(batches)
        assert [sorted(rows) for rows in found] == expected
    places = stream(24, 42, 0, 36).reshape(9, 4)
    assert expected == [sorted(step) for step in places.tolist()]


def test_held_out_rows_are_never_trained_on(source):
    loader = loader_of(source, held_out=5)
    assert loader.rows == 19
    trained = {row for step in loader.training(0, 10) for row in rows_of(step)}
    validated = [row for step in loader.validation() for row in rows_of(step)]
    assert sorted([*trained, *validated]) == list(range(24))
    assert [rows_of(step) for step in loader.validation()] == [rows_of(step) for step in loader.validation()]
    assert list(loader_of(source).validation()) == []


@pytest.mark.parametrize(("count", "number"), [(2, 2), (3, 2), (5, 2), (9, 2), (23, 2), (5, 4), (9, 4)])
def test_validation_has_as_many_steps_on_every_rank(source, count, number):
    loaders = [loader_of(source, rank, number, held_out=count, micro_batches=4 // number) for rank in range(number)]
    ranks = [list(loader.validation()) for loader in loaders]
    assert len({len(steps) for steps in ranks}) == 1
    for steps in zip(*ranks, strict=True):
        assert len({len(step) for step in steps}) == 1  # micro-batches
        assert all(batch.documents.numel() for step in steps for batch in step)
        assert sum(map(len, map(rows_of, steps))) < 4 + number
    rows = [row for steps in ranks for step in steps for row in rows_of(step)]
    assert len(rows) == len(set(rows)) == count


def test_a_step_that_does_not_go_round(source):
    with pytest.raises(UsageError, match=r"step of 4 documents .* 3 ranks of 2 micro-batches .* at least 6"):
        loader_of(source, ranks=3)
    with pytest.raises(UsageError, match="does not go round 4 ranks; hold out at least 4"):
        loader_of(source, ranks=4, micro_batches=1, held_out=3)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on machines of one core
def test_workers_give_the_same_and_begin_anywhere(source):
    expected = list(loader_of(source, held_out=4).training(0, 7))
    loader = loader_of(source, workers=2, held_out=4)
    before = torch.get_rng_state()
    for start in (0, 5):
        found = list(loader.training(start, 7))
        assert len(found) == 7 - start
        for one, two in zip(found, expected[start:], strict=True):
            assert len(one) == len(two) == 2
            for a, b in zip(one, two, strict=True):
                same_batch(a, b)
    assert torch.equal(torch.get_rng_state(), before)  # dropout does not depend on when reading began


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_an_error_in_a_worker_is_told_as_it_is(make_cache, prepared, tmp_path):
    folder = tmp_path / "cache"
    shutil.copytree(make_cache(), folder)
    source = source_of(prepared, [folder], CHUNKS)
    for shard in (folder / "shards").iterdir():
        shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(StateError, match=r"^[^\n]* is damaged: shards/[^\n]*$"):
        list(loader_of(source, workers=1).training(0, 2))


def test_a_parcel_brings_every_tensor(make_cache, same):
    cache = make_cache(signals=["relations", "units", "states", "final", "topk"], state_tokens="all")
    needs = ("relations", "units", "states", "position_states")
    found = source_of(same, [cache], WORDS, CHUNKS, needs=needs, final=True, topk=True)
    batches = [found.fetch(ROWS), found.fetch([1])]
    nothing = {
        each.name: None if value is None else value[:0]
        for each in fields(Batch)
        if each.name != "layers"
        for value in [getattr(batches[1], each.name)]
    }
    batches.append(Batch(**nothing))
    parcel = pickle.loads(pickle.dumps(pack(batches)))
    for one, two in zip(batches, parcel.unpack(), strict=True):
        same_batch(one, two)
        assert all(getattr(two, each.name) is not None for each in fields(Batch))


SCRIPT = """
import sys, time, pickle
from trainer.data import StepLoader
from schemas.training import DataConfig
if __name__ == "__main__":
    source, config = pickle.load(open(sys.argv[1], "rb"))
    steps = StepLoader(source, config, rank=0, ranks=1, pinned=False).training(0, 10**6)
    next(steps)
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are listed as Linux does")
def test_workers_ignore_sigterm_and_end_with_the_process_that_started_them(source, tmp_path):
    config = DataConfig.parse({"dataset": "", "batch_size": 4, "workers": 1}, "test")
    (tmp_path / "source.pickle").write_bytes(pickle.dumps((source, config)))
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "source.pickle")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        below = descendants(process.pid)
        workers = [pid for child in children(process.pid) for pid in children(child)]
        for pid in workers:  # as when a whole job is told to save itself and end
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.5)
        assert len(workers) == 1
        assert all(map(alive, workers))
        process.send_signal(signal.SIGKILL)
    limit = time.monotonic() + 30
    while any(map(alive, below)) and time.monotonic() < limit:
        time.sleep(0.1)
    assert not [pid for pid in below if alive(pid)]


def children(pid):
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(each) for task in tasks for each in (task / "children").read_text(encoding="utf-8").split()]


def descendants(pid):
    return [each for child in children(pid) for each in (child, *descendants(child))]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
