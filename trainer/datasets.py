"""The datasets of a run, by the names that its terms know them by, each with its caches.

One dataset is `data` itself. Others, under `data.more`, are of the same student's tokenizer, since the student has one, and
their caches of the same teacher.
"""

from collections.abc import Mapping
from typing import Any, Final

from schemas.errors import UsageError
from schemas.manifest import Manifest
from schemas.training import DEFAULT_DATA, TrainConfig
from trainer.batches.documents import Documents
from trainer.config import require_datasets_used
from trainer.hub.folders import local_folder
from trainer.teacher.caches import Caches

#: Of a tokenizer's identity, what says nothing of which token stands for which text.
_NOT_OF_TOKENS: Final = frozenset({"name", "revision", "max_length", "max_prompt_length", "overflow"})


def key_of(name: str) -> str:
    """Where a config has a dataset."""
    return "data" if name == DEFAULT_DATA else f"data.more.{name}"


def open_datasets(config: TrainConfig) -> dict[str, Caches]:
    """All of them, the first one first. Raises `UsageError` for datasets of different students' tokenizers, or caches of
    different teachers, and as `require_datasets_used`; else as `Documents` and `Caches`."""
    require_datasets_used(config, "the config")
    verify = config.data.verify
    opened: dict[str, Caches] = {}
    for name, values in config.data.datasets.items():
        documents = Documents(local_folder(values.dataset), values.limit, verify)
        opened[name] = Caches([*map(local_folder, values.caches)], documents, verify, key_of(name))
    first, *others = opened.values()
    for other in others:
        _require_same_student(first.documents, other.documents)
    taught = [caches for caches in opened.values() if caches.caches]
    for other in taught[1:]:
        taught[0].require_same_teacher(other.caches[0])
    return opened


def _require_same_student(first: Documents, other: Documents) -> None:
    if _tokens(first.manifest) != _tokens(other.manifest):
        again = other.align_command({"student": first.manifest.config["student"]})
        raise UsageError(
            f"{first.folder} and {other.folder} were prepared for different students' tokenizers, and a run has one; "
            f"`{again}` prepares the second for the first's."
        )


def _tokens(manifest: Manifest) -> Mapping[str, Any]:
    return {key: value for key, value in manifest.tokenizers["student"].items() if key not in _NOT_OF_TOKENS}
