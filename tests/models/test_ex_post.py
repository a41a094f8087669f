"""The ex-post prior: what is tried, how it is scored, and which one is chosen."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyrovae.mixture.aggregated import AggregatedPosterior
from pyrovae.mixture.mixture import Mixture
from pyrovae.models.ex_post import fit_ex_post_prior, inflate

D = 4


def narrow_kernels(size: int) -> dist.Distribution:
    """Codes of standard normal data with a far too narrow encoder: a memorised density."""
    return dist.Normal(torch.randn(size, D), torch.full((size, D), 0.02)).to_event(1)


def test_inflation_adds_variance() -> None:
    agg = AggregatedPosterior(narrow_kernels(200))
    wide = inflate(agg, 0.3)
    spread = agg.encoding.mean.var(0, correction=0)
    torch.testing.assert_close(wide.mean, agg.mean)
    torch.testing.assert_close(wide.variance, agg.variance + 0.3 * spread)
    full = AggregatedPosterior(dist.MultivariateNormal(agg.encoding.mean, 4e-4 * torch.eye(D)))
    torch.testing.assert_close(inflate(full, 0.3).variance, wide.variance)
    z = agg.sample((5,))
    torch.testing.assert_close(inflate(full, 0.3).log_prob(z), wide.log_prob(z))


def test_memorised_density_is_smoothed() -> None:
    """The held-out density of what is chosen beats the raw mixture's by many standard errors."""
    agg, held_out = AggregatedPosterior(narrow_kernels(500)), narrow_kernels(300)
    found = fit_ex_post_prior(agg, held_out=held_out)
    raw = found.table[0]
    assert raw.amount == 0.0 and raw.difference.value < -4 * raw.difference.standard_error
    best = max(found.table, key=lambda row: row.held_out.value)
    assert best.difference.value == 0.0 and best.difference.standard_error == 0.0
    fresh = narrow_kernels(300).sample()
    assert found.distribution.log_prob(fresh).mean() > agg.log_prob(fresh).mean() + 10
    assert isinstance(found.distribution, Mixture) and found.choice in {r.name for r in found.table}


def test_choice_is_the_smoothest_within_one_standard_error() -> None:
    agg, held_out = AggregatedPosterior(narrow_kernels(500)), narrow_kernels(30)
    found = fit_ex_post_prior(
        agg,
        held_out=held_out,
        inflations=torch.linspace(0.1, 0.5, 30).tolist(),
        reductions=(),
        full_reductions=(),
    )
    close = [r for r in found.table if -r.difference.value <= r.difference.standard_error]
    chosen = next(r for r in found.table if r.name == found.choice)
    assert len(close) > 1 and chosen.amount == max(r.amount for r in close)


def test_reduced_mixtures_are_candidates_and_fewer_components_are_simpler() -> None:
    """Codes of three clusters: three wide normals beat kernels at every inflation."""
    centre = 5.0 * torch.randn(3, D)

    def encoding(size: int) -> dist.Distribution:
        loc = centre.repeat(size // 3, 1) + torch.randn(size // 3 * 3, D)
        return dist.Normal(loc, 0.02).to_event(1)

    agg = AggregatedPosterior(encoding(300))
    found = fit_ex_post_prior(
        agg, held_out=encoding(300), reductions=(3, 30, 101), full_reductions=(2,)
    )
    assert [row.components for row in found.table] == [300] * 8 + [3, 30, 2]
    assert found.choice == "reduced to 3 components" and found.distribution.size == 3


def test_seed_decides_the_draws_and_leaves_the_state() -> None:
    agg, held_out = AggregatedPosterior(narrow_kernels(50)), narrow_kernels(20)
    state = torch.get_rng_state()
    first = fit_ex_post_prior(agg, held_out=held_out, seed=3)
    assert (torch.get_rng_state() == state).all()
    assert first.table == fit_ex_post_prior(agg, held_out=held_out, seed=3).table
    assert first.table != fit_ex_post_prior(agg, held_out=held_out, seed=4).table


def test_bad_requests_say_what_to_do() -> None:
    agg, held_out = AggregatedPosterior(narrow_kernels(50)), narrow_kernels(20)
    with pytest.raises(ValueError, match="at least 0"):
        fit_ex_post_prior(agg, held_out=held_out, inflations=(-0.1,))
    discrete = AggregatedPosterior(dist.OneHotCategorical(logits=torch.randn(5, D)))
    with pytest.raises(ValueError, match="OneHotCategorical"):
        inflate(discrete, 0.1)


def test_components_that_are_not_normal_are_left_as_they_are() -> None:
    encoding = dist.LogNormal(torch.randn(40, 2), 0.3).to_event(1)
    found = fit_ex_post_prior(AggregatedPosterior(encoding), held_out=encoding)
    assert [row.name for row in found.table] == ["as it is"]
    with pytest.raises(ValueError, match="LogNormal"):
        fit_ex_post_prior(AggregatedPosterior(encoding), held_out=encoding, inflations=(0.1,))
