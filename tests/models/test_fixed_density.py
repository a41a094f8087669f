"""A fixed density of any family can be moved, cast, copied, saved and loaded as any module."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.mixture.mixture import Mixture
from pyrovae.models.fixed_density import Fixed
from pyrovae.pairs.pair import Pair


def normals(number: int = 5) -> dist.Distribution:
    return dist.Normal(torch.randn(number, 2), torch.rand(number, 2) + 0.5).to_event(1)


def transformed(*steps: object) -> dist.Distribution:
    return dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), [*steps])


WEIGHTS = torch.tensor([1.0, 0.0, 2.0, 3.0, 4.0])
DENSITIES: dict[str, Callable[[], dist.Distribution]] = {
    "normal": lambda: dist.Normal(torch.zeros(2), 2.0).to_event(1),
    "aggregated": lambda: pv.AggregatedPosterior(normals(), WEIGHTS),
    "mixture": lambda: Mixture(dist.Categorical(WEIGHTS), normals()),
    "Pyro's mixture": lambda: dist.MixtureSameFamily(dist.Categorical(WEIGHTS), normals()),
    "full mixture": lambda: Mixture(
        dist.Categorical(torch.ones(3)),
        dist.MultivariateNormal(torch.randn(3, 2), scale_tril=torch.eye(2)),
    ),
    "expanded mixture": lambda: Mixture(dist.Categorical(WEIGHTS), normals()).expand([1]),
    "full normal": lambda: dist.MultivariateNormal(torch.ones(2), torch.eye(2)),
    "low rank": lambda: dist.LowRankMultivariateNormal(
        torch.zeros(2), torch.ones(2, 1), torch.ones(2)
    ),
    "Student": lambda: dist.StudentT(torch.tensor(3.0), torch.zeros(2), 1.0).to_event(1),
    "spline flow": lambda: pv.FlowPrior(2)(),
    "affine flow": lambda: transformed(transforms.affine_coupling(2, hidden_dims=[4])),
    "numbers": lambda: transformed(transforms.AffineTransform(1.0, 2.0)),
    "tensors": lambda: transformed(
        transforms.AffineTransform(torch.ones(2), torch.tensor([2.0, 3.0]), event_dim=1)
    ),
    "composed": lambda: transformed(
        transforms.ComposeTransform(
            [transforms.AffineTransform(torch.ones(2), torch.full((2,), 3.0), event_dim=1)]
        )
    ),
}
Z = torch.randn(7, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.fixture(params=DENSITIES)
def density(request: pytest.FixtureRequest) -> dist.Distribution:
    return DENSITIES[request.param]()


def close(first: Tensor, second: Tensor, tolerance: float = 1e-12) -> bool:
    return torch.allclose(first.detach().double(), second.detach().double(), tolerance, tolerance)


def nudged(fixed: Fixed) -> Fixed:
    """A copy with other numbers, written so that torch's version counters do not show it."""
    other = copy.deepcopy(fixed)
    for tensor in (*other.buffers(), *other.parameters()):
        if tensor.is_floating_point():
            tensor.data.mul_(1.1)
    return other


def test_it_is_the_density_that_was_given(density: dist.Distribution) -> None:
    fixed = Fixed(density)
    assert close(fixed().log_prob(Z), density.log_prob(Z))
    assert type(fixed()) is type(density) and fixed().batch_shape == density.batch_shape
    assert fixed() is fixed()  # so that a mixture's caches are of use


def test_it_is_cast(density: dist.Distribution) -> None:
    fixed = Fixed(density).float()
    assert fixed().sample((2,)).dtype == torch.float32
    assert close(fixed().log_prob(Z.float()), density.log_prob(Z), 1e-4)
    assert fixed.double()().sample((2,)).dtype == torch.float64


def test_its_state_is_saved_and_loaded(density: dist.Distribution, tmp_path: Path) -> None:
    other = nudged(Fixed(density))
    changed = other().log_prob(Z)
    assert not close(changed, density.log_prob(Z), 1e-3)
    torch.save(other.state_dict(), tmp_path / "state.pt")
    fixed = Fixed(density)
    fixed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert close(fixed().log_prob(Z), changed)


def test_the_density_that_was_given_stays_as_it_is(density: dist.Distribution) -> None:
    before = density.log_prob(Z)
    fixed = Fixed(density)
    fixed.load_state_dict(nudged(fixed).state_dict())
    fixed.float()
    assert close(density.log_prob(Z), before)


def test_nothing_in_it_is_learned(density: dist.Distribution) -> None:
    assert not any(parameter.requires_grad for parameter in Fixed(density).parameters())
    z = Z.clone().requires_grad_()
    Fixed(density)().log_prob(z).sum().backward()
    assert z.grad is not None and bool((z.grad != 0).any())


def test_what_is_done_with_the_tensors_later_does_not_reach_it() -> None:
    loc = torch.zeros(2, requires_grad=True)
    fixed = Fixed(dist.Normal(loc, 1.0).to_event(1))
    loc.data.fill_(5.0)
    assert close(fixed().mean, torch.zeros(2))


def test_a_vae_with_a_found_prior_is_cast_and_saved_as_a_whole() -> None:
    x = torch.rand(40, 6)
    vae = pv.VAE(pv.mlp_encoder((6,), 2), pv.mlp_decoder(2, (6,), "normal"), pv.StandardNormal(2))
    agg = pv.aggregate(vae.guide, x)
    ex_post_prior = pv.fit_ex_post_prior(
        agg,
        held_out=pv.encode(vae.guide, x[:9]),
        candidates=[pv.Inflated(0.2), pv.Inflated(0.5)],
        progress=False,
    )
    other = vae.with_prior(ex_post_prior)
    _, expected = Pair(other.model, other.guide).log_joint(x[:7], Z)
    single = copy.deepcopy(other).float()
    _, log_prior = Pair(single.model, single.guide).log_joint(x[:7].float(), Z.float())
    assert log_prior.dtype == torch.float32 and close(log_prior, expected, 1e-4)
    fresh = vae.with_prior(nudged(other.prior)())
    fresh.load_state_dict(other.state_dict())
    assert close(Pair(fresh.model, fresh.guide).log_joint(x[:7], Z)[1], expected)


class Opaque(dist.TorchDistribution):
    """A density without attributes that it could be rebuilt from."""

    arg_constraints: ClassVar[dict[str, object]] = {}
    support = dist.constraints.real_vector

    def __init__(self) -> None:
        super().__init__(torch.Size(), torch.Size([2]), validate_args=False)

    def sample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        return torch.zeros(*sample_shape, 2)

    def log_prob(self, value: Tensor) -> Tensor:
        return -value.square().sum(-1)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "Opaque":
        return self


def test_a_density_that_cannot_be_taken_apart_is_not_moved_in_silence() -> None:
    vae = pv.VAE(pv.mlp_encoder((6,), 2), pv.mlp_decoder(2, (6,), "normal"), Opaque())
    assert vae.double() is vae and isinstance(vae.prior, Fixed)  # already float64
    with pytest.raises(ValueError, match=r"prior made of parameter tensors.*Opaque"):
        vae.float()
    assert close(copy.deepcopy(vae).prior().log_prob(Z), -Z.square().sum(-1))
    assert isinstance(vae.prior, nn.Module)
