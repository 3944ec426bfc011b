"""Is one model better than another? Paired tests on the users' gains, from counts of equal differences.

A user's gain (MRR, NDCG, HR of his one held-out item) has few values, so that the differences of two models are kept as
(value, users) and everything follows from these on the driver: exactly what the lists of all users would give.

    paired t-test:   t = mean / (s / sqrt(N)), two-sided, N - 1 degrees of freedom
    Wilcoxon:        signed ranks of the differences that are not 0, mid-ranks for ties, normal approximation
    bootstrap:       percentile interval of the mean, users drawn with replacement: a multinomial over the values
    over markets:    mean of the markets' means, standard error sqrt(sum_m s_m^2 / N_m) / M, normal
    Holm:            p-values of m tests, ordered, times m, m - 1, ..., made monotone (Holm 1979)

Fewer than FEWEST users are not tested: neither the t distribution nor the normal approximation nor a resampling says
anything of so few.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

FEWEST = 10  # users of a test
Values = NDArray[np.float64]
Users = NDArray[np.int64]


@dataclass(frozen=True)
class Comparison:
    """Of two models on the same users; p-values are two-sided. NaN where there is nothing, or too little, to test."""

    users: int
    difference: float
    low: float
    high: float
    p_t: float
    p_wilcoxon: float


def compare(values: Values, users: Users, seed: int = 0, draws: int = 2000, level: float = 0.95) -> Comparison:
    """All of it.

    Args:
        values: (k,) distinct differences of gains, ours less the other's.
        users: (k,) how many users have each.
        seed: of the bootstrap.
        draws: of the bootstrap.
        level: of the interval.
    """
    n = int(users.sum())
    mean = float(values @ users / n) if n else math.nan
    if n < FEWEST:
        return Comparison(n, mean, math.nan, math.nan, math.nan, math.nan)
    low, high = bootstrap_interval(values, users, seed, draws, level)
    return Comparison(n, mean, low, high, paired_t(values, users), wilcoxon(values, users))


def mean_over_markets(markets: Sequence[tuple[Values, Users]]) -> Comparison:
    """Of the mean of the markets' mean differences; users of one market say nothing of another.

    Args:
        markets: values and users as in `compare`, of every market; FEWEST users or more each. No Wilcoxon test.

    >>> one, two = (np.array([0.0, 0.2]), np.array([50, 50])), (np.array([0.1]), np.array([100]))
    >>> found = mean_over_markets([one, two])  # means 0.1 and 0.1; s_1^2 = 0.01 * 100 / 99, s_2 = 0
    >>> found.users, round(found.difference, 6), round(found.low, 4)  # 0.1 - 1.96 sqrt(0.01 / 99) / 2
    (200, 0.1, 0.0902)
    """
    if not markets:
        return Comparison(0, *[math.nan] * 5)
    counts = np.array([users.sum() for _, users in markets])
    means = np.array([values @ users / n for (values, users), n in zip(markets, counts, strict=True)])
    squares = [((values - mean) ** 2) @ users for (values, users), mean in zip(markets, means, strict=True)]
    error = math.sqrt((np.array(squares) / (counts - 1) / counts).sum()) / len(markets)
    mean, width = float(means.mean()), float(stats.norm.ppf(0.975)) * error
    p = float(2 * stats.norm.sf(abs(mean) / error)) if error else (1.0 if mean == 0 else math.nan)
    return Comparison(int(counts.sum()), mean, mean - width, mean + width, p, math.nan)


def paired_t(values: Values, users: Users) -> float:
    """The p-value of mean difference 0; 1 where all differences are 0, NaN where they are equal but not 0: no spread.

    >>> round(paired_t(np.array([1.0, -1.0]), np.array([3, 1])), 4)  # mean 0.5, s = 1, t = 1 with 3 degrees of freedom
    0.391
    """
    n = int(users.sum())
    if not n:
        return math.nan
    mean = values @ users / n
    squares = ((values - mean) ** 2) @ users
    if squares == 0:
        return 1.0 if mean == 0 else math.nan
    t = mean / math.sqrt(squares / (n - 1) / n)
    return float(2 * stats.t.sf(abs(t), n - 1))


def wilcoxon(values: Values, users: Users) -> float:
    """The p-value of the signed-rank test; 1 where all differences are 0, NaN without users.

    >>> round(wilcoxon(np.array([-1.0, 2.0]), np.array([1, 9])), 5)  # ranks 1 and 6: W- = 1, mean 27.5, variance 81.25
    0.00328
    """
    if not users.sum():
        return math.nan
    sizes, where = np.unique(np.abs(values), return_inverse=True)
    ties = np.bincount(where, users, minlength=len(sizes))
    ties[sizes == 0] = 0
    n = ties.sum()
    if not n:
        return 1.0
    ranks = np.cumsum(ties) - (ties - 1) / 2  # the mean rank of each size
    positive = float((ranks[where] * users)[values > 0].sum())
    variance = n * (n + 1) * (2 * n + 1) / 24 - (ties**3 - ties).sum() / 48
    return float(2 * stats.norm.sf(abs(positive - n * (n + 1) / 4) / math.sqrt(variance)))


def bootstrap_interval(
    values: Values, users: Users, seed: int = 0, draws: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """(low, high) of the mean; NaN without users. The same values, users and seed give the same interval."""
    n = int(users.sum())
    if not n:
        return math.nan, math.nan
    order = np.argsort(values)
    counts = np.random.default_rng(seed).multinomial(n, users[order] / n, size=draws)
    tail = (1 - level) / 2
    low, high = np.quantile(counts @ values[order] / n, [tail, 1 - tail])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given; NaN stays NaN and counts as no test.

    >>> [round(p, 6) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    adjusted, highest = list(p_values), 0.0
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    for done, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - done) * p_values[i]))
        adjusted[i] = highest
    return adjusted
