"""Fewer components: EM on components matches moments, climbs its bound and comes close."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch

from pyrovae.mixture.mixture import Mixture
from pyrovae.mixture.reduction import Reduction, reduce

N, D = 400, 3


def correlated() -> Mixture:
    loc = torch.randn(N, 1) * torch.tensor([1.0, 0.9, -0.8]) + 0.1 * torch.randn(N, D) + 5.0
    components = dist.Normal(loc, 0.05 + 0.1 * torch.rand(N, D)).to_event(1)
    return Mixture(dist.Categorical(torch.rand(N)), components)


def clusters(islands: int) -> Mixture:
    centre = 30.0 * torch.randn(islands, D)
    loc = centre.repeat_interleave(N // islands, 0) + 0.3 * torch.randn(N, D)
    return Mixture(dist.Categorical(torch.ones(N)), dist.Normal(loc, 0.2).to_event(1))


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_one_component_has_the_moments_of_the_mixture(covariance: str) -> None:
    mixture = correlated()
    found = reduce(mixture, 1, covariance=covariance).mixture
    # the moments of the diagonal case are summed in float32, relative to the mixture's own scale
    torch.testing.assert_close(found.mean, mixture.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.variance, mixture.variance, rtol=1e-4, atol=0)
    if covariance == "full":
        means, weights = mixture.component_distribution.mean, mixture.weights
        centred = means - mixture.mean
        expected = (weights * centred.mT) @ centred
        expected += torch.diag(weights @ mixture.component_distribution.variance)
        full = found.component_distribution.covariance_matrix[0]
        torch.testing.assert_close(full, expected)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_every_round_climbs_a_bound_on_the_expected_log_density(covariance: str) -> None:
    mixture = correlated()
    found = reduce(mixture, 6, covariance=covariance, rounds=40)
    gains = torch.tensor(found.bounds).diff()
    assert (gains > -1e-4).all() and found.bounds[-1] > found.bounds[0] + 0.1
    z = mixture.sample((4000,))
    log_prob = found.mixture.log_prob(z)
    assert found.bounds[-1] < log_prob.mean() + 4 * log_prob.std() / math.sqrt(4000)
    assert found.mixture.size == 6


def test_divergence_is_that_of_the_draws() -> None:
    """Against 20,000 other draws, within 4 standard errors of the difference."""
    mixture = correlated()
    found = reduce(mixture, 3)
    z = mixture.sample((20_000,))
    values = mixture.log_prob(z) - found.mixture.log_prob(z)
    error = math.hypot(found.divergence.standard_error, values.std() / math.sqrt(20_000))
    assert abs(found.divergence.value - values.mean()) < 4 * error
    assert found.divergence.over == "draws" and found.divergence.size == 4096


def test_islands_are_found() -> None:
    """Eight islands of near-normal shape: eight components lose little, four lose log 2 or more."""
    mixture = clusters(8)
    eight, four = reduce(mixture, 8), reduce(mixture, 4)
    assert eight.converged and eight.divergence.value < 0.5
    assert four.divergence.value > eight.divergence.value + math.log(2) - 0.1


def test_as_many_components_as_there_are_lose_nothing() -> None:
    loc = 20.0 * torch.randn(12, D)
    mixture = Mixture(dist.Categorical(torch.rand(12)), dist.Normal(loc, 0.5).to_event(1))
    assert abs(reduce(mixture, 12).divergence.value) < 1e-4


def test_full_covariances_fit_correlated_codes_better() -> None:
    mixture = correlated()
    full = reduce(mixture, 2, covariance="full").divergence.value
    assert full < reduce(mixture, 2).divergence.value - 0.1


def test_full_components_can_be_reduced() -> None:
    given = correlated()
    loc, variance = given.component_distribution.mean, given.component_distribution.variance
    same = Mixture(
        given.mixture_distribution, dist.MultivariateNormal(loc, torch.diag_embed(variance))
    )
    for covariance in ("diagonal", "full"):
        one, other = (reduce(m, 4, covariance=covariance, rounds=5) for m in (given, same))
        torch.testing.assert_close(one.mixture.mean, other.mixture.mean)
        torch.testing.assert_close(torch.tensor(one.bounds), torch.tensor(other.bounds))


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_shrinkage_pulls_towards_one_common_covariance(covariance: str) -> None:
    mixture = correlated()
    spread = []
    for shrinkage in (0.0, 20.0, 1e9):
        parts = reduce(mixture, 8, covariance=covariance, shrinkage=shrinkage).mixture
        of = parts.component_distribution
        covariances = of.covariance_matrix if covariance == "full" else of.variance
        spread.append(float(covariances.std(0).mean()))
        assert parts.size == 8
    assert spread[0] > spread[1] > spread[2] and spread[2] < 1e-6


def test_shrunk_full_covariances_hold_for_other_draws() -> None:
    """Few old components for each new one: held-out density gains by 10 standard errors."""
    loc = torch.randn(2 * N, 8) @ torch.randn(8, 8)
    seen, unseen = loc[:N], loc[N:]
    mixture = Mixture(dist.Categorical(torch.ones(N)), dist.Normal(seen, 0.1).to_event(1))
    raw, pulled = (
        reduce(mixture, 40, covariance="full", shrinkage=s).mixture.log_prob(unseen)
        for s in (0.0, 20.0)
    )
    gain = pulled - raw
    assert gain.mean() > 10 * gain.std() / math.sqrt(N)


def test_components_of_weight_zero_have_no_say() -> None:
    loc = torch.cat([torch.zeros(5, D), torch.full((5, D), 1e3)])
    weights = torch.cat([torch.ones(5), torch.zeros(5)])
    mixture = Mixture(dist.Categorical(weights), dist.Normal(loc, 1.0).to_event(1))
    assert reduce(mixture, 2).mixture.mean.abs().max() < 1e-5


def test_seed_decides() -> None:
    given = correlated()
    runs: list[Reduction] = [reduce(given, 5, seed=seed, rounds=3) for seed in (0, 0, 1)]
    assert runs[0].bounds == runs[1].bounds != runs[2].bounds


def test_bad_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 1 to 400 components; got 401"):
        reduce(correlated(), 401)
    with pytest.raises(ValueError, match="shrinkage of at least 0; got -1"):
        reduce(correlated(), 2, shrinkage=-1.0)
    numbers = Mixture(dist.Categorical(torch.ones(3)), dist.Normal(torch.zeros(3), 1.0))
    with pytest.raises(ValueError, match="over vectors"):
        reduce(numbers, 2)
