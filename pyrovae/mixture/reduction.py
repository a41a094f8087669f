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
from pyrovae.mixture.attention import block_log_sum_exp
from pyrovae.mixture.families import take
from pyrovae.mixture.logdensity import constants, keys, queries, roundoff
from pyrovae.mixture.mixture import Mixture
from pyrovae.randomness import seeded

#: Components that the start is drawn from, for each one wanted.
START = 10
#: Rounding errors of more nats than this in an assignment call for float64.
LOOSE = 0.5


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

    Args:
        mixture: components over vectors with mean and variance; normals for full covariances.
        components: K, from 1 to N.
        covariance: "diagonal", or "full" for ``MultivariateNormal`` components.
        rounds: the largest number of rounds.
        tolerance: the gain of a round, in nats, below which it is the last.
        draws: draws for the estimate of the divergence.
        seed: seed of the start and of these draws.

    Raises:
        ValueError: for a K outside 1 … N, or events that are not vectors.

    Goldberger & Roweis 2004; Vasconcelos & Lippman 1998; Runnalls 2007; Hershey & Olsen 2007.
    """
    if not 1 <= components <= mixture.size:
        raise ValueError(f"expected 1 to {mixture.size} components; got {components}.")
    if len(mixture.event_shape) != 1:
        raise ValueError(f"expected a mixture over vectors; got events {mixture.event_shape}.")
    with torch.no_grad():
        problem = _Full(mixture) if covariance == "full" else _Diagonal(mixture)
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

    def __init__(self, mixture: Mixture) -> None:
        alive = mixture.log_weights > -math.inf
        of = take(mixture.component_distribution, alive.nonzero().squeeze(-1))
        self.components = of
        self.dtype = mixture.mean.dtype
        self.log_weight = mixture.log_weights[alive].double()
        self.shift, self.unit = mixture.mean.double(), mixture.variance.double().sqrt()
        self.mean = (of.mean.double() - self.shift) / self.unit
        self.variance = of.variance.double() / self.unit.square()
        self.moments = queries(self.mean, self.variance)

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
        total = block_log_sum_exp(data, key.unsqueeze(0))[0][0].double()
        offset = (self.log_weight - total).unsqueeze(-1).to(dtype)
        asked = torch.cat([key, torch.ones_like(key[:, :1])], -1)
        mass, mean = block_log_sum_exp(asked, torch.cat([data, offset], -1).unsqueeze(0))
        second, first = mean[0, :, :dim].double(), mean[0, :, dim : 2 * dim].double()
        log_weight = mass[0].double().log_softmax(-1)
        bound = float(self.log_weight.exp() @ total) - float(self.unit.log().sum())
        return _Normals(log_weight, first, second - first.square()), bound

    def as_mixture(self, normals: _Normals) -> Mixture:
        """The result in the units and the dtype of the original."""
        loc = (normals.mean * self.unit + self.shift).to(self.dtype)
        scale = (normals.covariance.sqrt() * self.unit).to(self.dtype)
        weights = dist.Categorical(logits=normals.log_weight.to(self.dtype))
        return Mixture(weights, dist.Normal(loc, scale).to_event(1))


class _Full(_Diagonal):
    """The same with full covariances, one new component at a time."""

    def covariance(self, variance: Tensor, like: Tensor) -> Tensor:
        return torch.diag(variance).expand(len(like), -1, -1)

    def round(self, normals: _Normals) -> tuple[_Normals, float]:
        count, dim = normals.mean.shape
        eye = torch.eye(dim).to(normals.mean)
        factor = torch.linalg.cholesky(normals.covariance)
        whiten = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
        constant = constants(factor.diagonal(dim1=-2, dim2=-1), normals.log_weight)
        precision = whiten.mT @ whiten
        scores = torch.empty(len(self.mean), count).to(normals.mean)
        for j in range(count):
            square = ((self.mean - normals.mean[j]) @ whiten[j].mT).square().sum(-1)
            scores[:, j] = constant[j] - 0.5 * square
        scores -= 0.5 * self.trace(precision)
        total = scores.logsumexp(-1)
        share = (scores + (self.log_weight - total).unsqueeze(-1)).exp()
        mass = share.sum(0)
        first = (share.mT @ self.mean) / mass.unsqueeze(-1)
        spread = self.mean_covariance(share.mT / mass.unsqueeze(-1))
        for j in range(count):
            centred = self.mean - first[j]
            spread[j] += (share[:, j, None] * centred).mT @ centred / mass[j]
        bound = float(self.log_weight.exp() @ total) - float(self.unit.log().sum())
        return _Normals((mass / mass.sum()).log(), first, spread), bound

    @cached_property
    def matrices(self) -> Tensor | None:
        """Covariances of the original components, ``(N, D, D)``; None if they are diagonal."""
        if not hasattr(self.components, "covariance_matrix"):
            return None
        given: Tensor = self.components.covariance_matrix.double()
        return given / (self.unit.unsqueeze(-1) * self.unit)

    def trace(self, precision: Tensor) -> Tensor:
        """tr(P_j Σ_i), shape ``(N, K)``."""
        if self.matrices is None:
            return self.variance @ precision.diagonal(dim1=-2, dim2=-1).mT
        return self.matrices.flatten(1) @ precision.flatten(1).mT

    def mean_covariance(self, share: Tensor) -> Tensor:
        """Σ_i s_ji Σ_i for rows of shares, shape ``(K, D, D)``."""
        if self.matrices is None:
            return torch.diag_embed(share @ self.variance)
        return (share @ self.matrices.flatten(1)).unflatten(-1, self.matrices.shape[1:])

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
