"""Which components explain a point, how many, and the density without one of them."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyrovae.mixture.kernel import diagonal_normals, search
from pyrovae.mixture.mixture import Mixture

N, D = 45, 3


def make(family: str) -> Mixture:
    loc = torch.randn(N, D)
    components = {
        "diagonal": dist.Normal(loc, 0.3).to_event(1),
        "full": dist.MultivariateNormal(loc, 0.1 * torch.eye(D).expand(N, D, D)),
    }[family]
    weights = torch.rand(N)
    weights[::7] = 0.0
    weights[5] = 1e9
    return Mixture(dist.Categorical(weights), components)


@pytest.fixture(params=["diagonal", "full"])
def mixture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Mixture:
    monkeypatch.setattr(diagonal_normals, "GROUP", 8)
    monkeypatch.setattr(diagonal_normals, "BLOCK", 8)
    monkeypatch.setattr("pyrovae.mixture.kernel.any_family.BLOCK_BYTES", 1500)
    return make(request.param)


def joint(mixture: Mixture, z: Tensor) -> Tensor:
    return mixture.component_distribution.log_prob(z.unsqueeze(-2)) + mixture.log_weights


def test_top_responsibilities(mixture: Mixture) -> None:
    z = torch.randn(2, 5, D)
    expected = joint(mixture, z).softmax(-1).topk(6)
    top = mixture.responsibilities(z, top=6)
    torch.testing.assert_close(top.weight, expected.values)
    assert (top.index == expected.indices)[top.weight > 0].all()
    assert mixture.responsibilities(z[0, 0], top=10**6).weight.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("spread", [1.0, -1.0], ids=["searched", "everything"])
@pytest.mark.parametrize("scale", [1e-7, 0.05, 1.0, 30.0])
@pytest.mark.float32
def test_top_responsibilities_of_many(
    scale: float, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups are reordered and searched in float32, with copies and weights of zero among them."""
    monkeypatch.setattr(search, "SPREAD", spread)
    monkeypatch.setattr(diagonal_normals, "GROUP", 16)
    loc = torch.randn(1500, D)
    loc[700:712] = loc[0]
    weights = torch.rand(1500)
    weights[::5] = 0.0
    mixture = Mixture(dist.Categorical(weights), dist.Normal(loc, scale).to_event(1))
    z = torch.cat([mixture.sample((40,)), 30 * torch.randn(3, D), loc[:1]])
    joint = dist.Normal(loc.double(), mixture.component(0).base_dist.scale.double()).to_event(1)
    scores = joint.log_prob(z.double().unsqueeze(1)) + mixture.log_weights.double()
    expected = scores.softmax(-1).topk(9)
    top = mixture.responsibilities(z, top=9)
    torch.testing.assert_close(top.weight.double(), expected.values, atol=1e-4, rtol=1e-4)
    reported = scores.softmax(-1).gather(1, top.index)
    torch.testing.assert_close(reported, expected.values, atol=1e-6, rtol=1e-5)
    assert all(len(set(row)) == 9 for row in top.index.tolist())


@pytest.mark.float32
def test_responsibilities_far_out_sum_to_one() -> None:
    """At log densities of −5e9, which float32 rounds to hundreds of nats."""
    loc = torch.tensor([[0.0], [1e-3], [2e-3]])
    mixture = Mixture(dist.Categorical(torch.ones(3)), dist.Normal(loc, 1.0).to_event(1))
    top = mixture.responsibilities(torch.tensor([[1e5]]), top=3)
    assert top.index.tolist() == [[2, 1, 0]]
    assert top.weight.sum() == pytest.approx(1.0, abs=1e-4)


def test_effective_components(mixture: Mixture) -> None:
    z = torch.randn(2, 5, D)
    share = joint(mixture, z).softmax(-1)
    entropy = torch.special.entr(share).sum(-1)
    torch.testing.assert_close(mixture.effective_components(z), entropy.exp())


def test_effective_components_of_copies_and_of_islands() -> None:
    z = torch.zeros(1, 2)
    same = Mixture(dist.Categorical(torch.ones(9)), dist.Normal(torch.zeros(9, 2), 1.0).to_event(1))
    torch.testing.assert_close(same.effective_components(z), torch.full((1,), 9.0))
    loc = 100 * torch.arange(9.0).unsqueeze(-1).expand(9, 2)
    apart = Mixture(dist.Categorical(torch.ones(9)), dist.Normal(loc, 1.0).to_event(1))
    torch.testing.assert_close(apart.effective_components(z), torch.ones(1))


def test_leave_one_out(mixture: Mixture) -> None:
    """Also for component 5, which carries all but 1e-8 of the mass, and one of weight zero."""
    n = torch.tensor([0, 1, 5, 5, 44, 7])
    z = mixture.component_distribution.mean[n]
    without = joint(mixture, z)
    without[torch.arange(len(n)), n] = -math.inf
    weights = mixture.weights.expand(len(n), N).clone()
    weights[torch.arange(len(n)), n] = 0.0
    expected = without.logsumexp(-1) - weights.sum(-1).log()
    torch.testing.assert_close(mixture.leave_one_out_log_prob(z, n), expected)
    torch.testing.assert_close(
        mixture.leave_one_out_log_prob(z, torch.tensor(5))[2:4], expected[2:4]
    )


@pytest.mark.float32
def test_leave_one_out_in_float32_keeps_the_accuracy_of_what_is_left() -> None:
    """Component n is 10⁴ nats above the rest, which must still be right to 1e-4."""
    loc = torch.randn(3000, 20)
    mixture = Mixture(dist.Categorical(torch.ones(3000)), dist.Normal(loc, 0.05).to_event(1))
    n = torch.arange(0, 3000, 100)
    scores = dist.Normal(loc.double(), mixture.component(0).base_dist.scale[0].double())
    scores = scores.to_event(1).log_prob(loc[n].double().unsqueeze(1))
    scores[torch.arange(len(n)), n] = -math.inf
    expected = scores.logsumexp(-1) - math.log(2999)
    actual = mixture.leave_one_out_log_prob(loc[n], n).double()
    assert ((actual - expected).abs() <= 1e-4 + 1e-7 * expected.abs()).all()


def test_leave_one_out_needs_a_rest() -> None:
    alone = Mixture(dist.Categorical(torch.ones(1)), dist.Normal(torch.zeros(1), 1.0))
    with pytest.raises(ValueError, match="expected another component"):
        alone.leave_one_out_log_prob(torch.zeros(2), torch.tensor(0))
    with pytest.raises(ValueError, match="expected components from 0 to 0; got 1"):
        alone.leave_one_out_log_prob(torch.zeros(2), torch.tensor(1))


@pytest.mark.parametrize("family", ["low rank", "laplace", "student"])
@pytest.mark.float32
def test_responsibilities_of_any_family_sum_to_one_in_float32(family: str) -> None:
    loc = torch.randn(N, 20)
    components = {
        "low rank": lambda: dist.LowRankMultivariateNormal(
            loc, 0.1 * torch.randn(N, 20, 2), 0.01 + torch.rand(N, 20)
        ),
        "laplace": lambda: dist.Laplace(loc, 1e-3).to_event(1),
        "student": lambda: dist.StudentT(3.0, loc, 0.1).to_event(1),
    }[family]()
    mixture = Mixture(dist.Categorical(torch.ones(N)), components)
    z = torch.cat([mixture.sample((20,)), torch.full((2, 20), 1e4)])
    total = mixture.responsibilities(z, top=N).weight.sum(-1)
    torch.testing.assert_close(total, torch.ones(22), rtol=0, atol=1e-5)


@pytest.mark.parametrize("top", [1, 3, 30])
def test_events_of_any_shape_are_explained(top: int) -> None:
    number = Mixture(dist.Categorical(torch.ones(N)), dist.Normal(torch.randn(N), 0.3))
    matrix = Mixture(
        dist.Categorical(torch.ones(N)), dist.Normal(torch.randn(N, 2, 2), 0.3).to_event(2)
    )
    for mixture in (number, matrix):
        z = mixture.sample((5,))
        scores = mixture.component_distribution.log_prob(z.unsqueeze(1))
        expected = scores.softmax(-1).topk(top).values
        torch.testing.assert_close(mixture.responsibilities(z, top=top).weight, expected)


@pytest.mark.parametrize("family", ["diagonal", "full"])
def test_components_without_weight_come_last(family: str) -> None:
    """As many components as requested, up to N, even if some have no weight."""
    mixture = make(family)
    weights = mixture.weights
    for top in (N - 1, N, N + 5):
        responsibilities = mixture.responsibilities(torch.randn(4, D), top=top)
        assert responsibilities.index.shape == responsibilities.weight.shape == (4, min(top, N))
        assert all(len(set(row)) == min(top, N) for row in responsibilities.index.tolist())
        assert (responsibilities.weight[weights[responsibilities.index] == 0] == 0).all()
        torch.testing.assert_close(responsibilities.weight.sum(-1), torch.ones(4))


@pytest.mark.parametrize("distance", [1e2, 2e6, 1e20])
@pytest.mark.parametrize("copies", [5, 127, 129, 700])
def test_copies_far_away_share_their_points(copies: int, distance: float) -> None:
    """At log densities of −1e16 to −1e52 whose rounding is larger than log N."""
    scale = torch.full((copies + 3, 1), 1e-6)
    loc = torch.zeros(copies + 3, 1)
    loc[copies:] = -1.0  # farther from the points: no share
    mixture = Mixture(dist.Categorical(torch.ones(copies + 3)), dist.Normal(loc, scale).to_event(1))
    z = torch.full((2, 1), distance)
    expected = torch.full((2,), float(copies if distance < 1e16 else copies + 3))
    torch.testing.assert_close(mixture.effective_components(z), expected)
    weights = mixture.responsibilities(z, top=2).weight
    torch.testing.assert_close(weights, 1 / expected.unsqueeze(-1).expand(2, 2))


@pytest.mark.parametrize("size", [300, 2500])
def test_islands_of_different_size_far_away(size: int) -> None:
    """Groups that hold different numbers of copies are counted correctly."""
    loc = torch.zeros(size, 2)
    mixture = Mixture(dist.Categorical(torch.ones(size)), dist.Normal(loc, 1e-7).to_event(1))
    z = torch.full((3, 2), 1e9)
    torch.testing.assert_close(mixture.effective_components(z), torch.full((3,), float(size)))


def test_points_without_a_place_are_explained_by_nothing(mixture: Mixture) -> None:
    with pytest.raises(ValueError, match="without NaN"):
        mixture.responsibilities(torch.full((2, D), math.nan), top=2)
