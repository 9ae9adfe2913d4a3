"""The engine: packed equals padded, nothing hangs on order, threads or memory, 8-bit layers do what they say."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from pipeline.parse import network
from pipeline.parse.engine import Engine
from pipeline.parse.packed import PackedParser
from pipeline.parse.threads import torch_threads
from pipeline.text import Words
from schemas.errors import ResourceError, UsageError
from trainer.models.memory import out_of_memory

TEXTS = [
    "The small cat that I saw has been sleeping quietly on the old sofa , and wants to stay .",
    "Yes",
    "Yes",
    "Write a poem about the sea .",
    "What 's the capital of Portugal ?",
    "Mix the flour , the eggs and the milk , then let the batter rest for 30 minutes .",
    "« Niemand weiß es » , sagte sie .",
    "Go !",
    "No !",
    "very " * 60 + "long",
]


def words_of(text):
    words = tuple(text.split())
    return Words(words, (*[True] * (len(words) - 1), False))


SENTENCES = [words_of(text) for text in TEXTS]


def same(one, other):
    return (one is None and other is None) or (
        np.array_equal(one.spans, other.spans) and one.labels == other.labels and one.tags == other.tags
    )


def test_packed_is_benepars_own_network_to_rounding(embedded_parser):
    parser = embedded_parser.network
    packed = PackedParser(parser, "float32", "cpu")
    batch = network.encode(parser, SENTENCES)
    with torch.inference_mode():
        posts, tags = network.fenceposts(parser, network.padded(parser, batch))
        ours, our_tags = packed.fenceposts(batch)
    # a sum of 384 products in float32, in another order, through eight layers
    assert (posts - ours).abs().max() < 2e-5 * posts.abs().max()
    assert (tags - our_tags).abs().max() < 2e-5 * tags.abs().max()


def test_no_sentence_feels_its_neighbours(embedded_parser):
    """Attention stays inside a sentence: changing one sentence of a batch leaves the vectors of the others alone."""
    parser = embedded_parser.network
    packed = PackedParser(parser, "float32", "cpu")
    one = network.encode(parser, [SENTENCES[3], SENTENCES[4], SENTENCES[7]])
    other = network.encode(parser, [SENTENCES[3], SENTENCES[4], SENTENCES[8]])
    count = len(SENTENCES[3].words) + len(SENTENCES[4].words) + 2
    with torch.inference_mode():
        a, b = packed.fenceposts(one)[0], packed.fenceposts(other)[0]
    assert torch.equal(a[:count], b[:count])
    assert not torch.equal(a[count:], b[count:])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_order_and_threads_change_nothing(embedded_parser, threads, precision):
    before = torch.get_num_threads()
    alone = Engine(embedded_parser.network, token_budget=128, precision=precision).constituents(SENTENCES)
    engine = Engine(embedded_parser.network, token_budget=128, precision=precision, threads=threads)
    turned = engine.constituents(SENTENCES[::-1])[::-1]
    assert all(same(one, other) for one, other in zip(alone, turned, strict=True))
    assert torch.get_num_threads() == before


def test_sentences_beyond_the_model_are_left_out_and_the_rest_parsed(embedded_parser):
    engine = Engine(embedded_parser.network)
    trees = engine.constituents([words_of("word " * 600), SENTENCES[3], Words((), ())])
    assert trees[0] is None
    assert trees[2] is None
    assert same(trees[1], engine.constituents([SENTENCES[3]])[0])


def failing(engine, monkeypatch, largest, error):
    """Lets batches of more than `largest` sentences fail; returns the sizes that were tried."""
    tried, real = [], engine.packed.fenceposts

    def fenceposts(batch):
        tried.append(len(batch))
        if len(batch) > largest:
            raise error
        return real(batch)

    monkeypatch.setattr(engine.packed, "fenceposts", fenceposts)
    return tried


NO_MEMORY = RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried …")


@pytest.mark.parametrize(
    "told",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "NCCL error in: NCCLUtils.cpp:93, unhandled cuda error\nLast error:\nFailed to CUDA calloc async 4 bytes",
    ],
)
def test_what_libraries_say_when_memory_is_gone_is_known(told):
    assert out_of_memory(RuntimeError(told))


@pytest.mark.parametrize("error", [NO_MEMORY, MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")])
def test_out_of_memory_halves_the_batch_and_loses_nothing(embedded_parser, monkeypatch, error):
    engine = Engine(embedded_parser.network, token_budget=100_000)
    expected = engine.constituents(SENTENCES)
    tried = failing(engine, monkeypatch, 2, error)
    assert all(same(one, other) for one, other in zip(engine.constituents(SENTENCES), expected, strict=True))
    assert max(tried) > 2


def test_out_of_memory_with_one_sentence_says_so(embedded_parser, monkeypatch):
    engine = Engine(embedded_parser.network)
    failing(engine, monkeypatch, 0, NO_MEMORY)
    with pytest.raises(ResourceError, match="single sentence"):
        engine.constituents(SENTENCES)


def test_other_errors_are_not_taken_for_lack_of_memory(embedded_parser, monkeypatch):
    engine = Engine(embedded_parser.network)
    failing(engine, monkeypatch, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not out_of_memory(ValueError("memory"))
    assert not out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    with pytest.raises(RuntimeError, match="shapes"):
        engine.constituents(SENTENCES)


def test_8_bit_layers_are_for_the_cpu(embedded_parser):
    with pytest.raises(UsageError, match="int8 is for the CPU"):
        Engine(embedded_parser.network, device="cuda", precision="int8")


def test_a_device_that_is_not_there_is_named(embedded_parser):
    with pytest.raises(UsageError, match="no device 'abacus'"):
        Engine(embedded_parser.network, device="abacus")


def test_a_batch_that_fails_leaves_torchs_threads_as_they_were(embedded_parser, monkeypatch):
    def seen_by_a_new_thread():
        return ThreadPoolExecutor(1).submit(torch.get_num_threads).result()

    engine = Engine(embedded_parser.network, token_budget=128, threads=2)
    failing(engine, monkeypatch, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with torch_threads(3):  # unlike what a batch's thread sets
        with pytest.raises(RuntimeError, match="shapes"):
            engine.constituents(SENTENCES)
        assert torch.get_num_threads() == seen_by_a_new_thread() == 3


def test_bf16_leaves_the_callers_parser_alone(embedded_parser):
    engine = Engine(embedded_parser.network, precision="bf16")
    assert {p.dtype for p in embedded_parser.network.parameters()} == {torch.float32}
    assert {p.dtype for p in engine.parser.parameters()} == {torch.bfloat16}
    trees = engine.constituents(SENTENCES)
    assert all(tree.labels for tree in trees)
