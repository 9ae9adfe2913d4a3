"""What a page says of training runs: curves over one another, what they came to, evaluations, what differed in their configs."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.report.curves import Panel, panel
from pipeline.report.shown import Shown
from schemas.errors import StateError, UsageError, UserError
from schemas.html import number
from schemas.keys import dump, flat
from schemas.manifest import CONFIG
from schemas.plain import json_object, plain
from schemas.training import TrainConfig
from trainer.engine.monitor import METRICS, curves_of, read_metrics, worth_a_panel
from trainer.evaluation.bootstrap import interval, resampled_means
from trainer.evaluation.results import FORMAT, FileResult, Result, compare, read_result

#: Looks of runs: four colours, then those in dashes.
LOOKS: Final = tuple(f"{colour}{dash}" for dash in ("", " dash") for colour in "abcd")
#: As `mta-prep evaluate compare` has them by default.
SAMPLES: Final = 10_000
SEED: Final = 0
#: Keys that every run has for itself.
_OWN: Final = frozenset({"out"})
_ABSENT: Final = "–"


@dataclass(frozen=True)
class Run:
    """A run's folder as far as it is shown."""

    folder: Path
    name: str
    look: str
    config: Mapping[str, Any]
    records: Sequence[Mapping[str, float | int]]


@dataclass(frozen=True)
class RunsSection(Shown):
    """Everything that the template shows of runs and evaluations."""

    folder: str
    anchor: str
    runs: list[tuple[str, str]]  # name, look
    panels: list[Panel]
    ends: list[tuple[str, ...]]
    scores: list[tuple[str, ...]]
    held_out: list[tuple[str, ...]]
    compared: list[tuple[str, ...]]
    notes: list[str]
    differing: list[tuple[str, ...]]
    configs: list[tuple[str, str]]  # name, YAML
    template: str = "runs.html"
    kind: str = "Training runs"


def is_run(path: Path) -> bool:
    """Whether a folder is a training run's: it has metrics and a config."""
    return (path / METRICS).is_file() and (path / CONFIG).is_file()


def is_evaluation(path: Path) -> bool:
    """Whether a file is what `mta-prep evaluate run --out` leaves."""
    values = json_object(path.read_bytes()) if path.suffix == ".json" and path.is_file() else None
    return values is not None and values.get("format") == FORMAT


def runs_section(folders: Sequence[Path], evaluations: Sequence[Path] = (), anchor: str = "runs") -> RunsSection:
    """Read runs, in this order, and evaluations: those given, and those that lie in the runs' folders.

    Raises `UsageError` for more runs than there are looks, `UserError` for an evaluation that cannot be read.
    """
    if len(folders) > len(LOOKS):
        raise UsageError(f"{len(folders)} runs are too many for one page; name at most {len(LOOKS)}.")
    names = _names(folders)
    runs = [_run(folder, name, look) for folder, name, look in zip(folders, names, LOOKS, strict=False)]
    inside = [path for folder in folders for path in sorted(folder.glob("*.json")) if is_evaluation(path)]
    results = {path: read_result(path) for path in dict.fromkeys([*evaluations, *inside])}
    models = _models(results, runs)
    compared, notes = _compared(results, models)
    return RunsSection(
        folder=", ".join(names or [str(path) for path in evaluations]),
        anchor=anchor,
        runs=[(run.name, run.look) for run in runs],
        panels=_panels(runs),
        ends=[_end(run) for run in runs],
        scores=[_score(models[path], file) for path, result in results.items() for file in result.files],
        held_out=[
            (
                models[path],
                held.dataset,
                number(held.rows),
                number(held.tokens),
                f"{held.loss:.4f}",
                f"{held.perplexity:.3f}",
            )
            for path, result in results.items()
            if (held := result.held_out) is not None
        ],
        compared=compared,
        notes=notes,
        differing=_differing(runs),
        configs=[(run.name, dump(run.config)) for run in runs],
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """Last parts of paths, or whole paths where two are the same."""
    short = [folder.resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def _run(folder: Path, name: str, look: str) -> Run:
    try:
        config = plain(TrainConfig.from_yaml(folder / CONFIG))
    except ValueError as error:
        raise StateError(f"{folder / CONFIG} is damaged: {error}.") from None
    return Run(folder, name, look, config, read_metrics(folder / METRICS))


def _panels(runs: Sequence[Run]) -> list[Panel]:
    curves = {(run.name, run.look): curves_of(run.records) for run in runs}
    titles = worth_a_panel(dict.fromkeys(title for by_title in curves.values() for title in by_title))
    return [
        panel(title, {run: by_title[title] for run, by_title in curves.items() if title in by_title})
        for title in titles
    ]


def _end(run: Run) -> tuple[str, ...]:
    """Steps, the last loss, the lowest held-out one and where, speed and memory."""
    logged = [record for record in run.records if "loss" in record]
    held = [(record["held_out_loss"], int(record["step"])) for record in run.records if "held_out_loss" in record]
    lowest = min((value for value in held if math.isfinite(value[0])), default=None)
    speeds = [record["tokens_per_second"] for record in logged if "tokens_per_second" in record]
    memory = [record["memory_gb"] for record in logged if "memory_gb" in record]
    return (
        run.name,
        number(int(logged[-1]["step"])) if logged else _ABSENT,
        f"{logged[-1]['loss']:.4f}" if logged else _ABSENT,
        f"{lowest[0]:.4f} (step {lowest[1]})" if lowest else _ABSENT,
        f"{np.median(speeds):,.0f}" if speeds else _ABSENT,
        f"{max(memory):.2f}" if memory else _ABSENT,
    )


def _models(results: Mapping[Path, Result], runs: Sequence[Run]) -> dict[Path, str]:
    """What each evaluated model is called: by its run, in whose folder the file lies; else as it was, or by the file if
    several were called so."""
    of_runs = {run.folder: run.name for run in runs}
    called = {path: of_runs.get(path.parent) or str(result.model["name"]) for path, result in results.items()}
    twice = {name for name, count in Counter(called.values()).items() if count > 1} - {*of_runs.values()}
    return {path: f"{name} ({path})" if name in twice else name for path, name in called.items()}


def _score(model: str, file: FileResult) -> tuple[str, ...]:
    """A model's scores on a file, each with where 95 % of resampled means lie."""

    def told(rows: np.ndarray) -> str:
        low, high, _ = interval(resampled_means(rows.mean(1), SAMPLES, SEED))
        return f"{rows.mean():.2f} ({low:.2f} to {high:.2f})"

    return (
        model,
        file.name,
        number(file.rows),
        number(len(file.rouge_l.per_seed)),
        told(np.array(file.scores)),
        told(100.0 * np.array(file.matches)),
        f"{file.tokens:.1f}",
        f"{file.stopped:.1%}",
    )


def _compared(results: Mapping[Path, Result], models: Mapping[Path, str]) -> tuple[list[tuple[str, ...]], list[str]]:
    """Every evaluation less the first, and why some cannot be compared."""
    rows: list[tuple[str, ...]] = []
    notes: list[str] = []
    if not results:
        return rows, notes
    first, *others = results
    for other in others:
        try:
            comparison = compare(first, other, SAMPLES, SEED)
        except UserError as error:
            notes.append(str(error))
            continue
        if comparison.unlike:
            settings = ", ".join(unlike.setting for unlike in comparison.unlike)
            notes.append(
                f"{first} and {other} were not evaluated alike ({settings}), so they differ by more than their models."
            )
        for measure, differences in (("ROUGE-L", comparison.rouge_l), ("EM", comparison.exact_match)):
            rows += [
                (
                    f"{models[other]} − {models[first]}",
                    difference.name,
                    measure,
                    f"{difference.difference:+.2f}",
                    f"{difference.low:+.2f} to {difference.high:+.2f}",
                    f"{difference.p_value:.4f}" if difference.p_value else f"< {2 / SAMPLES:.2g}",
                )
                for difference in (*differences.files, *([differences.mean] if differences.mean else []))
            ]
    return rows, notes


def _differing(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Keys of the configs that are not the same in all runs, with each one's value."""
    configs = [flat(run.config) for run in runs]
    keys = dict.fromkeys(key for config in configs for key in config if key not in _OWN)
    spelled = {key: [_spelled(config, key) for config in configs] for key in keys}
    return [(key, *values) for key, values in spelled.items() if len(set(values)) > 1]


def _spelled(config: Mapping[str, Any], key: str) -> str:
    return json.dumps(config[key], ensure_ascii=False) if key in config else _ABSENT
