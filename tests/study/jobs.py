"""What is done for every arm and seed: trained, measured, scored. Each leaves one small file in `results/`."""

import gc
import json
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from filelock import FileLock, Timeout

from schemas import console
from schemas.files import write_text
from schemas.training import TrainConfig
from study.arms import FIRST, PRIMARY, Arm, grid
from study.measure import losses, rouge
from study.stages import Study
from study.training import trained
from trainer.engine.monitor import METRICS, read_metrics
from trainer.models.memory import out_of_memory
from trainer.run import Interrupted

#: Arms whose responses are scored.
SCORED: Final = (*PRIMARY, "ce")
#: How a failure begins that may not be one where fewer processes share the memory.
OUT_OF_MEMORY: Final = "out of memory"
#: States of what there is to do (`record`).
ENDED: Final = "ended"
NOT_BEGUN: Final = "not begun, or interrupted"


class Job(NamedTuple):
    """Something to do once."""

    name: str
    do: Callable[[], dict[str, Any]]
    needs: str | None = None  # another one, that must have ended


def jobs(study: Study) -> Iterator[Job]:
    """All of them, in the order of the plan."""
    yield Job("teacher", lambda: _teacher(study))
    yield Job("untrained", lambda: _untrained(study, cross=False))
    cells = grid(study.profile)
    before = next(place for place, (arm, _) in enumerate(cells) if arm.cross)
    for arm, seed in cells[:before]:
        yield Job(f"{arm.name}-{seed}", lambda arm=arm, seed=seed: _trained(study, arm, seed))
    yield Job("cross-untrained", lambda: _untrained(study, cross=True))
    for arm, seed in cells[before:]:
        yield Job(f"{arm.name}-{seed}", lambda arm=arm, seed=seed: _trained(study, arm, seed))
    if study.profile.rouge_seeds:
        yield Job("rouge-teacher", lambda: _rouge(study, study.teacher))
    for seed in range(1, study.profile.rouge_seeds + 1):
        for name in SCORED:
            run = f"{name}-{seed}"
            folder = study.work / "runs" / run / "student"
            yield Job(f"rouge-{run}", lambda folder=folder: _rouge(study, folder), needs=run)


def share_caches(study: Study, member: int, members: int) -> None:
    """Make caches that the first jobs need and others are not at, so that no member waits for one after the other.

    What later ones need is made by the first of them.
    """
    arms = [arm for arm, seed in grid(study.profile) if seed == 1][: len(FIRST)]
    caches = [partial(study.test_cache, test) for test in study.tests] + [partial(study.caches, arm) for arm in arms]
    for make in caches[member::members]:
        try:
            make()
        except Interrupted:
            raise
        except Exception as error:  # told by everything that needs it
            console.stderr.print(f"No cache: {error}")


def work(study: Study, only: frozenset[str] | None = None, until: float = float("inf")) -> None:
    """Do what nobody else does or has done, until nothing is left or `until` (of `time.time`) has come.

    What fails is told in `failures/`, and the others go on; but a GPU that has failed once is of no use to its process.
    What ran out of memory is told there too, until `forget_out_of_memory`.
    """
    left = True
    while left:
        left = False
        for job in jobs(study):
            if time.time() >= until:
                return
            if only is None or job.name in only or job.name.rsplit("-", 1)[0] in only:
                left = _do(study, job) or left


def forget_out_of_memory(study: Study) -> int:
    """Let what ran out of memory be tried again, from its last checkpoint; returns how many those are."""
    failures = [file for file in (study.work / "failures").glob("*.txt") if _told(file) == OUT_OF_MEMORY]
    for failure in failures:
        failure.unlink()
    return len(failures)


def record(study: Study) -> dict[str, str]:
    """By name of everything there is to do: `ended`, or why it has not."""
    return {job.name: _state(study, job) for job in jobs(study)}


def _state(study: Study, job: Job) -> str:
    failure = _failure_of(study, job.name)
    if _result_of(study, job.name).is_file():
        return ENDED
    if job.needs is not None and not _result_of(study, job.needs).is_file():
        return "its run has not ended"
    return _told(failure) if failure.is_file() else NOT_BEGUN


def _told(failure: Path) -> str:
    """What a failure's file begins with."""
    return failure.read_text(encoding="utf-8").partition("\n")[0]


def _result_of(study: Study, name: str) -> Path:
    return study.work / "results" / f"{name}.json"


def _failure_of(study: Study, name: str) -> Path:
    return study.work / "failures" / f"{name}.txt"


def _cause(error: Exception) -> str:
    """Why something failed, in a line."""
    text = str(error)
    if out_of_memory(error) or text.startswith("Out of memory"):
        return OUT_OF_MEMORY
    return f"{type(error).__name__}: {text}".partition("\n")[0]


def _done(job: Job) -> dict[str, Any]:
    """What it gives; where memory ran out, tried once more, since the largest steps of other processes pass."""
    try:
        return job.do()
    except Exception as error:
        if _cause(error) != OUT_OF_MEMORY:
            raise
    _tidy()
    return job.do()


def _tidy() -> None:
    """Give back the memory that a job had; the next one's result tells of its own."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _do(study: Study, job: Job) -> bool:
    """Whether it was this process that did it."""
    result, failure = _result_of(study, job.name), _failure_of(study, job.name)
    if job.needs is not None and not _result_of(study, job.needs).is_file():
        return False  # who ends that one comes by here again
    lock = FileLock(study.work / "locks" / f"{job.name}.lock")
    for file in (result, failure, Path(lock.lock_file)):
        file.parent.mkdir(parents=True, exist_ok=True)
    if result.exists() or failure.exists():
        return False
    try:
        with lock.acquire(timeout=0):
            if result.exists() or failure.exists():
                return False
            console.stderr.print(f"{job.name} …")
            began = time.monotonic()
            try:
                values = _done(job)
            except Interrupted:
                raise
            except Exception as error:
                write_text(failure, f"{_cause(error)}\n{traceback.format_exc()}")
                console.stderr.print(f"{job.name} failed: {error}")
                if "CUDA error" in str(error) or "NCCL error" in str(error):
                    raise
                return True
            values = {"name": job.name, "seconds": round(time.monotonic() - began, 2)} | values
            write_text(result, json.dumps(values) + "\n")
            console.stderr.print(f"{job.name}: {values['seconds']} s")
    except Timeout:
        return False
    finally:
        _tidy()
    return True


def _measured(study: Study, model: Path | str, cross: bool) -> dict[str, Any]:
    tests = study.tests
    folders = [(study.dataset(test, cross=cross), None if cross else study.test_cache(test)) for test in tests]
    return {"tests": dict(zip(tests, losses(model, study.device, folders), strict=True))}


def _teacher(study: Study) -> dict[str, Any]:
    """The tuned teacher's own scores; its divergence from itself is what is lost by storing it."""
    return _measured(study, study.teacher, cross=False)


def _untrained(study: Study, cross: bool) -> dict[str, Any]:
    """The student before its first step."""
    return _measured(study, study.student(cross)["model"], cross)


def _rouge(study: Study, model: Path) -> dict[str, Any]:
    test, profile = study.largest_test, study.profile
    scored = rouge(
        model, study.device, study.rows(test), profile.test_lengths, profile.rouge_batch, profile.rouge_draws
    )
    return {"tests": {test: scored}}


def config_of(study: Study, arm: Arm, seed: int) -> dict[str, Any]:
    """The training config of an arm and a seed."""
    profile = study.profile
    values: dict[str, Any] = {
        "student": study.student(arm.cross),
        "data": {
            "dataset": str(study.dataset("train", arm.extractor, arm.cross)),
            "caches": [str(cache) for cache in study.caches(arm)],
            "batch_size": profile.batch_size,
            "micro_batches": profile.micro_batches,
            "seed": seed,
            "workers": 0,
        },
        "weights": arm.weights,
        "objectives": {name: dict(options) for name, options in arm.terms.items()},
        "optim": {**profile.optim, **({"projector_weight_decay": 0} if arm.cross else {}), **arm.optim},
        "epochs": profile.epochs * arm.longer,
        "seed": seed,
        "checkpoint": {"keep": 1},
        "log": {"every": 10, "tensorboard": False},
        "out": str(study.work / "runs" / f"{arm.name}-{seed}"),
    }
    if layers := arm.layers(profile):
        values["layers"] = layers
    if arm.live:
        teacher = {"model": str(study.teacher), "dtype": "float32", "device": study.device}
        values |= {"teacher": "live", "teacher_model": teacher}
    return values


def _trained(study: Study, arm: Arm, seed: int) -> dict[str, Any]:
    config = TrainConfig.parse(config_of(study, arm, seed), "study")
    began = time.monotonic()
    folder, began_at = trained(config, study.profile.tf32 and not arm.exact)
    seconds = time.monotonic() - began
    records = [record for record in read_metrics(folder.parent / METRICS) if "tokens_per_second" in record]
    peak = max(record["memory_gb"] for record in records)
    measured = _measured(study, folder, arm.cross)
    console.stderr.print(
        f"{config.out}: trained in {seconds:.1f} s, measured in {time.monotonic() - began - seconds:.1f} s; {peak:.2f} GB"
    )
    if not (arm.name in SCORED and seed <= study.profile.rouge_seeds):
        (folder / "model.safetensors").unlink()  # numbers are kept, dozens of models are not
    return {
        "arm": arm.name,
        "seed": seed,
        "steps": records[-1]["step"],
        "began_at": began_at,  # of what the seconds are
        "training_seconds": round(seconds, 2),
        "tokens_per_second": [round(record["tokens_per_second"]) for record in records[1:]],
        "memory_gb": peak,
        "first": _terms(records[0], arm),
        "last": _terms(records[-1], arm),
        **measured,
    }


def _terms(record: dict[str, Any], arm: Arm) -> dict[str, float]:
    return {name: round(record[name], 5) for name in arm.terms}
