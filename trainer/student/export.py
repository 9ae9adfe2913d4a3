"""A trained student as a plain Hugging Face folder, which needs nothing of this package."""

import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, Final

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor

from schemas.errors import ResourceError, StateError, UsageError, UserError
from schemas.files import flush
from schemas.manifest import Manifest
from schemas.training import DEFAULT_DATA, EXPORTED, LoraConfig, StudentConfig, TrainConfig
from trainer.batches.documents import Documents
from trainer.batches.tokenization import differing_row, student_template
from trainer.engine.monitor import METRICS, read_metrics
from trainer.models.hub import ModelFiles, first_line
from trainer.models.tokenizer import load_tokenizer, tokenizer_beside
from trainer.student.lora import with_adapters
from trainer.student.model import Student
from trainer.student.model_card import model_card

_DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def export_run(
    state: Mapping[str, Tensor],
    student: Student,
    config: TrainConfig,
    datasets: Mapping[str, Documents],
    teacher: Mapping[str, Any] | None,
    out: Path,
) -> Path:
    """`export` of a run whose folder is `out`, into its folder `student`, in the precision of the training; `datasets`: the
    run's, by name."""
    metrics: dict[str, float | int] = {}
    for record in read_metrics(out / METRICS):
        metrics |= record
    folder = out / "student"
    manifests = {name: documents.manifest for name, documents in datasets.items()}
    export(
        state,
        student.model.config,
        folder,
        config=config,
        dataset=manifests.pop(DEFAULT_DATA),
        more=manifests,
        teacher=teacher,
        metrics=metrics,
        dtype=_DTYPES[config.precision],
    )
    return folder


def export(
    state: Mapping[str, Tensor],
    description: Any,
    folder: Path,
    *,
    config: TrainConfig,
    dataset: Manifest,
    teacher: Mapping[str, Any] | None,
    metrics: Mapping[str, float | int],
    dtype: torch.dtype,
    more: Mapping[str, Manifest] = MappingProxyType({}),
) -> None:
    """Write `folder`: weights (safetensors) and config, tokenizer, generation config, model card, `training.yaml`.

    `state`: every tensor of `Student.model` by its name there, on the CPU; adapters among them are merged. `description`:
    that model's config. `teacher`, `metrics`, `more`: as `trainer.student.model_card` has them. All is written beside
    `folder` first and flushed to the disk, so that a folder of that name is always a whole one; one that is there is replaced
    at the end.

    Raises StateError if `folder` is something else, UserError if the dataset's student tokenizer is not where it was,
    ResourceError if the folder cannot be written; ValueError for a state that is not this model's.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / EXPORTED).is_file():
        raise StateError(
            f"{folder} is no exported student, so it is not replaced; move it away or choose another `out`."
        )
    model = whole_model(state, description, config.student.lora, config.student.trust_remote_code).to(dtype)
    tokenizer = student_tokenizer(dataset)
    part = folder.with_name(f".{folder.name}.part")
    old = folder.with_name(f".{folder.name}.old")
    try:
        for left in (part, old):
            shutil.rmtree(left, ignore_errors=True)
        part.mkdir(parents=True)
        model.generation_config = _generation(tokenizer, dataset)
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        parameters = sum(each.numel() for each in model.parameters())
        card = model_card(type(model).__name__, parameters, config, dataset, teacher, metrics, more)
        (part / "README.md").write_text(card, encoding="utf-8")
        (part / EXPORTED).write_text(config.to_yaml(), encoding="utf-8")
        for file in part.rglob("*"):
            flush(file)
        flush(part)
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
        flush(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise ResourceError(f"The student cannot be written to {folder}: {first_line(error)}") from error


def whole_model(
    state: Mapping[str, Tensor], description: Any, lora: LoraConfig | None, trust_remote_code: bool = False
) -> Any:
    """The plain model (transformers.PreTrainedModel) with these weights, adapters merged in float32.

    Raises ValueError if `state` lacks weights of it, or has others.
    """
    clean = _plain(description)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            clean, dtype=torch.float32, trust_remote_code=trust_remote_code
        )
        tuner = None if lora is None else with_adapters(model, lora)
    if lora is not None:
        state = {name: each.float() if each.is_floating_point() else each for name, each in state.items()}
    _, unknown = model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    lacking = [name for name, each in model.state_dict().items() if each.is_meta]
    if unknown or lacking:
        raise ValueError(f"not the weights of a {type(model).__name__}: unknown {unknown[:3]}, lacking {lacking[:3]}")
    return model if tuner is None else tuner.merge_and_unload()


def _plain(description: Any) -> Any:
    """The same config without how a student attends."""
    plain = type(description).from_dict(description.to_dict())
    plain.name_or_path = description.name_or_path
    return plain


def student_tokenizer(dataset: Manifest) -> Any:
    """The tokenizer that a dataset was prepared with on the student's side, with the chat template that it was used with.

    Raises UserError if either is not there any more, or the template is not what it was.
    """
    side = dataset.config["student"]
    tokenizer = load_tokenizer(
        side["tokenizer"],
        side["revision"],
        f"The student's tokenizer {side['tokenizer']!r}",
        "The dataset was prepared with it, so put it back there.",
    )
    if side["template"] is not None:
        template = student_template(dataset, tokenizer)
        if template.identity() != dataset.tokenizers["student"]["template"]:
            raise UserError(
                f"The student's chat template {side['template']!r} is not what it was when the dataset was prepared; put the "
                "old one back, or make a dataset with this one by `mta-prep align`."
            )
        if side["template"] != "native":  # that has all its named ones already
            tokenizer.chat_template = template.text
    return tokenizer


def require_tokenizer(documents: Documents, student: StudentConfig, description: Any) -> None:
    """Raises UsageError unless the exported student will be opened with the tokenizer that the dataset was prepared with,
    and UserError if that is no longer what it was. `description`: the student's config (transformers.PreTrainedConfig)."""
    name = documents.manifest.config["student"]["tokenizer"]
    tokenizer = student_tokenizer(documents.manifest)
    row = differing_row(documents, tokenizer)
    if row is not None:
        raise UserError(
            f"The student's tokenizer {name!r} gives other tokens than {documents.folder} has (row {row}), so it has changed "
            f"since. Put the old one back, or let `{_aligned(documents, name)}` make a dataset for this one."
        )
    opened = _opened_beside(description, tokenizer, student.trust_remote_code)
    row = differing_row(documents, opened)
    if row is not None:
        remedy = "Choose another `model_type`"
        if student.model is not None:
            remedy = f"`{_aligned(documents, student.model)}` makes a dataset for the student's own"
        raise UsageError(
            "The exported student would be opened with another tokenizer than it is trained with: transformers reads what "
            f"lies beside a model of type {description.model_type!r} as its own {type(opened).__name__}, which gives other "
            f"tokens than {documents.folder} has (row {row}). {remedy}."
        )


def _opened_beside(description: Any, tokenizer: Any, trust_remote_code: bool) -> Any:
    """What `AutoTokenizer` makes of a folder depends on the model in it, too: for some (`qwen2`), transformers builds a
    class of its own out of whatever vocabulary lies there."""
    with TemporaryDirectory() as folder:
        _plain(description).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        subject = "The tokenizer of an exported student"
        return tokenizer_beside(ModelFiles(folder), subject, trust_remote_code=trust_remote_code)


def _aligned(documents: Documents, tokenizer: str) -> str:
    return shlex.join(["mta-prep", "align", str(documents.folder), "--student", tokenizer, "-o", "NEW"])


def _generation(tokenizer: Any, dataset: Manifest) -> Any:
    """Generation ends with what the dataset ends its responses with."""
    suffix = dataset.tokenizers["student"].get("suffix") or ()
    ends = [*tokenizer.convert_tokens_to_ids(list(suffix[-1:])), tokenizer.eos_token_id]
    ends = [*dict.fromkeys(each for each in ends if each is not None)]
    eos = ends[0] if len(ends) == 1 else ends or None
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(ends), None)
    return transformers.GenerationConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=eos, pad_token_id=pad)
