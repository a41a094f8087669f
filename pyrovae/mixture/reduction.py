"""Reduce a large mixture to one of few components, by EM on the components themselves."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch

from pyrovae.display import Result
from pyrovae.errors import InputError
from pyrovae.estimates import Estimate, mean_estimate
from pyrovae.mixture.conversion import as_mixture
from pyrovae.mixture.em_rounds import DiagonalRounds
from pyrovae.mixture.families import CORRELATED_NORMALS, factorised, family
from pyrovae.mixture.full_em_rounds import FullRounds
from pyrovae.mixture.mixture import Mixture
from pyrovae.randomness import check_seed, seeded

#: The largest number of rounds over a part or over all, and the gain below which one is the last.
ROUNDS, TOLERANCE = 60, 2e-3


@dataclass(frozen=True, repr=False)
class Reduction(Result):
    """What `reduce` returns.

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
    rounds: int = ROUNDS,
    tolerance: float = TOLERANCE,
    draws: int = 4096,
    seed: int = 0,
) -> Reduction:
    r"""The mixture of K normals closest to a large mixture in KL(original ‖ reduced).

    EM takes the *components* as data, each by its exact mean and variance instead of draws: for
    component i = (w_i, μ_i, Σ_i), with soft assignments,

    .. math:: r_{ij} ∝ π_j e^{E_{q_i}[\log N_j]}, \quad
              π_j = \sum_i w_i r_{ij}, \quad m_j = \sum_i \frac{w_i r_{ij}}{π_j} μ_i, \quad
              S_j = \sum_i \frac{w_i r_{ij}}{π_j} (Σ_i + μ_i μ_i^T) - m_j m_j^T

    Every round increases Σ_i w_i log Σ_j π_j exp E_{q_i}[log N_j] ≤ E[log reduced]. The start is
    k-means++ on means and standard deviations of components drawn by weight, in units of those of
    the mixture. Rounds conserve the mean of the mixture and its variances, "full" its covariance.

    If new components rest on few old ones each, the covariances fitted to them do not generalise.
    Shrinkage pulls each towards the mean covariance, the more the fewer it rests on,

    .. math:: S_j ← \frac{N π_j S_j + ν \bar S}{N π_j + ν}, \qquad \bar S = \sum_j π_j S_j

    with N = 1/Σ w_i² the effective number of components; the bound may then decrease, and only the
    mean is conserved.

    Of many components a random part, drawn by weight, is taken first: 200 for each new one, at
    least 10,000, then four times as many, and so on. So only the last few rounds are over all, and
    these alone count. Rounds with full covariances over many components alternate with cheaper ones
    over the pairs with a share in the last complete round, which climb the same bound.

    Rounds are two passes of attention in float32 or, for full covariances, matrix products in the
    mixture's dtype. Where rounding might move a score by half a nat, or would affect variances,
    they are computed again in float64, or from the differences (μ_i − m_j)/S_j^½, which do not
    cancel but take longer. For a float64 mixture the last round is in float64. The result has the
    mixture's dtype: float32 cannot represent means that lie 10⁷ standard deviations from 0.

    Args:
        mixture: a `Mixture` or torch's or Pyro's own ``MixtureSameFamily`` over vectors, whose
            components have a mean and a variance; for full covariances, independent units or
            normals.
        components: K, from 1 to N. The result may have fewer: old components with the same means
            and variances count as one, those of weight zero as none, and a new one to which nothing
            is assigned is left out.
        covariance: "diagonal", or "full" for ``MultivariateNormal`` components.
        shrinkage: ν ≥ 0, how many old components the mean covariance counts as in a new one.
        rounds: the largest number of rounds, over a part or over all.
        tolerance: the gain of a round, in nats, below which it is the last.
        draws: number of draws that estimate the divergence.
        seed: seed of the start and of these draws.

    Raises:
        InputError: if K is not in 1 … N, ν is negative, ``rounds`` is below 1 or the covariance has
            another name; if the mixture is no mixture, a batch of several or not over vectors; if
            means or variances are unknown or not finite, or a new variance is 0.

    Goldberger & Roweis 2004; Vasconcelos & Lippman 1998; Runnalls 2007; Hershey & Olsen 2007; for
    rounds over few pairs Neal & Hinton 1998, "A view of the EM algorithm that justifies
    incremental, sparse, and other variants".

    >>> import torch, pyrovae as pv, pyro.distributions as dist
    >>> means = torch.linspace(-2, 2, 200).view(200, 1)
    >>> encoding = dist.Normal(means, 0.5).to_event(1)
    >>> pv.reduce(pv.AggregatedPosterior(encoding), 3).mixture
    Mixture(components=3, event_shape=(1,), family=Normal)
    """
    check_seed(seed)
    mixture = as_mixture(mixture)
    reduced, bounds, converged = _climb(
        mixture, components, covariance, shrinkage, rounds, tolerance, seed
    )
    with torch.no_grad(), seeded(seed, "divergence of a reduction"):
        z = mixture.sample((draws,))
        difference = mixture.log_prob(z).double() - reduced.log_prob(z).double()
    divergence = mean_estimate(difference, over="draws")
    return Reduction(reduced, divergence, bounds, converged)


def fewer_components(
    mixture: Mixture,
    components: int,
    *,
    covariance: Literal["diagonal", "full"] = "diagonal",
    shrinkage: float = 0.0,
    seed: int = 0,
) -> Mixture:
    """The mixture that `reduce` finds, without its divergence.

    The divergence takes the log density of all components, however few its draws.

    Args:
        mixture, components, covariance, shrinkage, seed: as for `reduce`.

    Raises:
        InputError: as `reduce` does.

    >>> import torch, pyrovae as pv, pyro.distributions as dist
    >>> encoding = dist.Normal(torch.linspace(-2, 2, 200).view(200, 1), 0.5).to_event(1)
    >>> fewer_components(pv.AggregatedPosterior(encoding), 3)
    Mixture(components=3, event_shape=(1,), family=Normal)
    """
    check_seed(seed)
    mixture = as_mixture(mixture)
    return _climb(mixture, components, covariance, shrinkage, ROUNDS, TOLERANCE, seed)[0]


def _climb(
    mixture: Mixture,
    components: int,
    covariance: str,
    shrinkage: float,
    rounds: int,
    tolerance: float,
    seed: int,
) -> tuple[Mixture, tuple[float, ...], bool]:
    """The mixture, the bounds and whether the rounds converged, as in `Reduction`."""
    _check(mixture, components, covariance, shrinkage, rounds)
    with torch.no_grad():
        problem = (FullRounds if covariance == "full" else DiagonalRounds)(mixture, shrinkage)
        normals = problem.start(components, seed)
        for stage in chain(problem.stages(components, seed), [problem]):
            before, normals, bounds, converged = stage.climb(normals, rounds, tolerance)
        if torch.finfo(problem.dtype).eps < torch.finfo(problem.lowest_dtype).eps:
            normals, bounds[-1] = problem.round(before, problem.dtype)
        return problem.as_mixture(normals), tuple(bounds), converged


def _check(
    mixture: Mixture, components: int, covariance: str, shrinkage: float, rounds: int
) -> None:
    """Check the arguments of `reduce`."""
    if covariance not in ("diagonal", "full"):
        raise InputError(
            f"expected covariance 'diagonal' or 'full'; got {covariance!r}. For a covariance "
            "that all nearly share, take 'full' with a large shrinkage."
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
    distribution = mixture.component_distribution
    if covariance == "full" and not (
        factorised(distribution) or isinstance(distribution, CORRELATED_NORMALS)
    ):
        raise InputError(
            "expected independent units or normals, whose covariances are known; got "
            f"{family(distribution)}. Take covariance='diagonal'."
        )
