"""Where one density over codes has mass and another has next to none."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.diagnostics.codes import Codes
from pyrovae.estimates import Estimate
from pyrovae.mixture.mixture import Mixture
from pyrovae.randomness import seeded

LEVEL = 0.01  # share of a density's own draws that fall where it is said to have next to no mass


@dataclass(frozen=True)
class Holes:
    """Shares of draws from one density that fall where the other has next to no mass.

    A density has *next to no mass* where its log density is below the 1 % quantile of its log
    density at draws of its own. So both shares are 1 % if prior and aggregated posterior agree. For
    q_agg the draws of its own are *held-out* codes: at draws from its components a memorised q_agg
    is higher than anywhere else, and everything would look like a hole.

    Args:
        prior_outside: share of prior draws where log q_agg is below its quantile: holes, from which
            the decoder was never trained to decode.
        aggregated_outside: share of held-out codes where log p is below its quantile: codes that
            sampling from the prior never reaches.
        level: the share that equal densities would have.
    """

    prior_outside: Estimate
    aggregated_outside: Estimate
    level: float = LEVEL


def holes(
    held_out: Codes, aggregated: Mixture, prior: dist.Distribution, *, draws: int, seed: int = 0
) -> Holes:
    """Shares of prior draws outside of q_agg, and of held-out codes outside of the prior.

    Args:
        held_out: codes of data that q_agg is not made of; one draw of each data point is used.
        aggregated: q_agg.
        prior: p(z), batch shape ``()`` or ``(1,)``.
        draws: number of draws from the prior.
        seed: names the draws.
    """
    with seeded(seed):
        z = prior.sample(torch.Size([draws])).reshape(draws, -1)
    codes = held_out.z[:, 0]
    return Holes(
        share_below(aggregated.log_prob(z), aggregated.log_prob(codes)),
        share_below(prior.log_prob(codes), prior.log_prob(z)),
    )


def share_below(values: Tensor, reference: Tensor, level: float = LEVEL) -> Estimate:
    r"""Share of values below the ``level`` quantile of the reference, both independent samples.

    .. math:: se^2 = s (1 - s) / n + (ds/dα)^2 α (1 - α) / m

    where the quantile is the one below which a new draw falls with probability α, the derivative
    after the level α comes from the sample, and s in the first term has one success and one failure
    added, so that a share of 0 is not taken for certain.

    Args:
        values: shape ``(n,)``.
        reference: shape ``(m,)``.
        level: α.
    """
    n, m = len(values), len(reference)
    values, reference = values.double(), reference.double()
    spread = math.sqrt(level * (1 - level) / m)
    width = min(max(level / 2, spread), level)
    thresholds = (_quantile(reference, a) for a in (level - width, level, level + width))
    low, share, high = (float((values < t).double().mean()) for t in thresholds)
    slope = (high - low) / (2 * width)
    likely = (share * n + 1) / (n + 2)
    error = math.sqrt(likely * (1 - likely) / n + (slope * spread) ** 2)
    return Estimate(share, error, n)


def _quantile(values: Tensor, level: float) -> Tensor:
    """Below this a new draw falls with probability ``level``: order statistic level · (m + 1)."""
    ordered = values.sort().values
    position = min(max(level * (len(values) + 1) - 1, 0.0), len(values) - 1.0)
    below = int(position)
    above = min(below + 1, len(values) - 1)
    return torch.lerp(ordered[below], ordered[above], position - below)
