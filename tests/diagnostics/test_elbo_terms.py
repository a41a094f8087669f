"""The terms of the ELBO against closed forms, numerical integration and each other."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyrovae.diagnostics.draws import draw_codes
from pyrovae.diagnostics.elbo_terms import Surgery, surgery
from pyrovae.mixture.aggregated import AggregatedPosterior


def standard_normal(units: int) -> dist.Distribution:
    return dist.Normal(torch.zeros(units), 1.0).to_event(1)


def encoding(rows: int, units: int) -> dist.Distribution:
    return dist.Normal(torch.randn(rows, units), 0.2 + torch.rand(rows, units)).to_event(1)


def measured(q: dist.Distribution, p: dist.Distribution, size: int = 10**6) -> Surgery:
    codes = draw_codes(q, size=size)
    return surgery(codes, -codes.z.square().sum(-1), AggregatedPosterior(q), p)


def within(estimate: object, exact: float) -> None:
    assert estimate.value == pytest.approx(exact, abs=4 * estimate.standard_error)  # type: ignore


def integrate(function: Tensor, grid: Tensor) -> float:
    return float(torch.trapezoid(function, grid))


def test_terms_of_one_unit_against_integration() -> None:
    torch.manual_seed(1)
    q = encoding(2000, 1)
    result = measured(q, standard_normal(1))
    grid = torch.linspace(-12, 12, 20_001)
    log_components = dist.Normal(q.mean, q.stddev).log_prob(grid)  # (N, grid)
    log_aggregated = log_components.logsumexp(0) - math.log(2000)
    density = log_aggregated.exp()
    marginal = integrate(density * (log_aggregated - dist.Normal(0.0, 1.0).log_prob(grid)), grid)
    entropy = -integrate(density * log_aggregated, grid)
    conditional = float((0.5 * math.log(2 * math.pi * math.e) + q.stddev.log()).mean())
    within(result.marginal_kl, marginal)
    within(result.index_code_mi, entropy - conditional)
    within(result.rate, float(kl_divergence(q, standard_normal(1)).mean()))
    within(result.dimension_wise_kl, marginal)
    assert result.total_correlation.value == pytest.approx(0.0, abs=1e-9)
    within(result.distortion, float((q.variance + q.mean**2).mean()))


@pytest.mark.parametrize("size", [10**6, 100])
def test_identities_hold_in_the_numbers(size: int) -> None:
    result = measured(encoding(300, 4), standard_normal(4), size)
    assert result.rate.value == pytest.approx(
        result.index_code_mi.value + result.marginal_kl.value, abs=1e-9
    )
    assert result.elbo.value == pytest.approx(
        -result.distortion.value - result.rate.value, abs=1e-9
    )
    assert result.marginal_kl.value == pytest.approx(
        result.total_correlation.value + result.dimension_wise_kl.value, abs=1e-9
    )
    assert sum(unit.value for unit in result.unit_kl) == pytest.approx(
        result.dimension_wise_kl.value, abs=1e-9
    )


def test_separated_components_saturate_at_log_n() -> None:
    q = dist.Normal(torch.arange(50.0).unsqueeze(-1), 1e-3).to_event(1)
    result = measured(q, standard_normal(1))
    assert result.index_code_mi.value == pytest.approx(math.log(50), abs=1e-9)
    assert result.saturated


def test_collapsed_guide_knows_nothing() -> None:
    q = dist.Normal(torch.zeros(50, 3), torch.ones(50, 3)).to_event(1)
    result = measured(q, standard_normal(3))
    for term in ("rate", "index_code_mi", "marginal_kl", "total_correlation"):
        assert getattr(result, term).value == pytest.approx(0.0, abs=1e-9)
    assert not result.saturated


def test_mixture_prior_has_marginals_and_an_unknown_one_has_none() -> None:
    q = encoding(60, 2)
    same = measured(q, AggregatedPosterior(q))
    assert same.marginal_kl.value == pytest.approx(0.0, abs=1e-9)
    assert same.dimension_wise_kl.value == pytest.approx(0.0, abs=1e-9)
    unknown = dist.MultivariateNormal(torch.zeros(2), torch.eye(2))
    assert measured(q, unknown).unit_kl is None


def test_data_to_come_have_wider_errors_than_the_data_at_hand() -> None:
    q, p = encoding(400, 2), standard_normal(2)
    codes = draw_codes(q, size=10**6)
    zeros = torch.zeros_like(codes.log_guide)
    seen, unseen = (
        surgery(codes, zeros, AggregatedPosterior(q), p, unseen=flag) for flag in (False, True)
    )
    assert unseen.rate.over == "data"
    assert unseen.rate.standard_error > seen.rate.standard_error
    assert unseen.marginal_kl == seen.marginal_kl


def test_codes_are_drawn_at_distinct_points_and_scored_under_their_own() -> None:
    q = encoding(30, 2)
    codes = draw_codes(q, size=20)
    assert codes.z.shape == (10, 2, 2)
    assert len(codes.index.unique()) == 10
    component = dist.Normal(q.mean[codes.index[3]], q.stddev[codes.index[3]]).to_event(1)
    assert torch.allclose(codes.log_guide[3], component.log_prob(codes.z[3]))
    with pytest.raises(ValueError, match="at least 4 codes"):
        draw_codes(q, size=3)
