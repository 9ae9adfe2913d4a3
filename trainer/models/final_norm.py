"""The norm behind a model's last decoder layer, through which an inner layer's states go to be read as last ones.

    layer     (x − mean(x)) / √(var(x) + ε) · w + b        GPT-2, OPT, Phi; Cohere without b, OLMo without w and b
    rms       x / √(mean(x²) + ε) · w                      Llama, Qwen, Mistral
    1+layer, 1+rms    the same with 1 + w in place of w    Nemotron; Gemma

Which of them a model has is not asked of its class but tried: modules that run behind its last layer are watched, and
what the one does that gives the last hidden states is compared with each kind.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Final, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from schemas.signals import Norm
from trainer.maths.ragged import at_least_float32

#: Names under which modules of transformers keep ε; and what those take that keep it nowhere (OLMo).
_EPSILONS: Final = ("eps", "variance_epsilon", "epsilon", "layer_norm_eps", "norm_eps")
_USUAL_EPSILONS: Final = (1e-5, 1e-6, 1e-12, 1e-8)
#: Root mean square of the smaller of two probes: its mean square is about what ε is, so another ε shows.
_SMALL: Final = 1e-3
#: Of the results, relative to the largest: sums in another order. (In half precision, two of its own last digits.)
_ROUNDING: Final = 1e-5


@dataclass(frozen=True)
class FinalNorm:
    """A norm as its numbers say, for constants: at least in float32, without its model."""

    kind: Norm
    epsilon: float
    weight: Float[Tensor, " hidden"] | None = None
    bias: Float[Tensor, " hidden"] | None = None

    def __call__(self, states: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens hidden"]:
        """States as the last layer's come out of the model."""
        exact = at_least_float32(states)
        normalize = F.layer_norm if self.kind.endswith("layer") else F.rms_norm
        normed = normalize(exact, exact.shape[-1:], eps=self.epsilon)
        if self.weight is not None:
            weight = self.weight.to(exact)
            normed = normed * (1 + weight if self.kind.startswith("1+") else weight)
        return normed if self.bias is None else normed + self.bias.to(exact)

    def to(self, device: torch.device) -> "FinalNorm":
        """The same on a device."""
        weight, bias = (None if each is None else each.to(device) for each in (self.weight, self.bias))
        return replace(self, weight=weight, bias=bias)


def norm_behind(layers: nn.ModuleList, body: Any, run: Callable[[], Tensor]) -> tuple[str, nn.Module, Tensor] | None:
    """Where in `body` the module is that turns what the last of `layers` gives into the last hidden states, which `run` does
    and returns; with its name and what it was given. None if there is none."""
    given: list[Tensor] = []
    calls: list[tuple[str, nn.Module, Tensor, Tensor]] = []

    def note_last(_module: nn.Module, _arguments: tuple[Any, ...], output: Any) -> None:
        given.append(output[0] if isinstance(output, tuple | list) else output)

    def noting(name: str) -> Callable[..., None]:
        def note(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            if given and arguments and isinstance(arguments[0], Tensor) and isinstance(output, Tensor):
                calls.append((name, module, arguments[0], output))

        return note

    inside = {id(module) for module in layers.modules()}
    hooks = [layers[-1].register_forward_hook(note_last)]
    hooks += [
        module.register_forward_hook(noting(name)) for name, module in body.named_modules() if id(module) not in inside
    ]
    try:
        last = run()
    finally:
        for hook in hooks:
            hook.remove()
    for name, module, states, output in calls:
        if _equal(states, given[-1]) and _equal(output, last) and not _equal(states, last):
            return name, module, states
    return None


@torch.no_grad()
def norm_of(module: nn.Module, states: Float[Tensor, "*shape hidden"]) -> FinalNorm | None:
    """What a module is that was given these states; None if it is no norm that is known here."""
    parameters = dict(module.named_parameters())
    if not parameters.keys() <= {"weight", "bias"} or any(each.ndim != 1 for each in parameters.values()):
        return None
    flat = states.flatten(0, -2)
    size = at_least_float32(flat).square().mean().sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    probes = [flat, (flat * (_SMALL / size)).to(flat.dtype)]
    expected = [module(each) for each in probes]
    for norm in _candidates(module, parameters):
        if all(_close(norm(each), wanted) for each, wanted in zip(probes, expected, strict=True)):
            return norm
    return None


def _candidates(module: nn.Module, parameters: Mapping[str, Tensor]) -> Iterator[FinalNorm]:
    named = [value for name in _EPSILONS if isinstance(value := getattr(module, name, None), float)]
    weight, bias = (None if each is None else each.detach() for each in map(parameters.get, ("weight", "bias")))
    for epsilon, kind in product((*named, *_USUAL_EPSILONS), get_args(Norm)):
        yield FinalNorm(kind, epsilon, weight, bias)


def _close(one: Tensor, other: Tensor) -> bool:
    tolerance = max(2 * torch.finfo(other.dtype).eps, _ROUNDING) * float(other.abs().max())
    return float((one.to(torch.float64) - other.to(torch.float64)).abs().max()) <= tolerance


def _equal(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one, other.to(one.device)))
