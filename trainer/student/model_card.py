"""The card of an exported student: front matter for the Hub, and what a reader needs to know."""

import json
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import yaml

from schemas.embedded import PREFIX
from schemas.manifest import Manifest
from schemas.training import CutConfig, StudentConfig, TrainConfig

_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def model_card(
    architecture: str,
    parameters: int,
    config: TrainConfig,
    dataset: Manifest,
    teacher: Mapping[str, Any] | None,
    metrics: Mapping[str, float | int],
    more: Mapping[str, Manifest] = MappingProxyType({}),
) -> str:
    """Markdown with YAML front matter. Whatever was named by someone stands in code spans, where nothing of it is markup.

    `teacher`: its `name`, and `revision` and `sha256` as far as they are known; `metrics`: by name, as last logged;
    `more`: further datasets, by the names that terms have for them.
    Licences are the texts' and the models' own, which we cannot know: the card asks for them.
    """
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["mta-prep", "knowledge-distillation"],
    }
    model = config.student.model
    if model is not None and config.student.init != "config" and _on_hub(model):
        front["base_model"] = model
    optim = config.optim
    warmup = f", warm-up {optim.warmup:g}" if optim.warmup else ""
    clip = f", gradients clipped at {optim.clip:g}" if optim.clip else ""
    length = f"{config.steps} steps" if config.steps is not None else f"{config.epochs:g} epochs"
    terms = "\n".join(
        f"| {_code(name)} | {_code(options.get('weight', 1.0))} | "
        f"{', '.join(_code(f'{key}: {_plain(value)}') for key, value in options.items() if key != 'weight')} |"
        for name, options in config.objectives.items()
    )
    pairs = ", ".join(f"{pair.student} ← {pair.teacher} ({pair.granularity})" for pair in config.layers or ())
    layers = f"\n- layers (student ← teacher): {pairs}" if pairs else ""
    others = "".join(f"\n- dataset {_code(name)}: {_dataset(manifest)}" for name, manifest in more.items())
    each = " of each dataset" if more else ""
    values = "\n".join(f"| {_code(name)} | {value:.6g} |" for name, value in metrics.items())
    return f"""---
{yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip()}
---

# A distilled language model

{_code(architecture)} with {parameters / 1e6:.1f} M parameters, trained by `mta-prep` {version("mta-prep")}. It may be used
under the licences of what it was made of: its initial weights, its teacher, and the texts. `mta-prep push` asks for the one
that follows from them.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained("this-folder"), AutoTokenizer.from_pretrained("this-folder")
```

- initial weights: {_beginning(config.student)}
- teacher: {_teacher(teacher)}
- dataset: {_dataset(dataset)}{others}{layers}

| term of the loss | weight | options |
|---|---|---|
{terms}

AdamW, learning rate {optim.lr:g} ({optim.schedule}{warmup}), weight decay {optim.weight_decay:g}{clip}; {length} of \
{config.data.batch_size} documents{each}, {config.precision}, seed {config.seed}. `training.yaml` has everything that was set.

| last logged | value |
|---|---|
{values}
"""


def _dataset(manifest: Manifest) -> str:
    name = _code(manifest.tokenizers["student"]["name"])
    return f"fingerprint {_code(manifest.fingerprint)}, {manifest.rows_out} documents, tokenizer {name}"


def _beginning(student: StudentConfig) -> str:
    name = "" if student.model is None else f" of {_code(_name(student.model))}"
    if student.revision is not None:
        name += f", revision {_code(student.revision)}"
    adapted = f"; LoRA of rank {student.lora.r}, merged" if student.lora is not None else ""
    if isinstance(student.init, CutConfig):
        return f"decoder layers {', '.join(map(str, student.init.layers))}{name}{adapted}"
    if student.init == "config":
        return (f"random, in the shape{name}" if name else f"random, a {_code(student.config['model_type'])}") + adapted
    return f"those{name}{adapted}"


def _teacher(teacher: Mapping[str, Any] | None) -> str:
    if teacher is None:
        return "none"
    revision = f", revision {_code(teacher['revision'])}" if teacher.get("revision") else ""
    digest = f" (sha256 {_code(teacher['sha256'])})" if teacher.get("sha256") else ""
    return f"{_code(_name(teacher['name']))}{revision}{digest}"


def _on_hub(model: str) -> bool:
    return _HUB_ID.fullmatch(model) is not None and not Path(model).exists()


def _name(model: str) -> str:
    """A hub id, or a folder's own name: where it lies on a machine is nobody's business."""
    return model if _on_hub(model) or model.startswith(PREFIX) else Path(model).name


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _code(value: Any) -> str:
    """A code span, also within a table, whatever the value is."""
    text = " ".join(_plain(value).split()).replace("|", "\\|") or " "
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {text} {fence}" if longest else f"{fence}{text}{fence}"
