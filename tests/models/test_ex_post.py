"""The ex-post prior: what is tried, how it is scored, and which one is chosen."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch

from pyrovae.mixture.aggregated import AggregatedPosterior
from pyrovae.mixture.mixture import Mixture
from pyrovae.models.ex_post import default_candidates, fit_ex_post_prior
from pyrovae.models.smoothing import (
    Flow,
    Inflated,
    InflatedByUnit,
    Recipe,
    Reduced,
    inflate,
    leave_one_out_amounts,
)

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
    agg, held_out = AggregatedPosterior(narrow_kernels(300)), narrow_kernels(300)
    found = fit_ex_post_prior(agg, held_out=held_out)
    assert len(found.table) == len(default_candidates(agg))
    raw = found.table[0]
    assert raw.amount == 0.0 and raw.difference.value < -4 * raw.difference.standard_error
    best = max(found.table, key=lambda row: row.held_out.value)
    assert best.difference.value == 0.0 and best.difference.standard_error == 0.0
    fresh = narrow_kernels(300).sample()
    assert found.distribution.log_prob(fresh).mean() > agg.log_prob(fresh).mean() + 10
    assert isinstance(found.distribution, Mixture) and found.choice in {r.name for r in found.table}


def test_choice_is_the_smoothest_within_one_standard_error() -> None:
    agg, held_out = AggregatedPosterior(narrow_kernels(500)), narrow_kernels(30)
    recipes = [Inflated(h) for h in torch.linspace(0.1, 0.5, 30).tolist()]
    found = fit_ex_post_prior(agg, held_out=held_out, candidates=recipes)
    close = [r for r in found.table if -r.difference.value <= r.difference.standard_error]
    chosen = next(r for r in found.table if r.name == found.choice)
    assert len(close) > 1 and chosen.amount == max(r.amount for r in close)


def test_reduced_mixtures_are_candidates_and_fewer_numbers_are_simpler() -> None:
    """Codes of three clusters: three wide normals beat kernels at every inflation."""
    centre = 5.0 * torch.randn(3, D)

    def encoding(size: int) -> dist.Distribution:
        loc = centre.repeat(size // 3, 1) + torch.randn(size // 3 * 3, D)
        return dist.Normal(loc, 0.02).to_event(1)

    agg = AggregatedPosterior(encoding(300))
    recipes: list[Recipe] = [Inflated(h) for h in (0.01, 0.1, 1.0)]
    recipes += [Reduced(3), Reduced(30), Reduced(3, covariance="full", starts=2)]
    found = fit_ex_post_prior(agg, held_out=encoding(300), candidates=recipes)
    assert [row.components for row in found.table] == [300] * 3 + [3, 30, 6]
    assert [row.parameters for row in found.table] == [300 * 9 - 1] * 3 + [26, 269, 6 * 15 - 1]
    assert found.choice == "reduced to 3 components"
    assert isinstance(found.distribution, Mixture) and found.distribution.size == 3


def test_averages_of_shrunk_full_covariances_win_on_a_curved_surface() -> None:
    """Each step up, full covariance, shrinkage, averaging, gains on fresh codes of a surface."""
    bend = torch.randn(3, 8)

    def encoding(size: int) -> dist.Distribution:
        loc = torch.sin(2 * torch.randn(size, 3) @ bend) + 0.1 * torch.randn(size, 8)
        return dist.Normal(loc, 0.02).to_event(1)

    agg, held_out = AggregatedPosterior(encoding(600)), encoding(1000)
    one = Reduced(60, covariance="full", shrinkage=6.0)
    recipes = [Reduced(60), one, Reduced(60, covariance="full", shrinkage=6.0, starts=4)]
    found = fit_ex_post_prior(agg, held_out=held_out, candidates=recipes)
    diagonal, full, averaged = (row.difference for row in found.table)
    assert found.choice == "reduced to 60 components of full covariance, 4 averaged"
    assert averaged.value == 0
    assert diagonal.value < full.value < -4 * full.standard_error
    average = found.distribution
    assert isinstance(average, Mixture) and average.size == 240
    z = held_out.sample()
    parts = torch.stack([one.fit(agg, seed=seed).log_prob(z) for seed in range(4)])
    torch.testing.assert_close(average.log_prob(z), parts.logsumexp(0) - math.log(4))


def test_amounts_by_unit_follow_the_units() -> None:
    """A unit whose means lie on two points needs almost no smoothing; normal ones need much."""

    def encoding(size: int) -> dist.Distribution:
        loc = torch.randn(size, 3)
        loc[:, 0] = loc[:, 0].sign()
        return dist.Normal(loc, 0.05).to_event(1)

    agg = AggregatedPosterior(encoding(400))
    amount = leave_one_out_amounts(agg, steps=40, codes=128, seed=0)
    assert amount[0] < 0.5 * amount[1:].min() and (amount[1:] > 0.02).all()
    recipes: list[Recipe] = [Inflated(h) for h in (0.0, 0.02, 0.05, 0.1, 0.2, 0.5)]
    found = fit_ex_post_prior(agg, held_out=encoding(500), candidates=[*recipes, InflatedByUnit()])
    assert found.table[-1].difference.value == 0
    alike = AggregatedPosterior(dist.Normal(torch.zeros(5, 2), torch.ones(5, 2)).to_event(1))
    assert leave_one_out_amounts(alike, steps=2, codes=5, seed=0).isfinite().all()


def test_a_flow_is_a_candidate() -> None:
    """It is a normalised density, and learns a ring, which no single normal is."""
    angle = 6.28 * torch.rand(400)
    loc = torch.stack([3 * angle.cos() + 20, 0.3 * angle.sin()], -1)
    agg = AggregatedPosterior(dist.Normal(loc, torch.tensor([0.3, 0.03])).to_event(1))
    recipes = [Reduced(1, covariance="full"), Flow(150, layers=2, hidden=(16,), learning_rate=0.02)]
    found = fit_ex_post_prior(agg, held_out=agg.encoding, candidates=recipes)
    normal, flow = found.table
    assert found.choice == "a flow of 2 couplings" == flow.name and flow.components == 0
    assert flow.parameters > normal.parameters
    grid = torch.cartesian_prod(torch.linspace(10, 30, 400), torch.linspace(-1, 1, 400))
    total = found.distribution.log_prob(grid).exp().sum() * 20 / 399 * 2 / 399
    torch.testing.assert_close(total, torch.tensor(1.0), atol=0.02, rtol=0)
    z = found.distribution.sample((4000,))
    assert ((z.mean(0) - loc.mean(0)).abs() < 0.3 * loc.std(0)).all()
    again = fit_ex_post_prior(agg, held_out=agg.encoding, candidates=recipes)
    assert again.table == found.table


def test_defaults_fit_the_data_there_are() -> None:
    small = default_candidates(AggregatedPosterior(narrow_kernels(40)))
    assert max(r.components for r in small if isinstance(r, Reduced)) == 10
    images = AggregatedPosterior(dist.Normal(torch.randn(9, 2, 2), 1.0).to_event(2))
    assert all(isinstance(r, Inflated) for r in default_candidates(images))
    full = AggregatedPosterior(dist.MultivariateNormal(torch.randn(30, 2), torch.eye(2)))
    assert {type(r) for r in default_candidates(full)} == {Inflated, Reduced}
    assert len(fit_ex_post_prior(full, held_out=full.encoding).table) == 9


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
        Inflated(-0.1)
    with pytest.raises(ValueError, match="at least 1 component"):
        Reduced(0)
    with pytest.raises(ValueError, match="at least one candidate"):
        fit_ex_post_prior(agg, held_out=held_out, candidates=())
    discrete = AggregatedPosterior(dist.OneHotCategorical(logits=torch.randn(5, D)))
    with pytest.raises(ValueError, match="OneHotCategorical"):
        inflate(discrete, 0.1)
    full = AggregatedPosterior(dist.MultivariateNormal(torch.randn(5, D), torch.eye(D)))
    with pytest.raises(ValueError, match="diagonal normal components"):
        InflatedByUnit().fit(full, seed=0)


def test_components_that_are_not_normal_are_left_as_they_are() -> None:
    encoding = dist.LogNormal(torch.randn(40, 2), 0.3).to_event(1)
    agg = AggregatedPosterior(encoding)
    found = fit_ex_post_prior(agg, held_out=encoding)
    assert [row.name for row in found.table] == ["as it is"]
    with pytest.raises(ValueError, match="LogNormal"):
        fit_ex_post_prior(agg, held_out=encoding, candidates=[Inflated(0.1)])
