"""A mixture of few components in place of one of many: EM on the components themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.estimates import Estimate, mean_estimate
from pyrovae.mixture.attention import block_log_sum_exp, block_log_sums
from pyrovae.mixture.families import CORRELATED_NORMALS, take
from pyrovae.mixture.logdensity import constants, keys, queries, roundoff
from pyrovae.mixture.mixture import Mixture
from pyrovae.randomness import seeded

#: Components that the start is drawn from, for each one wanted.
START = 10
#: Rounding errors of more nats than this in an assignment call for float64.
LOOSE = 0.5
#: Components whose second moments are held at once.
ROWS = 8192


@dataclass(frozen=True)
class Reduction:
    """What `reduce` found.

    Args:
        mixture: the mixture of K normal components.
        divergence: KL(original ‖ reduced) by Monte Carlo over draws from the original.
        bounds: after every round, the lower bound on E[log reduced] that the rounds increase.
        converged: whether the last round gained less than the tolerance; if not, allow more rounds.
    """

    mixture: Mixture
    divergence: Estimate
    bounds: tuple[float, ...]
    converged: bool


@dataclass(frozen=True)
class _Normals:
    """Normals with log weights; covariance as variances ``(K, D)`` or matrices ``(K, D, D)``."""

    log_weight: Tensor
    mean: Tensor
    covariance: Tensor


def reduce(
    mixture: Mixture,
    components: int,
    *,
    covariance: Literal["diagonal", "full"] = "diagonal",
    shrinkage: float = 0.0,
    rounds: int = 60,
    tolerance: float = 2e-3,
    draws: int = 4096,
    seed: int = 0,
) -> Reduction:
    r"""The mixture of K normals closest to a large mixture in KL(original ‖ reduced).

    EM with the *components* as data, each with its mean and variance exactly, not with draws of
    them: for component i = (w_i, μ_i, Σ_i), with soft assignments,

    .. math:: r_{ij} ∝ π_j e^{E_{q_i}[\log N_j]}, \quad
              π_j = \sum_i w_i r_{ij}, \quad m_j = \sum_i \frac{w_i r_{ij}}{π_j} μ_i, \quad
              S_j = \sum_i \frac{w_i r_{ij}}{π_j} (Σ_i + μ_i μ_i^T) - m_j m_j^T

    Every round increases Σ_i w_i log Σ_j π_j exp E_{q_i}[log N_j] ≤ E[log reduced]. The start is
    k-means++ on means, in units of the mixture's standard deviations.

    Many new components rest on few old ones each, and covariances fitted to them do not hold for
    others. Shrinkage pulls each towards the mean of all, by weight of evidence,

    .. math:: S_j ← \frac{N π_j S_j + ν \bar S}{N π_j + ν}, \qquad \bar S = \sum_j π_j S_j

    with N = 1/Σ w_i² the effective number of components; then the bound need not increase.

    Args:
        mixture: components over vectors with mean and variance; normals for full covariances.
        components: K, from 1 to N.
        covariance: "diagonal", or "full" for ``MultivariateNormal`` components.
        shrinkage: ν ≥ 0, how many old components the common covariance counts for in a new one.
        rounds: the largest number of rounds.
        tolerance: the gain of a round, in nats, below which it is the last.
        draws: draws for the estimate of the divergence.
        seed: seed of the start and of these draws.

    Raises:
        ValueError: for a K outside 1 … N, a negative ν, or events that are not vectors.

    Goldberger & Roweis 2004; Vasconcelos & Lippman 1998; Runnalls 2007; Hershey & Olsen 2007.
    """
    if not 1 <= components <= mixture.size:
        raise ValueError(f"expected 1 to {mixture.size} components; got {components}.")
    if shrinkage < 0:
        raise ValueError(f"expected a shrinkage of at least 0; got {shrinkage}.")
    if len(mixture.event_shape) != 1:
        raise ValueError(f"expected a mixture over vectors; got events {mixture.event_shape}.")
    with torch.no_grad():
        problem = (_Full if covariance == "full" else _Diagonal)(mixture, shrinkage)
        found = problem.start(components, seed)
        bounds: list[float] = []
        converged = False
        while len(bounds) < rounds and not converged:
            found, bound = problem.round(found)
            bounds.append(bound)
            converged = len(bounds) > 1 and bounds[-1] - bounds[-2] < tolerance
        reduced = problem.as_mixture(found)
        with seeded(seed, 1):
            z = mixture.sample((draws,))
        difference = mixture.log_prob(z).double() - reduced.log_prob(z).double()
    divergence = mean_estimate(difference, over="draws")
    return Reduction(reduced, divergence, tuple(bounds), converged)


class _Diagonal:
    """The components of a mixture as weighted data, in units of its standard deviations."""

    def __init__(self, mixture: Mixture, shrinkage: float) -> None:
        self.shrinkage = shrinkage
        alive = mixture.log_weights > -math.inf
        of = take(mixture.component_distribution, alive.nonzero().squeeze(-1))
        self.components = of
        self.dtype = mixture.mean.dtype
        self.log_weight = mixture.log_weights[alive].double()
        self.shift, self.unit = mixture.mean.double(), mixture.variance.double().sqrt()
        self.mean = (of.mean.double() - self.shift) / self.unit
        self.variance = of.variance.double() / self.unit.square()
        self.moments = queries(self.mean, self.variance)
        self.count = 1 / float(self.log_weight.exp().square().sum())

    def start(self, components: int, seed: int) -> _Normals:
        """k-means++ centres among some of the means, all with one variance."""
        with seeded(seed):
            count = min(len(self.mean), START * components)
            some = torch.randperm(len(self.mean), device=self.mean.device)[:count]
            points, weight = self.mean[some], self.log_weight[some].exp()
            chosen, distance = _spread(points.float(), weight.float(), components)
        centres = points[chosen]
        spread = (weight @ distance.double()) / len(self.unit) + weight @ self.variance[some]
        return _Normals(
            torch.full_like(centres[:, 0], -math.log(len(centres))),
            centres,
            self.covariance(spread / weight.sum(), centres),
        )

    def covariance(self, variance: Tensor, like: Tensor) -> Tensor:
        """One variance per unit, the same for all."""
        return variance.expand_as(like)

    def round(self, normals: _Normals) -> tuple[_Normals, float]:
        """Assignments and matched moments as two passes of attention, and the bound before them.

        Data ask components: log-sum-exps over j. Components ask data, each datum with the log of
        its weight less its log-sum-exp: the masses π_j, and as mean of the values, the moments.
        """
        dim = len(self.unit)
        scale = normals.covariance.sqrt()
        key = keys(normals.mean, scale, constants(scale, normals.log_weight))
        error = self.moments.abs().amax(0) @ key.abs().amax(0)
        exact = float(error) * roundoff(2 * dim + 1, torch.float32) > LOOSE
        dtype = torch.float64 if exact else torch.float32
        data, key = self.moments.to(dtype), key.to(dtype)
        total = block_log_sums(data, key.unsqueeze(0))[0].double()
        offset = (self.log_weight - total).unsqueeze(-1).to(dtype)
        asked = torch.cat([key, torch.ones_like(key[:, :1])], -1)
        mass, mean = block_log_sum_exp(asked, torch.cat([data, offset], -1).unsqueeze(0))
        second, first = mean[0, :, :dim].double(), mean[0, :, dim : 2 * dim].double()
        log_weight = mass[0].double().log_softmax(-1)
        bound = float(self.log_weight.exp() @ total) - float(self.unit.log().sum())
        return self.shrunk(_Normals(log_weight, first, second - first.square())), bound

    def shrunk(self, normals: _Normals) -> _Normals:
        """The same with covariances pulled towards their mean."""
        if not self.shrinkage:
            return normals
        weight = normals.log_weight.exp()
        common = torch.tensordot(weight, normals.covariance, 1)
        count = (self.count * weight).view(-1, *[1] * common.dim())
        pulled = (count * normals.covariance + self.shrinkage * common) / (count + self.shrinkage)
        return _Normals(normals.log_weight, normals.mean, pulled)

    def as_mixture(self, normals: _Normals) -> Mixture:
        """The result in the units and the dtype of the original."""
        loc = (normals.mean * self.unit + self.shift).to(self.dtype)
        scale = (normals.covariance.sqrt() * self.unit).to(self.dtype)
        weights = dist.Categorical(logits=normals.log_weight.to(self.dtype))
        return Mixture(weights, dist.Normal(loc, scale).to_event(1))


class _Full(_Diagonal):
    """The same with full covariances, in float64: data are (E[z zᵀ], E[z], 1)."""

    def covariance(self, variance: Tensor, like: Tensor) -> Tensor:
        return torch.diag(variance).expand(len(like), -1, -1)

    def round(self, normals: _Normals) -> tuple[_Normals, float]:
        dim = len(self.unit)
        factor = torch.linalg.cholesky(normals.covariance)
        precision = torch.cholesky_inverse(factor)
        linear = (precision @ normals.mean.unsqueeze(-1)).squeeze(-1)
        constant = constants(factor.diagonal(dim1=-2, dim2=-1), normals.log_weight)
        constant = constant - 0.5 * (linear * normals.mean).sum(-1)
        row, column = self.triangle
        square = precision[:, row, column] * torch.where(row == column, -0.5, -1.0)
        key = torch.cat([square, linear, constant.unsqueeze(-1)], -1)
        sums, bound = torch.zeros_like(key), -float(self.unit.log().sum())
        for rows in torch.arange(len(self.mean), device=row.device).split(ROWS):
            data, log_weight = self.second_moments(rows), self.log_weight[rows]
            scores = data @ key.mT
            total = scores.logsumexp(-1)
            sums += (scores + (log_weight - total).unsqueeze(-1)).exp().mT @ data
            bound += float(log_weight.exp() @ total)
        sums = sums[sums[:, -1] > 0]  # one that nothing is assigned to is left out
        mass = sums[:, -1]
        mean = sums[:, len(row) : -1] / mass.unsqueeze(-1)
        covariance = torch.empty(len(mean), dim, dim).to(mean)
        covariance[:, row, column] = sums[:, : len(row)] / mass.unsqueeze(-1)
        covariance[:, column, row] = covariance[:, row, column]
        covariance -= mean.unsqueeze(-1) * mean.unsqueeze(-2)
        return self.shrunk(_Normals((mass / mass.sum()).log(), mean, covariance)), bound

    @cached_property
    def triangle(self) -> tuple[Tensor, Tensor]:
        """Rows and columns of the entries of a symmetric matrix that are not said twice."""
        row, column = torch.tril_indices(len(self.unit), len(self.unit), device=self.unit.device)
        return row, column

    def second_moments(self, rows: Tensor) -> Tensor:
        """(E[z_a z_b] for a ≥ b, E[z], 1) of some of the original components."""
        mean, (row, column) = self.mean[rows], self.triangle
        moments = mean[:, row] * mean[:, column]
        if isinstance(self.components, CORRELATED_NORMALS):
            given = take(self.components, rows).covariance_matrix.double()
            moments += given[:, row, column] / (self.unit[row] * self.unit[column])
        else:
            moments[:, row == column] += self.variance[rows]
        return torch.cat([moments, mean, torch.ones_like(mean[:, :1])], -1)

    def as_mixture(self, normals: _Normals) -> Mixture:
        loc = (normals.mean * self.unit + self.shift).to(self.dtype)
        covariance = normals.covariance * self.unit.unsqueeze(-1) * self.unit
        weights = dist.Categorical(logits=normals.log_weight.to(self.dtype))
        return Mixture(weights, dist.MultivariateNormal(loc, covariance.to(self.dtype)))


def _spread(points: Tensor, weight: Tensor, count: int) -> tuple[list[int], Tensor]:
    """k-means++: centres drawn one by one, by weight times squared distance to those drawn."""
    index = int(torch.multinomial(weight, 1))
    chosen = [index]
    distance = (points - points[index]).square().sum(-1)
    while len(chosen) < min(count, len(points)) and float(weight @ distance) > 0:
        index = int(torch.multinomial(weight * distance, 1))
        chosen.append(index)
        distance = torch.minimum(distance, (points - points[index]).square().sum(-1))
    return chosen, distance
