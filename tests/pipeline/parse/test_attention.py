"""Attention of packed sentences: of each sentence by itself, to rounding by torch and by loops of our own."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.parse import attention_loops, vectors
from pipeline.parse.attention import attention, compiled_attention, runs_of

lengths = st.lists(st.one_of(st.integers(1, 9), st.integers(1, 70)), min_size=1, max_size=6)
compiled_here = pytest.mark.skipif(not attention_loops.can_run(), reason="a processor without AVX2")


def inputs(lengths, heads, d, spread=1.0, dtype=torch.float32):
    """q, k and v as layers give them: side by side."""
    torch.manual_seed(sum(lengths))
    return (spread * torch.randn(sum(lengths), 3, heads, d, dtype=dtype)).unbind(1)


def one_by_one(q, k, v, lengths, scale):
    """In float64, a sentence and a head at a time."""
    out, first = torch.empty(q.shape, dtype=torch.float64), 0
    q, k, v = q.double(), k.double(), v.double()
    for length in lengths:
        part = slice(first, first + length)
        for head in range(q.shape[1]):
            weights = torch.softmax(scale * q[part, head] @ k[part, head].T, -1)
            out[part, head] = weights @ v[part, head]
        first += length
    return out


@given(lengths)
def test_attention_on_runs_is_attention_on_each_sentence(lengths):
    q, k, v = inputs(lengths, 2, 4, dtype=torch.float64)
    assert torch.allclose(attention(q, k, v, runs_of(lengths), 0.5), one_by_one(q, k, v, lengths, 0.5), atol=1e-12)


@compiled_here
@given(lengths, st.sampled_from([(1, 16), (3, 32), (2, 64)]), st.sampled_from([0.01, 1.0, 30.0]))
def test_loops_give_the_same_to_rounding_and_the_same_bits_alone(lengths, shape, spread):
    q, k, v = inputs(lengths, *shape, spread)
    scale = shape[1] ** -0.5
    got = compiled_attention(q, k, v, runs_of(lengths), scale)
    exact = one_by_one(q, k, v, lengths, scale)
    # what a sum of products of float32 may be off by before the softmax, whose steps grow with it
    products = scale * shape[1] * q.abs().max().double() * k.abs().max().double()
    assert ((got - exact).abs() <= 2.0**-23 * (8 + 2 * products) * v.abs().max()).all()
    first = 0
    for length in lengths:
        part = slice(first, first + length)
        alone = compiled_attention(q[part], k[part], v[part], [(0, length, length)], scale)
        assert torch.equal(alone, got[part])
        first += length


@compiled_here
def test_weights_are_those_of_a_softmax_however_far_apart_scores_are():
    q = torch.tensor([0.0, 1.0, 50.0, 5000.0])[:, None, None].expand(4, 1, 16).contiguous()
    k, v = q.clone(), torch.randn(4, 1, 16)
    got = compiled_attention(q, k, v, [(0, 4, 4)], 1.0)
    assert torch.allclose(got.double(), one_by_one(q, k, v, [4], 1.0), atol=1e-6)
    assert torch.allclose(got[0], v.mean(0), atol=1e-6)
    assert torch.equal(got[3], v[3])


def test_heads_of_odd_widths_go_by_torch():
    q, k, v = inputs([3, 5], 2, 12)
    runs = runs_of([3, 5])
    assert torch.equal(compiled_attention(q, k, v, runs, 0.3), attention(q, k, v, runs, 0.3))


@pytest.mark.parametrize(("setting", "value"), [("DISABLE_JIT", 1), ("ENABLE_AVX", 0), ("CPU_FEATURES", "")])
def test_what_numba_may_not_use_is_not_asked_of_it(monkeypatch, setting, value):
    monkeypatch.setattr(vectors.config, setting, value)
    assert not {name for name in vectors.features() if name.startswith("avx")}


BY_INSTRUCTIONS = """
import hashlib, torch
from pipeline.parse.attention import compiled_attention, runs_of
torch.manual_seed(0)
lengths = [1, 5, 6, 6, 29, 40]
q, k, v = torch.randn(sum(lengths), 3, 4, 32).unbind(1)
print(hashlib.sha256(compiled_attention(q, k, v, runs_of(lengths), 0.2).numpy().tobytes()).hexdigest())
"""


BESIDE_WHAT_IS_FREED = """
import torch
from pipeline.parse.attention import attention, compiled_attention, runs_of
torch.manual_seed(0)
lengths = [1, 5, 6, 29, 40]
q, k, v = torch.randn(sum(lengths), 3, 4, 32).unbind(1)
given = q, k, v, runs_of(lengths), 0.2
for _ in range(5):
    assert torch.allclose(compiled_attention(*given), attention(*given), atol=1e-5)
"""


@compiled_here
def test_loops_work_in_nothing_that_was_freed():
    """With an allocator that overwrites what it is given back at once."""
    settings = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.perturb=165"}
    subprocess.run([sys.executable, "-c", BESIDE_WHAT_IS_FREED], env=os.environ | settings, check=True)


@compiled_here
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_no_number_stays_none(broken):
    q, k, v = (part.clone() for part in inputs([7, 3], 1, 16))
    k[2, 0, 0] = broken
    given = q, k, v, [(0, 7, 7), (7, 10, 3)], 0.25
    got = compiled_attention(*given)
    assert torch.equal(got.isfinite(), attention(*given).isfinite())
    assert got.isnan().any()
    assert got[7:].isfinite().all()


def test_numbers_that_are_no_neighbours_go_by_torch():
    q, k, v = (part.transpose(1, 2).contiguous().transpose(1, 2) for part in inputs([4, 4], 2, 16))
    runs = runs_of([4, 4])
    assert torch.equal(compiled_attention(q, k, v, runs, 0.3), attention(q, k, v, runs, 0.3))


@pytest.mark.skipif("avx512f" not in attention_loops.features(), reason="a processor without AVX-512")
def test_loops_give_the_same_bits_by_any_instructions(tmp_path):
    def told(**settings):
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "-".join(["loops", *settings]))} | settings
        command = [sys.executable, "-c", BY_INSTRUCTIONS]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    without = ",".join(f"-{name}" for name in attention_loops.features() if name.startswith("avx512"))
    listed = ",".join(f"+{name}" for name in attention_loops.features() if not name.startswith("avx512"))
    assert told() == told(NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES=f"{listed},{without}")
