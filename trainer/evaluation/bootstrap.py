"""Is one system better than another on the same rows? Paired bootstrap resampling (Koehn 2004)."""

from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float

#: Elements of the largest array of drawn row numbers: 64 MiB.
_AT_ONCE: Final = 2**23


class Interval(NamedTuple):
    """Where 95 % of resampled mean differences lie, and how surely the difference is none by chance."""

    low: float
    high: float
    p_value: float  # two-sided; 0 stands for less than two in the number of samples


def resampled_means(
    differences: Float[np.ndarray, " rows"], samples: int, seed: int | tuple[int, ...]
) -> Float[np.ndarray, " samples"]:
    """The mean of as many rows as there are, drawn with replacement, `samples` times. At least one row."""
    rows = len(differences)
    random = np.random.default_rng(seed)
    means = np.empty(samples)
    step = max(1, _AT_ONCE // rows)
    for first in range(0, samples, step):
        part = means[first : first + step]
        part[:] = differences[random.integers(rows, size=(len(part), rows))].mean(1)
    return means


def interval(means: Float[np.ndarray, " samples"]) -> Interval:
    """What resampled mean differences say.

    The interval is between their percentiles 2.5 and 97.5. The p-value is twice the share of them on the side of 0 where
    fewer are, 0 itself counted on both, and at most 1.
    """
    low, high = np.percentile(means, [2.5, 97.5])
    other_side = min(float((means <= 0).mean()), float((means >= 0).mean()))
    return Interval(float(low), float(high), min(1.0, 2 * other_side))
