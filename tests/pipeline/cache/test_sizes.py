"""Where shards of a cache begin (in order, none too large but for a single row), and which GPU works on them."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cache.sizes import _Cutter
from schemas.config import ModelConfig
from trainer.models.loading import placed

SIZES = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 20)), min_size=1, max_size=40)


def cut(rows, most_bytes, most_tokens, parts=()):
    cutter = _Cutter(most_bytes, most_tokens)
    for part in np.split(np.array(rows, dtype=np.int64).reshape(-1, 2), sorted(parts)):
        if len(part):
            size, tokens = torch.from_numpy(part.copy()).unbind(1)
            cutter.add(size, tokens)
    return cutter.bounds()


@given(SIZES, st.integers(1, 60), st.integers(1, 40), st.lists(st.integers(0, 40), max_size=4))
def test_shards_are_as_large_as_they_may_be(rows, most_bytes, most_tokens, parts):
    bounds = cut(rows, most_bytes, most_tokens)
    assert cut(rows, most_bytes, most_tokens, [part for part in parts if part <= len(rows)]) == bounds
    expected, size, tokens = [0], 0, 0
    for row, (more, longer) in enumerate(rows):
        if row > expected[-1] and (size + more > most_bytes or tokens + longer > most_tokens):
            expected.append(row)
            size = tokens = 0
        size, tokens = size + more, tokens + longer
    assert bounds == (*expected, len(rows))


def test_processes_of_a_machine_share_its_gpus_out(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    every = ModelConfig(model="m", device="cuda")
    assert [placed(every, number).device for number in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert placed(every.model_copy(update={"device": "cuda:1"}), 0).device == "cuda:1"
    assert placed(every.model_copy(update={"device": "cpu"}), 1).device == "cpu"
