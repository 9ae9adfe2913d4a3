"""What a run says of itself: metrics.jsonl, a progress line, trackers, and curves at the end. Rank 0 only."""

import importlib.util
import json
import math
import resource
import sys
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import torch
from pydantic import TypeAdapter, ValidationError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from schemas.console import duration, stderr
from schemas.errors import StateError, UsageError
from schemas.files import write_text
from schemas.training import LogConfig

METRICS: Final = "metrics.jsonl"
CURVES: Final = "curves.png"
TENSORBOARD: Final = "tensorboard"
WANDB_ID: Final = "wandb-id"
#: Of a record, what is told otherwise than as a term of the loss.
_TOLD_APART: Final = frozenset({"step", "epoch", "loss", "lr", "grad_norm", "tokens_per_second", "memory_gb"})

Record = Mapping[str, float | int]
_RECORD: Final = TypeAdapter(dict[str, float])  # NaN and infinity among them: what diverges is told


class Tracker(Protocol):
    """Where numbers go, beside the file."""

    def log(self, step: int, values: Record) -> None:
        """Note the values of a step."""
        ...

    def close(self) -> None:
        """Finish."""
        ...


class _TensorBoard:
    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only rank 0 needs it

        self._writer = SummaryWriter(str(folder), purge_step=start)

    def log(self, step: int, values: Record) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Service:
    """wandb, and trackio, which has its face. A run that goes on is the same run there."""

    def __init__(self, name: str, project: str, out: Path, config: dict[str, Any], resumed: bool) -> None:
        self._module = _service(name)
        options = {"resume": "allow" if resumed else "never"}
        if name == "wandb":  # trackio knows a run by its name
            options["id"] = _run_id(out / WANDB_ID, resumed)
        self._module.init(project=project, name=out.name, config=config, **options)

    def log(self, step: int, values: Record) -> None:
        self._module.log(dict(values), step=step)

    def close(self) -> None:
        self._module.finish()


def _service(name: str) -> Any:
    """The module of a service, imported only if it is used."""
    if name == "wandb":
        import wandb

        return wandb
    import trackio

    return trackio


def require_trackers(config: LogConfig) -> None:
    """Raises `UsageError` for a tracker that is not installed."""
    for name in _services(config):
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"`log.{name}` needs the package `{name}`; install it, or leave the flag out.")


def _services(config: LogConfig) -> list[str]:
    """Names of the packages, as the config's keys are."""
    return [name for name in ("wandb", "trackio") if getattr(config, name)]


class Monitor:
    """Notes every logged step, and shows it."""

    def __init__(self, out: Path, config: LogConfig, resolved: dict[str, Any], start: int, steps: int) -> None:
        """`start`: steps that are done already; whatever was noted of later ones is forgotten."""
        self._out = out
        self._steps = steps
        self._started = start
        self._began = time.monotonic()
        self._trackers: list[Tracker] = []
        if config.tensorboard:
            self._trackers.append(_TensorBoard(out / TENSORBOARD, start + 1))
        for name in _services(config):
            self._trackers.append(_Service(name, config.project, out, resolved, resumed=start > 0))
        path = out / METRICS
        lines = [line for line, record in zip(_lines(path), read_metrics(path), strict=True) if record["step"] <= start]
        write_text(path, "".join(lines))
        self._file = path.open("a", encoding="utf-8")
        self._bar: Progress | None = None
        if stderr.is_terminal:
            columns = [
                TextColumn("{task.description}", markup=False),
                BarColumn(20),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            ]
            self._bar = Progress(*columns, TextColumn("{task.fields[told]}", markup=False), console=stderr)
            self._bar.add_task("Training", total=steps, completed=start, told="")
            self._bar.start()

    def step(self, done: int) -> None:
        """A step is done."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done)

    def log(self, record: Record) -> None:
        """Note what a step gave; `record` has `step`, and with it `loss` and every term, or `held_out_…` of them."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        step = int(record["step"])
        for tracker in self._trackers:
            tracker.log(step, {name: value for name, value in record.items() if name != "step"})
        told = "  ".join(_told(record))
        if self._bar is not None and "loss" in record:
            self._bar.update(self._bar.task_ids[0], told=told)
        else:
            rate = (step - self._started) / (time.monotonic() - self._began)
            left = f"  {duration((self._steps - step) / rate)} left" if rate > 0 and "loss" in record else ""
            stderr.print(f"step {step}/{self._steps}  {told}{left}")

    def close(self) -> None:
        """Finish, and draw the curves."""
        if self._bar is not None:
            self._bar.stop()
        for tracker in self._trackers:
            tracker.close()
        self._file.close()
        draw_curves(self._out / METRICS, self._out / CURVES)


def memory_gb() -> float:
    """The most memory this process had so far, in 10^9 bytes: the GPU's if it has one, else its own."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def read_metrics(path: Path) -> list[dict[str, float | int]]:
    """Every record of a metrics file. Raises `StateError` for a line that is none."""
    return [_record(path, number, line) for number, line in enumerate(_lines(path), 1)]


def _record(path: Path, number: int, line: str) -> dict[str, float | int]:
    """A line's values by their names, its step among them, which is whole."""
    try:
        record = _RECORD.validate_json(line, strict=True)
    except ValidationError:
        record = {}
    if not record.get("step", math.nan).is_integer():
        raise StateError(
            f"{path} is damaged: line {number} is no record of a step (an object of numbers, `step` among them). Take "
            "that line out."
        )
    return record | {"step": int(record["step"])}


class Curve(NamedTuple):
    """One quantity over the steps, as (step, value): in training, and on held-out rows."""

    training: list[tuple[int, float]]
    held_out: list[tuple[int, float]]


def curves_of(records: Sequence[Record]) -> dict[str, Curve]:
    """Loss, and every term of it, by name."""
    logged = [record for record in records if "loss" in record]
    names = [name for name in dict.fromkeys(key for record in logged for key in record) if name not in _TOLD_APART]

    def points(name: str) -> list[tuple[int, float]]:
        return [(int(record["step"]), float(record[name])) for record in records if name in record]

    shown = ["loss", *names] if logged else []
    return {name: Curve(points(name), points(f"held_out_{name}")) for name in shown}


def worth_a_panel(names: Iterable[str]) -> list[str]:
    """Of curves, those that tell something: not the one term of cross-entropy alone, which is the loss."""
    shown = list(names)
    return ["loss"] if shown == ["loss", "ce"] else shown


def draw_curves(metrics: Path, picture: Path) -> None:
    """Loss, and every term of it, over the steps, as a PNG; held-out values as points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, and no global state
    from matplotlib.figure import Figure

    curves = curves_of(read_metrics(metrics))
    panels = worth_a_panel(curves)
    if not panels:
        return
    columns = min(len(panels), 3)
    lines = -(-len(panels) // columns)
    width, height = 4.2 * columns, 2.8 * lines
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    # room for titles and numbers, in inches: measuring them, as other layouts do, takes longer than drawing everything
    figure.subplots_adjust(
        left=0.5 / width, right=1 - 0.15 / width, bottom=0.45 / height, top=1 - 0.3 / height, wspace=0.2, hspace=0.35
    )
    for place, name in enumerate(panels, 1):
        curve = curves[name]
        axes = figure.add_subplot(lines, columns, place)
        axes.plot(*zip(*curve.training, strict=True), linewidth=1, label="training")
        if curve.held_out:
            axes.plot(*zip(*curve.held_out, strict=True), "o-", markersize=3, linewidth=1, label="held out")
            axes.legend(fontsize=7, loc="upper right")
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=120)


def _run_id(path: Path, resumed: bool) -> str:
    """The id that is kept there, or a new one."""
    if not (resumed and path.is_file()):
        path.write_text(uuid.uuid4().hex, encoding="utf-8")
    return path.read_text(encoding="utf-8")


def _lines(path: Path) -> list[str]:
    """Whole lines of a metrics file; one that a crash cut off is left out."""
    if not path.is_file():
        return []
    whole, _, _ = path.read_text(encoding="utf-8", errors="replace").rpartition("\n")
    return [f"{line}\n" for line in whole.split("\n") if line.strip()]


def _told(record: Record) -> list[str]:
    parts = []
    if "loss" in record:
        parts.append(f"loss {record['loss']:.4f}")
    parts += [f"{name} {value:.4f}" for name, value in record.items() if name not in _TOLD_APART]
    if "lr" in record:
        parts.append(f"lr {record['lr']:.2e}")
    if "tokens_per_second" in record:
        parts.append(f"{record['tokens_per_second']:,.0f} tokens/s")
    if "memory_gb" in record:
        parts.append(f"{record['memory_gb']:.2f} GB")
    return parts
