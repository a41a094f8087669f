"""Draws of mixtures as functions of their parameters: gradients against closed forms."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

import pyrovae as pv
from pyrovae.mixture import reparametrised
from pyrovae.mixture.mixture import Mixture

Parameters = tuple[Tensor, Tensor, Tensor]


def parameters(size: int, dim: int, spread: float = 1.0) -> Parameters:
    """Locations, log scales and logits, all with gradients."""
    loc, log_scale, logits = (
        spread * torch.randn(size, dim),
        torch.randn(size, dim),
        torch.randn(size),
    )
    return (
        loc.requires_grad_(),
        (0.4 * log_scale - 0.3).requires_grad_(),
        logits.requires_grad_(),
    )


def mixture_of(loc: Tensor, log_scale: Tensor, logits: Tensor) -> Mixture:
    components = dist.Normal(loc, log_scale.exp()).to_event(1)
    return Mixture(dist.Categorical(logits=logits), components)


def distribution_functions(z: Tensor, loc: Tensor, log_scale: Tensor, logits: Tensor) -> Tensor:
    """F_d(z_d | z_<d) of one point, shape ``(D,)``, from torch's own functions."""
    log_weight, probabilities = logits.log_softmax(0), []
    for value, mean, scale in zip(z, loc.unbind(1), log_scale.exp().unbind(1), strict=True):
        unit = torch.distributions.Normal(mean, scale)
        probabilities.append((log_weight.softmax(0) * unit.cdf(value)).sum())
        log_weight = log_weight + unit.log_prob(value)
    return torch.stack(probabilities)


def moved(z: Tensor, old: Parameters, new: Parameters) -> Tensor:
    """Where a point moves with the parameters at fixed distribution functions, by Newton."""
    target, place = distribution_functions(z, *old), z.clone()
    for _ in range(8):
        slope = torch.autograd.functional.jacobian(
            lambda point: distribution_functions(point, *new), place
        )
        excess = distribution_functions(place, *new) - target
        place = place - torch.linalg.solve(slope, excess)
    return place


@pytest.mark.parametrize(("size", "dim"), [(1, 1), (1, 3), (3, 1), (4, 2), (5, 4)])
def test_draws_move_as_their_distribution_functions_say(size: int, dim: int) -> None:
    own = parameters(size, dim)
    z = mixture_of(*own).rsample((3,))
    start: Parameters = tuple(p.detach() for p in own)  # type: ignore[assignment]
    for _ in range(2):
        along = [torch.randn_like(p) for p in own]
        step = 1e-4
        ahead, back = (
            torch.stack(
                [
                    moved(point, start, tuple(p + s * a for p, a in zip(start, along, strict=True)))  # type: ignore[arg-type]
                    for point in z.detach()
                ]
            )
            for s in (step, -step)
        )
        weight = torch.randn_like(z)
        gradients = torch.autograd.grad((weight * z).sum(), own, retain_graph=True)
        slope = sum(float((f * a).sum()) for f, a in zip(gradients, along, strict=True))
        expected = float((weight * (ahead - back)).sum()) / (2 * step)
        assert slope == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_one_component_is_reparametrised_as_ever() -> None:
    loc, scale = torch.randn(1, 3, requires_grad=True), torch.rand(1, 3).requires_grad_()
    mixture = Mixture(dist.Categorical(torch.ones(1)), dist.Normal(loc, scale).to_event(1))
    z = mixture.rsample((5,))
    of_loc, of_scale = torch.autograd.grad(z.sum(), (loc, scale))
    torch.testing.assert_close(of_loc, torch.full((1, 3), 5.0))
    torch.testing.assert_close(of_scale, ((z - loc) / scale).sum(0, keepdim=True).detach())


@pytest.mark.parametrize("dim", [1, 3])
def test_moments_have_their_gradients(dim: int) -> None:
    # E[(aᵀz)²] = Σ w ((aᵀμ)² + Σ a² σ²): a draw's own component alone would give other gradients.
    own, a = parameters(4, dim, spread=2.0), torch.linspace(1.0, 2.0, dim)
    loc, log_scale, logits = own
    second = (loc @ a).square() + (log_scale.exp().square() * a.square()).sum(1)
    exact = torch.autograd.grad((logits.softmax(0) * second).sum(), own)
    parts = []
    for _ in range(100):
        z = mixture_of(*own).rsample((100,))
        parts.append(torch.autograd.grad((z @ a).square().mean(), own))
    for truth, estimates in zip(exact, zip(*parts, strict=True), strict=True):
        values = torch.stack(estimates)
        error = values.std(0) / math.sqrt(len(parts))
        assert (
            float(((values.mean(0) - truth) / error).abs().max()) < 5
        )  # 28 comparisons: false alarm 2e-5


def test_agrees_with_the_score_function_where_no_closed_form_is_known() -> None:
    own = parameters(3, 2)

    def cost(z: Tensor) -> Tensor:
        return (z[..., 0] * z[..., 1]).tanh() + z.norm(dim=-1).cos()

    all_estimates: tuple[list[Tensor], list[Tensor]] = ([], [])
    for _ in range(200):
        by_path = cost(mixture_of(*own).rsample((100,))).mean()
        mixture = mixture_of(*own)
        z = mixture.sample((100,))
        by_score = ((cost(z) - cost(z).mean()).detach() * mixture.log_prob(z)).mean() * 100 / 99
        for estimates, value in zip(all_estimates, (by_path, by_score), strict=True):
            gradient = torch.autograd.grad(value, own)
            estimates.append(torch.cat([part.flatten() for part in gradient]))
    path, score = (torch.stack(estimates) for estimates in all_estimates)
    error = ((path.var(0) + score.var(0)) / 200).sqrt()
    assert float(((path.mean(0) - score.mean(0)) / error).abs().max()) < 5
    assert float(path.var(0).mean()) < float(score.var(0).mean())


def test_second_derivatives_follow_the_draw() -> None:
    own = parameters(3, 2)
    mixture = mixture_of(*own)
    z = mixture.rsample()
    detached: Parameters = tuple(p.detach() for p in own)  # type: ignore[assignment]
    along = [torch.randn_like(p) for p in own]
    weight, step = torch.tensor([1.0, -0.5]), 1e-4

    def slope(parameter_values: Parameters, point: Tensor) -> float:
        """Slope along the direction of a function of the draw, which lies at this point."""
        learned = [p.clone().requires_grad_() for p in parameter_values]
        components = learned[0], learned[1].exp(), learned[2].log_softmax(0)
        value = reparametrised.reparametrised(point.unsqueeze(0), *components)
        gradients = torch.autograd.grad((weight * value.sin()).sum(), learned)
        return sum(float((f * a).sum()) for f, a in zip(gradients, along, strict=True))

    first = torch.autograd.grad((weight * z.sin()).sum(), own, create_graph=True)
    second = torch.autograd.grad(sum((f * a).sum() for f, a in zip(first, along, strict=True)), own)  # type: ignore[arg-type]
    actual = sum(float((s * a).sum()) for s, a in zip(second, along, strict=True))
    ends = []
    for s in (step, -step):
        there: Parameters = tuple(p + s * a for p, a in zip(detached, along, strict=True))  # type: ignore[assignment]
        ends.append(slope(there, moved(z.detach(), detached, there)))
    assert actual == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-6)


def test_far_components_and_those_of_no_weight_leave_no_trace() -> None:
    loc = torch.tensor([[0.0, 1.0], [1e8, -1e8], [math.nan, 0.0]], requires_grad=True)
    scale = torch.tensor([[1.0, 1e-3], [1e-6, 1.0], [1.0, math.inf]], requires_grad=True)
    logits = torch.tensor([0.0, 0.0, -math.inf], requires_grad=True)
    components = dist.Normal(loc, scale, validate_args=False).to_event(1)
    mixture = Mixture(dist.Categorical(logits=logits, validate_args=False), components)
    z = mixture.rsample((40,))
    gradients = torch.autograd.grad(z.sum(), (loc, scale, logits))
    near = (z[:, 0] < 1e7).detach()
    assert 0 < int(near.sum()) < 40
    torch.testing.assert_close(
        gradients[0][:2, 0], torch.stack([near.sum(), (~near).sum()]).double()
    )
    for gradient in gradients:
        assert gradient.isfinite().all()
    assert (gradients[0][2] == 0).all() and (gradients[1][2] == 0).all()


def test_blocks_of_draws_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    own = parameters(6, 3)
    z = mixture_of(*own).sample((7,))
    gradients = []
    for triples in (1 << 22, 40, 1):
        monkeypatch.setattr(reparametrised, "TRIPLES", triples)
        components = own[0], own[1].exp(), own[2].log_softmax(0)
        value = reparametrised.reparametrised(z, *components)
        gradients.append(torch.autograd.grad(value.square().sum(), own))
    for block_gradients in gradients[1:]:
        for gradient, block_gradient in zip(gradients[0], block_gradients, strict=True):
            torch.testing.assert_close(gradient, block_gradient)


@pytest.mark.parametrize("event", [(), (3,), (2, 3)])
@pytest.mark.parametrize("batch", [(), (4,), (2, 1)])
def test_any_shape_of_events_and_plates(event: tuple[int, ...], batch: tuple[int, ...]) -> None:
    loc = torch.randn(5, *event, dtype=torch.float32, requires_grad=True)
    components = dist.Normal(loc, 0.5).to_event(len(event))
    mixture = Mixture(dist.Categorical(torch.ones(5)), components).expand(batch)
    assert mixture.has_rsample
    torch.manual_seed(1)
    z = mixture.rsample((6,))
    torch.manual_seed(1)
    assert z.shape == (6, *batch, *event) and torch.equal(z, mixture.sample((6,)))
    (gradient,) = torch.autograd.grad(z.sum(), loc)
    # a shift of all components shifts every draw
    torch.testing.assert_close(gradient.sum(0), torch.full(event, 6.0 * math.prod(batch)).float())


def test_nothing_to_learn_costs_nothing() -> None:
    own = parameters(3, 2)
    with torch.no_grad():
        assert not mixture_of(*own).rsample((2,)).requires_grad
    with torch.inference_mode():
        mixture = mixture_of(*own)
        assert mixture.rsample((2,)).shape == (2, 2)
    assert mixture.rsample((2,)).shape == (2, 2)
    fixed = mixture_of(*(p.detach() for p in own))  # type: ignore[arg-type]
    assert not fixed.rsample((2,)).requires_grad


def test_gradients_inside_of_torch_func() -> None:
    own = parameters(3, 2)
    z = mixture_of(*own).sample((4,))

    def total(loc: Tensor) -> Tensor:
        components = loc, own[1].exp().detach(), own[2].log_softmax(0).detach()
        return reparametrised.reparametrised(z, *components).square().sum()

    (expected,) = torch.autograd.grad(total(own[0]), own[0])
    torch.testing.assert_close(torch.func.grad(total)(own[0].detach()), expected)


def test_a_mixture_is_fitted_as_a_guide() -> None:
    # KL(q ‖ p) has one minimum where p is a mixture of two separate normals: q = p.
    target = mixture_of(
        torch.tensor([[-2.0], [2.0]]), torch.full((2, 1), -0.5), torch.tensor([0.5, -0.5])
    )

    def model() -> None:
        pyro.sample("z", target)

    def guide() -> None:
        loc = pyro.param("loc", torch.tensor([[-1.0], [1.0]]))
        log_scale = pyro.param("log_scale", torch.zeros(2, 1))
        logits = pyro.param("logits", torch.zeros(2))
        pyro.sample("z", mixture_of(loc, log_scale, logits))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(200, vectorize_particles=True))  # type: ignore[no-untyped-call]
    for _ in range(100):
        svi.step()
    torch.testing.assert_close(
        pyro.param("loc").detach(), torch.tensor([[-2.0], [2.0]]), atol=0.1, rtol=0
    )
    torch.testing.assert_close(
        pyro.param("logits").detach().softmax(0),
        torch.tensor([0.5, -0.5]).softmax(0),
        atol=0.05,
        rtol=0,
    )


GAMMA = dist.Gamma(torch.tensor([2.0, 9.0]), torch.tensor([1.0, 1.0]))
FULL = dist.MultivariateNormal(torch.zeros(2, 2), torch.eye(2))


@pytest.mark.parametrize("components", [GAMMA, FULL])
def test_other_families_say_what_to_use(components: dist.Distribution) -> None:
    mixture = Mixture(dist.Categorical(torch.ones(2)), components)
    assert not mixture.has_rsample
    with pytest.raises(NotImplementedError, match=r"got (Gamma|Multi.*)\. Use sample\(\), and the"):
        mixture.rsample()


def test_the_score_function_that_is_named_has_the_right_gradient() -> None:
    rate = torch.tensor([1.0, 3.0], requires_grad=True)
    exact = torch.autograd.grad((0.5 * 4.0 / rate).sum(), rate)[0]  # E[z] = Σ w α/β
    estimates = []
    for _ in range(200):
        mixture = Mixture(dist.Categorical(torch.ones(2)), dist.Gamma(torch.full((2,), 4.0), rate))
        z = mixture.sample((200,))
        estimates.append(torch.autograd.grad((z * mixture.log_prob(z)).mean(), rate)[0])
    values = torch.stack(estimates)
    assert float(((values.mean(0) - exact) / (values.std(0) / 200**0.5)).abs().max()) < 4.5


def test_draws_can_be_told_to_take_the_score_function() -> None:
    mixture = pv.AggregatedPosterior(
        dist.Normal(torch.zeros(3, 2, requires_grad=True), 1.0).to_event(1)
    )
    assert mixture().requires_grad
    assert not mixture.has_rsample_(False)().requires_grad
