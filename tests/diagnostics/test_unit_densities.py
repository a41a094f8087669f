"""Interpolated log densities of single units are those of the mixture."""

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.diagnostics import unit_densities
from pyrovae.diagnostics.unit_densities import interpolated, unit_log_densities


@pytest.mark.parametrize("scales", [(0.3, 0.3), (0.2, 1.5)], ids=["even", "uneven"])
def test_units_of_a_large_mixture_have_the_density_of_its_marginals(
    scales: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    scale = torch.empty(300, 3).uniform_(*scales)
    agg = pv.AggregatedPosterior(dist.Normal(torch.randn(300, 3), scale).to_event(1))
    z = agg.sample((1500, 2))
    exact = unit_log_densities(agg, z)
    monkeypatch.setattr(unit_densities, "MANY_PAIRS", 1)
    found = unit_log_densities(agg, z)
    assert exact is not None and found is not None
    assert found.shape == exact.shape and found.dtype == exact.dtype
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found, exact, atol=1e-4, rtol=0)


def test_few_numbers_are_evaluated_and_those_in_a_gap_themselves() -> None:
    # Halfway between two components 30 scales apart log p has a kink that no polynomial follows.
    weights = dist.Categorical(torch.ones(2))
    mixture = pv.Mixture(weights, dist.Normal(torch.tensor([0.0, 30.0]), 1.0))
    z = torch.cat([mixture.sample((4000,)), torch.linspace(14.6, 15.4, 9)])
    evaluated = list[Tensor]()

    def log_prob(numbers: Tensor) -> Tensor:
        evaluated.append(numbers)
        return mixture.log_prob(numbers)

    found = interpolated(log_prob, z, width=1.0)
    torch.testing.assert_close(found, mixture.log_prob(z), atol=1e-4, rtol=0)
    nodes, left = evaluated
    assert len(nodes) < len(z) / 10
    assert bool((z[-9:].unsqueeze(1) == left).any(1).all()) and len(left) < 20


def test_far_apart_numbers_are_evaluated_themselves() -> None:
    normal, z = dist.Normal(0.0, 1.0), torch.linspace(-3.0, 3.0, 50)
    assert torch.equal(interpolated(normal.log_prob, z, width=1e-3), normal.log_prob(z))
