"""The norm behind a last layer, out of its model: what each kind does, and that it is found in real architectures."""

import math
from functools import partial

import pytest
import torch
import transformers
from torch import nn

import zoo
from schemas.config import ModelConfig
from trainer.models.final_norm import FinalNorm, norm_of
from trainer.models.loading import load_model

#: By architecture of the zoo, and whether it has a weight and a bias.
KINDS = {
    "llama": ("rms", True, False),
    "qwen3": ("rms", True, False),
    "gpt2": ("layer", True, True),
    "opt": ("layer", True, True),
    "cohere": ("layer", True, False),
    "olmo": ("layer", False, False),
    "gemma": ("1+rms", True, False),
    "gemma3_text": ("1+rms", True, False),
    "nemotron": ("1+layer", True, True),
}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_norm(row, kind, epsilon, weight, bias):
    """One vector, a number at a time."""
    mean = math.fsum(row) / len(row) if kind.endswith("layer") else 0.0
    size = math.sqrt(math.fsum((x - mean) ** 2 for x in row) / len(row) + epsilon)
    factors = [1 + w if kind.startswith("1+") else w for w in weight]
    return [(x - mean) / size * w + b for x, w, b in zip(row, factors, bias, strict=True)]


@pytest.mark.parametrize("kind", ["layer", "rms", "1+layer", "1+rms"])
def test_every_kind_is_its_equation(kind):
    states, weight, bias = normal(5, 7) + 0.5, normal(7, seed=1), normal(7, seed=2)
    states[0] *= 1e-3  # where ε counts
    found = FinalNorm(kind, 1e-5, weight, bias)(states)
    expected = [slow_norm(row, kind, 1e-5, weight.tolist(), bias.tolist()) for row in states.tolist()]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    assert FinalNorm(kind, 1e-5)(states.to(torch.bfloat16)).dtype == torch.float32


def tiny(kind, folder):
    """A teacher of the zoo, whose norms are not as they begin."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(zoo.tiny(kind))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.3, 0.3)
    model.save_pretrained(folder)
    return partial(load_model, ModelConfig(model=str(folder)), None)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_found_and_does_what_the_model_does(kind, tmp_path):
    loaded = tiny(kind, tmp_path / kind)()
    norm = loaded.norm()
    assert norm is not None
    assert (norm.kind, norm.weight is not None, norm.bias is not None) == KINDS[kind]
    inner = []
    hook = loaded.layers[-1].register_forward_hook(
        lambda _module, _arguments, output: inner.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        last = loaded.body(input_ids=torch.tensor([[5, 3, 60, 1, 0, 17]]), use_cache=False)[0][0]
        hook.remove()
        states = inner[0].flatten(0, -2)
        torch.testing.assert_close(norm(states), last, rtol=1e-5, atol=1e-5)
        # of states of other sizes too: ε is the model's
        module = loaded.body.get_submodule(loaded.norm_name())
        for factor in (1e-3, 1e3):
            torch.testing.assert_close(norm(states * factor), module(states * factor), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "openai-gpt"])
def test_a_model_without_one(kind, tmp_path):
    loaded = tiny(kind, tmp_path / kind)()
    assert loaded.norm() is None
    assert loaded.norm_name() is None


class Clamping(nn.LayerNorm):
    """A norm of no kind that is known."""

    def forward(self, states):
        return super().forward(states).clamp(-1, 1)


def test_an_unknown_norm_is_none():
    states = normal(4, 8).float()
    assert norm_of(nn.LayerNorm(8), states) is not None
    assert norm_of(Clamping(8), states) is None
    assert norm_of(nn.Linear(8, 8), states) is None


def test_another_epsilon_is_another_norm():
    norm = norm_of(nn.LayerNorm(8, eps=1e-6), normal(4, 8).float())
    assert norm.epsilon == 1e-6
    assert norm_of(nn.RMSNorm(8, eps=1e-12), normal(4, 8).float()).epsilon == 1e-12
