"""Differences with their intervals, measure beside measure on one scale."""

from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from study.compare import Difference

#: Times the middle difference: larger ones stand at the edge, as numbers.
_FAR: Final = 20


def plot(gaps: Mapping[str, Mapping[str, Difference]], path: Path) -> None:
    """`gaps`: by measure, then by what is compared; from the top in the order in which they come first."""
    names = list(dict.fromkeys(chain.from_iterable(gaps.values())))[::-1]
    figure = Figure(figsize=(12, 1.5 + 0.33 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    limit = _limit(list(chain.from_iterable(each.values() for each in gaps.values())))
    axes = figure.subplots(1, len(gaps), sharey=True, squeeze=False)[0]
    for axis, (measure, own) in zip(axes, gaps.items(), strict=True):
        for name, gap in own.items():
            _draw(axis, names.index(name), gap, limit)
        axis.set_xlim(-limit, limit)
        axis.locator_params(axis="x", nbins=6)
        axis.axvline(0, color="0.3", linewidth=0.8)
        axis.set_xlabel(measure)
    axes[0].set_ylim(-0.7, len(names) - 0.3)
    axes[0].set_yticks(range(len(names)), names)
    figure.savefig(path, dpi=110)


def _draw(axis: Axes, place: int, gap: Difference, limit: float) -> None:
    color = "C0" if gap.shown else "0.6"
    if abs(gap.mean) > limit:
        side = 1 if gap.mean > 0 else -1
        text = f"{gap.mean:+.2f} → " if side > 0 else f" ← {gap.mean:+.2f}"
        axis.text(side * limit, place, text, color=color, ha="right" if side > 0 else "left", va="center")
        return
    axis.plot([gap.low, gap.high], [place, place], color=color)
    axis.plot(gap.mean, place, "o", color=color, markersize=5)
    axis.plot(gap.by_seed, [place] * len(gap.by_seed), "|", color="0.3")


def _limit(gaps: Iterable[Difference]) -> float:
    """Of the axes."""
    sizes = [(abs(gap.mean), max(-gap.low, gap.high, *map(abs, gap.by_seed))) for gap in gaps]
    middle = float(np.median([size for size, _ in sizes])) if sizes else 0.0
    return 1.1 * max((most for size, most in sizes if size <= _FAR * middle), default=0.0) or 1.0
