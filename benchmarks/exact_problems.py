"""Problems whose answers are known: the linear-Gaussian VAE, and integrals over two units."""

from __future__ import annotations

from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.evidence.result import Evidence
from pyrovae.mixture.mixture import Mixture
from pyrovae.pairs.pair import Pair
from pyrovae.testing import LinearGaussian

PRIOR = dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1)


@dataclass(frozen=True)
class Grid:
    """Integrals over two latent units."""

    z: Tensor
    cell: float

    def mean(self, log_density: Tensor, values: Tensor) -> float:
        """The expectation of values under a density."""
        return float((log_density.exp() * values).sum()) * self.cell

    def quantile(self, log_density: Tensor, values: Tensor, level: float) -> float:
        """The value below which a draw from a density falls with probability ``level``."""
        order = values.argsort()
        below = (log_density[order].exp() * self.cell).cumsum(0)
        return float(values[order[int((below < level).sum())]])


def grid(limit: float = 7.0, points: int = 561) -> Grid:
    """A grid that reaches 7 standard deviations of the prior."""
    axis = torch.linspace(-limit, limit, points, dtype=torch.float64)
    return Grid(torch.cartesian_prod(axis, axis), float(axis[1] - axis[0]) ** 2)


def pair_of(exact: LinearGaussian, **distortion: float) -> Pair:
    """The pair with a guide that is distorted on purpose."""
    vae = exact.vae(**distortion)
    return Pair(vae.model, vae.guide)


def one_normal() -> Mixture:
    """The standard normal as a mixture of one."""
    component = dist.Normal(torch.zeros(1, 2, dtype=torch.float64), 1.0).to_event(1)
    return Mixture(dist.Categorical(torch.ones(1, dtype=torch.float64)), component)


def some_rows(result: Evidence, rows: Tensor | slice) -> Evidence:
    """The result for some of the data points."""
    parts = (result.values[rows], result.standard_error[rows], result.pareto_k[rows])
    return type(result)(*parts, result.draws, needed=result.needed)
