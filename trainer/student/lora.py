"""Low-rank adapters (LoRA) in a student's model, by peft."""

from typing import Any

import peft
from transformers.pytorch_utils import Conv1D

from schemas.errors import UsageError
from schemas.training import LoraConfig


def with_adapters(model: Any, config: LoraConfig) -> peft.LoraModel:
    """Put adapters into `model`, in place, and freeze all else.

    The result wraps the model; its `merge_and_unload` gives the plain one back, adapters added to its weights. Raises
    UsageError for targets that the model does not have, and for the output head or embeddings tied to it, whose adapter
    would not reach the logits.
    """
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        for target in config.targets or ():
            if getattr(module, "weight", None) is head.weight and f".{name}".endswith(f".{target}"):
                raise UsageError(
                    f"`lora.targets`: {target!r} is the output head or tied to it; name linear layers only."
                )
    options = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules="all-linear" if config.targets is None else list(config.targets),
        # GPT-2's linear layers have their matrix the other way round
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    try:
        return peft.LoraModel(model, options, "default")
    except ValueError as error:
        raise UsageError(f"`lora.targets`: {error}") from error
