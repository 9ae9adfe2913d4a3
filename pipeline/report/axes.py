"""Round numbers along an axis."""

from matplotlib.ticker import MaxNLocator

#: Of the larger end: what lies closer together is one value.
_CLOSE = 1e-9


def ticks(low: float, high: float, most: int, whole: bool = False) -> list[float]:
    """At most about `most` round numbers from `low` to `high`, those beyond left out; `whole`: only whole ones.

    Where both ends are the same, or as good as that, `low` alone.
    """
    if high - low <= _CLOSE * max(abs(low), abs(high)):
        return [low]
    margin = _CLOSE * (high - low)
    values = MaxNLocator(nbins=most, integer=whole, steps=[1, 2, 2.5, 5, 10]).tick_values(low - margin, high + margin)
    return [float(value) for value in values if low - margin <= value <= high + margin]
