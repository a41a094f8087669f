"""Supports that differ by row, points that are NaN, and weights of zero on NaN parameters."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.mixture.aggregated import AggregatedPosterior
from pyrovae.mixture.mixture import Mixture

N, D = 30, 2


def low() -> Tensor:
    return torch.randn(N, D)


def inside_of(low: Tensor, high: Tensor, z: Tensor) -> Tensor:
    return ((z.unsqueeze(1) >= low) & (z.unsqueeze(1) < high)).all(-1)


def test_uniform_components_are_scored_each_on_its_own_support() -> None:
    """The log of the mean density at draws, and at points outside every support."""
    start = low()
    end = start + 0.5 + torch.rand(N, D)
    mixture = AggregatedPosterior(dist.Uniform(start, end).to_event(1))
    z = torch.cat([mixture.sample((20,)), torch.full((1, D), 50.0)])
    expected = (inside_of(start, end, z) / (end - start).prod(-1)).mean(1).log()
    torch.testing.assert_close(mixture.log_prob(z), expected)
    assert mixture.support.check(z).tolist() == [True] * 20 + [False]
    share = inside_of(start, end, z[:20]) / (end - start).prod(-1)
    top = mixture.responsibilities(z[:20], top=2)
    torch.testing.assert_close(top.weight, (share / share.sum(1, True)).topk(2).values)
    assert pv.entropy(mixture, draws=200).value > 0


BY_ROW: dict[str, tuple[Callable[[], dist.Distribution], Tensor]] = {
    "uniform": (lambda: dist.Uniform(low()[:, 0], 3.0 + low()[:, 0].abs()), torch.randn(9)),
    "pareto": (lambda: dist.Pareto(0.5 + torch.rand(N), 2 * torch.ones(N)), torch.rand(9) * 2),
    "exp of uniform": (
        lambda: dist.TransformedDistribution(
            dist.Uniform(low()[:, 0], 3 * torch.ones(N)), [dist.transforms.ExpTransform()]
        ),
        torch.randn(9).exp(),
    ),
}


@pytest.mark.parametrize("name", BY_ROW)
def test_supports_that_differ_leave_out_the_components_beside(name: str) -> None:
    """The sum over those components alone that accept the point."""
    make, z = BY_ROW[name]
    components = make()
    mixture = AggregatedPosterior(components)
    total = []
    for point in z:
        density = 0.0
        for n in range(N):
            try:
                density += float(mixture.component(n).log_prob(point).exp())
            except ValueError:  # torch's refusal of points outside
                continue
        total.append(math.log(density / N) if density else -math.inf)
    torch.testing.assert_close(mixture.log_prob(z), torch.tensor(total))
    assert mixture.log_prob(mixture.sample((50,))).isfinite().all()
    assert (mixture.log_prob(torch.tensor([-1e3])) == -math.inf).all()


def test_counts_of_different_size() -> None:
    counts = torch.arange(1.0, 9.0)
    mixture = AggregatedPosterior(dist.Binomial(counts, torch.rand(8)))
    probability = mixture.log_prob(torch.arange(12.0)).exp()
    torch.testing.assert_close(probability.sum(), torch.tensor(1.0))
    assert (probability[9:] == 0).all() and (probability[:9] > 0).all()
    assert mixture.log_prob(torch.tensor(2.5)) == -math.inf


def test_the_distribution_function_outside_of_some_supports() -> None:
    start = low()[:, 0]
    value = torch.tensor([-9.0, 0.1, 0.5, 9.0])
    mixture = AggregatedPosterior(dist.Uniform(start, start + 1))
    expected = (value.unsqueeze(1) - start).clamp(0, 1).mean(1)
    torch.testing.assert_close(mixture.cdf(value), expected)
    scale = 0.2 + torch.rand(N)
    pareto = AggregatedPosterior(dist.Pareto(scale, torch.ones(N)))
    expected = (1 - scale / value.unsqueeze(1)).where(value.unsqueeze(1) > scale, 0.0).mean(1)
    torch.testing.assert_close(pareto.cdf(value), expected)


@pytest.mark.parametrize("name", ["uniform", "pareto"])
def test_gradients_where_supports_differ(name: str) -> None:
    scale = (0.5 + torch.rand(N)).requires_grad_()
    z = torch.tensor([0.9, 1.2])
    make = {
        "uniform": lambda s: dist.Uniform(torch.zeros(N), s),
        "pareto": lambda s: dist.Pareto(s, 2 * torch.ones(N)),
    }[name]
    exact = {
        "uniform": lambda s: (1 / s) * (z.unsqueeze(1) < s),
        "pareto": lambda s: 2 * s.square() / z.unsqueeze(1) ** 3 * (z.unsqueeze(1) >= s),
    }[name]
    (actual,) = torch.autograd.grad(AggregatedPosterior(make(scale)).log_prob(z).sum(), scale)
    (expected,) = torch.autograd.grad(exact(scale).mean(1).log().sum(), scale)
    torch.testing.assert_close(actual, expected)


def test_a_shared_support_refuses_points_by_their_row() -> None:
    mixture = Mixture(dist.Categorical(torch.ones(3)), dist.Beta(torch.ones(3), torch.ones(3)))
    with pytest.raises(ValueError, match=r"others at 2 of 4, the first in row 1\. Leave"):
        mixture.log_prob(torch.tensor([0.5, 1.5, 0.1, -1.0]))
    assert mixture.log_prob(torch.tensor([0.5, 0.1])).isfinite().all()  # as the message says
    labels = Mixture(dist.Categorical(torch.ones(3)), dist.Categorical(torch.ones(3, 4)))
    with pytest.raises(ValueError, match="got others at 1 of 2, the first in row 1"):
        labels.log_prob(torch.tensor([0, 4]))


@pytest.mark.float32
@pytest.mark.parametrize("dim", [2, 3])
def test_directions_in_float32_are_their_own(dim: int) -> None:
    """A unit vector in float32 does not have length 1 in float64."""
    components = dist.ProjectedNormal(torch.randn(N, dim))
    mixture = AggregatedPosterior(components)
    z = mixture.sample((40,))
    expected = components.log_prob(z.unsqueeze(1)).logsumexp(-1) - math.log(N)
    torch.testing.assert_close(mixture.log_prob(z), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="others at 40 of 40"):
        mixture.log_prob(2 * z)


QUESTIONS: dict[str, Callable[[Mixture, Tensor], object]] = {
    "log_prob": lambda m, z: m.log_prob(z),
    "score": lambda m, z: m.score(z),
    "responsibilities": lambda m, z: m.responsibilities(z, top=2),
    "effective_components": lambda m, z: m.effective_components(z),
    "leave_one_out": lambda m, z: m.leave_one_out_log_prob(z, torch.tensor(1)),
    "cdf": lambda m, z: m.marginal(0).cdf(z[..., 0]),
}


@pytest.mark.parametrize("name", QUESTIONS)
@pytest.mark.parametrize("family", ["normal", "laplace", "full"])
def test_a_point_that_is_no_number_is_named_by_its_row(name: str, family: str) -> None:
    components = {
        "normal": lambda: dist.Normal(low(), 1.0).to_event(1),
        "laplace": lambda: dist.Laplace(low(), 1.0).to_event(1),
        "full": lambda: dist.MultivariateNormal(low(), torch.eye(D)),
    }[family]()
    if name == "cdf" and family == "full":
        components = dist.Normal(low(), 1.0).to_event(1)
    mixture, z = AggregatedPosterior(components), torch.randn(3, 5, D)
    z[1, 2, 0] = z[2, 0, 0] = math.nan
    with pytest.raises(ValueError, match=r"NaN at 2 of 15, the first in row \(1, 2\)\. Leave"):
        QUESTIONS[name](mixture, z)
    with pytest.raises(ValueError, match="NaN at 1 of 5, the first in row 2"):
        QUESTIONS[name](mixture, z[1])
    with pytest.raises(ValueError, match="got NaN"):
        QUESTIONS[name](mixture, z[1, 2])
    QUESTIONS[name](mixture, z[0])


def test_there_is_no_telling_who_explains_what_has_no_density() -> None:
    mixture = AggregatedPosterior(dist.Uniform(torch.zeros(4, 2), torch.ones(4, 2)).to_event(1))
    z = torch.tensor([[0.5, 0.5], [0.5, 1.5]])
    for ask in (mixture.effective_components, lambda z: mixture.responsibilities(z, top=1)):
        with pytest.raises(ValueError, match=r"density above 0; got others at 1 of 2.*row 1"):
            ask(z)
        ask(z[:1])


FAMILIES: dict[str, Callable[[Tensor, Tensor], dist.Distribution]] = {
    "normal": lambda a, b: dist.Normal(a, b, validate_args=False).to_event(1),
    "laplace": lambda a, b: dist.Laplace(a, b, validate_args=False).to_event(1),
    "full": lambda a, b: dist.MultivariateNormal(
        a, scale_tril=torch.diag_embed(b), validate_args=False
    ),
    "student": lambda a, b: dist.StudentT(5.0, a, b, validate_args=False).to_event(1),
    "uniform": lambda a, b: dist.Uniform(a, a + 4 * b, validate_args=False).to_event(1),
    "gamma": lambda a, b: dist.Gamma(b, b, validate_args=False).to_event(1),
}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_weight_leaves_out_what_is_no_number(family: str, bad: float) -> None:
    """First and later results, gradients and views are those of the other components alone."""
    loc, scale, weight = torch.randn(6, D), torch.rand(6, D) + 1, torch.arange(6.0)
    loc[0], scale[0] = bad, bad
    inputs = [t.clone().requires_grad_() for t in (loc, scale, weight)]
    rest = [t[1:].clone().requires_grad_() for t in (loc, scale, weight)]
    make = FAMILIES[family]
    mixture = Mixture(dist.Categorical(weight), make(loc, scale))
    other = Mixture(dist.Categorical(weight[1:]), make(loc[1:], scale[1:]))
    z = other.sample((4,))
    answers: dict[str, Callable[[Mixture], Tensor]] = {
        "first": lambda m: m.log_prob(z),
        "second": lambda m: m.log_prob(z),
        "mean": lambda m: m.mean,
        "variance": lambda m: m.variance,
        "mean_variance": lambda m: m.mean_variance,
        "marginal": lambda m: m.marginal(1).log_prob(z[:, 1]),
        "pair": lambda m: m.marginal([1, 0]).log_prob(z.flip(1)),
        "effective": lambda m: m.effective_components(z),
        "responsibilities": lambda m: m.responsibilities(z, top=2).weight,
        "inside": lambda m: m.support.check(z),
    }
    if family != "student" and family != "gamma":  # torch has no cdf for them
        answers["cdf"] = lambda m: m.marginal(0).cdf(z[:, 0])
    for name, ask in answers.items():
        torch.testing.assert_close(ask(mixture), ask(other), msg=name)
    learnt = Mixture(dist.Categorical(inputs[2]), make(*inputs[:2])).log_prob(z)
    actual = torch.autograd.grad(learnt.sum(), inputs, allow_unused=True)
    alone = Mixture(dist.Categorical(rest[2]), make(*rest[:2])).log_prob(z)
    expected = torch.autograd.grad(alone.sum(), rest, allow_unused=True)
    for gradient, expected_gradient in zip(actual, expected, strict=True):
        if expected_gradient is not None:
            torch.testing.assert_close(gradient[1:], expected_gradient)
            assert gradient.isfinite().all()


def test_no_weight_leaves_out_of_every_measure_what_is_no_number() -> None:
    loc = torch.randn(8, D)
    loc[3] = math.nan
    weight = torch.ones(8)
    weight[3] = 0
    components = FAMILIES["normal"]
    mixture = Mixture(dist.Categorical(weight), components(loc, torch.ones(8, D)))
    rest = loc[weight > 0]
    other = Mixture(dist.Categorical(torch.ones(7)), components(rest, torch.ones(7, D)))
    for measure in (
        lambda m: pv.entropy_bounds(m).lower.value,
        lambda m: pv.entropy_bounds(m).upper.value,
        lambda m: pv.variational_divergence(m, other).value,
    ):
        assert measure(mixture) == pytest.approx(measure(other), rel=1e-9, abs=1e-9)


def test_a_weight_that_is_no_number_is_not_a_weight_of_zero() -> None:
    logits = torch.tensor([0.0, math.nan])
    with pyro.validation_enabled(False):
        mixture = Mixture(dist.Categorical(logits=logits), dist.Normal(torch.zeros(2), 1.0))
        assert all(mixture.log_prob(torch.zeros(1)).isnan().all() for _ in range(2))
