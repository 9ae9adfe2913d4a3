"""Batched generation against one row at a time without a cache, and sampling against the distribution it is meant to have."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
)

from schemas import embedded
from schemas.errors import UserError
from trainer.evaluation.generate import BLOCK, Generator, Prompt, Response, Sampling, gumbel, sample

NEW_TOKENS = 18


@pytest.fixture(scope="module")
def teacher():
    return AutoModelForCausalLM.from_pretrained(embedded.resolve("embedded:teacher"), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(embedded.resolve("embedded:teacher"))


def gpt2():
    """Learned positions: a row that is padded must still begin at position 0."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=2, n_positions=128, initializer_range=0.3)
    return GPT2LMHeadModel(config).eval()


def mistral():
    """A window shorter than the prompts, so its cache forgets."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=6,
        initializer_range=0.3,
    )
    return MistralForCausalLM(config).eval()


@torch.no_grad()
def plain(model, prompt):
    """One row without a stop token, its whole text anew for every token; sampling's two stages spelled out in float64."""
    ids = list(prompt.ids)
    for step in range(NEW_TOKENS):
        logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1].double().tolist()
        if prompt.seed is None:
            token = max(range(len(logits)), key=logits.__getitem__)
        else:
            blocks = [logits[first : first + BLOCK] for first in range(0, len(logits), BLOCK)]
            noise = gumbel(prompt.seed, prompt.row, step, len(blocks) + BLOCK).tolist()
            weights = [math.log(math.fsum(map(math.exp, block))) for block in blocks]
            best = max(range(len(blocks)), key=lambda block: weights[block] + noise[block])
            within = range(len(blocks[best]))
            token = best * BLOCK + max(within, key=lambda place: blocks[best][place] + noise[len(blocks) + place])
        ids.append(token)
    return Response(tuple(ids[len(prompt.ids) :]), False)


def ended(response, stop):
    """What is left of it with these stop tokens."""
    first = next((place for place, token in enumerate(response.ids) if token in stop), None)
    return Response(response.ids[:first], first is not None)


def in_batches(generator, prompts, size):
    return [each for first in range(0, len(prompts), size) for each in generator(prompts[first : first + size])]


def real_prompts(tokenizer, greedy):
    lines = Path(embedded.resolve("embedded:sample")).read_text(encoding="utf-8").splitlines()[:9]
    texts = [json.loads(line)["instruction"] for line in lines]
    seeds = [None] * 9 if greedy else [10, 20, 30] * 3
    return [
        Prompt(tuple(tokenizer(text)["input_ids"]), row, seed)
        for row, (text, seed) in enumerate(zip(texts, seeds, strict=True))
    ]


@pytest.mark.parametrize("greedy", [True, False])
def test_batches_equal_one_row_at_a_time(teacher, tokenizer, greedy):
    prompts = real_prompts(tokenizer, greedy)
    assert len({len(prompt.ids) for prompt in prompts}) > 3, "rows are padded"
    free = [plain(teacher, prompt) for prompt in prompts]
    # ends that rows come to at different places, if at all
    stop = [free[1].ids[5], free[4].ids[9], free[7].ids[14]]
    expected = [ended(each, stop) for each in free]
    assert len({len(each.ids) for each in expected}) >= 3
    assert any(each.stopped for each in expected)
    for size in (1, 3, 8):
        assert in_batches(Generator(teacher, stop, NEW_TOKENS, Sampling()), prompts, size) == expected, size
    assert in_batches(Generator(teacher, [], NEW_TOKENS, Sampling()), prompts, 8) == free, "no stop token"


@pytest.mark.parametrize("make", [gpt2, mistral])
@pytest.mark.parametrize("seed", [None, 7])
def test_positions_and_windows_are_those_of_a_row_alone(make, seed):
    model = make()
    random = np.random.default_rng(1)
    prompts = [
        Prompt(tuple(random.integers(300, size=length).tolist()), row, seed)
        for row, length in enumerate([1, 4, 9, 15, 15, 30])
    ]
    free = [plain(model, prompt) for prompt in prompts]
    stop = sorted({each.ids[2 + 3 * row] for row, each in enumerate(free)})
    expected = [ended(each, stop) for each in free]
    assert any(each.stopped for each in expected)
    for size in (2, 6):
        assert in_batches(Generator(model, stop, NEW_TOKENS, Sampling()), prompts, size) == expected


def test_a_row_that_stops_late_is_not_cut_with_the_others(teacher, tokenizer):
    """Only row 0 decides in a well-known bug; here every row is tried as the one that goes on longest."""
    prompts = real_prompts(tokenizer, greedy=False)[:4]
    free = [plain(teacher, prompt) for prompt in prompts]
    first_seen = [{token: each.ids.index(token) for token in each.ids} for each in free]
    for row in range(4):
        others = [first_seen[other] for other in range(4) if other != row]
        stop = [token for seen in others for token, place in seen.items() if place < 6 and token not in first_seen[row]]
        found = Generator(teacher, stop, NEW_TOKENS, Sampling())(prompts)
        assert len(found[row].ids) == NEW_TOKENS
        assert not found[row].stopped
        assert found == [ended(each, stop) for each in free]


def test_the_models_own_generation_config_is_put_out_of_force(tokenizer):
    model = AutoModelForCausalLM.from_pretrained(embedded.resolve("embedded:teacher"), dtype=torch.float32).eval()
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.min_new_tokens = NEW_TOKENS
    model.generation_config.do_sample = True
    prompts = real_prompts(tokenizer, greedy=True)[:3]
    expected = [ended(plain(model, prompt), [2]) for prompt in prompts]
    assert Generator(model, [2], NEW_TOKENS, Sampling())(prompts) == expected


def chi_square(counts, probabilities):
    total = sum(counts)
    return sum((count - total * p) ** 2 / (total * p) for count, p in zip(counts, probabilities, strict=True))


#: The 99.9 % points of chi-square, by degrees of freedom.
CHI_999 = {3: 16.27, 4: 18.47, 7: 24.32}


def test_sampled_frequencies_fit_the_softmax():
    vocabulary = 2 * BLOCK + 3
    tokens = [0, 1, 2, BLOCK - 1, BLOCK, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 2]
    weights = np.array([8.0, 1, 2, 4, 3, 0.5, 6, 1])
    scores = torch.full((1, vocabulary), -torch.inf)
    scores[0, tokens] = torch.from_numpy(np.log(weights)).float()
    rows = 20_000
    found = sample(scores.expand(rows, -1), lambda row, count: gumbel(5, row, 0, count))
    counts = Counter(found.tolist())
    assert set(counts) <= set(tokens)
    assert chi_square([counts[token] for token in tokens], weights / weights.sum()) < CHI_999[7]


def test_steps_and_seeds_are_independent_draws():
    scores = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.25, 0.15]]))
    for draw in (
        lambda number: lambda row, count: gumbel(3, 4, number, count),
        lambda number: lambda row, count: gumbel(number, 4, 3, count),
    ):
        counts = Counter(int(sample(scores, draw(number))) for number in range(1500))
        assert chi_square([counts[token] for token in range(5)], scores.exp()[0].tolist()) < CHI_999[4]


def test_noise_is_a_function_of_seed_row_and_step():
    keys = [(10, 3, 0), (20, 3, 0), (10, 4, 0), (10, 3, 1), (3, 10, 0)]
    drawn = [gumbel(*key, 1000) for key in keys]
    assert len({each.tobytes() for each in drawn}) == len(keys)
    for key, each in zip(keys, drawn, strict=True):
        np.testing.assert_array_equal(gumbel(*key, 1000), each)
    assert len(set(np.concatenate(drawn).tolist())) == 1000 * len(keys), "no stretch of numbers serves twice"
    correlations = np.corrcoef(drawn)[np.triu_indices(len(keys), 1)]
    assert np.abs(correlations).max() < 4 / math.sqrt(1000)
    many = gumbel(1, 1, 1, 200_000)
    assert many.mean() == pytest.approx(np.euler_gamma, abs=4 * math.pi / math.sqrt(6 * 200_000))
    assert many.var() == pytest.approx(math.pi**2 / 6, rel=0.03)
    assert np.isfinite(many).all()


def test_a_rows_token_does_not_depend_on_the_rows_beside_it():
    torch.manual_seed(2)
    scores = torch.randn(12, 5000) * 3
    together = sample(scores, lambda row, count: gumbel(1, row, 9, count))
    order = [7, 2, 11, 0]
    apart = sample(scores[order], lambda row, count: gumbel(1, order[row], 9, count))
    assert apart.tolist() == together[order].tolist()


def first_tokens(model, prompt_ids, sampling, seeds):
    prompts = [Prompt(prompt_ids, 0, seed) for seed in range(seeds)]
    return Counter(each.ids[0] for each in Generator(model, [], 1, sampling)(prompts))


def test_top_k_and_temperature(teacher, tokenizer):
    ids = tuple(tokenizer("The people of the city")["input_ids"])
    with torch.no_grad():
        logits = teacher(torch.tensor([ids])).logits[0, -1].double()
    best = logits.topk(4)
    counts = first_tokens(teacher, ids, Sampling(temperature=2.0, top_k=4), 1000)
    expected = (best.values / 2).softmax(0).tolist()
    assert set(counts) <= set(best.indices.tolist())
    assert chi_square([counts[token] for token in best.indices.tolist()], expected) < CHI_999[3]


def test_top_p(teacher, tokenizer):
    ids = tuple(tokenizer("The people of the city")["input_ids"])
    with torch.no_grad():
        probabilities = teacher(torch.tensor([ids])).logits[0, -1].double().softmax(0)
    order = probabilities.argsort(descending=True).tolist()
    before = np.cumsum([0.0, *probabilities[order].tolist()])[:-1]
    nucleus = [token for token, mass in zip(order, before, strict=True) if mass < 0.3]
    assert len(nucleus) < 100
    counts = first_tokens(teacher, ids, Sampling(top_p=0.3), 400)
    assert set(counts) <= set(nucleus)
    assert len(counts) > min(5, len(nucleus) - 1)


def test_logits_that_are_not_numbers_are_refused(tokenizer):
    model = gpt2()
    model.transformer.ln_f.weight.data[:] = torch.nan
    for seed in (None, 1):
        with pytest.raises(UserError, match="NaN"):
            Generator(model, [1], 4, Sampling())([Prompt((5, 6), 0, seed)])


def test_a_batch_is_of_one_kind(teacher):
    with pytest.raises(ValueError, match="greedy or sampled"):
        Generator(teacher, [2], 4, Sampling())([Prompt((5,), 0, None), Prompt((5,), 1, 10)])
