"""Whether transforms are uniform: an exact test by their ECDF, and the band that it draws."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

CELLS = 100  # between whose edges the ECDF is looked at: as many as there are ranks among 99 draws
TINY = 1e-9  # tail for which a bound on the p-value is enough
ROUNDING = 1e-9  # relative, by which equal binomial tails may differ

Counts = NDArray[np.int64]


def counts_below(transforms: Tensor) -> Counts:
    """How many transforms lie below each inner edge of the cells, shape ``(99,)``.

    Args:
        transforms: in [0, 1), shape ``(N,)``.
    """
    cells = (transforms.double().cpu().numpy() * CELLS).astype(np.int64)
    return np.bincount(cells, minlength=CELLS).cumsum()[: CELLS - 1]


def uniformity_p_value(transforms: Tensor) -> float:
    """P-value of the test that transforms are independent and uniform, exact for any N.

    At each edge the number of transforms below is binomial. The statistic is the smallest of all
    tails on both sides, and its distribution over all edges together is computed, not simulated:
    false alarms are at most as frequent as stated.

    Args:
        transforms: in [0, 1), shape ``(N,)``.

    Säilynoja, Bürkner & Vehtari 2022, "Graphical test for discrete uniformity and its applications
    in goodness-of-fit evaluation and multiple sample comparison".
    """
    from scipy.stats import binom

    counts, size = counts_below(transforms), len(transforms)
    edges = np.arange(1, CELLS) / CELLS
    tail = min(
        float(binom.cdf(counts, size, edges).min()), float(binom.sf(counts - 1, size, edges).min())
    )
    if tail < TINY:  # Bonferroni's bound: a difference to 1 would be rounding
        return 2 * (CELLS - 1) * tail
    return _outside(size, tail * (1 + ROUNDING))


@lru_cache(maxsize=64)
def ecdf_band(size: int, level: float) -> tuple[Counts, Counts]:
    """Smallest and largest number of transforms below each edge that the test does not reject.

    All of the ECDF lies within with a probability of at least 1 − ``level``, and the p-value is at
    most ``level`` exactly where some of it does not.

    Args:
        size: number N of transforms.
        level: of the test.

    Returns:
        both of shape ``(99,)``.
    """
    low, high = np.log(level / (2 * CELLS)), np.log(level)  # of a tail: Bonferroni's, and one edge
    for _ in range(40):
        middle = (low + high) / 2
        if _outside(size, float(np.exp(middle))) <= level:
            low = middle
        else:
            high = middle
    return _within(size, float(np.exp(low)))


def _within(size: int, tail: float) -> tuple[Counts, Counts]:
    """The numbers below each edge that have a probability above ``tail`` on either side."""
    from scipy.stats import binom

    lower = binom.ppf(min(tail, 1.0), size, np.arange(1, CELLS) / CELLS).astype(np.int64)
    return lower, size - lower[::-1]  # by the symmetry of the edges about 1/2


def _outside(size: int, tail: float) -> float:
    """Probability that some number below an edge has a tail of at most ``tail``.

    Given their total N, the numbers in the cells are those of 100 independent Poisson variables.
    So the probability of each partial sum, having stayed within up to there, is a convolution with
    the one before.
    """
    from scipy.stats import poisson

    lower, upper = _within(size, tail)
    if (lower > upper).any():
        return 1.0
    rate = size / CELLS
    start, reached = 0, np.ones(1)
    for low, high in zip((*lower, size), (*upper, size), strict=True):
        increment = poisson.pmf(np.arange(high - start + 1), rate)
        sums = np.convolve(reached, increment)[: high - start + 1]
        start, reached = int(low), sums[low - start :]
    return float(1.0 - reached[0] / poisson.pmf(size, size))
