"""The training config: a YAML file, and `--set key=value` on top of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from schemas.config import flat
from schemas.errors import StateError, UsageError, quoted
from schemas.training import TrainConfig

#: What may differ between an interrupted run and the one that goes on: it changes how, not what.
_FREE = ("log", "checkpoint", "data.workers", "data.micro_batches", "data.verify")


def load_config(path: Path, assignments: Sequence[str]) -> TrainConfig:
    """The file with the assignments. Raises `UsageError` naming the key, and the nearest known one."""
    values = TrainConfig.from_yaml(path)
    for assignment in assignments:
        assign(values, assignment)
    return TrainConfig.parse(values, str(path))


def assign(values: dict[str, Any], assignment: str) -> None:
    """`objectives.dsa.weight=3` into nested mappings; the value is YAML, and `null` takes a key out."""
    key, equals, text = assignment.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {quoted(assignment)} is no assignment; write it like optim.lr=2e-4.")
    *outer, last = key.strip().split(".")
    for part in outer:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise UsageError(f"--set {quoted(assignment)}: `{part}` is {quoted(inner)} and has no keys.")
        values = inner
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UsageError(f"--set {quoted(assignment)}: {quoted(text)} is no YAML value.") from None
    if isinstance(value, str):
        value = _number(value)
    if value is None:
        values.pop(last, None)
    else:
        values[last] = value


def _number(text: str) -> Any:
    """YAML 1.1 takes 2e-4 for a word."""
    try:
        return float(text)
    except ValueError:
        return text


def require_same(before: Path, config: TrainConfig) -> None:
    """Raises `StateError` naming the first difference if the run that wrote `before` was of another config."""
    old, new = (flat(values) for values in (TrainConfig.from_yaml(before), config.model_dump(mode="json")))
    for key in sorted(old.keys() | new.keys()):
        free = any(key == name or key.startswith(f"{name}.") for name in _FREE)
        if not free and old.get(key) != new.get(key):
            raise StateError(
                f"{before.parent} holds a run of another config: its `{key}` is {quoted(old.get(key))}, now it is "
                f"{quoted(new.get(key))}. Go on with the same config, choose another `out`, or pass --overwrite."
            )
