"""How much a code tells about its data point, in the population and not only in one data set."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.diagnostics.draws import Codes
from pyrovae.diagnostics.elbo_terms import SATURATION
from pyrovae.display import Result
from pyrovae.estimates import Estimate, mean_estimate
from pyrovae.mixture import AggregatedPosterior, Mixture


@dataclass(frozen=True, repr=False)
class Information(Result):
    """Bounds on I(x; z) of new data and their codes under the fixed encoder, in nats.

    Args:
        lower: a bound from below, at most log N.
        upper: a bound from above: the held-out rate under a density fitted to other data.
        log_n: log N of the data that the lower bound was computed on.
    """

    lower: Estimate
    upper: Estimate
    log_n: float

    @property
    def saturated(self) -> bool:
        """Whether the lower bound lies within 5 % of log N, and so says nothing but log N."""
        return self.lower.value > (1 - SATURATION) * self.log_n

    @property
    def statement(self) -> str:
        """One sentence on the bounds of I(x; z)."""
        if reason := self.lower.unresolved or self.upper.unresolved:
            return f"Bounds of I(x; z): {reason}."
        bounds = f"I(x; z) lies between {self.lower.value:.2f} and {self.upper.value:.2f} nats"
        if self.saturated:
            return (
                f"{bounds}, but the lower bound is saturated: it cannot exceed log N = "
                f"{self.log_n:.2f}, and says nothing else."
            )
        return f"{bounds}."


def information(codes: Codes, aggregated: AggregatedPosterior, fitted: Mixture) -> Information:
    r"""Bound I(x; z) on both sides with data that neither encoder nor ``fitted`` were made from.

    .. math:: E\Big[\log \frac{q(z_i|x_i)}{\tfrac1N \sum_j q(z_i|x_j)}\Big] \le I(x; z)
              \le E\Big[\log \frac{q(z|x)}{r(z)}\Big]

    The lower bound is InfoNCE with the conditional density known, j = i included; the upper bound
    holds for every fixed density r, and is too high by KL(q‖r) for the population's aggregated q.

    Args:
        codes: draws from the encodings of N held-out data points.
        aggregated: q_agg of the same N data points, of equal weights.
        fitted: r, a density over codes made from other data, such as the ex-post prior.

    Poole et al. 2019, "On variational bounds of mutual information".
    """
    rate = (codes.log_guide - fitted.log_prob(codes.z)).mean(1)
    return Information(
        lower=_lower_bound(codes, aggregated),
        upper=mean_estimate(rate, bound="upper"),
        log_n=math.log(codes.population),
    )


def _lower_bound(codes: Codes, aggregated: AggregatedPosterior) -> Estimate:
    """Mean of log q(z_i|x_i) − log q_agg(z_i), with its error over data sets.

    A data point counts twice, with its own value and as a component that raises q_agg at all codes:
    its influence is the sum of both (the infinitesimal jackknife, Efron 1982).
    """
    n, m = codes.population, len(codes.index)
    values = (codes.log_guide - aggregated.log_prob(codes.z)).mean(1).double()
    influence = 1 - n / m * _total_responsibility(codes.z, aggregated)
    influence[codes.index] += n / m * (values - values.mean())
    # Influences sum to 0; with the mean added they are averaged like independent values.
    return replace(mean_estimate(values.mean() + influence, bound="lower"), size=m)


def _total_responsibility(z: Tensor, aggregated: AggregatedPosterior) -> Tensor:
    """Σ_i r_n(z_i), averaged over the draws at a data point, for every component, shape ``(N,)``.

    It is the derivative of Σ_i log q_agg(z_i) in log w_n, from one pass through the mixture.
    """
    log_weights = aggregated.log_weights.detach().clone()
    with torch.enable_grad():
        log_weights.requires_grad_()
        mixture = Mixture(dist.Categorical(logits=log_weights), aggregated.encoding)
        total = mixture.log_prob(z).sum() / z.shape[1]
        (gradient,) = torch.autograd.grad(total, log_weights)
    # logits are normalised: the derivative lacks the mean responsibility, w_n for each point
    return gradient.double() + aggregated.weights.double() * len(z)
