"""Where shards of a cache begin (in order, none too large but for a single row), and which GPU works on them."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cache.report import share_of
from pipeline.cache.sizes import cut
from schemas.config import ModelConfig
from trainer.models.loading import placed

SIZES = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 20)), min_size=1, max_size=40)


@given(SIZES, st.integers(1, 60), st.integers(1, 40))
def test_shards_are_as_large_as_they_may_be(rows, most_bytes, most_tokens):
    def fits(shard):
        return sum(size for size, _ in shard) <= most_bytes and sum(tokens for _, tokens in shard) <= most_tokens

    bounds = cut(rows, most_bytes, most_tokens)
    shards = [rows[first:last] for first, last in pairwise(bounds)]
    assert [row for shard in shards for row in shard] == rows
    assert all(len(shard) == 1 or fits(shard) for shard in shards)
    assert not any(fits([*shard, following[0]]) for shard, following in pairwise(shards))


def test_processes_of_a_machine_share_its_gpus_out(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    every = ModelConfig(model="m", device="cuda")
    assert [placed(every, number).device for number in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert placed(every.model_copy(update={"device": "cuda:1"}), 0).device == "cuda:1"
    assert placed(every.model_copy(update={"device": "cpu"}), 1).device == "cpu"


@pytest.mark.parametrize(
    ("share", "told"),
    [(0.5361, "53.6%"), (0.0004, "0.04%"), (0.99995, "100%"), (15.93, "1,593%"), (1234.5, "123,450%")],
)
def test_a_share_is_told_without_powers_of_ten(share, told):
    """A cache of little but an output matrix is many times its layers' states."""
    assert share_of(share) == told
