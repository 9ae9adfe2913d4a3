"""Is an arm better than its base? Paired bootstrap: seeds as blocks, rows within a test set, both drawn with replacement."""

from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float

DRAWS: Final = 2000
_ROWS_AT_ONCE: Final = 2**22  # numbers in the largest array


class Difference(NamedTuple):
    """Of a measure a token, arm less base."""

    mean: float
    error: float  # standard deviation of the draws
    low: float  # of the 95 % interval
    high: float
    by_seed: tuple[float, ...]

    @property
    def shown(self) -> bool:
        """Whether it is larger than two standard errors; of one seed, they say nothing of other seeds."""
        return len(self.by_seed) > 1 and abs(self.mean) > 2 * self.error


def difference(
    arm: Float[np.ndarray, "seeds rows"],
    base: Float[np.ndarray, "seeds rows"],
    weights: Float[np.ndarray, " rows"],
    draws: int = DRAWS,
) -> Difference:
    """Of sums over the tokens of each row, `weights` being how many those are; the same seeds and rows on both sides.

    A draw takes as many seeds and as many rows as there are, and divides the sum of differences by the sum of weights.
    """
    gaps = arm - base
    seeds, rows = gaps.shape
    random = np.random.default_rng(0)
    means = np.empty(draws)
    step = max(1, _ROWS_AT_ONCE // (seeds * rows))
    for first in range(0, draws, step):
        count = min(step, draws - first)
        # how often each is drawn
        of_seeds = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=count)
        of_rows = random.multinomial(rows, np.full(rows, 1 / rows), size=count)
        sums = np.einsum("ds,sr,dr->d", of_seeds, gaps, of_rows, optimize=True)
        means[first : first + count] = sums / (seeds * (of_rows @ weights))
    low, high = np.percentile(means, [2.5, 97.5])
    by_seed = gaps.sum(1) / weights.sum()
    return Difference(float(by_seed.mean()), float(means.std(ddof=1)), float(low), float(high), tuple(by_seed.tolist()))
