"""Curves of several runs over one another, as lines of a drawing."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.report.axes import ticks
from trainer.engine.monitor import Curve

#: The box of a panel.
WIDTH: Final = 320.0
HEIGHT: Final = 160.0
LEFT: Final = 44.0
BOTTOM: Final = 18.0
TOP: Final = 8.0
#: Points of a line: more are joined, so that each is a mean of as many neighbours.
POINTS: Final = 240

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Line:
    """What one run drew: training as a line, held-out values as points with what each says."""

    run: str
    look: str  # class of its colour
    training: Points
    held_out: tuple[tuple[float, float, str], ...]
    told: str


@dataclass(frozen=True)
class Panel:
    """One quantity of all runs."""

    title: str
    lines: tuple[Line, ...]
    joined: int  # logged steps in a point, at most
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


def panel(title: str, curves: Mapping[tuple[str, str], Curve]) -> Panel:
    """A panel of the curves of runs, by name and look."""
    every = list(curves.values())
    points = [point for curve in every for point in (*curve.training, *curve.held_out) if math.isfinite(point[1])]
    steps, values = [step for step, _ in points] or [0], [value for _, value in points] or [0.0]
    first, last, low, high = min(steps), max(steps), min(values), max(values)

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - 6) * (step - first) / max(last - first, 1)

    def y(value: float) -> float:
        part = (value - low) / (high - low) if high > low else 0.5
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - part)

    lines = []
    for (run, look), curve in curves.items():
        training = [point for point in curve.training if math.isfinite(point[1])]
        held_out = [point for point in curve.held_out if math.isfinite(point[1])]
        told = f"{training[-1][1]:.4g} at step {training[-1][0]}" if training else "nothing"
        if lost := len(curve.training) - len(training):
            told += f", not finite at {lost} of {len(curve.training)} logged steps"
        if held_out:
            told += f"; held out {held_out[-1][1]:.4g}, lowest {min(value for _, value in held_out):.4g}"
        lines.append(
            Line(
                run,
                look,
                tuple((x(step), y(value)) for step, value in _joined(training)),
                tuple((x(step), y(value), f"{run}, held out at step {step}: {value:.4g}") for step, value in held_out),
                told,
            )
        )
    return Panel(
        title,
        tuple(lines),
        max((_stride(len(curve.training)) for curve in every), default=1),
        tuple((x(step), f"{step:,.0f}") for step in ticks(first, last, 5, whole=True)),
        tuple((y(value), f"{value:.4g}") for value in ticks(low, high, 4)),
    )


def _stride(count: int) -> int:
    return max(1, math.ceil(count / POINTS))


def _joined(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """At most `POINTS`: means of neighbours."""
    stride = _stride(len(points))
    parts = [points[start : start + stride] for start in range(0, len(points), stride)]
    return [(sum(step for step, _ in part) / len(part), sum(value for _, value in part) / len(part)) for part in parts]
