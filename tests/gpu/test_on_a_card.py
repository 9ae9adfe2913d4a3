"""What only a card can tell: its own kernels and roundings, half precision, gradients, a training run."""

import copy
import json
import os
import re
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from a_card import NEEDS_A_CARD, SAME_IN_FLOAT32
from cached_batches import CHUNKS, TERMS, WORDS, term_of
from launching import command, metrics
from pipeline.text import Words
from schemas import embedded
from test_cuda import values
from trainer.batches.batch import Batch
from trainer.maths import ragged
from trainer.maths.soft_dtw import soft_dtw
from trainer.models.packed_attention import Pack, attend
from trainer.objectives import build
from trainer.objectives.base import Setting
from trainer.student.distiller import Distiller
from trainer.student.output_head import LogitWork, OutputHead

pytestmark = NEEDS_A_CARD
SENTENCES = 48


def leaf(tensor, device, dtype):
    """A copy on a device that gathers a gradient."""
    return tensor.to(device, dtype, copy=True).requires_grad_()


@pytest.fixture(scope="module")
def sentences():
    """Of the embedded sample, cut where white space stands: what a parser makes of them is compared with itself alone."""
    rows = map(json.loads, Path(embedded.resolve("embedded:sample")).read_text(encoding="utf-8").splitlines())
    texts = [text for row in rows for text in re.split(r"(?<=[.!?])\s+", row["output"])]
    words = [tuple(re.findall(r"\w+|[^\w\s]", text)) for text in texts]
    chosen = [each for each in words if 3 <= len(each) <= 60][::4][:SENTENCES]
    assert len(chosen) == SENTENCES
    return [Words(each, (True,) * len(each)) for each in chosen]


@pytest.fixture(scope="module")
def parsed(sentences):
    """Trees of the sentences as lists of brackets, by the embedded parser on a device."""
    from pipeline.parse import model
    from pipeline.parse.engine import Engine

    network = model.load_for_inference("embedded").network

    def parse(device, precision):
        engine = Engine(copy.deepcopy(network), device=device, precision=precision)
        return [
            Counter(zip(*tree.spans.T.tolist(), tree.labels, strict=True)) for tree in engine.constituents(sentences)
        ]

    return parse


def test_the_parser_gives_the_cpus_trees_in_float32(parsed):
    assert parsed("cuda:0", "float32") == parsed("cpu", "float32")


def test_the_parser_in_bfloat16(parsed, record_property):
    """A tree changes where two splits' scores are closer than bfloat16's 8 bits: few brackets do, most trees do not."""
    half, whole = parsed("cuda:0", "bf16"), parsed("cuda:0", "float32")
    hits = sum((mine & theirs).total() for mine, theirs in zip(half, whole, strict=True))
    f1 = 2 * hits / sum(mine.total() + theirs.total() for mine, theirs in zip(half, whole, strict=True))
    differing = sum(mine != theirs for mine, theirs in zip(half, whole, strict=True))
    print(f"bf16: {differing} of {len(half)} trees differ from float32's, F1 {f1:.4f}")
    record_property("trees that differ", differing)
    record_property("F1", f1)
    assert f1 > 0.98
    assert differing < len(half) / 2


@pytest.mark.parametrize("sizes", [[(64, 48), (1, 7), (0, 3), (30, 64)], [(17, 17)] * 5], ids=["ragged", "even"])
def test_soft_dtw_and_its_gradient(sizes):
    sizes = torch.tensor(sizes)
    costs = values(int(sizes.prod(1).sum())).abs()
    upstream = torch.arange(1.0, len(sizes) + 1)

    def computed(device, dtype):
        own = leaf(costs, device, dtype)
        result = soft_dtw(own, sizes, 2.0)
        result.backward(upstream.to(device, dtype))
        return result.detach().cpu(), own.grad.cpu()

    (result, gradient), (expected, by_costs) = computed("cuda:0", torch.float32), computed("cpu", torch.float64)
    # one rounding a diagonal, of values as large as the path; E is a product of exponentials of such values
    diagonals, largest = int(sizes.sum(1).max()), float(expected.abs().max())
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=diagonals * largest * 2.0**-24)
    torch.testing.assert_close(gradient.double(), by_costs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"sliding_window": 3}, {"softcap": 2.0}], ids=["plain", "sliding", "capped"])
@pytest.mark.parametrize("lengths", [(5, 1, 70, 3), (16, 16, 16)], ids=["ragged", "even"])
def test_packed_attention_and_its_gradient(lengths, options, dtype):
    rows = ragged.pointers(lengths)
    heads = [values(1, count, int(rows[-1]), 16, seed=count).to(dtype) for count in (4, 2)]
    query, key, value = heads[0], heads[1], heads[1].flip(2)
    upstream = values(1, int(rows[-1]), 4, 16, seed=9).to(dtype)

    def computed(device, exact):
        own = [leaf(each, device, exact) for each in (query, key, value)]
        mixed, _ = attend(nn.Module(), *own, None, mta_pack=Pack(rows, 64), **options)
        mixed.backward(upstream.to(device, exact))
        return [each.detach().cpu().double() for each in (mixed, *(each.grad for each in own))]

    # bfloat16: probabilities and products of values of some units' size, rounded to 8 bits
    tolerance = SAME_IN_FLOAT32 if dtype == torch.float32 else {"rtol": 2.0**-5, "atol": 2.0**-4}
    for result, expected in zip(computed("cuda:0", dtype), computed("cpu", torch.float64), strict=True):
        torch.testing.assert_close(result, expected, **tolerance)


def test_the_chunked_head_and_its_gradient(monkeypatch):
    """Against all logits at once, in float64."""
    vocabulary, hidden, tokens = 1000, 32, 65
    monkeypatch.setattr("trainer.models.head.LOGITS_AT_ONCE", 8 * vocabulary)
    weight, states = values(vocabulary, hidden, seed=1), values(tokens, hidden)
    ids = torch.arange(tokens) * 37 % vocabulary
    positions = torch.arange(tokens - 1)
    rows, position_rows = ragged.pointers([tokens]), ragged.pointers([tokens - 1])
    batch = Batch(torch.zeros(1, dtype=torch.int64), ids, rows, positions, position_rows, ids[1:]).to("cuda:0")
    (term,) = build({"ce": {}}, Setting((), hidden, hidden), "objectives").values()

    head = OutputHead.around(nn.Linear(hidden, vocabulary, bias=False), None, None)
    head.weight = nn.Parameter(weight.to("cuda:0"))
    own = leaf(states, "cuda:0", torch.float32)
    work = LogitWork.of(batch, {1: own}, [term], [1 / (tokens - 1)], None)
    loss, _ = head(own[batch.positions], work)
    loss.backward()

    exact = [leaf(each, "cpu", torch.float64) for each in (states, weight)]
    expected = F.cross_entropy(exact[0][:-1] @ exact[1].t(), ids[1:])
    expected.backward()
    torch.testing.assert_close(loss.detach().cpu().double(), expected.detach(), **SAME_IN_FLOAT32)
    for tensor, double in ((own, exact[0]), (head.weight, exact[1])):
        torch.testing.assert_close(tensor.grad.cpu().double(), double.grad, **SAME_IN_FLOAT32)


@pytest.mark.parametrize("name", TERMS)
def test_gradients_of_every_term(source_of_all_terms, student_of_three, name):
    """Of the student and the term's own weights: as a whole no farther from the CPU's than sums in another order are."""
    source, student = source_of_all_terms, student_of_three()
    torch.manual_seed(0)
    terms = term_of(name, student)
    batch = source.fetch(np.argsort(source.documents.lengths("student"))[:3].tolist())  # angles are cubic

    def gradients(device):
        distiller = Distiller(copy.deepcopy(student), copy.deepcopy(terms), source.head.to(torch.device(device)))
        distiller = distiller.to(device)
        loss, _ = distiller(batch.to(device), distiller.denominators(batch), dict.fromkeys(terms, 1.0))
        loss.backward()
        return {
            name: parameter.grad.cpu() for name, parameter in distiller.named_parameters() if parameter.grad is not None
        }

    mine, expected = gradients("cuda:0"), gradients("cpu")
    assert mine.keys() == expected.keys()
    largest = max(float(gradient.norm()) for gradient in expected.values())
    for parameter, gradient in expected.items():
        assert (mine[parameter] - gradient).norm() <= 1e-3 * gradient.norm() + 1e-5 * largest, parameter


def test_a_training_run_in_bfloat16(same, make_cache, tiny_teacher, tmp_path):
    """The command itself, on the card: its loss falls, and the student that it leaves can be opened."""
    pytest.importorskip("deepspeed")
    cache = make_cache(signals=["relations", "units", "states", "final", "topk", "attention"], state_tokens="all")
    config = {
        "student": {"model": str(tiny_teacher), "init": {"layers": [0, 1, 3]}},
        "data": {"dataset": str(same), "caches": [str(cache)], "batch_size": 12, "workers": 0},
        "layers": [pair.model_dump() for pair in (WORDS, CHUNKS)],
        "objectives": {"ce": {}, "srkl": {}, "dsa": {}, "hidden": {}, "span_cos": {}},
        "optim": {"lr": 5e-3, "schedule": "constant"},
        "steps": 10,
        "precision": "bf16",
        "log": {"every": 1, "tensorboard": False},
        "out": str(tmp_path / "out"),
    }
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    ended = subprocess.run(command(1, "--config", file), env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr[-6000:]
    records = metrics(tmp_path / "out")
    losses = [record["loss"] for record in records]
    assert len(losses) == 10
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3]), losses
    assert records[-1]["memory_gb"] > 0
