"""k̂: whether importance weights can be averaged, from the tail of their distribution."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrovae.arviz_adapter import psis

UNRELIABLE = 0.7  # k̂ above which no number of draws is enough (Vehtari et al. 2024)
FEWEST = 25  # draws with any weight, below which their tail is too short for a k̂
EQUAL = 1e-3  # log weights that all lie this close together, in nats, have no tail


def k_limit(draws: int) -> float:
    r"""The k̂ up to which so many draws are enough: min(1 − 1/log10 S, 0.7), but not below 0.

    Vehtari et al. 2024, "Pareto smoothed importance sampling", section 3.2.4.

    >>> round(k_limit(100), 3), k_limit(10_000)
    (0.5, 0.7)
    """
    return max(0.0, min(1 - 1 / math.log10(max(draws, 2)), UNRELIABLE))


def smooth(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """log of the mean of the Pareto-smoothed weights, and k̂, of each data point separately.

    Smoothing leaves the bulk of the weights as it was, so what normalised and raw log weights
    differ by at the smallest weight above 0 is the log of the smoothed weights' sum (Vehtari et al.
    2024). Where no such weight lies below the tail, the weights are left as they are.

    Args:
        log_weights: shape ``(N, K)`` in float64.

    Returns:
        smoothed log mean weights and k̂, each ``(N,)``; k̂ is 0 where all weights agree to 1e-3, and
        infinite where too few draws have any weight to tell.
    """
    k = log_weights.shape[1]
    raw = log_weights.logsumexp(1) - math.log(k)
    usable = raw.isfinite()
    finite = torch.where(usable[:, None], log_weights, 0.0)
    normalised, pareto_k = (torch.as_tensor(a).to(raw) for a in psis(finite.cpu().numpy()))
    weighted = finite > -math.inf
    lowest = torch.where(weighted, finite, math.inf)
    smallest = lowest.argmin(1, keepdim=True)
    offset = (finite.gather(1, smallest) - normalised.gather(1, smallest)).squeeze(1)
    equal = finite.amax(1) - lowest.amin(1) < EQUAL
    tail = math.ceil(min(0.2 * k, 3 * math.sqrt(k)))
    enough = weighted.sum(1) >= (torch.where(equal & weighted.all(1), 0, FEWEST))
    pareto_k = torch.where(equal, 0.0, pareto_k)
    pareto_k = torch.where(usable & enough, pareto_k, math.inf)
    bulk = usable & (pareto_k != 0) & (weighted.sum(1) > tail)
    smoothed = torch.where(bulk, offset - math.log(k), raw)
    return torch.where(smoothed.isnan(), raw, smoothed), pareto_k
