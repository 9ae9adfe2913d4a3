"""The training config: a YAML file, and `--set key=value` on top of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from schemas.errors import StateError, UsageError, quoted
from schemas.keys import assign, assignment, differences
from schemas.manifest import read_cache_manifest, read_manifest
from schemas.training import TrainConfig, datasets_of
from trainer.hub.folders import local_folder
from trainer.models.hub import located_here

#: One for each method.
CONFIGS: Final = Path(__file__).with_name("configs")
#: What may differ between an interrupted run and the one that goes on: it changes how, not what.
_FREE = ("log", "checkpoint", "data.workers", "data.micro_batches", "data.verify")


def load_config(path: Path, assignments: Sequence[str]) -> TrainConfig:
    """The file, or the one of that name that comes along, with the assignments. Raises `UsageError` naming the key, and the
    nearest known one; else as `require_datasets_used`."""
    path = _located(path)
    values = TrainConfig.from_yaml(path)
    for text in assignments:
        assign(values, *assignment(text))
    config = TrainConfig.parse(values, str(path))
    require_datasets_used(config, str(path))
    return config


def _located(path: Path) -> Path:
    """Raises `UsageError` with the names that there are."""
    if path.exists():
        return path
    named = {file.stem: file for file in sorted(CONFIGS.glob("*.yaml"))}
    if str(path) not in named:
        raise UsageError(f"No config file at {path}; those that come along are {', '.join(named)}.")
    return named[str(path)]


def require_datasets_used(config: TrainConfig, where: str) -> None:
    """Raises `UsageError` for a term on a dataset that is not there, and for a dataset that no term looks at."""
    known, used = config.data.datasets, set()
    for term, options in config.objectives.items():
        for name in datasets_of(options):
            if name not in known:
                raise UsageError(
                    f"{where}: `objectives.{term}.data`: there is no dataset `{name}`; known are {', '.join(known)}, and "
                    "others go under `data.more`."
                )
            used.add(name)
    unused = next((name for name in known if name not in used), None)
    if unused is not None:
        raise UsageError(
            f"{where}: no term looks at the dataset `{unused}`; give one `data: {unused}`, or take that dataset out."
        )


def require_named(config: TrainConfig) -> None:
    """Raises `UserError` and its kin if a dataset, cache or model that the config names is not there; reads no more of them
    than what says so."""
    for data in config.data.datasets.values():
        read_manifest(local_folder(data.dataset))
        for cache in data.caches:
            read_cache_manifest(local_folder(cache))
    student = config.student.origin()
    if student is not None:
        located_here(student, "student")
    if config.teacher == "live" and config.teacher_model is not None:
        located_here(config.teacher_model)


def require_same(before: Path, config: TrainConfig) -> None:
    """Raises `StateError` naming the first difference if the run that wrote `before` was of another config."""
    for key, old, new in differences(TrainConfig.from_yaml(before), config.model_dump(mode="json")):
        if not any(key == name or key.startswith(f"{name}.") for name in _FREE):
            raise StateError(
                f"{before.parent} holds a run of another config: its `{key}` is {quoted(old)}, now it is {quoted(new)}. "
                "Go on with the same config, choose another `out`, or pass --overwrite."
            )
