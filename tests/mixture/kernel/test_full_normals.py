"""Mixtures of full normals: the fast log density is that of torch, however it is called."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch

import pyrovae as pv
from pyrovae.mixture.aggregated import AggregatedPosterior
from pyrovae.mixture.kernel import full_normals
from pyrovae.mixture.kernel.full_normals import FullNormals
from pyrovae.mixture.mixture import Mixture

N, D = 30, 5


def random_mixture(shift: float = 0.0) -> Mixture:
    factor = 0.3 * torch.randn(N, D, D).tril(-1) + torch.diag_embed(0.05 + torch.rand(N, D))
    components = dist.MultivariateNormal(shift + torch.randn(N, D), scale_tril=factor)
    return Mixture(dist.Categorical(torch.rand(N)), components)


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_log_density_is_torch_s(shift: float) -> None:
    mixture = random_mixture(shift)
    components = mixture.component_distribution
    plain = torch.distributions.MixtureSameFamily(
        mixture.mixture_distribution,
        torch.distributions.MultivariateNormal(components.loc, components.covariance_matrix),
    )
    z = torch.cat([mixture.sample((500,)), shift + 30 * torch.randn(500, D)])
    torch.testing.assert_close(mixture.log_prob(z), plain.log_prob(z), rtol=1e-9, atol=1e-7)
    nested = z.view(10, 100, D)
    torch.testing.assert_close(mixture.log_prob(nested).flatten(), mixture.log_prob(z))
    assert mixture.expand((1000,)).log_prob(z).shape == (1000,)


def test_gradients_reach_points_and_parameters() -> None:
    mixture = random_mixture()
    z = mixture.sample((20,)).requires_grad_()
    (score,) = torch.autograd.grad(mixture.log_prob(z).sum(), z)
    torch.testing.assert_close(score, mixture.score(z.detach()))
    loc = mixture.component_distribution.loc.clone().requires_grad_()
    factor = mixture.component_distribution.scale_tril
    learned = Mixture(mixture.mixture_distribution, dist.MultivariateNormal(loc, scale_tril=factor))
    learned.log_prob(z.detach()).sum().backward()
    assert loc.grad is not None and loc.grad.abs().sum() > 0


def test_weights_of_zero_copies_and_changes_in_place() -> None:
    mixture = random_mixture()
    z = mixture.sample((20,))
    value = mixture.log_prob(z)
    for copied in (copy.deepcopy(mixture), pickle.loads(pickle.dumps(mixture))):
        torch.testing.assert_close(copied.log_prob(z), value)
        with torch.no_grad():
            copied.component_distribution.loc.add_(1.0)
        torch.testing.assert_close(copied.log_prob(z + 1.0), value)
    weights = torch.cat([torch.zeros(3), torch.ones(N - 3)])
    components = mixture.component_distribution
    with_zeros = Mixture(dist.Categorical(weights), components)
    rest = dist.MultivariateNormal(components.loc[3:], scale_tril=components.scale_tril[3:])
    expected = Mixture(dist.Categorical(torch.ones(N - 3)), rest)
    torch.testing.assert_close(with_zeros.log_prob(z), expected.log_prob(z))


@pytest.mark.parametrize("chunk", [full_normals.CHUNK, 64])
def test_reloaded_it_is_as_fast_and_the_same_in_blocks(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full_normals, "CHUNK", chunk)
    mixture = random_mixture()
    z = mixture.sample((20,)).requires_grad_()
    pv.save(AggregatedPosterior(mixture.component_distribution, mixture.weights), tmp_path / "q")
    loaded = pv.load(tmp_path / "q")
    monkeypatch.setattr(FullNormals, "solve", None)  # must not be called
    value = loaded.log_prob(z)
    plain = torch.distributions.MixtureSameFamily(
        mixture.mixture_distribution, mixture.component_distribution
    )
    torch.testing.assert_close(value, plain.log_prob(z))
    torch.testing.assert_close(
        torch.autograd.grad(value.sum(), z), torch.autograd.grad(plain.log_prob(z).sum(), z)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_products_cancel_equations_are_solved(dtype: torch.dtype) -> None:
    """Narrow components far apart: (z - mean)² / σ² is 1e14 times the log density of the best."""
    eye = torch.eye(D, dtype=dtype)
    loc = torch.randint(-1000, 1000, (N, D)).to(dtype)
    components = dist.MultivariateNormal(loc, scale_tril=(2.0**-12 * eye).expand(N, D, D))
    mixture = Mixture(dist.Categorical(torch.ones(N, dtype=dtype)), components)
    z = loc + 2.0**-12 * torch.randn(N, D, dtype=dtype)
    expected = torch.distributions.Normal(loc.double(), 2.0**-12).log_prob(z.double()).sum(-1)
    actual = mixture.log_prob(z)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected - math.log(N), rtol=1e-6, atol=1e-5)
