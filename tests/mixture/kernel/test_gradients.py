"""Gradients of the log density in points and parameters, dense and fused."""

from __future__ import annotations

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from pyrovae.mixture.kernel import diagonal_normals, gradients
from pyrovae.mixture.mixture import Mixture


@pytest.fixture(params=["differences", "expanded", "fused"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the three ways to compute the log density."""
    monkeypatch.setattr(diagonal_normals, "GROUP", 4)
    if request.param != "differences":
        monkeypatch.setattr(gradients, "FEW_TRIPLES", 0)
    if request.param == "fused":
        monkeypatch.setattr(gradients, "DENSE_PAIRS", 0)
    return str(request.param)


def leaves(size: int = 11, dim: int = 3, points: int = 5) -> list[Tensor]:
    tensors = (
        torch.randn(points, dim),
        torch.randn(size, dim),
        0.3 * torch.randn(size, dim) - 0.5,
        torch.randn(size),
    )
    return [tensor.requires_grad_() for tensor in tensors]


def density(z: Tensor, loc: Tensor, log_scale: Tensor, logits: Tensor) -> Tensor:
    components = dist.Normal(loc, log_scale.exp()).to_event(1)
    return Mixture(dist.Categorical(logits=logits), components).log_prob(z)


def test_gradients_are_those_of_the_function(path: str) -> None:
    # gradcheck's own noise: 1e-9 of log density over steps of 1e-6
    assert torch.autograd.gradcheck(density, leaves(), atol=1e-5, rtol=1e-3)


def test_gradients_equal_those_of_torch(path: str) -> None:
    inputs = leaves()
    weights = torch.randn(5)
    z, loc, log_scale, logits = inputs
    reference = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=logits),
        torch.distributions.Independent(torch.distributions.Normal(loc, log_scale.exp()), 1),
    )
    expected = torch.autograd.grad((weights * reference.log_prob(z)).sum(), inputs)
    actual = torch.autograd.grad((weights * density(*inputs)).sum(), inputs)
    for gradient, reference_gradient in zip(actual, expected, strict=True):
        torch.testing.assert_close(gradient, reference_gradient, rtol=1e-9, atol=1e-9)


def test_second_derivatives_work_or_refuse(path: str) -> None:
    inputs = leaves()
    if path != "fused":
        assert torch.autograd.gradgradcheck(density, inputs, atol=1e-5, rtol=1e-3)
        return
    first = torch.autograd.grad(density(*inputs).sum(), inputs[0], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="second one"):
        torch.autograd.grad(first.sum(), inputs[0])


def test_only_what_asks_for_a_gradient_gets_one(path: str) -> None:
    z, loc, log_scale, logits = leaves()
    density(z, loc.detach(), log_scale.detach(), logits.detach()).sum().backward()
    assert z.grad is not None
    density(z.detach(), loc, log_scale.detach(), logits.detach()).sum().backward()
    assert loc.grad is not None and logits.grad is None
    density(z.detach(), loc.detach(), log_scale.detach(), logits).sum().backward()
    assert logits.grad is not None and log_scale.grad is None


def test_zero_weights_pass_no_gradient(path: str) -> None:
    z, loc, log_scale, _ = leaves(size=6)
    logits = torch.zeros(6)
    logits[2] = -float("inf")
    density(z, loc, log_scale, logits).sum().backward()
    assert loc.grad is not None and loc.grad.isfinite().all()
    assert (loc.grad[2] == 0).all() and (loc.grad[3] != 0).all()


def test_far_from_equal_components_the_score_is_that_of_one() -> None:
    """At a log density of −5e10, whose rounding must not reach the shares."""
    one = dist.Normal(torch.zeros(2).double(), torch.tensor([1.0, 2.7e-4]).double()).to_event(1)
    z = torch.tensor([[0.3, 86.2]]).double().requires_grad_()
    several = Mixture(dist.Categorical(torch.ones(4).double()), one.expand((4,)))
    pull = -z / one.base_dist.scale**2
    torch.testing.assert_close(several.score(z), pull, rtol=1e-12, atol=0)
    (slope,) = torch.autograd.grad(several.log_prob(z).sum(), z)
    torch.testing.assert_close(slope, pull, rtol=1e-12, atol=0)


def test_parameters_changed_in_place_are_seen() -> None:
    loc = torch.zeros(4, 2)
    mixture = Mixture(dist.Categorical(torch.ones(4)), dist.Normal(loc, 1.0).to_event(1))
    before = mixture.log_prob(torch.zeros(2))
    loc += 3.0
    # Normal holds a broadcast view of loc: torch's own mixture follows it too
    assert mixture.log_prob(torch.zeros(2)) < before - 8


def test_a_copy_follows_its_own_parameters() -> None:
    """A copy does not use the cache of the original."""
    loc, z = torch.zeros(4, 2), torch.zeros(2)
    mixture = Mixture(dist.Categorical(torch.ones(4)), dist.Normal(loc, 1.0).to_event(1))
    for _ in range(3):
        loc += 1.0
    mixture.log_prob(z)
    copied = copy.deepcopy(mixture)
    for _ in range(3):
        copied.component_distribution.base_dist.loc.add_(1.0)
    expected = dist.Normal(torch.full((2,), 6.0), 1.0).to_event(1).log_prob(z)
    torch.testing.assert_close(copied.log_prob(z), expected)


def test_nuts_runs_with_a_mixture_as_prior() -> None:
    """Two equal modes at ±2, seen through unit noise at y = 1: P(right mode | y) is known."""
    components = dist.Normal(torch.tensor([[-2.0], [2.0]]), 1.0).to_event(1)
    prior = Mixture(dist.Categorical(torch.ones(2)), components)

    def model() -> None:
        z = pyro.sample("z", prior)
        pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=torch.tensor([1.0]))

    kernel = NUTS(model, jit_compile=False)
    sampler = MCMC(kernel, num_samples=300, warmup_steps=100, disable_progbar=True)
    sampler.run()
    drawn = sampler.get_samples()["z"].squeeze(-1)
    # posterior: weights ∝ N(1; ±2, √2), means (±2 + 1)/2
    weight = torch.sigmoid(torch.tensor(((1 + 2) ** 2 - (1 - 2) ** 2) / 4.0))
    expected = weight * 1.5 + (1 - weight) * -0.5
    # 4 standard errors with an effective sample size of at least 30; sd ≤ 1.1
    assert abs(drawn.mean() - expected) < 4 * 1.1 / 30**0.5


@pytest.mark.parametrize("which", ["points are means", "points are draws"])
def test_inputs_that_depend_on_each_other_count_once(path: str, which: str) -> None:
    """Even if the gradient has a graph of its own, as in a gradient penalty."""
    noise = torch.randn(6, 3)

    def total(kind: type, loc: Tensor) -> Tensor:
        scale = loc.square() + 0.1
        z = loc if which == "points are means" else loc + scale * noise
        components = torch.distributions.Normal(loc, scale)
        mixture = kind(
            torch.distributions.Categorical(logits=torch.zeros(6)),
            torch.distributions.Independent(components, 1),
        )
        return mixture.log_prob(z).sum()

    loc = torch.randn(6, 3, requires_grad=True)
    reference = torch.distributions.MixtureSameFamily
    (expected,) = torch.autograd.grad(total(reference, loc), loc, create_graph=True)
    (actual,) = torch.autograd.grad(total(Mixture, loc), loc, create_graph=True)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    if path != "fused":
        second = [torch.autograd.grad(g.square().sum(), loc)[0] for g in (actual, expected)]
        torch.testing.assert_close(*second, rtol=1e-9, atol=1e-9)


def test_functional_gradients() -> None:
    inputs = leaves()
    expected_gradients = torch.autograd.grad(density(*inputs).sum(), inputs[:2])
    for argument, expected in enumerate(expected_gradients):
        actual = torch.func.grad(lambda *t: density(*t).sum(), argument)(*inputs)
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("spread", [1.0, 1e3])
@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0, 1e3])
def test_gradients_in_the_parameters_hold_at_every_scale(
    size: float, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the scales are far below the distances, moments about a common centre cancel."""
    monkeypatch.setattr(gradients, "DENSE_PAIRS", 0)
    loc = (spread * torch.randn(200, 2)).requires_grad_()
    scale = (size * (0.5 + torch.rand(200, 2))).requires_grad_()
    logits = torch.randn(200, requires_grad=True)
    z = loc.detach()[torch.arange(100)] + size * torch.randn(100, 2)
    weights = torch.randn(100)
    actual, expected = (
        torch.autograd.grad(
            (weights * kind(dist.Categorical(logits=logits), components).log_prob(z)).sum(),
            (loc, scale, logits),
        )
        for kind in (Mixture, torch.distributions.MixtureSameFamily)
        for components in [dist.Normal(loc, scale).to_event(1)]
    )
    for gradient, reference_gradient in zip(actual, expected, strict=True):
        assert float((gradient - reference_gradient).abs().max()) <= 1e-9 * float(
            reference_gradient.abs().max()
        )


def test_shares_of_copies_sum_to_one_far_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a log density of −1e16 its rounding is larger than one."""
    monkeypatch.setattr(gradients, "DENSE_PAIRS", 0)
    loc = torch.zeros(300, 2, requires_grad=True)
    mixture = Mixture(dist.Categorical(torch.ones(300)), dist.Normal(loc, 1e-6).to_event(1))
    (gradient,) = torch.autograd.grad(mixture.log_prob(torch.full((5, 2), 100.0)).sum(), loc)
    torch.testing.assert_close(gradient.sum(0), torch.full((2,), 5 * 1e14), rtol=1e-9, atol=0)


def test_a_weight_of_zero_leaves_the_gradient_of_the_others() -> None:
    components = dist.Normal(torch.randn(4, 2), 1.0).to_event(1)
    z, rest = torch.randn(3, 2), torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    weights = torch.tensor([1.0, 2.0, 0.0, 3.0], requires_grad=True)
    others = dist.Normal(components.base_dist.loc[[0, 1, 3]], 1.0).to_event(1)
    Mixture(dist.Categorical(probs=weights), components).log_prob(z).sum().backward()
    Mixture(dist.Categorical(probs=rest), others).log_prob(z).sum().backward()
    assert weights.grad is not None and rest.grad is not None
    torch.testing.assert_close(weights.grad[[0, 1, 3]], rest.grad)
    assert weights.grad.isfinite().all()


@pytest.mark.parametrize("family", ["normal", "full", "laplace"])
def test_what_inference_mode_has_made_can_be_differentiated(family: str) -> None:
    def make() -> Mixture:
        loc = torch.randn(9, 2)
        components = {
            "normal": lambda: dist.Normal(loc, 0.5).to_event(1),
            "full": lambda: dist.MultivariateNormal(loc, torch.eye(2)),
            "laplace": lambda: dist.Laplace(loc, 0.5 * torch.ones(9, 2)).to_event(1),
        }[family]()
        return Mixture(dist.Categorical(torch.ones(9)), components)

    z = torch.randn(4, 2, requires_grad=True)
    outside = make()
    with torch.inference_mode():
        inside = make()
        for mixture in (outside, inside):
            score = mixture.score(z.detach())
            mixture.log_prob(z.detach()), mixture.log_prob(z.detach())
    for mixture in (outside, inside):
        (slope,) = torch.autograd.grad(mixture.log_prob(z).sum(), z)
        torch.testing.assert_close(slope, mixture.score(z))
    torch.testing.assert_close(slope, score.clone())


@pytest.mark.parametrize("family", ["log normal", "student", "low rank"])
def test_gradients_of_any_family_are_the_same_in_blocks(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = [torch.rand(17, 2), torch.randn(11, 2), torch.rand(11, 2) + 0.1, torch.randn(11)]
    for tensor in inputs:
        tensor.requires_grad_()

    def total(z: Tensor, loc: Tensor, scale: Tensor, logits: Tensor) -> Tensor:
        components = {
            "log normal": lambda: dist.LogNormal(loc, scale).to_event(1),
            "student": lambda: dist.StudentT(5.0, loc, scale).to_event(1),
            "low rank": lambda: dist.LowRankMultivariateNormal(loc, loc.unsqueeze(-1), scale),
        }[family]()
        mixture = Mixture(dist.Categorical(logits=logits), components)
        return (torch.arange(17.0) * mixture.log_prob(z)).sum()

    expected = torch.autograd.grad(total(*inputs), inputs)
    monkeypatch.setattr("pyrovae.mixture.kernel.any_family.BLOCK_BYTES", 3000)
    actual = torch.autograd.grad(total(*inputs), inputs)
    for gradient, reference_gradient in zip(actual, expected, strict=True):
        torch.testing.assert_close(gradient, reference_gradient)
    (alone,) = torch.autograd.grad(total(inputs[0], *(t.detach() for t in inputs[1:])), inputs[0])
    torch.testing.assert_close(alone, expected[0])
    first = torch.autograd.grad(total(*inputs), inputs[1], create_graph=True)[0]
    with pytest.raises(RuntimeError, match=r"second one.*for one block"):
        torch.autograd.grad(first.sum(), inputs[0])
