"""Entropies and divergences: bounds bracket, estimates agree with closed forms."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch

from pyrovae.mixture.divergence import divergence, entropy, entropy_bounds, variational_divergence
from pyrovae.mixture.kernel import bhattacharyya, diagonal_normals
from pyrovae.mixture.mixture import Mixture

N, D = 24, 3


def islands(distance: float) -> Mixture:
    loc = distance * torch.randn(N, D)
    components = dist.Normal(loc, 0.2 + torch.rand(N, D)).to_event(1)
    return Mixture(dist.Categorical(torch.rand(N)), components)


def copies(loc: float = 0.0, scale: float = 1.5) -> Mixture:
    components = dist.Normal(torch.full((N, D), loc), scale).to_event(1)
    return Mixture(dist.Categorical(torch.rand(N)), components)


def test_entropy_of_far_islands_is_known_and_both_bounds_are_exact() -> None:
    mixture = islands(1e5)
    inner = mixture.weights @ mixture.component_distribution.entropy()
    exact = float(inner + torch.special.entr(mixture.weights).sum())
    bounds = entropy_bounds(mixture)
    assert bounds.lower.value == pytest.approx(exact, abs=1e-8)
    assert bounds.upper.value == pytest.approx(exact, abs=1e-8)
    estimate = entropy(mixture)
    assert abs(estimate.value - exact) < 4 * estimate.standard_error


def test_entropy_of_copies_is_that_of_one_and_both_bounds_are_exact() -> None:
    mixture = copies()
    exact = float(mixture.component(0).entropy())
    bounds = entropy_bounds(mixture)
    assert bounds.lower.value == pytest.approx(exact, abs=1e-8)
    assert bounds.upper.value == pytest.approx(exact, abs=1e-8)


@pytest.mark.parametrize("distance", [0.3, 1.0, 3.0])
def test_bounds_bracket_the_entropy_in_between(distance: float) -> None:
    mixture = islands(distance)
    bounds, estimate = entropy_bounds(mixture), entropy(mixture, draws=20_000)
    assert bounds.lower.value < estimate.value + 4 * estimate.standard_error
    assert bounds.upper.value > estimate.value - 4 * estimate.standard_error
    assert (bounds.lower.bound, bounds.upper.bound) == ("lower", "upper")


@pytest.mark.parametrize("sparse", [1.0, 0.0], ids=["near", "all"])
def test_bounds_from_pairs_equal_the_double_sum(
    sparse: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bhattacharyya, "TRIPLES", 256 * D * 5)
    monkeypatch.setattr(bhattacharyya, "SORTED_GROUPS", 2)
    monkeypatch.setattr(bhattacharyya, "SPARSE", sparse)
    monkeypatch.setattr(diagonal_normals, "GROUP", 4)
    mixture = islands(1.0)
    components, weights = mixture.component_distribution, mixture.weights
    normal = components.base_dist
    a, b = (
        dist.Normal(normal.loc.unsqueeze(i), normal.scale.unsqueeze(i)).to_event(1) for i in (1, 0)
    )
    pairwise = torch.distributions.kl_divergence(a, b)
    upper = weights @ (components.entropy() - ((-pairwise).exp() @ weights).log())
    mean_variance = (normal.variance.unsqueeze(1) + normal.variance) / 2
    distance = (normal.loc.unsqueeze(1) - normal.loc).square() / mean_variance / 8
    distance = distance + mean_variance.log() / 2
    distance = distance - normal.scale.log().unsqueeze(1) / 2 - normal.scale.log() / 2
    lower = weights @ (components.entropy() - ((-distance.sum(-1)).exp() @ weights).log())
    bounds = entropy_bounds(mixture)
    assert bounds.upper.value == pytest.approx(float(upper), abs=1e-9)
    assert -1e-9 - 1e-12 <= bounds.lower.value - float(lower) <= 1e-12


def test_bounds_from_some_components_are_estimates_of_those_from_all() -> None:
    mixture = islands(1.0)
    sampled, exact = entropy_bounds(mixture, rows=4000), entropy_bounds(mixture)
    for estimate, bound in ((sampled.lower, exact.lower), (sampled.upper, exact.upper)):
        assert estimate.standard_error > 0
        assert abs(estimate.value - bound.value) < 4 * estimate.standard_error
    assert exact.lower.standard_error == 0


def test_divergence_to_any_density() -> None:
    mixture, normal = copies(0.5, 1.5), dist.Normal(torch.zeros(D), 2.0).to_event(1)
    exact = torch.distributions.kl_divergence(mixture.component(0), normal)
    estimate = divergence(mixture, normal, draws=20_000)
    assert abs(estimate.value - float(exact)) < 4 * estimate.standard_error


def test_variational_divergence_is_exact_where_components_match() -> None:
    q, p = copies(0.0, 1.0), copies(1.0, 2.0)
    exact = torch.distributions.kl_divergence(q.component(0), p.component(0))
    assert variational_divergence(q, p).value == pytest.approx(float(exact), abs=1e-8)
    apart = islands(1e4)
    assert variational_divergence(apart, apart).value == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("distance", [0.3, 1.0, 3.0])
def test_variational_divergence_is_an_upper_bound_and_rounds_lower_it(distance: float) -> None:
    q, p = islands(distance), islands(distance)
    estimate = divergence(q, p, draws=20_000)
    bounds = [variational_divergence(q, p, rounds=rounds).value for rounds in (1, 3, 6)]
    assert bounds[0] > bounds[1] > bounds[2] > estimate.value - 4 * estimate.standard_error
    assert math.isfinite(bounds[0])


def test_other_families_are_referred_to_monte_carlo() -> None:
    full = Mixture(
        dist.Categorical(torch.ones(4)), dist.MultivariateNormal(torch.randn(4, D), torch.eye(D))
    )
    with pytest.raises(ValueError, match="MultivariateNormal"):
        entropy_bounds(full)
    assert entropy(full).standard_error > 0


@pytest.mark.parametrize("spread", [1.0, 1e2, 1e3])
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0])
def test_variational_divergence_holds_at_every_scale(scale: float, spread: float) -> None:
    """Islands of equal weights, shifted by half a scale: a closed form if they lie far apart."""
    loc = spread * (torch.arange(N).unsqueeze(-1) + torch.rand(N, D))
    q, p = (
        Mixture(dist.Categorical(torch.ones(N)), dist.Normal(centres, scale).to_event(1))
        for centres in (loc, loc + 0.5 * scale)
    )
    bound = variational_divergence(q, p)
    if spread / scale > 100:
        assert bound.value == pytest.approx(D * 0.125, abs=1e-5)  # loc + shift is rounded
        assert variational_divergence(q, q).value == pytest.approx(0.0, abs=1e-9)
    estimate = divergence(q, p)
    assert bound.value > estimate.value - 4 * estimate.standard_error


def test_divergences_refuse_what_is_not_one_number_a_draw() -> None:
    mixture = Mixture(
        dist.Categorical(torch.ones(N)), dist.Normal(torch.randn(N, 1), 1.0).to_event(1)
    )
    with pytest.raises(ValueError, match=r"expected one log density per draw.*to_event"):
        divergence(mixture, dist.Normal(torch.zeros(1), 1.0))
    with pytest.raises(ValueError, match="at least one round"):
        variational_divergence(mixture, mixture, rounds=0)


@pytest.mark.float32
def test_bounds_of_copies_are_exact_in_float32() -> None:
    components = dist.Normal(torch.zeros(N, 128), 1e-6 * (1 + torch.rand(128))).to_event(1)
    mixture = Mixture(dist.Categorical(torch.ones(N)), components)
    exact = float(components.base_dist.scale[0].double().log().sum()) + 64 * math.log(
        2 * math.pi * math.e
    )
    bounds = entropy_bounds(mixture)
    assert bounds.lower.value == pytest.approx(exact, abs=1e-6)
    assert bounds.upper.value == pytest.approx(exact, abs=1e-6)
