"""The same densities on every device, without a number for each pair of point and component."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyrovae.mixture.kernel.diagonal_normals import TOLERANCE
from pyrovae.mixture.mixture import Mixture

N, D, B = 40_000, 10, 3_000
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU in this machine"),
    ),
]


def mixture_on(device: str) -> tuple[Mixture, Tensor]:
    loc, scale = torch.randn(N, D), 0.05 + 0.25 * torch.rand(N, D)
    index = torch.randint(N, (B,))
    z = loc[index] + scale[index] * torch.randn(B, D)
    components = dist.Normal(loc.to(device), scale.to(device)).to_event(1)
    return Mixture(dist.Categorical(torch.ones(N, device=device)), components), z.to(device)


def by_differences(mixture: Mixture, z: Tensor) -> Tensor:
    base = mixture.component_distribution.base_dist
    normals = torch.distributions.Normal(base.loc.double(), base.scale.double())
    scores = normals.log_prob(z.double().unsqueeze(1)).sum(-1) + mixture.log_weights.double()
    return scores.logsumexp(-1)


@pytest.mark.parametrize("device", DEVICES)
def test_density_and_shares_are_those_of_brute_force(device: str) -> None:
    mixture, z = mixture_on(device)
    exact = by_differences(mixture, z[:20])
    for _ in range(2):  # the second call has keys that are cached
        value = mixture.log_prob(z)
        assert value.device.type == device
        rounding = exact.abs() * torch.finfo(value.dtype).eps
        assert bool(
            ((value[:20].double() - exact).abs() <= TOLERANCE[value.dtype] + rounding).all()
        )
    share = mixture.responsibilities(z[:20], top=3)
    best = by_components(mixture, z[:20], share.index) - exact.unsqueeze(-1)
    torch.testing.assert_close(share.weight.double(), best.exp(), rtol=1e-4, atol=1e-5)


def by_components(mixture: Mixture, z: Tensor, index: Tensor) -> Tensor:
    base = mixture.component_distribution.base_dist
    normals = torch.distributions.Normal(base.loc[index].double(), base.scale[index].double())
    return normals.log_prob(z.double().unsqueeze(1)).sum(-1) + mixture.log_weights[index].double()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU in this machine")
def test_a_gpu_never_holds_all_pairs() -> None:
    mixture, z = mixture_on("cuda")
    mixture.log_prob(z)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    mixture.log_prob(z.repeat(10, 1))
    assert torch.cuda.max_memory_allocated() - before < 4 * 10 * B * N / 2
