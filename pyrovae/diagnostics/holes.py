"""Where one density over codes has mass and another has next to none."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.diagnostics.draws import Codes
from pyrovae.display import Result
from pyrovae.estimates import CONFIDENCE, TOO_FEW, Estimate, Over
from pyrovae.mixture import Mixture
from pyrovae.randomness import seeded

LEVEL = 0.01  # share of a density's own draws where it is said to have next to no mass


@dataclass(frozen=True, repr=False)
class Holes(Result):
    """Shares of draws from one density that fall where the other has next to no mass.

    A density has *next to no mass* where its log density is below the 1 % quantile of its log
    density at its own draws. So both shares are 1 % if prior and aggregated posterior agree. For
    q_agg its own draws are *held-out* codes: at draws from its components a memorised q_agg is
    higher than anywhere else, and everything would look like a hole.

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
    """Shares of prior draws outside q_agg, and of held-out codes outside the prior.

    Args:
        held_out: codes of data that q_agg is not made of; one draw of each data point is used.
        aggregated: q_agg.
        prior: p(z), batch shape ``()`` or ``(1,)``.
        draws: number of draws from the prior.
        seed: names the draws.
    """
    with seeded(seed, "prior draws for holes"):
        z = prior.sample(torch.Size([draws])).reshape(draws, -1)
    codes = held_out.z[:, 0]
    return Holes(
        share_below(aggregated.log_prob(z), aggregated.log_prob(codes), over="data"),
        share_below(prior.log_prob(codes), prior.log_prob(z)),
    )


def share_below(
    values: Tensor, reference: Tensor, level: float = LEVEL, *, over: Over = "draws"
) -> Estimate:
    r"""Share of values below the ``level`` quantile of the reference, both independent samples.

    The number of reference values below the quantile is binomial, whatever the density: so two of
    the ordered values enclose it in 95 % of cases. The shares of values below these two, combined
    with the interval of a binomial share, give the ends of the interval (Zou & Donner 2008). All
    binomial tails give half weight to the count itself (mid-P, Lancaster 1961), so that an end is
    wrong in at most 5 % of cases, and in about 2.5 % on average.

    With fewer than 299 reference values none of them is clearly below the quantile, and the
    share, which could be anything up to its upper end, can't be told.

    Args:
        values: shape ``(n,)``.
        reference: shape ``(m,)``.
        level: α, the share of the reference's own density that lies below the quantile.
        over: whether the reference values are of data points or of draws; the values are of the
            other.

    Returns:
        The share, with the number of values; or, if it can't be told, with that of the reference
        values, which are too few.
    """
    n, m = len(values), len(reference)
    ordered = reference.double().sort().values
    values = values.double()
    lower, upper = _ranks(m, level)
    if lower < 1 or upper > m:
        return Estimate(math.nan, math.inf, m, over).unresolve(TOO_FEW[over])

    def count_below(threshold: Tensor) -> int:
        return int((values < threshold).sum())

    position = level * (m + 1) - 1  # a new draw falls below it with probability ``level``
    index = int(position)
    quantile = torch.lerp(ordered[index], ordered[index + 1], position - index)
    count = count_below(quantile)
    share = count / n
    least, most = binomial_interval(count, n)
    low = count_below(ordered[lower - 1]) / n
    high = count_below(ordered[upper - 1]) / n
    ends = (
        share - math.hypot(share - least, share - low),
        share + math.hypot(most - share, high - share),
    )
    error = (ends[1] - ends[0]) / (2 * 1.96)
    counted: Over = "draws" if over == "data" else "data"
    return Estimate(share, error, n, counted, ends=(max(ends[0], 0.0), min(ends[1], 1.0)))


def _ranks(size: int, level: float) -> tuple[int, int]:
    """Ranks, counted from 1, of the order statistics that enclose the ``level`` quantile.

    0 or ``size`` + 1 where there is none.
    """
    from scipy.stats import binom

    tail = (1 - CONFIDENCE) / 2
    ranks = np.arange(size + 2)
    # x_(r) > quantile ⇔ fewer than r values below it; x_(s) < quantile ⇔ at least s below it
    fewer = (binom.cdf(ranks - 1, size, level) + binom.cdf(ranks - 2, size, level)) / 2
    more = (binom.sf(ranks - 1, size, level) + binom.sf(ranks, size, level)) / 2
    return int((fewer <= tail).nonzero()[0].max()), int((more <= tail).nonzero()[0].min())


def binomial_interval(count: int, size: int) -> tuple[float, float]:
    """The 95 % mid-P interval of a share, from ``count`` of ``size`` cases (Lancaster 1961).

    >>> [round(end, 3) for end in binomial_interval(0, 30)]
    [0.0, 0.095]
    """
    from scipy.optimize import brentq
    from scipy.special import bdtrc

    def excess(share: float, probability: float) -> float:
        """By how much P(B > count) + P(B = count) / 2 exceeds a probability."""
        return float(bdtrc(count, size, share) + bdtrc(count - 1, size, share)) / 2 - probability

    tail = (1 - CONFIDENCE) / 2
    low = brentq(excess, 0.0, count / size, (tail,)) if count else 0.0
    high = brentq(excess, count / size, 1.0, (1 - tail,)) if count < size else 1.0
    return float(low), float(high)
