"""Entropy of a mixture and divergences from it: estimates, and bounds from pairs of components."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MixtureSameFamily, register_kl

from pyrovae.display import Result
from pyrovae.errors import InputError
from pyrovae.estimates import Estimate, mean_estimate
from pyrovae.mixture import families
from pyrovae.mixture.conversion import as_mixture
from pyrovae.mixture.kernel.bhattacharyya import log_affinities
from pyrovae.mixture.kernel.diagonal_normals import TOLERANCE, DiagonalNormals
from pyrovae.mixture.kernel.error_bound import roundoff
from pyrovae.mixture.kernel.scalar_product import differences, queries
from pyrovae.mixture.kernel.search import log_prob
from pyrovae.mixture.mixture import Mixture
from pyrovae.randomness import check_seed, seeded

#: Pairs of components held in memory at once.
SCORES = 1 << 20


@dataclass(frozen=True, repr=False)
class Bounds(Result):
    """Two bounds on a quantity, with standard errors if components were drawn to compute them.

    Args:
        lower: the lower bound; its standard error is 0 if every component took part.
        upper: the upper bound, likewise.
    """

    lower: Estimate
    upper: Estimate


def entropy(mixture: MixtureSameFamily, *, draws: int = 4096, seed: int = 0) -> Estimate:
    """H(q) = −E_q[log q] by Monte Carlo, in nats.

    Args:
        mixture: q, of any family.
        draws: number of draws from q.
        seed: seed of the draws.

    >>> import torch, pyrovae as pv, pyro.distributions as dist
    >>> means = torch.linspace(-2, 2, 200).view(200, 1)
    >>> encoding = dist.Normal(means, 0.5).to_event(1)
    >>> agg = pv.AggregatedPosterior(encoding)
    >>> pv.entropy(agg).size
    4096
    """
    with torch.no_grad(), seeded(seed, "entropy"):
        return mean_estimate(-mixture.log_prob(mixture.sample((draws,))), over="draws")


def divergence(
    distribution: dist.Distribution, other: dist.Distribution, *, draws: int = 4096, seed: int = 0
) -> Estimate:
    """KL(q ‖ p) = E_q[log q − log p] by Monte Carlo, for any q and p with a log density.

    Args:
        distribution: q, of batch shape ``()``: a mixture or anything else that can be sampled.
        other: p, with the event shape of q: another mixture, a prior, a flow.
        draws: number of draws from q.
        seed: seed of the draws.

    Raises:
        InputError: if q is a batch of distributions, or p does not give one log density to each
            draw from q.

    >>> import torch, pyrovae as pv, pyro.distributions as dist
    >>> q, p = (dist.Normal(torch.full((1,), mean), 1.0).to_event(1) for mean in (0.0, 1.0))
    >>> found = pv.divergence(q, p)
    >>> abs(found.value - 0.5) < 4 * found.standard_error
    True
    """
    check_seed(seed)
    if distribution.batch_shape:
        raise InputError(
            f"expected one distribution, batch shape (); got {tuple(distribution.batch_shape)}. "
            "Declare event dimensions with .to_event(k), or take the members of a batch one by one."
        )
    with torch.no_grad(), seeded(seed, "divergence"):
        z = distribution.sample(torch.Size([draws]))
        other_log_prob = other.log_prob(z)
        if other_log_prob.shape != (draws,):
            raise InputError(
                f"expected one log density per draw, shape ({draws},); got "
                f"{tuple(other_log_prob.shape)} from the other distribution. Give it event shape "
                f"{tuple(distribution.event_shape)} with .to_event(k), and batch shape ()."
            )
        return mean_estimate(distribution.log_prob(z) - other_log_prob, over="draws")


def _no_closed_form(q: dist.Distribution, p: dist.Distribution) -> Tensor:
    """Tell ``torch.distributions.kl_divergence``, on which Pyro's ELBOs take draws instead."""
    raise NotImplementedError(
        f"expected KL(q ‖ p) in closed form; got {type(q).__name__} and {type(p).__name__}. Use "
        "pyrovae.divergence(q, p), an estimate with its standard error, or, between two mixtures "
        "of diagonal normals, pyrovae.variational_divergence(q, p), a bound without draws."
    )


register_kl(Mixture, Distribution)(_no_closed_form)
register_kl(Independent, Mixture)(_no_closed_form)  # such as an encoding and q_agg


def entropy_bounds(mixture: MixtureSameFamily, *, rows: int | None = None, seed: int = 0) -> Bounds:
    r"""Bounds on the entropy of a mixture of diagonal normals from pairwise distances.

    .. math:: H ≷ \sum_i w_i H_i - \sum_i w_i \log \sum_j w_j e^{-d(i, j)}

    is a lower bound with the Chernoff-½ (Bhattacharyya) distance for d and an upper bound with
    KL(q_i ‖ q_j). Both are exact for components that coincide or are far apart.

    Args:
        mixture: q, of diagonal normals.
        rows: number of components i, drawn by weight, that estimate the outer sum; by default it
            runs over all of them. Cost is in proportion to rows · N · D.
        seed: seed of the draw of components.

    Raises:
        InputError: if it is not a mixture, or its components are not diagonal normals.

    Kolchinsky & Tracey 2017, "Estimating mixture entropy with pairwise distances".

    >>> import torch, pyrovae as pv, pyro.distributions as dist
    >>> means = torch.linspace(-2, 2, 200).view(200, 1)
    >>> encoding = dist.Normal(means, 0.5).to_event(1)
    >>> agg = pv.AggregatedPosterior(encoding)
    >>> bounds = pv.entropy_bounds(agg)
    >>> bounds.lower.value < pv.entropy(agg).value < bounds.upper.value
    True
    """
    check_seed(seed)
    normals = _diagonal_normals(mixture)
    weight = _normalise(normals.log_weight).exp()
    index = torch.arange(normals.size, device=weight.device)
    if rows is not None:
        with seeded(seed, "entropy bounds"):
            drawn = torch.rand(rows, dtype=torch.float64).to(weight.device)
        cumulative = weight.cumsum(0)
        index = torch.searchsorted(cumulative / cumulative[-1], drawn, right=True)
    # log Σ_j w_j exp(−KL) + H_i is the log-sum-exp of expected log densities
    variance = normals.scale[index].double().square()
    upper = -log_prob(normals, normals.loc[index], variance=variance)
    lower = _entropies(normals.scale[index]) - log_affinities(normals, index)
    if rows is not None:
        return Bounds(
            mean_estimate(lower, over="draws", bound="lower"),
            mean_estimate(upper, over="draws", bound="upper"),
        )
    return Bounds(
        Estimate(float(weight @ lower), 0.0, normals.size, bound="lower"),
        Estimate(float(weight @ upper), 0.0, normals.size, bound="upper"),
    )


def variational_divergence(
    mixture: MixtureSameFamily, other: MixtureSameFamily, *, rounds: int = 3
) -> Estimate:
    r"""An upper bound on KL(q ‖ p) between two mixtures of diagonal normals, without draws.

    Every assignment φ of the components of q to those of p, Σ_b φ_ab = w_a, gives the bound

    .. math:: KL(q ‖ p) ≤ \sum_{ab} φ_{ab} KL(q_a ‖ p_b) + \sum_b φ_b \log \frac{φ_b}{ω_b}

    It starts with φ_ab ∝ ω_b exp −KL(q_a ‖ p_b); every round lowers the bound, by

    .. math:: φ_{ab} ∝ φ_{ab} \frac{ω_b}{φ_b} e^{-KL(q_a ‖ p_b)}

    Args:
        mixture: q, weights w.
        other: p, weights ω.
        rounds: number of rounds, each a pass over all pairs of components in float64.

    Raises:
        InputError: if either is not a mixture of diagonal normals, or ``rounds`` is below 1.

    Hershey & Olsen 2007, "Approximating the Kullback Leibler divergence between Gaussian mixture
    models", section 8.

    >>> import torch, pyrovae as pv, pyro.distributions as dist
    >>> means = torch.linspace(-2, 2, 200).view(200, 1)
    >>> encoding = dist.Normal(means, 0.5).to_event(1)
    >>> agg = pv.AggregatedPosterior(encoding)
    >>> pv.variational_divergence(agg, agg).bound
    'upper'
    """
    if rounds < 1:
        raise InputError(f"expected at least one round; got {rounds}.")
    q, p = _diagonal_normals(mixture), _diagonal_normals(other)
    log_w = _normalise(q.log_weight)
    negative_entropy = -float(log_w.exp() @ _entropies(q.scale))
    offset, best = torch.zeros_like(p.constant), math.inf
    for power in range(1, rounds + 1):
        log_share, expected = torch.full_like(offset, -math.inf), 0.0
        for rows, scores in _expected_scores(q, p):
            logits = power * scores + offset
            phi = logits.softmax(-1) * log_w[rows].exp().unsqueeze(-1)
            expected += float(phi.flatten() @ scores.flatten())
            block_log_share = phi.sum(0).log()
            underflow = block_log_share == -math.inf  # the next offsets need the logarithm
            if bool(underflow.any()):
                log_phi = logits[:, underflow] + (log_w[rows] - logits.logsumexp(-1)).unsqueeze(-1)
                block_log_share[underflow] = log_phi.logsumexp(0)
            log_share = log_share.logaddexp(block_log_share)
        best = min(best, negative_entropy - expected + float(log_share.exp() @ log_share))
        offset = offset - log_share
    return Estimate(best, 0.0, q.size, bound="upper")


def _expected_scores(q: DiagonalNormals, p: DiagonalNormals) -> Iterator[tuple[slice, Tensor]]:
    """log ω_b + E_{q_a}[log p_b] for all b and a block of a at a time, without cancellation."""
    p_parameters, key, step = p.exact(slice(None)), p.all_keys(), max(1, SCORES // p.size)
    for start in range(0, q.size, step):
        rows = slice(start, start + step)
        loc, variance = q.loc[rows].double(), q.scale[rows].double().square()
        query = queries(loc - p.centre, variance)
        error = query.abs() @ p.largest_of_all * roundoff(p.features, torch.float64)
        if bool((error <= TOLERANCE[torch.float64]).all()):
            yield rows, query @ key.mT
            continue
        size = max(1, step // p.dim)
        parts = zip(loc.split(size), variance.split(size), strict=True)
        yield rows, torch.cat([differences(m, *p_parameters, v) for m, v in parts])


def _normalise(log_weight: Tensor) -> Tensor:
    """Normalised in float64: a rounding error of the total weight would multiply the entropies."""
    return log_weight.double().log_softmax(-1)


def _entropies(scale: Tensor) -> Tensor:
    """Entropies of diagonal normals, float64."""
    return (scale.double().log() + 0.5 * math.log(2 * math.pi) + 0.5).sum(-1)


def _diagonal_normals(distribution: MixtureSameFamily) -> DiagonalNormals:
    mixture = as_mixture(distribution)
    normals = mixture.diagonal_normals()
    if normals is None:
        raise InputError(
            "expected components that are diagonal normals; got "
            f"{families.family(mixture.component_distribution)}. Use "
            "the Monte Carlo estimates, pyrovae.entropy or pyrovae.divergence."
        )
    return normals
