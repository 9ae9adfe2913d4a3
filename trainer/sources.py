"""What a run learns from, by content: datasets, caches, teacher and student, wherever they lie and whatever they are called.

A checkpoint keeps it, and a run goes on from a checkpoint only with the same.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from schemas.errors import StateError
from schemas.training import TrainConfig
from trainer.cache import TeacherCache
from trainer.models.hub import identity
from trainer.teacher.caches import Caches

#: By key of the config: by what is compared, its value.
Sources = dict[str, dict[str, str]]
#: Of a cache's config, what decides its numbers; how it was computed moves last bits at most.
_OF_A_CACHE: Final = ("layers", "signals", "storage", "state_tokens", "response_only", "weights", "topk", "limit")
_OF_ITS_TEACHER: Final = ("dtype", "quantization")
_SHOWN: Final = 60


def sources(config: TrainConfig, datasets: Iterable[Caches]) -> Sources:
    """Of a run. Reads the weights of a live teacher and of the student through once (`trainer.models.hub.identity`)."""
    found: Sources = {}
    for caches in datasets:
        found[f"{caches.key}.dataset"] = {"fingerprint": caches.documents.manifest.fingerprint}
        for number, cache in enumerate(caches.caches):
            found[f"{caches.key}.caches.{number}"] = _cache(cache)
    if config.teacher == "live" and config.teacher_model is not None:
        found["teacher_model"] = {"sha256": identity(config.teacher_model)["sha256"]}
    student = config.student.origin()
    if student is not None:
        weights = config.student.init != "config"
        found["student"] = {"sha256": identity(student, "student", weights)["sha256"]}
    return found


def _cache(cache: TeacherCache) -> dict[str, str]:
    """A cache by what it was made of and what it holds."""
    values = cache.config.model_dump(mode="json")
    settings = {key: values[key] for key in _OF_A_CACHE} | {
        f"teacher.{key}": values["teacher"][key] for key in _OF_ITS_TEACHER
    }
    return {
        "teacher's sha256": cache.manifest.teacher["sha256"],
        "dataset's teacher fingerprint": cache.manifest.teacher_fingerprint,
        **{key: json.dumps(value) for key, value in settings.items()},
    }


def require_same_sources(before: Mapping[str, Mapping[str, str]], now: Sources, out: Path, step: int) -> None:
    """Raises `StateError` naming the first difference from what the run in `out` had learned from until a step."""
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key, {}), now.get(key, {})
        for aspect in [*new, *(aspect for aspect in old if aspect not in new)]:
            if old.get(aspect) != new.get(aspect):
                raise StateError(
                    f"`{key}` is not what the run in {out} has learned from in its {step} steps ({aspect}: "
                    f"{_short(old.get(aspect))} then, {_short(new.get(aspect))} now). Put it back, choose another `out`, or "
                    "pass --overwrite."
                )


def _short(value: str | None) -> str:
    if value is None:
        return "nothing"
    return value if len(value) <= _SHOWN else f"{value[:16]}…"
