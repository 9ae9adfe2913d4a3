"""What a training config may say: student, data, terms of the loss, optimisation, checkpoints, logging."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from schemas.columns import Granularity
from schemas.config import ModelConfig, Name, Strict
from schemas.plain import Plain
from schemas.signals import Weights

#: The config beside an exported student, by which its folder is one.
EXPORTED: Final = "training.yaml"
#: What every generator of random numbers takes.
Seed = Annotated[int, Field(ge=0, lt=2**63)]
#: What terms of the loss call the dataset that stands in `data` itself.
DEFAULT_DATA: Final = "default"
_DATA_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")
#: Of a moving average.
Decay = Annotated[float, Field(ge=0, lt=1)]


def _two(values: Any) -> Any:
    """Else pydantic asks for a list of any length, or of too few for a key `1`."""
    if not isinstance(values, list | tuple) or len(values) < 2:
        raise ValueError("two numbers are wanted, as [0.9, 0.999]")
    return values


class CutConfig(Strict):
    """A student cut from a deeper model: its decoder layers that are kept, from 0, in this order."""

    layers: tuple[int, ...] = Field(min_length=1)


class LoraConfig(Strict):
    """Low-rank adapters (peft). `targets` None: every linear layer but the output head."""

    r: int = Field(default=16, ge=1)
    alpha: float = Field(default=64, gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    targets: tuple[Name, ...] | None = None


class StudentConfig(Strict):
    """The model that learns."""

    model: Name | None = None  # folder or hub id; None: described by `config` alone
    revision: Name | None = None
    gguf_file: Name | None = None  # of that folder or repository
    #: its weights, fresh ones of its config, or some of its layers
    init: Literal["pretrained", "config"] | CutConfig = "pretrained"
    #: keys of the model's config to override; without `model`: `model_type` and the rest
    config: dict[str, Plain] = Field(default_factory=dict)
    trust_remote_code: bool = False
    lora: LoraConfig | None = None  # None: full fine-tuning
    gradient_checkpointing: bool = False
    packing: bool = True  # documents without padding, where the architecture allows it

    def origin(self) -> ModelConfig | None:
        """The model that its config and first weights are of; None where `config` alone describes it."""
        if self.model is None:
            return None
        return ModelConfig(
            model=self.model,
            revision=self.revision,
            gguf_file=self.gguf_file,
            dtype="float32",
            trust_remote_code=self.trust_remote_code,
        )

    @model_validator(mode="after")
    def _described(self) -> "StudentConfig":
        if self.model is None and (self.init != "config" or "model_type" not in self.config):
            raise ValueError("without `model`, a student needs `init: config` and a `config` with its `model_type`")
        return self


def datasets_of(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the datasets that a term looks at, by its options; what is none is left out."""
    data = options.get("data", DEFAULT_DATA)
    return tuple(name for name in (data if isinstance(data, list | tuple) else [data]) if isinstance(name, str))


class LayerPair(Strict):
    """A student layer and the teacher layer it is compared with: indices into `hidden_states`."""

    student: int = Field(ge=0)
    teacher: int = Field(ge=0)


class PairConfig(LayerPair):
    """The same, and the units that are compared."""

    granularity: Granularity


class DatasetConfig(Strict):
    """Documents, and what the teacher makes of them."""

    dataset: Name
    caches: tuple[Name, ...] = ()
    limit: int | None = Field(default=None, ge=1)  # only the first rows


class DataConfig(DatasetConfig):
    """Which documents, in what portions. The order is a function of `seed` and the epoch alone."""

    #: further datasets of the same teacher and the student's tokenizer, by the name that terms give as their `data`
    more: dict[Name, DatasetConfig] | None = None
    #: rows that answer the same prompt are drawn together, those without a partner left out; None: each dataset in its order
    join: Literal["prompt"] | None = None
    held_out: int = Field(default=0, ge=0)  # rows of each dataset kept for validation, chosen by `seed`
    batch_size: int = Field(default=16, ge=1)  # documents of one optimizer step of each dataset, over all ranks
    micro_batches: int = Field(default=1, ge=1)  # parts in which a rank works through its share of each
    verify: bool = False  # compare every checksum of dataset and caches before the first step
    workers: int = Field(default=1, ge=0)  # processes per rank that read ahead; 0: none
    seed: Seed = 42

    @property
    def datasets(self) -> dict[str, DatasetConfig]:
        """All of them by name, this one first."""
        return {DEFAULT_DATA: self, **(self.more or {})}

    @field_validator("more")
    @classmethod
    def _named(cls, more: dict[str, DatasetConfig] | None) -> dict[str, DatasetConfig] | None:
        for name in more or {}:
            if name == DEFAULT_DATA or not _DATA_NAME.fullmatch(name):
                raise ValueError(
                    f"a dataset's name is lower-case letters, digits and _, and not `{DEFAULT_DATA}`, which is the first's"
                )
        return more

    @model_validator(mode="after")
    def _joined(self) -> "DataConfig":
        if self.join is not None and not self.more:
            raise ValueError("`join` is of several datasets; name another under `more`")
        return self


class OptimConfig(Strict):
    """AdamW."""

    lr: float = Field(default=1e-4, gt=0)
    projector_lr: float = Field(default=5e-4, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    projector_weight_decay: float | None = Field(default=None, ge=0)  # None: the same
    betas: Annotated[tuple[Decay, Decay], BeforeValidator(_two)] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0, ge=0)  # steps; below 1: part of all steps
    final_lr: float = Field(default=0, ge=0, le=1)  # at the end, as a part of `lr`
    clip: float = Field(default=1.0, ge=0)  # of the gradient's norm; 0: none


class CheckpointConfig(Strict):
    """When to save, and what to keep."""

    every: int | None = Field(default=None, ge=1)  # steps; None: only at the end, and when interrupted
    keep: int = Field(default=2, ge=1)  # newest ones
    best: bool = False  # also the one with the lowest held-out loss


class LogConfig(Strict):
    """Where to tell."""

    every: int = Field(default=10, ge=1)  # steps
    tensorboard: bool = True
    wandb: bool = False
    trackio: bool = False
    project: Name = "mta-prep"  # of wandb and trackio


class TrainConfig(Strict):
    """Everything that decides a training run."""

    student: StudentConfig
    data: DataConfig
    #: signals from caches, or computed in every step by `teacher_model`
    teacher: Literal["cached", "live"] = "cached"
    teacher_model: ModelConfig | None = None
    weights: Weights = "centrality"  # of the live teacher's tokens, and of the student's
    #: None: the cache's layers, each with the student layer that it is the partner of
    layers: tuple[PairConfig, ...] | None = None
    #: terms by name, each with its own options (`trainer.objectives`)
    objectives: dict[str, dict[str, Plain]] = Field(min_length=1)
    optim: OptimConfig = OptimConfig()
    epochs: float = Field(default=1, gt=0, le=1e6)
    steps: int | None = Field(default=None, ge=1)  # instead of epochs
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    deepspeed: Name = "zero0"  # a name in trainer/configs/deepspeed, or a JSON file
    seed: Seed = 42  # of fresh weights, and of dropout in a step, on a rank, in a micro-batch
    validate_every: int | None = Field(default=None, ge=1)  # steps; None: at checkpoints and at the end
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    out: Name = "runs/train"

    @model_validator(mode="after")
    def _taught(self) -> "TrainConfig":
        if self.teacher == "live" and self.teacher_model is None:
            raise ValueError("`teacher: live` needs `teacher_model`, the model to run")
        return self
