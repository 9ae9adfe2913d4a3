"""Low-rank adapters (LoRA) in a student's model, by peft."""

import warnings
from collections.abc import Iterable
from typing import Any

import peft
from torch import nn
from transformers.pytorch_utils import Conv1D

from schemas.errors import UsageError, nearest
from schemas.training import LoraConfig
from trainer.models.hub import first_line


def with_adapters(model: Any, config: LoraConfig) -> peft.LoraModel:
    """Put adapters into `model`, in place, and freeze all else.

    The result wraps the model; its `merge_and_unload` gives the plain one back, adapters added to its weights. Raises
    UsageError for targets that the model does not have, for the output head or embeddings tied to it, whose adapter
    would not reach the logits, and for dropout where experts are adapted.
    """
    absent = _absent(model, config.targets or ())
    linear = {name.rpartition(".")[2] for name, each in model.named_modules() if isinstance(each, nn.Linear | Conv1D)}
    options = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules="all-linear" if config.targets is None else list(config.targets),
        # GPT-2's linear layers have their matrix the other way round
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    try:
        with warnings.catch_warnings():
            # which looks for experts' parameters among modules
            warnings.filterwarnings(
                "ignore", r"The following (rank|alpha)_pattern keys did not match any targeted module"
            )
            adapted = peft.LoraModel(model, options, "default")
    except ValueError as error:
        if options.target_parameters and config.dropout:
            raise _experts_with_dropout(model, options) from error
        raise _unknown(absent, linear) if absent else UsageError(f"`lora.targets`: {first_line(error)}") from error
    # peft takes names of experts' layers, as files have them, out of the targets, and leaves those that it does not know
    if absent & set(options.target_modules):
        raise _unknown(absent & set(options.target_modules), linear)
    return adapted


def _absent(model: Any, targets: Iterable[str]) -> set[str]:
    """The targets that name no module. Raises UsageError for those that name what can have no adapter."""
    head = model.get_output_embeddings()
    absent = set()
    for target in targets:
        modules = [module for name, module in model.named_modules() if f".{name}".endswith(f".{target}")]
        if any(getattr(module, "weight", None) is head.weight for module in modules):
            raise UsageError(f"`lora.targets`: {target!r} is the output head or tied to it; name linear layers only.")
        if any(next(module.children(), None) is not None for module in modules):
            raise UsageError(f"`lora.targets`: {target!r} is no linear layer; name those in it.")
        if not modules:
            absent.add(target)
    return absent


def _unknown(targets: set[str], linear: set[str]) -> UsageError:
    target = min(targets)
    near = nearest(target, linear)
    hint = f"did you mean `{near}`?" if near else f"its linear layers are {', '.join(sorted(linear))}."
    return UsageError(f"`lora.targets`: the model has no layer {target!r}; {hint}")


def _experts_with_dropout(model: nn.Module, options: peft.LoraConfig) -> UsageError:
    """All experts of a layer are one parameter, whose adapters know no dropout; what peft leaves as targets are the rest."""
    others = sorted({name.rpartition(".")[2] for name in options.target_modules})
    without = f", or leave the experts out: `lora.targets: [{', '.join(others)}]`" if others else ""
    return UsageError(
        f"`lora`: adapters of experts ({type(model).__name__}) cannot have dropout. Set `lora.dropout: 0`{without}."
    )
