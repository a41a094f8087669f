"""A number that says how far it can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pyrovae.errors import InputError

Over = Literal["draws", "data"]
Bound = Literal["lower", "upper"]


@dataclass(frozen=True)
class Estimate:
    """A Monte Carlo estimate with its standard error, its sample size and what it bounds.

    Args:
        value: the estimate, in nats unless the name says otherwise.
        standard_error: standard deviation of ``value`` over repetitions of the sampling named by
            ``over``; 0 for a number computed exactly.
        size: number of independent draws (``over="draws"``) or data points (``over="data"``).
        over: what a repetition would draw anew: the latent draws with the data held fixed, or the
            data points too, for statements about data that were not seen.
        bound: ``"lower"`` or ``"upper"`` if the *expectation* of ``value`` is a bound on the
            quantity named, ``None`` if it is the quantity itself.

    >>> Estimate(1.5, 0.02, 1000)
    Estimate(1.500 ± 0.020, size=1000)
    """

    value: float
    standard_error: float
    size: int
    over: Over = "draws"
    bound: Bound | None = None

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        sign = {"lower": "≥ ", "upper": "≤ ", None: ""}[self.bound]
        return f"{sign}{self.value:.3f} ± {self.standard_error:.3f}"

    def __repr__(self) -> str:
        return f"Estimate({self}, size={self.size})"


def mean_estimate(values: Tensor, *, over: Over = "data", bound: Bound | None = None) -> Estimate:
    """The mean of independent values with its standard error s/√n.

    Args:
        values: independent values, shape ``(n,)`` with n ≥ 2.

    Raises:
        InputError: with fewer than two values, which carry no standard error, or a NaN among them.

    >>> import torch
    >>> mean_estimate(torch.tensor([1.0, 2.0, 3.0]))
    Estimate(2.000 ± 0.577, size=3)
    """
    n = values.numel()
    if n < 2:
        raise InputError(
            f"expected at least 2 values for a standard error; got {n}. Use more data."
        )
    values = values.double()
    if values.isnan().any():
        raise InputError("expected numbers; got NaN among the values to be averaged.")
    return Estimate(float(values.mean()), float(values.std() / math.sqrt(n)), n, over, bound)


def two_stage_mean(values: Tensor, *, population: int, bound: Bound | None = None) -> Estimate:
    r"""The mean over a finite data set of which m of N points were taken, S draws at each.

    The standard error is that of repeating choice and draws with the data set fixed: with f = m/N,
    s_b² the variance between the points' means and s_w² that within a point,

    .. math:: se^2 = (1 - f)\, s_b^2 / m + f\, s_w^2 / (m S)

    which is unbiased (Cochran 1977, *Sampling Techniques*, ch. 10), and leaves only the noise of
    the draws when every point was taken.

    Args:
        values: shape ``(m, S)`` with S ≥ 2; m ≥ 2 unless all of a single point is taken.
        population: N ≥ m, the number of points in the data set.

    Raises:
        InputError: with fewer than two draws a point, or a NaN among the values.
    """
    m, draws = values.shape
    if draws < 2:
        raise InputError(f"expected at least 2 draws for each data point; got {draws}.")
    values = values.double()
    if values.isnan().any():
        raise InputError("expected numbers; got NaN among the values to be averaged.")
    fraction = m / population
    within = float(values.var(1).mean()) / (m * draws)
    between = float(values.mean(1).var()) / m if fraction < 1 else 0.0
    error = math.sqrt((1 - fraction) * between + fraction * within)
    return Estimate(float(values.mean()), error, m * draws, "draws", bound)
