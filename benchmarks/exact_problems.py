"""Problems whose answers are known: the linear-Gaussian VAE, and integrals over two units."""

from __future__ import annotations

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyrovae.diagnostics.gaps import Gaps
from pyrovae.evidence.result import Evidence
from pyrovae.mixture.mixture import Mixture
from pyrovae.pairs.pair import Pair
from pyrovae.randomness import seeded
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
    return result.subset(torch.arange(len(result.values))[rows])


class Correlated:
    """x | z ~ N(Wz, s²I) with columns that are not orthogonal, and a guide off in mean and scale.

    p(z|x) = N(m, Λ⁻¹) has a precision Λ with entries off the diagonal, and the best Gaussian of
    independent units is N(m, 1/Λ_dd).
    """

    weight = torch.tensor([[1.0, 0.4], [0.3, 0.9], [-0.5, 0.6], [0.2, 0.2]], dtype=torch.float64)
    noise, shift = 0.8, 0.5
    scale = torch.tensor([0.6, 1.4], dtype=torch.float64)

    def __init__(self) -> None:
        identity = torch.eye(2, dtype=torch.float64)
        self.precision = identity + self.weight.T @ self.weight / self.noise**2
        self.best = self.precision.diagonal().rsqrt()

    def model(self, x: Tensor) -> None:
        """p(x, z)."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.weight.T, self.noise).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z | x), half a standard deviation off."""
        mean = torch.linalg.solve(self.precision, self.weight.T @ x.T / self.noise**2).T
        with pyro.plate("data", len(x)):
            loc, scale = mean + self.shift * self.best, self.scale * self.best
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    def sample(self, rows: int, *, seed: int) -> Tensor:
        """Draws from p(x), shape ``(rows, 4)``."""
        covariance = self.weight @ self.weight.T + self.noise**2 * torch.eye(4).double()
        with seeded(seed, "rows"):
            zeros = torch.zeros(4, dtype=torch.float64)
            return dist.MultivariateNormal(zeros, covariance).sample(torch.Size([rows]))

    def losses(self) -> dict[str, float]:
        """The gaps of the ELBO, which are the same for every x."""

        def loss(location: Tensor, deviation: Tensor) -> float:
            zeros = torch.zeros(2, dtype=torch.float64)
            posterior = dist.MultivariateNormal(zeros, precision_matrix=self.precision)
            wide = dist.MultivariateNormal(location, torch.diag(deviation.square()))
            return float(kl_divergence(wide, posterior))

        approximation = loss(torch.zeros_like(self.best), self.best)
        inference = loss(self.shift * self.best, self.scale * self.best)
        return {
            "amortization": inference - approximation,
            "approximation": approximation,
            "inference": inference,
        }


def some_gaps(gaps: Gaps, rows: Tensor | slice) -> Gaps:
    """The gaps of some of the data points."""
    full = None if gaps.full is None else some_rows(gaps.full, rows)
    both = (some_rows(e, rows) for e in (gaps.guide, gaps.family))
    return Gaps(*both, full, some_rows(gaps.evidence, rows))


def mixture_evidence(exact: LinearGaussian, density: dist.Distribution) -> dist.Distribution:
    """p(x) with a mixture of Gaussians over z in the prior's place: one of Gaussians."""
    parts = density.component_distribution
    if isinstance(parts, dist.MultivariateNormal):
        covariance = parts.covariance_matrix
    else:
        covariance = torch.diag_embed(parts.variance)
    within = exact.weight @ covariance @ exact.weight.T
    noise = exact.noise**2 * torch.eye(len(exact.bias), dtype=within.dtype)
    return dist.MixtureSameFamily(
        dist.Categorical(logits=density.mixture_distribution.logits.reshape(-1)),
        dist.MultivariateNormal(parts.mean @ exact.weight.T + exact.bias, within + noise),
    )
