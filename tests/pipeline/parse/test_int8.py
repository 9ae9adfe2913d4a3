"""8-bit layers: exact sums whatever computes them, no token felt by another, refused where they would be slow."""

import os
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.parse import int8, network, tiles
from pipeline.parse.benepar import BeneparParser
from pipeline.parse.component import ConstituencyComponent
from pipeline.parse.engine import Engine
from pipeline.parse.int8 import LARGEST, Int8Head, Int8Linear, rounded
from pipeline.text import Words
from schemas.config import ParserConfig
from schemas.errors import Exit, UsageError

KERNELS = [
    pytest.param("tiles", marks=pytest.mark.skipif(not tiles.can_run(), reason="a processor without AVX2")),
    "onednn",
]
TEXTS = ["Go !", "Write a poem about the sea .", "What 's the capital of Portugal ?", "The cat that I saw slept ."]


def weights(seed, outputs, inputs, kind):
    """Normal ones of rows of unlike size; all alike, which sum up to most; or one large among small."""
    generator = np.random.default_rng(seed)
    matrix = generator.normal(size=(outputs, inputs)) * 10.0 ** generator.uniform(-3, 3, size=(outputs, 1))
    if kind == "alike":
        matrix = np.sign(matrix[:, :1]) * np.ones_like(matrix)
    if kind == "one large":
        matrix[np.arange(outputs), generator.integers(0, inputs, outputs)] *= 1000
    return torch.from_numpy(matrix).float()


matrices = st.builds(
    weights,
    st.integers(0, 2**31),
    st.integers(1, 40),
    st.integers(1, 70),
    st.sampled_from(["normal", "alike", "one large"]),
)


@given(matrices)
def test_weights_are_within_half_a_step_and_their_sums_within_16_bits(weight):
    values, scales = rounded(weight)
    exact = weight.double().numpy()
    assert (np.abs(values * scales[:, None].astype(np.float64) - exact) <= scales[:, None] * 0.5001).all()
    # a row's step is no larger than it must be: four equal weights leave a quarter of the lane to each
    assert (scales * 127 <= np.maximum(np.abs(exact).max(1), 1e-12) * 2.01).all()
    padded = np.pad(values.astype(int), ((0, 0), (0, -values.shape[1] % 8)))
    for lane in ([0, 1, 4, 5], [2, 3, 6, 7]):
        four = padded.reshape(len(values), -1, 8)[:, :, lane]
        assert max(four.clip(min=0).sum(-1).max(), -four.clip(max=0).sum(-1).min()) <= LARGEST
    assert LARGEST * (tiles.SHIFT + tiles.STEPS) <= 2**15 - 1


@pytest.mark.parametrize("kernel", KERNELS)
@given(matrices, st.integers(1, 100), st.booleans(), st.sampled_from([None, "relu"]))
def test_a_layer_is_the_exact_product_of_its_rounded_parts(kernel, weight, rows, biased, before):
    torch.manual_seed(rows)
    x = torch.randn(rows, weight.shape[1]) * 10 ** (torch.rand(rows, 1) * 6 - 3)
    bias = torch.randn(len(weight)) if biased else None
    got = Int8Linear(weight, bias, before, kernel)(x).numpy()
    values, scales = rounded(weight)
    inner = (x if before is None else F.relu(x)).numpy()
    largest = np.maximum(np.abs(inner).max(1), np.float32(1e-12))
    steps, inverse = largest / np.float32(63), np.float32(63) / largest
    whole = np.floor(inner * inverse[:, None] + np.float32(64.5)).astype(np.int64) - 64
    assert np.abs(whole).max() <= 63
    exact = (whole @ values.T.astype(np.int64)).astype(np.float32) * (steps[:, None] * scales[None])
    assert np.array_equal(got, exact + (0 if bias is None else bias.numpy()))


@pytest.mark.parametrize("kernel", KERNELS)
@given(st.permutations(range(11)), st.integers(1, 11))
def test_a_token_does_not_depend_on_its_batch(kernel, order, taken):
    torch.manual_seed(0)
    layer, x = Int8Linear(torch.randn(20, 24), torch.randn(20), "gelu", kernel), torch.randn(11, 24)
    x *= torch.arange(1, 12)[:, None]
    rows = list(order)[:taken]
    assert torch.equal(layer(x[rows]), layer(x)[rows])


@pytest.mark.skipif(not tiles.can_run(), reason="a processor without AVX2")
@given(matrices, st.integers(1, 7))
def test_all_kernels_give_the_same_bits(weight, rows):
    torch.manual_seed(rows)
    x, bias = torch.randn(rows, weight.shape[1]), torch.randn(len(weight))
    one, other = (Int8Linear(weight, bias, "gelu", kernel)(x) for kernel in ("tiles", "onednn"))
    assert torch.equal(one, other)


#: Products of whole tiles, of some rows more and of fewer than a tile has, compiled for some of the processor's instructions.
BY_INSTRUCTIONS = """
import hashlib, sys
import numpy as np, torch
from pipeline.parse import vectors
here = vectors.features()
vectors.features = lambda: here & set(sys.argv[1:]) if sys.argv[1:] else here
from pipeline.parse.int8 import Int8Linear
torch.manual_seed(0)
told = hashlib.sha256()
for rows in (1, 5, 12, 29, 97):
    for inputs, outputs in ((24, 20), (256, 112)):
        layer = Int8Linear(torch.randn(outputs, inputs), torch.randn(outputs), "gelu", "tiles")
        told.update(layer(torch.randn(rows, inputs)).numpy().tobytes())
print(told.hexdigest())
"""


@pytest.mark.skipif("avx512vnni" not in tiles.ways(), reason="a processor without AVX-512's dot products of bytes")
def test_tiles_give_the_same_bits_by_any_instructions(tmp_path):
    def told(*instructions):
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "-".join(["tiles", *instructions]))}
        command = [sys.executable, "-c", BY_INSTRUCTIONS, *instructions]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    assert len({told(), told("avx2"), told("avx2", "avxvnni", "avx512vl")}) == 1


@pytest.mark.parametrize("kernel", KERNELS)
def test_nothing_but_the_bias_comes_of_nothing(kernel):
    bias = torch.randn(16)
    assert torch.equal(Int8Linear(torch.randn(16, 24), bias, None, kernel)(torch.zeros(2, 24)), bias.expand(2, -1))


def test_gelu_is_gelu_far_below_a_step():
    x = torch.linspace(-12, 12, 100_001)
    ours = torch.tensor([tiles.gelu(np.float32(value)) for value in x.tolist()])
    assert (ours - F.gelu(x.double())).abs().max() < 2e-6
    assert abs(tiles.gelu(np.float32(-1000.0))) < 1e-4


@pytest.fixture(scope="module")
def engine(embedded_parser):
    return Engine(embedded_parser.network, precision="int8")


@settings(max_examples=15)
@given(st.permutations(TEXTS), st.integers(1, len(TEXTS)))
def test_a_sentence_has_the_same_vectors_in_any_company(engine, order, count):
    """Bit for bit: no float32 product is left whose order of summation would depend on the batch."""
    parser, packed = engine.parser, engine.packed
    sentences = [Words(tuple(text.split()), (True,) * len(text.split())) for text in order[:count]]
    with torch.inference_mode():
        together = packed.fenceposts(network.encode(parser, sentences))[0]
        alone = [packed.fenceposts(network.encode(parser, [sentence]))[0] for sentence in sentences]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("kernel", KERNELS)
@given(st.integers(0, 2**31), st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=120))
def test_the_label_head_is_benepars_to_a_step_and_no_span_feels_another(engine, kernel, seed, spans):
    torch.manual_seed(seed)
    posts = 3 * torch.randn(10, engine.parser.f_label[0].in_features)
    head = heads(engine.parser, kernel)
    left, right = torch.tensor(spans).T.contiguous()
    with torch.inference_mode():
        projected = head.first_layer(posts)
        exact = network.label_scores(engine.parser, network.first_layer(engine.parser, posts), left, right)
        got = head.label_scores(projected, left, right)
        alone = [head.label_scores(projected, left[[row]], right[[row]]) for row in range(min(3, len(left)))]
        others = heads(engine.parser, "onednn").label_scores(projected, left, right)
    assert got.shape == exact.shape
    # 256 inputs, each off by half of a 63rd of the largest at most, and so the differences before the norm
    assert ((got - exact).norm(dim=1) <= 0.05 * exact.norm(dim=1) + 0.05).all()
    assert torch.equal(got[: len(alone)], torch.cat(alone))
    assert torch.equal(got, others)


@cache
def heads(parser, kernel):
    return Int8Head(parser.f_label, kernel)


@pytest.mark.parametrize("budget", [64, 100])
def test_batch_size_and_order_change_no_tree(engine, monkeypatch, budget):
    sentences = [Words(tuple(text.split()), (True,) * len(text.split())) for text in TEXTS]
    expected = engine.constituents(sentences)
    monkeypatch.setattr(engine, "token_budget", budget)
    turned = engine.constituents(sentences[::-1])[::-1]
    for one, other in zip(expected, turned, strict=True):
        assert (one.labels, one.tags) == (other.labels, other.tags)
        assert np.array_equal(one.spans, other.spans)


def test_they_are_refused_where_they_would_be_slow(monkeypatch, command, tmp_path):
    config = ParserConfig(precision="int8")
    monkeypatch.setattr(int8, "slowdown", lambda: 25.4)
    with pytest.raises(UsageError, match=r"slower than float32 here.* 25\.4 times as long\. Use float32"):
        BeneparParser(config)
    with pytest.raises(UsageError, match="Use float32"):
        ConstituencyComponent("parser", precision="int8")
    (tmp_path / "a.ptb").write_text("(NP (NN a) (NN b))\n", encoding="utf-8")
    code, _, told = command("eval-parser", tmp_path, "--parser-precision", "int8")
    assert (code, "Use float32" in told) == (Exit.USAGE, True)
    BeneparParser(ParserConfig())
    monkeypatch.setattr(int8, "slowdown", lambda: 0.6)
    BeneparParser(config)


def test_the_probe_takes_the_faster_kernel():
    speeds = int8.speeds()
    assert speeds is int8.speeds()
    assert speeds.kernels[speeds.kernel] == min(speeds.kernels.values())
    assert int8.slowdown() == speeds.kernels[speeds.kernel] / speeds.float32 > 0
