"""How often each value occurs, counted shard by shard, and drawn as bars between round numbers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from jaxtyping import Int

from pipeline.report.axes import ticks

#: Bars of a histogram, about.
BARS: Final = 24
#: The last bar takes in what is beyond this part of the values, so that a long tail leaves room for the others.
MOST: Final = 0.99


@dataclass
class Tally:
    """Whole numbers and how often each came."""

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, values: Int[np.ndarray, " values"]) -> None:
        """Count some more."""
        distinct, counts = np.unique(values, return_counts=True)
        self.counts.update(dict(zip(distinct.tolist(), counts.tolist(), strict=True)))

    @property
    def total(self) -> int:
        """How many were counted."""
        return self.counts.total()

    @property
    def sum(self) -> int:
        """All of them together."""
        return sum(value * count for value, count in self.counts.items())

    def quantile(self, part: float) -> int:
        """The smallest value that at least this part of all is no larger than; 0 of nothing."""
        passed = 0
        for value in sorted(self.counts):
            passed += self.counts[value]
            if passed >= part * self.total:
                return value
        return 0


@dataclass(frozen=True)
class Bar:
    """One bar: values from `low` to below `high` (None: whatever is beyond), how many, and where it is drawn."""

    low: int
    high: int | None
    count: int
    x: float
    y: float
    width: float
    height: float

    @property
    def told(self) -> str:
        """`20 to 29`."""
        if self.high is None:
            return f"{self.low:,} or more"
        return f"{self.low:,}" if self.high == self.low + 1 else f"{self.low:,} to {self.high - 1:,}"


@dataclass(frozen=True)
class Series:
    """The bars of one side, and its values in a line."""

    name: str
    bars: tuple[Bar, ...]
    median: int
    ninety: int
    largest: int


@dataclass(frozen=True)
class Histogram:
    """One chart, in a box of `WIDTH` times `HEIGHT`."""

    title: str
    noun: str  # what is counted: row, chunk
    series: tuple[Series, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


WIDTH: Final = 320.0
HEIGHT: Final = 130.0
LEFT: Final = 36.0
BOTTOM: Final = 18.0
TOP: Final = 6.0


def histogram(title: str, noun: str, tallies: Mapping[str, Tally]) -> Histogram:
    """The tallies of one or several sides, beside one another."""
    step, bars = _bins(list(tallies.values()))
    counts = {name: _binned(tally, step, bars) for name, tally in tallies.items()}
    top = max((count for binned in counts.values() for count in binned), default=0) or 1
    room, height = (WIDTH - LEFT) / bars, HEIGHT - BOTTOM - TOP
    wide = room * 0.86 / len(tallies)
    overflow = any(tally.counts and max(tally.counts) >= step * bars for tally in tallies.values())
    series = []
    for place, (name, tally) in enumerate(tallies.items()):
        drawn = tuple(
            Bar(
                low=step * index,
                high=None if overflow and index == bars - 1 else step * (index + 1),
                count=count,
                x=LEFT + room * index + room * 0.07 + wide * place,
                y=TOP + height * (1 - count / top),
                width=wide,
                height=height * count / top,
            )
            for index, count in enumerate(counts[name])
            if count
        )
        series.append(Series(name, drawn, tally.quantile(0.5), tally.quantile(0.9), max(tally.counts, default=0)))
    x_ticks = [
        (LEFT + room * value / step + (room / 2 if step == 1 else 0), f"{value:,.0f}")
        for value in ticks(0, step * (bars - 1), 6, whole=True)
    ]
    y_ticks = [(TOP + height * (1 - value / top), f"{value:,.0f}") for value in ticks(0, top, 4, whole=True)]
    return Histogram(title, noun, tuple(series), tuple(x_ticks), tuple(y_ticks))


def _bins(tallies: Sequence[Tally]) -> tuple[int, int]:
    """Width of a bar, a round number, and how many there are."""
    reach = max((tally.quantile(MOST) for tally in tallies), default=0)
    largest = max((max(tally.counts, default=0) for tally in tallies), default=0)
    if largest <= 2 * reach:  # no long tail
        reach = largest
    steps = ticks(0, max(reach, 1), BARS, whole=True)
    step = max(1, round(steps[1] - steps[0]) if len(steps) > 1 else 1)
    return step, reach // step + 1


def _binned(tally: Tally, step: int, bars: int) -> list[int]:
    counts = [0] * bars
    for value, count in tally.counts.items():
        counts[min(value // step, bars - 1)] += count
    return counts
