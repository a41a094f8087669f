"""The terms of the ELBO (Hoffman & Johnson 2016; Chen et al. 2018), with q_agg over all data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro.distributions as dist
from torch import Tensor

from pyrovae.diagnostics.draws import Codes
from pyrovae.diagnostics.unit_densities import unit_log_densities
from pyrovae.display import Result
from pyrovae.estimates import Estimate, mean_estimate, two_stage_mean
from pyrovae.mixture import Mixture

SATURATION = 0.05  # share of log N: index-code MI this close to log N says nothing else


@dataclass(frozen=True, repr=False)
class Surgery(Result):
    """The terms of the ELBO on one data set of N points, in nats per data point.

    All are means over the same draws z ~ q(z | x_n), so that elbo = −distortion − rate and
    rate = index_code_mi + marginal_kl hold exactly, and, where the prior factorises over units,
    marginal_kl = total_correlation + dimension_wise_kl too.

    Args:
        elbo: E[log p(x|z)] − rate.
        distortion: −E[log p(x|z)].
        rate: mean KL(q(z|x)‖p(z)).
        index_code_mi: I(n; z) = E[log q(z|x_n) − log q_agg(z)], at most ``log_n``.
        marginal_kl: KL(q_agg‖p).
        total_correlation: KL(q_agg‖Π_d q_agg,d), or ``None`` where the marginals of single units
            are not known, as when one latent site depends on another.
        dimension_wise_kl: Σ_d KL(q_agg,d‖p_d), or ``None`` where the marginals of q_agg or p are
            not known.
        unit_kl: KL(q_agg,d‖p_d) of each latent unit, or ``None`` as before.
        log_n: log N.
    """

    elbo: Estimate
    distortion: Estimate
    rate: Estimate
    index_code_mi: Estimate
    marginal_kl: Estimate
    total_correlation: Estimate | None
    dimension_wise_kl: Estimate | None
    unit_kl: tuple[Estimate, ...] | None
    log_n: float

    @property
    def saturated(self) -> bool:
        """Whether index-code MI lies within 5 % of log N, and so says nothing but log N."""
        return self.index_code_mi.value > (1 - SATURATION) * self.log_n

    @property
    def statement(self) -> str:
        """One sentence on what index-code MI says here."""
        mi = self.index_code_mi.value
        if self.saturated:
            return (
                f"Index-code MI is saturated: {mi:.2f} of at most log N = {self.log_n:.2f} nats. "
                "Every code belongs to one data point, and the number says nothing but log N."
            )
        return f"Index-code MI is {mi:.2f} of at most log N = {self.log_n:.2f} nats."


def surgery(
    codes: Codes,
    log_likelihood: Tensor,
    aggregated: Mixture,
    prior: dist.Distribution,
    *,
    unseen: bool = False,
) -> Surgery:
    """Split the ELBO of a data set into its terms.

    Args:
        codes: draws from the encodings of the data set.
        log_likelihood: log p(x_n | z) of each draw, shape ``(m, S)``.
        aggregated: q_agg of the same data set.
        prior: p(z), batch shape ``()`` or ``(1,)``.
        unseen: whether the data stand for new data: the standard errors of elbo, rate and
            distortion are then over data points; those of the terms with q_agg, which is itself
            made of these data, remain over draws.
    """
    log_aggregated = aggregated.log_prob(codes.z)
    log_prior = prior.log_prob(codes.z)
    log_marginals = unit_log_densities(aggregated, codes.z)
    log_prior_marginals = unit_log_densities(prior, codes.z)

    def over_draws(values: Tensor) -> Estimate:
        return two_stage_mean(values, population=codes.population, rows=codes.rows)

    def over_data(values: Tensor) -> Estimate:
        return mean_estimate(values.mean(1), rows=codes.rows) if unseen else over_draws(values)

    total_correlation, dimension_wise, units = None, None, None
    if log_marginals is not None:
        total_correlation = over_draws(log_aggregated - log_marginals.sum(-1))
    if log_marginals is not None and log_prior_marginals is not None:
        differences = log_marginals - log_prior_marginals
        dimension_wise = over_draws(differences.sum(-1))
        units = tuple(over_draws(unit) for unit in differences.unbind(-1))
    return Surgery(
        elbo=over_data(log_likelihood + log_prior - codes.log_guide),
        distortion=over_data(-log_likelihood),
        rate=over_data(codes.log_guide - log_prior),
        index_code_mi=over_draws(codes.log_guide - log_aggregated),
        marginal_kl=over_draws(log_aggregated - log_prior),
        total_correlation=total_correlation,
        dimension_wise_kl=dimension_wise,
        unit_kl=units,
        log_n=math.log(codes.population),
    )
