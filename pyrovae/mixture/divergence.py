"""Entropy of a mixture and divergences from it: estimates, and bounds from pairs of components."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.estimates import Bound, Estimate, mean_estimate
from pyrovae.mixture import families
from pyrovae.mixture.affinities import log_affinities
from pyrovae.mixture.attention import block_log_sum_exp
from pyrovae.mixture.logdensity import constants, keys, queries
from pyrovae.mixture.mixture import Mixture
from pyrovae.mixture.normals import DiagonalNormals
from pyrovae.mixture.screening import log_prob
from pyrovae.randomness import seeded

#: Components in one block of the passes over all pairs.
ROWS = 4096


@dataclass(frozen=True)
class Bounds:
    """A quantity between two deterministic bounds; their errors are those of drawn components.

    Args:
        lower: with standard error 0 if every component took part.
        upper: the same.
    """

    lower: Estimate
    upper: Estimate


def entropy(mixture: Mixture, *, draws: int = 4096, seed: int = 0) -> Estimate:
    """H(q) = −E_q[log q] by Monte Carlo, in nats.

    Args:
        mixture: of any family.
        draws: number of draws.
        seed: their seed.
    """
    with torch.no_grad(), seeded(seed):
        return mean_estimate(-mixture.log_prob(mixture.sample((draws,))), over="draws")


def divergence(
    mixture: Mixture, other: dist.Distribution, *, draws: int = 4096, seed: int = 0
) -> Estimate:
    """KL(q ‖ p) = E_q[log q − log p] by Monte Carlo, for any p with a log density.

    Args:
        mixture: q.
        other: p, with the events of q; another mixture, a prior, a flow.
        draws: number of draws from q.
        seed: their seed.
    """
    with torch.no_grad(), seeded(seed):
        z = mixture.sample((draws,))
        return mean_estimate(mixture.log_prob(z) - other.log_prob(z), over="draws")


def entropy_bounds(mixture: Mixture, *, rows: int | None = None, seed: int = 0) -> Bounds:
    r"""Bounds on the entropy of a mixture of diagonal normals from pairwise distances.

    .. math:: H ≷ \sum_i w_i H_i - \sum_i w_i \log \sum_j w_j e^{-d(i, j)}

    is a lower bound with the Chernoff-½ (Bhattacharyya) distance for d and an upper bound with
    KL(q_i ‖ q_j). Both are exact for components that coincide or are far apart.

    Args:
        mixture: q, of diagonal normals.
        rows: number of components i that the outer sum is estimated with, drawn by weight; it runs
            over all if not given. Cost is in proportion to rows · N · D.
        seed: seed of the draw of components.

    Raises:
        ValueError: if the components are not diagonal normals.

    Kolchinsky & Tracey 2017, "Estimating mixture entropy with pairwise distances".
    """
    normals = _normals(mixture)
    weight = normals.log_weight.double().exp()
    index = torch.arange(normals.size, device=weight.device)
    if rows is not None:
        with seeded(seed):
            drawn = torch.rand(rows, dtype=torch.float64).to(weight.device)
        index = torch.searchsorted(weight.cumsum(0) / weight.sum(), drawn, right=True)
    loc, variance = normals.loc[index], normals.scale[index].square()
    own = 0.5 * (variance.double().log() + math.log(2 * math.pi) + 1).sum(-1)
    # log Σ_j w_j exp(−KL) + H_i is the log-sum-exp of expected log densities
    upper = -_expected(normals, loc, variance)
    lower = own - log_affinities(normals, index)
    if rows is not None:
        return Bounds(*(_over_rows(v, b) for v, b in ((lower, "lower"), (upper, "upper"))))
    return Bounds(
        Estimate(float(weight @ lower), 0.0, normals.size, bound="lower"),
        Estimate(float(weight @ upper), 0.0, normals.size, bound="upper"),
    )


def variational_divergence(mixture: Mixture, other: Mixture, *, rounds: int = 3) -> Estimate:
    r"""An upper bound on KL(q ‖ p) between two mixtures of diagonal normals, without draws.

    Every way φ of sharing out the components of q among those of p, Σ_b φ_ab = w_a, bounds

    .. math:: KL(q ‖ p) ≤ \sum_{ab} φ_{ab} KL(q_a ‖ p_b) + \sum_b φ_b \log \frac{φ_b}{ω_b}

    The first is φ_ab ∝ ω_b exp −KL(q_a ‖ p_b); every round lowers the bound, by

    .. math:: φ_{ab} ∝ φ_{ab} \frac{ω_b}{φ_b} e^{-KL(q_a ‖ p_b)}

    Args:
        mixture: q, weights w.
        other: p, weights ω.
        rounds: number of rounds, each two passes over all pairs of components in float64.

    Raises:
        ValueError: if the components are not diagonal normals.

    Hershey & Olsen 2007, "Approximating the Kullback Leibler divergence between Gaussian mixture
    models", section 8.
    """
    q, p = _normals(mixture), _normals(other)
    centre = p.centre
    variance = q.scale.double().square()
    query = queries(q.loc.double() - centre, variance)
    own = -0.5 * (variance.log() + math.log(2 * math.pi) + 1).sum(-1)  # E_a[log q_a]
    log_w, log_omega = q.log_weight.double(), p.log_weight.double()
    scale = p.scale.double()
    key = keys(p.loc.double() - centre, scale, constants(scale, torch.zeros_like(log_omega)))
    offset, best = log_omega, math.inf
    for power in range(1, rounds + 1):
        asked = power * key
        asked[:, -1] += offset
        total, _ = _attend(query, asked)
        # E_φ[log p_b] from the mean of the keys, less what the offset contributed to it
        back = torch.cat([asked, torch.ones_like(asked[:, :1])], -1)
        data = torch.cat([query, (log_w - total).unsqueeze(-1)], -1)
        log_share, moments = _attend(back, data)
        scores = (moments[:, :-1] * key).sum(-1)
        cost = float(log_w.exp() @ own) - float(log_share.exp() @ scores)
        best = min(best, cost + float(log_share.exp() @ (log_share - log_omega)))
        offset = offset + (log_omega - log_share)
    return Estimate(best, 0.0, q.size, bound="upper")


def _attend(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    found = [block_log_sum_exp(part, key.unsqueeze(0)) for part in query.split(ROWS)]
    return torch.cat([f[0][0] for f in found]), torch.cat([f[1][0] for f in found])


def _normals(mixture: Mixture) -> DiagonalNormals:
    normals = mixture.diagonal_normals()
    if normals is None:
        raise ValueError(
            "expected components that are diagonal normals; got "
            f"{families.family(mixture.component_distribution)}. Use the Monte Carlo estimates."
        )
    return normals


def _expected(normals: DiagonalNormals, loc: Tensor, variance: Tensor) -> Tensor:
    """log Σ_j w_j exp E_{N(loc, variance)}[log N_j], shape ``(R,)``."""
    return log_prob(normals, loc, variance=variance)


def _over_rows(values: Tensor, bound: str) -> Estimate:
    side: Bound = "lower" if bound == "lower" else "upper"
    return mean_estimate(values, over="draws", bound=side)
