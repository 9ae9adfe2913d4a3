"""Sizes of the study: the same grid on an embedded model in minutes, on two cores in hours, on a GPU, and as published."""

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import Field

from schemas.config import Name, Strict

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]  # or none
Amount = Annotated[float, Field(gt=0)]
Pairs = tuple[tuple[Whole, Whole], ...]  # layers of student and teacher, lowest first


class Profile(Strict):
    """Everything in which one run of the study differs from another."""

    teacher: Name  # before it is tuned: a folder, hub id, or an embedded one's name
    cross_tokenizer: Name  # of the second pair's student
    layers: Pairs
    cross_layers: Pairs
    #: layers of the teacher that the student keeps; None: the student is a model of its own, `student`
    kept: tuple[Whole, ...] | None = None
    student: Name | None = None
    cross_student: Name | None = None  # likewise of the second pair; None: the first one's, with other embeddings
    descent: Pairs | None = None  # each of the student's layers with what the one above it got in the teacher
    rows: Count | None = None  # of training; None: all
    test_rows: Count | None = None  # of each test set
    lengths: tuple[Count, Count] = (256, 128)  # tokens of a row, and of its prompt
    test_lengths: tuple[Count, Count] = (512, 256)
    epochs: Amount = 3
    batch_size: Count = 16
    micro_batches: Count = 1
    optim: Mapping[str, float] = Field(default_factory=lambda: {"lr": 3e-4, "projector_lr": 1e-3, "warmup": 0.1})
    teacher_epochs: Amount = 3
    teacher_lr: Amount = 5e-5
    teacher_held_out: Count = 64
    seeds: Count = 3
    seeds_of_primary: Count = 5
    rouge_seeds: Whole = 3  # of how many students of an arm responses are scored; 0: none
    rouge_draws: Whole = 5  # responses drawn to each row, beside the greedy one
    rouge_batch: Count = 16
    workers: Count = 1  # processes, at most
    #: of a GPU's memory for each process: its largest run, what torch keeps at hand, and CUDA's own
    gpu_gb: Amount = 14.0
    threads: Count = 2  # of each
    tf32: bool = False  # whether a GPU may shorten the factors of products in training; nothing is measured with it


_SMOLLM2: Final[dict[str, Any]] = {
    "teacher": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "cross_tokenizer": "openai-community/gpt2",
    "kept": (*range(10), *range(20, 30)),
    "layers": ((10, 15), (15, 22), (20, 30)),
    "descent": ((10, 20), (15, 25), (20, 30)),
    "cross_layers": ((10, 15), (15, 22), (20, 30)),
}
_EMBEDDED: Final[dict[str, Any]] = {
    "teacher": "embedded:teacher",
    "cross_tokenizer": "embedded:bytelevel-bpe",
    "kept": (0, 1, 4, 5),
    "layers": ((2, 3), (3, 4), (4, 6)),
    "descent": ((2, 4), (3, 5), (4, 6)),
    "cross_layers": ((2, 3), (3, 4), (4, 6)),
}
_PUBLISHED: Final[dict[str, Any]] = {
    "epochs": 5,
    "teacher_epochs": 5,
    "optim": {"lr": 1e-4, "projector_lr": 5e-4},
    "rouge_seeds": 5,
    "rouge_batch": 64,
}

PROFILES: Final[Mapping[str, Profile]] = {
    # what the tests run
    "tiny": Profile(
        **_EMBEDDED, rows=24, test_rows=6, lengths=(64, 32), test_lengths=(64, 32), epochs=1, batch_size=8,
        teacher_epochs=1, teacher_held_out=4, seeds=1, seeds_of_primary=1, rouge_seeds=1, rouge_draws=2, threads=1, gpu_gb=2.0,
    ),
    # minutes on two cores, on what is embedded
    "quick": Profile(
        **_EMBEDDED, rows=160, test_rows=40, lengths=(128, 64), test_lengths=(128, 64), epochs=1, batch_size=8,
        optim={"lr": 1e-3, "projector_lr": 1e-3, "warmup": 0.1}, teacher_lr=1e-4, teacher_held_out=16, seeds=2,
        seeds_of_primary=3, rouge_seeds=1, rouge_draws=2, workers=2, threads=1, gpu_gb=2.0,
    ),
    # eight hours on two cores
    "full": Profile(
        **_SMOLLM2, rows=480, test_rows=100, lengths=(160, 80), test_lengths=(256, 128), epochs=1, batch_size=8,
        teacher_epochs=1, workers=1, threads=2,
    ),
    # minutes on one large GPU
    "card": Profile(**_SMOLLM2, rouge_batch=256, workers=10, threads=1, tf32=True, gpu_gb=6.8),
    # the published recipe, for whoever has the models and the time
    "gpu": Profile(
        teacher="openai-community/gpt2-xl", student="openai-community/gpt2", cross_tokenizer="Qwen/Qwen1.5-0.5B",
        cross_student="Qwen/Qwen1.5-0.5B", layers=((6, 24), (9, 36), (12, 48)),
        cross_layers=((12, 24), (18, 36), (24, 48)), **_PUBLISHED,
    ),
    "gpu-qwen": Profile(
        teacher="Qwen/Qwen1.5-1.8B", student="Qwen/Qwen1.5-0.5B", cross_tokenizer="openai-community/gpt2",
        cross_student="openai-community/gpt2", layers=tuple((layer, layer) for layer in range(14, 25, 2)),
        cross_layers=((6, 12), (9, 18), (12, 24)), **_PUBLISHED,
    ),
}  # fmt: skip
