"""A shard is the same whatever its batches were; its size is known before; what cannot be stored is named by row."""

import itertools

import pytest
import torch
from safetensors.torch import save

from pipeline.cache.shard import ShardRows, ShardTensors, layer_rows, pack
from pipeline.cache.specs import Counts, LayerCounts, specs
from schemas.config import StorageConfig
from schemas.errors import UserError
from schemas.signals import LAYER_SIGNALS, SCALARS
from trainer.maths.geometry import units_with_span
from trainer.maths.layer_signals import layer_signals
from trainer.maths.quantization import DTYPES, TYPES
from trainer.maths.ragged import pointers
from trainer.maths.triangle import to_fixed_point

EVERY = ("relations", "units", "states", "final", "topk", "sorted", "attention", "entropy", "argmax", "logprob")
#: tokens of each row, and its units at layers 2 and 5 as a dataset holds them, some without a teacher span
LENGTHS = [4, 1, 7, 3, 1]
SPANS = {
    2: [[[0, 1], [-1, -1], [1, 4]], [[0, 1]], [[0, 2], [2, 3], [5, 7]], [], [[-1, -1]]],
    5: [[[0, 4]], [], [[-1, -1], [0, 7], [1, 3]], [[2, 3]], [[0, 1]]],
}
HIDDEN, K = 8, 3


def width(layer):
    """Features of hidden states."""
    return HIDDEN


def flat_spans(layer, members):
    spans = [span for row in members for span in SPANS[layer][row]]
    return torch.tensor(spans, dtype=torch.int32).reshape(-1, 2), pointers([len(SPANS[layer][row]) for row in members])


def shard_rows(state_tokens):
    token_rows = pointers(LENGTHS)
    layers = {each: layer_rows(*flat_spans(each, range(5)), token_rows, state_tokens) for each in SPANS}
    return ShardRows([f"id-{row}" for row in range(5)], token_rows, layers)


def document(row, layer):
    return torch.randn(LENGTHS[row], HIDDEN, generator=torch.Generator().manual_seed(100 * row + layer))


def scalar_of(last, name):
    """Some number for each last state."""
    values = last[:, SCALARS.index(name)].abs()
    return values.to(torch.int32) if name == "argmax" else values


def packed(members, signals, storage, state_tokens, poison=None, states_of_final=None):
    """A batch; `poison` (row, layer, value) is put into a hidden state."""
    rows = pointers([LENGTHS[row] for row in members])
    layers = {}
    for layer in SPANS:
        states = [document(row, layer) for row in members]
        if poison is not None and poison[1] == layer:
            states[members.index(poison[0])][-1, 0] = poison[2]
        units = units_with_span(*flat_spans(layer, members), rows)
        want = frozenset(signals) & LAYER_SIGNALS
        layers[layer] = layer_signals(
            torch.cat(states), rows, units.spans, units.rows, want, state_tokens, "centrality"
        )
    last = torch.cat([document(row, 9) for row in members])
    scores = last.log_softmax(1).topk(K)
    return pack(
        layers,
        storage,
        attention={layer: last[:, 0].square() for layer in SPANS} if "attention" in signals else {},
        final=last if "final" in signals else None,
        topk=(scores.indices.to(torch.int32), scores.values) if "topk" in signals else None,
        scalars={name: scalar_of(last, name) for name in SCALARS if name in signals},
        falling=scores.values.exp() if "sorted" in signals else None,
        states_of_final=states_of_final,
    )


def filled(batches, signals=EVERY, storage="fp32", state_tokens="covered"):
    types = StorageConfig(units=storage, states=storage, final=storage)
    rows = shard_rows(state_tokens if "states" in signals else None)
    shard = ShardTensors(rows, specs(rows.counts(), signals, types, state_tokens, width, K, most=K))
    for members in batches:
        shard.place(members, packed(members, signals, types, state_tokens))
    return shard.tensors()


def raw(tensors):
    return {name: tensor.contiguous().view(-1).view(torch.uint8).tolist() for name, tensor in tensors.items()}


@pytest.mark.parametrize("state_tokens", ["covered", "all"])
@pytest.mark.parametrize("storage", ["bf16", "int8"])
def test_rows_land_in_the_datasets_order_whatever_the_batches(storage, state_tokens):
    one_by_one = raw(filled([[row] for row in range(5)], storage=storage, state_tokens=state_tokens))
    for order in ([4, 2, 0, 3, 1], [1, 4, 3, 0, 2]):
        assert raw(filled([[row] for row in order], storage=storage, state_tokens=state_tokens)) == one_by_one


def test_batches_of_several_rows_are_taken_apart():
    alone = filled([[row] for row in range(5)])
    for batches in ([[2, 0], [3], [1, 4]], [[4, 3, 2, 1, 0]]):
        together = filled(batches)
        assert together.keys() == alone.keys()
        for name, tensor in alone.items():
            # values of a row differ by the order of float32 sums in a batch; int16 cosines by one step at most
            torch.testing.assert_close(
                together[name].float(), tensor.float(), rtol=1e-5, atol=1e-6 if "rel" not in name else 1
            )


def test_structure_is_the_datasets():
    tensors = filled([[0, 1, 2, 3, 4]])
    assert tensors["tokens.rows"].tolist() == [0, 4, 5, 12, 15, 16]
    assert tensors["layer2.unit_rows"].tolist() == [0, 2, 3, 6, 6, 6]
    assert tensors["layer2.unit_index"].tolist() == [0, 2, 0, 0, 1, 2]
    assert tensors["layer5.unit_index"].tolist() == [0, 1, 2, 0, 0]
    assert tensors["layer2.state_rows"].tolist() == [0, 4, 5, 10, 10, 10]
    assert tensors["layer2.state_index"].tolist() == [0, 1, 2, 3, 0, 0, 1, 2, 5, 6]
    assert "layer2.state_rows" not in filled([[0, 1, 2, 3, 4]], state_tokens="all")


def test_values_of_a_row():
    tensors = filled([[2], [0, 1, 3, 4]])
    rows = pointers([7])
    units = units_with_span(*flat_spans(2, [2]), rows)
    alone = layer_signals(document(2, 2), rows, units.spans, units.rows, frozenset(EVERY), "covered", "centrality")
    assert torch.equal(tensors["layer2.relations"][1:4], to_fixed_point(alone.relations))
    assert torch.equal(tensors["layer2.units"][3:6], alone.units)
    assert torch.equal(tensors["layer2.unit_weights"][3:6], alone.unit_weights)
    assert torch.equal(tensors["layer2.states"][5:10], document(2, 2)[[0, 1, 2, 5, 6]])
    assert torch.equal(tensors["layer2.token_weights"][5:10], alone.token_weights)
    assert torch.equal(tensors["final"][5:12], document(2, 9))
    assert torch.equal(tensors["layer5.attention"][5:12], document(2, 9)[:, 0].square())


@pytest.mark.parametrize("state_tokens", ["covered", "all"])
@pytest.mark.parametrize("storage", DTYPES)
def test_the_size_is_known_beforehand(storage, state_tokens):
    choices = [(), *((each,) for each in EVERY), ("relations", "states"), EVERY]
    for signals in choices:
        tensors = filled([[0, 1, 2, 3, 4]], signals, storage, state_tokens)
        types = StorageConfig(units=storage, states=storage, final=storage)
        counts = shard_rows(state_tokens if "states" in signals else None).counts()
        expected = specs(counts, signals, types, state_tokens, width, K, most=K)
        assert {name: (TYPES[spec.number], spec.shape) for name, spec in expected.items()} == {
            name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()
        }
        content = save(tensors)
        header = int.from_bytes(content[:8], "little")
        assert sum(spec.bytes for spec in expected.values()) == len(content) - 8 - header
        assert {spec.part.signal for spec in expected.values()} == {None, *signals}


def test_counts_of_parts_add_up():
    first = Counts(2, 10, 6, {3: LayerCounts(4, 3, 7)})
    second = Counts(1, 5, 5, {3: LayerCounts(1, 0, 2)})
    assert first + second == Counts(3, 15, 11, {3: LayerCounts(5, 3, 9)})


@pytest.mark.parametrize("row", range(5))
@pytest.mark.parametrize("signals", [("relations",), ("units",), ("states",)])
def test_nan_is_named_by_row_and_layer(signals, row):
    storage = StorageConfig()
    rows = shard_rows("all")
    shard = ShardTensors(rows, specs(rows.counts(), signals, storage, "all", width, K, most=K))
    units = [unit for unit in SPANS[5][row] if unit != [-1, -1]]
    batch = packed([3, 0, 4, 2, 1], signals, storage, "all", poison=(row, 5, float("nan")))
    if "states" not in signals and not units:
        shard.place([3, 0, 4, 2, 1], batch)  # nothing of that row is kept
        return
    with pytest.raises(UserError, match=rf"^Row 'id-{row}', \w+ of layer 5: .*NaN"):
        shard.place([3, 0, 4, 2, 1], batch)


def test_overflow_is_named_by_row_and_layer_and_type():
    storage = StorageConfig(states="fp16")
    rows = shard_rows("covered")
    shard = ShardTensors(rows, specs(rows.counts(), ("states",), storage, "covered", width, K, most=K))
    batch = packed([0, 2], ("states",), storage, "covered", poison=(2, 2, 1e5))
    with pytest.raises(
        UserError, match=r"^Row 'id-2', states of layer 2: values up to 1e\+05, more than fp16 can hold"
    ):
        shard.place([0, 2], batch)


def test_infinite_log_probabilities_are_refused():
    rows = shard_rows(None)
    shard = ShardTensors(rows, specs(rows.counts(), ("topk",), StorageConfig(), "all", width, K, most=K))
    batch = packed([0, 3], ("topk",), StorageConfig(), "all")
    batch.tensors["topk.logprobs"][-1, -1] = -torch.inf
    with pytest.raises(UserError, match=r"^Row 'id-3', topk: "):
        shard.place([0, 3], batch)


@pytest.mark.parametrize(
    ("name", "value"), [("entropy", torch.nan), ("argmax", -1), ("logprob", -torch.inf), ("sorted", torch.nan)]
)
def test_scalars_of_logits_that_are_not_finite_are_refused(name, value):
    rows = shard_rows(None)
    shard = ShardTensors(rows, specs(rows.counts(), (name,), StorageConfig(), "all", width, K, most=K))
    batch = packed([0, 3], (name,), StorageConfig(), "all")
    batch.tensors[name][-1] = value
    with pytest.raises(UserError, match=rf"^Row 'id-3', {name}: the teacher gives NaN"):
        shard.place([0, 3], batch)


def test_batches_that_do_not_fit_are_a_bug():
    types = StorageConfig()
    rows = shard_rows("covered")
    shard = ShardTensors(rows, specs(rows.counts(), ("states",), types, "covered", width, K, most=K))
    with pytest.raises(ValueError, match="a batch of"):
        shard.place([0], packed([0], ("units",), types, "covered"))
    with pytest.raises(ValueError, match="elements"):
        shard.place([1], packed([0], ("states",), types, "covered"))
    with pytest.raises(ValueError, match=r"states is torch\.bfloat16"):
        shard.place([0], packed([0], ("states",), StorageConfig(states="fp16"), "covered"))
    shard.place([0, 2], packed([0, 2], ("states",), types, "covered"))
    with pytest.raises(ValueError, match="3 rows of the shard were never placed"):
        shard.tensors()
    with pytest.raises(ValueError, match="are expected"):
        ShardTensors(rows, specs(rows.counts(), ("relations",), types, "covered", width, K, most=K))


def test_map_goes_over_every_tensor():
    batch = packed([0, 1], EVERY, StorageConfig(), "covered")
    seen = []
    same = batch.map(lambda each: seen.append(each) or each)
    assert len(seen) == len(batch.tensors) + len(batch.peaks)
    assert all(a is b for a, b in zip(itertools.chain(same.tensors.values(), same.peaks.values()), seen, strict=True))
