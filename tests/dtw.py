"""Dynamic time warping by the equations, cell by cell, in float64."""

import math


def by_loops(cost, gamma):
    """Value and E of one table, by the equations."""
    n, m = cost.shape
    value = {(i, j): math.inf for i in range(n + 1) for j in range(m + 1)} | {(0, 0): 0.0}
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            before = [value[i - 1, j - 1], value[i - 1, j], value[i, j - 1]]
            least = min(before)
            softmin = least - gamma * math.log(sum(math.exp((least - each) / gamma) for each in before))
            value[i, j] = float(cost[i - 1, j - 1]) + softmin
    passing = {(n, m): 1.0}
    for i in range(n, 0, -1):
        for j in range(m, 0, -1):
            if (i, j) != (n, m):
                after = [place for place in ((i + 1, j), (i, j + 1), (i + 1, j + 1)) if place in passing]
                passing[i, j] = sum(
                    passing[a, b] * math.exp((value[a, b] - value[i, j] - float(cost[a - 1, b - 1])) / gamma)
                    for a, b in after
                )
    return value[n, m], [[passing[i, j] for j in range(1, m + 1)] for i in range(1, n + 1)]


def plain_dtw(cost):
    """The least that a path costs."""
    n, m = cost.shape
    value = {(i, j): math.inf for i in range(n + 1) for j in range(m + 1)} | {(0, 0): 0.0}
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            value[i, j] = float(cost[i - 1, j - 1]) + min(value[i - 1, j - 1], value[i - 1, j], value[i, j - 1])
    return value[n, m]
