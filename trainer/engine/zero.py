"""DeepSpeed: its config, the optimizer, the engine."""

from pathlib import Path
from typing import Any, Final

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from pydantic_core import from_json
from torch import Tensor, nn

from schemas.errors import UsageError
from schemas.training import TrainConfig

CONFIGS: Final = Path(__file__).parents[1] / "configs" / "deepspeed"
#: What a DeepSpeed file may not say, since the training config says it: key -> there.
_OURS: Final = {
    "train_batch_size": "data.batch_size",
    "train_micro_batch_size_per_gpu": "data.micro_batches",
    "gradient_accumulation_steps": "data.micro_batches",
    "gradient_clipping": "optim.clip",
    "optimizer": "optim",
    "scheduler": "optim.schedule",
    "fp16": "precision",
    "bf16": "precision",
    "checkpoint": "checkpoint",
}
#: Loss scaling of fp16: begins lower than DeepSpeed's 2^16, so that a short run is not spent on finding it.
_FP16: Final = {"enabled": True, "initial_scale_power": 12}


def deepspeed_config(config: TrainConfig) -> dict[str, Any]:
    """DeepSpeed's config: the named file, and what the training config says.

    Raises `UsageError` for a file that is not there, is no JSON object, or says what the training config says, and for a
    precision that the machine does not have.
    """
    path = CONFIGS / f"{config.deepspeed}.json"
    if not path.is_file():
        path = Path(config.deepspeed).expanduser()
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in CONFIGS.glob("*.json")))
        raise UsageError(f"`deepspeed`: there is no file {config.deepspeed}; name one, or one of {known}.")
    try:
        values = from_json(path.read_bytes())
    except ValueError as error:
        raise UsageError(f"{path} is no JSON ({error}).") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} is no JSON object.")
    for key, place in _OURS.items():
        if key in values:
            raise UsageError(f"{path}: `{key}` is set by `{place}` of the training config; leave it out here.")
    values |= {
        # each engine step is ours: of each dataset as many micro-batches as `data.micro_batches`, of documents of any length
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": config.data.micro_batches * len(config.data.datasets),
        "gradient_clipping": config.optim.clip,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    if config.precision == "bf16":
        values["bf16"] = {"enabled": True}
    elif config.precision == "fp16":
        if not get_accelerator().is_fp16_supported():
            raise UsageError("`precision: fp16`: this processor does not compute in float16; take `bf16` or `fp32`.")
        values["fp16"] = dict(_FP16)
    if not torch.cuda.is_available():
        # its own Adam for the CPU compiles for a minute, and hardly learns there
        values["zero_force_ds_cpu_optimizer"] = False
    return values


def stage(values: dict[str, Any]) -> int:
    """The ZeRO stage of a DeepSpeed config."""
    return int(values.get("zero_optimization", {}).get("stage", 0))


def offloads(values: dict[str, Any]) -> bool:
    """Whether optimizer states live on the CPU."""
    return bool(values.get("zero_optimization", {}).get("offload_optimizer"))


def start(model: nn.Module, optimizer: torch.optim.Optimizer, values: dict[str, Any]) -> Any:
    """DeepSpeed's engine (deepspeed.DeepSpeedEngine) around a model; buffers stay as exact as they are."""
    exact = {name: buffer.clone() for name, buffer in model.named_buffers() if buffer.is_floating_point()}
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=values)
    for name, buffer in exact.items():
        # half precision is for weights: frequencies of rotary positions must not be rounded
        owner, _, key = name.rpartition(".")
        module = model.get_submodule(owner)
        module.register_buffer(key, buffer.to(engine.device), persistent=key not in module._non_persistent_buffers_set)
    return engine


def finite(model: nn.Module) -> bool:
    """Whether every weight of a model is a finite number, of those that this rank holds."""
    return all(bool(torch.isfinite(_own(parameter)).all()) for parameter in model.parameters())


def _own(parameter: Any) -> Tensor:
    """A parameter's values on this rank: of one that ZeRO-3 has partitioned its part, without what fills it up."""
    values: Tensor = getattr(parameter, "ds_tensor", parameter).detach().flatten()
    if not hasattr(parameter, "ds_tensor"):
        return values
    return values[: max(parameter.ds_numel - dist.get_rank() * len(values), 0)]


def whole_state(model: nn.Module, zero_stage: int) -> dict[str, Tensor] | None:
    """Every tensor of a model that is trained, whole, on the CPU; None but on the first rank. Every rank calls it."""
    first = dist.get_rank() == 0
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        with deepspeed.zero.GatheredParameters([parameter], enabled=zero_stage == 3):
            if first:
                state[name] = parameter.detach().cpu().clone()
    persistent = model.state_dict(keep_vars=True).keys()
    for name, buffer in model.named_buffers():
        if first and name in persistent:
            state[name] = buffer.detach().cpu().clone()
    return state if first else None
