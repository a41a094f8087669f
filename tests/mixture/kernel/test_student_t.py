"""Mixtures of Student-t units: the fused log density is that of torch, however it is called."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyrovae.mixture.kernel.any_family import Components
from pyrovae.mixture.kernel.student_t import StudentTs
from pyrovae.mixture.mixture import Mixture

N, D = 1500, 19
DEGREES = {
    "one": torch.tensor(3.0),
    "of each component": 0.5 + 30 * torch.rand(N, 1),
    "of each unit": 0.5 + 30 * torch.rand(N, D),
}


def random_mixture(degrees: Tensor, shift: float = 0.0) -> Mixture:
    scale = (4 * torch.rand(N, D) - 6).exp()
    components = dist.StudentT(degrees, shift + torch.randn(N, D), scale).to_event(1)
    return Mixture(dist.Categorical(torch.rand(N)), components)


def by_torch(mixture: Mixture, z: Tensor) -> Tensor:
    base = mixture.component_distribution.base_dist
    units = torch.distributions.StudentT(base.df.double(), base.loc.double(), base.scale.double())
    components = torch.distributions.Independent(units, 1)
    weights = torch.distributions.Categorical(mixture.weights.double())
    plain = torch.distributions.MixtureSameFamily(weights, components)
    return torch.cat([plain.log_prob(part) for part in z.double().split(20)])


@pytest.mark.parametrize("degrees", DEGREES)
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_log_density_is_torch_s(degrees: str, shift: float) -> None:
    mixture = random_mixture(DEGREES[degrees], shift)
    assert isinstance(mixture._components(), StudentTs)
    z = torch.cat([mixture.sample((100,)), shift + 1e6 * torch.randn(20, D)])
    exact = by_torch(mixture, z)
    values = mixture._components().log_prob(z)
    torch.testing.assert_close(values, exact, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mixture.log_prob(z).double(), exact, rtol=1e-6, atol=1e-4)


def test_a_product_that_overflows_is_summed_unit_by_unit() -> None:
    mixture = random_mixture(DEGREES["one"])
    z = torch.full((3, D), 1e30, dtype=torch.float64)
    torch.testing.assert_close(mixture.log_prob(z), by_torch(mixture, z), rtol=1e-9, atol=1e-6)


def test_shares_and_the_rest_are_those_of_any_family() -> None:
    mixture = random_mixture(DEGREES["of each component"])
    z, left_out = mixture.sample((50,)), torch.arange(50)
    rest = torch.where(torch.arange(N) == left_out.unsqueeze(-1), 0.0, mixture.weights)
    components = Components(mixture.component_distribution, mixture.log_weights)
    scores = components.scores(z, slice(0, N))
    without = (scores + (rest / mixture.weights).log()).logsumexp(-1)
    without = without - rest.double().sum(-1).log()
    torch.testing.assert_close(
        mixture.leave_one_out_log_prob(z, left_out).double(), without, rtol=1e-6, atol=1e-4
    )
    share, index = scores.softmax(-1).topk(3)
    top = mixture.responsibilities(z, top=3)
    torch.testing.assert_close(top.weight.double(), share, rtol=0.0, atol=1e-5)
    apart = share.diff().abs().amin(-1) > 1e-4
    assert torch.equal(top.index[apart], index[apart])


def test_gradients_reach_points_and_parameters() -> None:
    mixture = random_mixture(DEGREES["one"])
    z = mixture.sample((20,)).requires_grad_()
    (score,) = torch.autograd.grad(mixture.log_prob(z).sum(), z)
    torch.testing.assert_close(score, mixture.score(z.detach()))
    exact = z.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(by_torch(mixture, exact).sum(), exact)
    torch.testing.assert_close(score.double(), expected, rtol=1e-4, atol=1e-4)
    base = mixture.component_distribution.base_dist
    loc = base.loc.clone().requires_grad_()
    learned = Mixture(
        mixture.mixture_distribution, dist.StudentT(base.df, loc, base.scale).to_event(1)
    )
    learned.log_prob(z.detach()).sum().backward()
    assert loc.grad is not None
    torch.testing.assert_close(-loc.grad.sum(0), score.sum(0), rtol=1e-3, atol=1e-3)


def test_weights_of_zero_and_changes_in_place() -> None:
    mixture = random_mixture(DEGREES["one"])
    z = mixture.sample((20,))
    base = mixture.component_distribution.base_dist
    weights = torch.cat([torch.zeros(3), torch.ones(N - 3)])
    broken = base.loc.clone()
    broken[:3] = torch.nan
    components = dist.StudentT(3.0, broken, base.scale, validate_args=False).to_event(1)
    with_zeros = Mixture(dist.Categorical(weights), components)
    rest = Mixture(
        dist.Categorical(torch.ones(N - 3)),
        dist.StudentT(3.0, base.loc[3:], base.scale[3:]).to_event(1),
    )
    torch.testing.assert_close(with_zeros.log_prob(z), rest.log_prob(z))
    before = mixture.log_prob(z)
    base.loc.data.add_(1.0)
    torch.testing.assert_close(mixture.log_prob(z + 1.0), before, rtol=1e-4, atol=1e-3)
