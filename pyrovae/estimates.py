"""A number that says how far it can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

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
        bound: ``"lower"`` or ``"upper"`` if the *expectation* of ``value`` is a bound on the quantity
            named, ``None`` if it is the quantity itself.

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
        ValueError: with fewer than two values, which carry no standard error, or a NaN among them.

    >>> import torch
    >>> mean_estimate(torch.tensor([1.0, 2.0, 3.0]))
    Estimate(2.000 ± 0.577, size=3)
    """
    n = values.numel()
    if n < 2:
        raise ValueError(f"expected at least 2 values for a standard error; got {n}. Use more data.")
    values = values.double()
    if values.isnan().any():
        raise ValueError("expected numbers; got NaN among the values to be averaged.")
    return Estimate(float(values.mean()), float(values.std() / math.sqrt(n)), n, over, bound)
