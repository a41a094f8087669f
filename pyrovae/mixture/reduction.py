"""A mixture of few components in place of one of many: EM on the components themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from pyrovae.errors import InputError
from pyrovae.estimates import Estimate, mean_estimate
from pyrovae.mixture.conversion import as_mixture
from pyrovae.mixture.families import CORRELATED_NORMALS, factorised, family
from pyrovae.mixture.mixture import Mixture
from pyrovae.mixture.reduction_rounds import DiagonalRounds, FullRounds
from pyrovae.randomness import check_seed, seeded


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


def reduce(
    mixture: torch.distributions.MixtureSameFamily,
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
    k-means++ on means and standard deviations of components drawn by weight, in units of those of
    the mixture. Rounds conserve the mean of the mixture and its variances, "full" its covariance.

    Many new components rest on few old ones each, and covariances fitted to them do not hold for
    others. Shrinkage pulls each towards the mean of all, by weight of evidence,

    .. math:: S_j ← \frac{N π_j S_j + ν \bar S}{N π_j + ν}, \qquad \bar S = \sum_j π_j S_j

    with N = 1/Σ w_i² the effective number of components; then the bound need not increase, and only
    the mean is conserved.

    Rounds are two passes of attention in float32, products of matrices in float64 for full
    covariances, wherever rounding leaves assignments and variances as they are. Where not, what is
    affected is done in float64, or from the differences (μ_i − m_j)/S_j^½, which do not cancel and
    take longer. For a float64 mixture the last round is in float64. The result has the mixture's
    dtype: float32 does not hold means that lie 10⁷ standard deviations from 0.

    Args:
        mixture: a `Mixture` or torch's or Pyro's own ``MixtureSameFamily``, components over vectors
            with mean and variance; normals for full covariances.
        components: K, from 1 to N. Fewer are found where fewer are needed: old components of the
            same means and variances count as one, those of weight zero as none, and a new one to
            which nothing is assigned is left out.
        covariance: "diagonal", or "full" for ``MultivariateNormal`` components.
        shrinkage: ν ≥ 0, how many old components the common covariance counts for in a new one.
        rounds: the largest number of rounds.
        tolerance: the gain of a round, in nats, below which it is the last.
        draws: draws for the estimate of the divergence.
        seed: seed of the start and of these draws.

    Raises:
        InputError: for a K outside 1 … N, a negative ν, no round, another name of a covariance; for
            what is no mixture, or a batch of them, events that are not vectors, means or variances
            that are not known or not finite, or a new variance of 0.

    Goldberger & Roweis 2004; Vasconcelos & Lippman 1998; Runnalls 2007; Hershey & Olsen 2007.
    """
    check_seed(seed)
    mixture = as_mixture(mixture)
    _check(mixture, components, covariance, shrinkage, rounds)
    with torch.no_grad():
        problem = (FullRounds if covariance == "full" else DiagonalRounds)(mixture, shrinkage)
        before = found = problem.start(components, seed)
        bounds: list[float] = []
        converged = False
        while len(bounds) < rounds and not converged:
            before = found
            found, bound = problem.round(before, problem.least)
            bounds.append(bound)
            converged = len(bounds) > 1 and bounds[-1] - bounds[-2] < tolerance
        if torch.finfo(problem.dtype).eps < torch.finfo(problem.least).eps:
            found, bounds[-1] = problem.round(before, problem.dtype)
        reduced = problem.as_mixture(found)
        with seeded(seed, "divergence of a reduction"):
            z = mixture.sample((draws,))
        difference = mixture.log_prob(z).double() - reduced.log_prob(z).double()
    divergence = mean_estimate(difference, over="draws")
    return Reduction(reduced, divergence, tuple(bounds), converged)


def _check(
    mixture: Mixture, components: int, covariance: str, shrinkage: float, rounds: int
) -> None:
    """What `reduce` asks of its arguments."""
    if covariance not in ("diagonal", "full"):
        raise InputError(
            f"expected covariance 'diagonal' or 'full'; got {covariance!r}. For covariances that "
            "are nearly one, take 'full' with a large shrinkage."
        )
    if mixture.batch_shape:
        raise InputError(
            f"expected one mixture; got batch shape {tuple(mixture.batch_shape)}. Reduce it before "
            "it is expanded."
        )
    if not 1 <= components <= mixture.size:
        raise InputError(f"expected 1 to {mixture.size} components; got {components}.")
    if not shrinkage >= 0:
        raise InputError(f"expected a shrinkage of at least 0; got {shrinkage}.")
    if rounds < 1:
        raise InputError(f"expected at least 1 round; got {rounds}.")
    if len(mixture.event_shape) != 1:
        raise InputError(f"expected a mixture over vectors; got events {mixture.event_shape}.")
    of = mixture.component_distribution
    if covariance == "full" and not (factorised(of) or isinstance(of, CORRELATED_NORMALS)):
        raise InputError(
            "expected independent units or normals, whose covariances are known; got "
            f"{family(of)}. Take covariance='diagonal'."
        )
