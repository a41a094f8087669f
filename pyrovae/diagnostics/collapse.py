"""Which latent units carry information, and which fell back to the prior."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.estimates import Estimate

ACTIVE = 0.01  # variance of posterior means above which a unit counts as active (Burda et al. 2016)


@dataclass(frozen=True)
class Collapse:
    """Activity of each latent unit over one data set.

    Args:
        variance_of_means: Var_x E[z_d | x], shape ``(D,)``.
        standard_error: of each variance, over data points, shape ``(D,)``.
        mean_scale: mean over x of the standard deviation of q(z_d | x), shape ``(D,)``.
        active: whether the variance exceeds 0.01, shape ``(D,)``.
        active_units: their number; its standard error is that of how many variances a new sample
            of data would put above the threshold.
    """

    variance_of_means: Tensor
    standard_error: Tensor
    mean_scale: Tensor
    active: Tensor
    active_units: Estimate


def collapse(encoding: dist.Distribution) -> Collapse:
    """Activity of the latent units from the encoding of a data set.

    Args:
        encoding: q(z | x_n), batch shape ``(N,)`` with N ≥ 2, event shape ``(D,)``.
    """
    means = encoding.mean.double()
    n = len(means)
    squares = (means - means.mean(0)).square()
    variance = squares.sum(0) / (n - 1)
    error = squares.std(0) / math.sqrt(n)
    # Var < threshold happens with probability Φ((threshold − v)/se); the count is a sum of those.
    distance = (variance - ACTIVE) / error.clamp_min(torch.finfo(error.dtype).tiny)
    above = torch.special.ndtr(distance)
    count_error = float((above * (1 - above)).sum().sqrt())
    active = variance > ACTIVE
    return Collapse(
        variance,
        error,
        encoding.stddev.double().mean(0),
        active,
        Estimate(float(active.sum()), count_error, n, "data"),
    )
