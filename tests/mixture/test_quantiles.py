"""Quantiles of mixtures over numbers: the inverse of the distribution function, everywhere."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.mixture import quantiles
from pyrovae.mixture.mixture import Mixture

P = torch.tensor([1e-9, 1e-3, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999, 1 - 1e-9], dtype=torch.float64)


def uniform(*low: float, high: tuple[float, ...]) -> dist.Distribution:
    return dist.Uniform(torch.tensor(low), torch.tensor(high))


def uneven(components: dist.Distribution) -> Mixture:
    weights = torch.arange(1.0, 1.0 + components.batch_shape[0])
    return Mixture(dist.Categorical(weights), components)


MIXTURES = {
    "near": lambda: uneven(dist.Normal(torch.randn(5), 0.5 + torch.rand(5))),
    "far": lambda: uneven(dist.Normal(torch.tensor([-1e6, 0.0, 1e3]), 0.5)),
    "narrow": lambda: uneven(dist.Normal(torch.randn(50), 1e-4)),
    "wide beside narrow": lambda: uneven(dist.Normal(torch.zeros(2), torch.tensor([1e-3, 1e3]))),
    "one": lambda: uneven(dist.Normal(torch.tensor([3.0]), 2.0)),
    "Laplace": lambda: uneven(dist.Laplace(torch.randn(4), 0.3)),
    "Cauchy": lambda: uneven(dist.Cauchy(torch.randn(4), 0.3)),
    "LogNormal": lambda: uneven(dist.LogNormal(torch.randn(4), 0.3)),
    "Exponential": lambda: uneven(dist.Exponential(torch.rand(4) + 0.1)),
    "HalfNormal": lambda: uneven(dist.HalfNormal(torch.rand(4) + 0.1)),
    "Uniform, apart": lambda: uneven(uniform(0.0, 5.0, high=(1.0, 6.0))),
    "Uniform, across": lambda: uneven(uniform(0.0, 0.5, high=(1.0, 6.0))),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXTURES)
def test_quantiles_are_the_inverse_of_the_distribution_function(name: str) -> None:
    mixture = MIXTURES[name]()
    z = mixture.icdf(P).requires_grad_()
    assert bool((z.diff() >= 0).all())
    p = mixture.cdf(z)
    (density,) = torch.autograd.grad(p.sum(), z)
    # the change in p that the rounding of z alone makes
    slack = 4 * torch.finfo(z.dtype).eps * (z.abs() * density + 1)
    assert bool(((p - P).abs() <= slack).all())


def test_draws_agree() -> None:
    mixture = MIXTURES["near"]()
    drawn = mixture.sample((40_000,))
    below = (drawn[:, None] <= mixture.icdf(P[2:7])).double().mean(0)
    assert bool(((below - P[2:7]).abs() < 4.5 * (P[2:7] * (1 - P[2:7]) / 40_000).sqrt()).all())


def test_one_normal_is_torch_s_and_right_where_torch_s_is_infinite() -> None:
    mixture = MIXTURES["one"]()
    torch.testing.assert_close(mixture.icdf(P), torch.distributions.Normal(3.0, 2.0).icdf(P))
    tail = mixture.icdf(torch.tensor([1e-30, 1e-300]))
    torch.testing.assert_close((tail - 3) / 2, torch.tensor([-11.46402409, -37.04709640]))  # tables
    ends = mixture.icdf(torch.tensor([0.0, 1.0]))
    assert ends.tolist() == [-math.inf, math.inf]


def test_the_least_of_the_numbers_that_qualify() -> None:
    mixture = MIXTURES["Uniform, apart"]()  # of weights 1/3 and 2/3, with nothing from 1 to 5
    actual = mixture.icdf(torch.tensor([0.0, 1 / 6, 1 / 3 - 1e-12, 1 / 3 + 1e-12, 1.0]))
    torch.testing.assert_close(actual, torch.tensor([0.0, 0.5, 1.0, 5.0, 6.0]))
    alike = Mixture(dist.Categorical(torch.ones(2)), mixture.component_distribution)
    assert float(alike.icdf(torch.tensor(0.5))) == pytest.approx(1.0)


def test_the_distribution_function_beside_the_support() -> None:
    for name, low in {"LogNormal": 0.0, "Exponential": 0.0, "HalfNormal": 0.0}.items():
        assert MIXTURES[name]().cdf(torch.tensor([low - 5.0, low - 1e-9])).tolist() == [0.0, 0.0]
    across = MIXTURES["Uniform, across"]().cdf(torch.tensor([-1.0, 0.25, 2.0, 7.0]))
    expected = torch.tensor([0.0, 0.25 / 3, 1 / 3 + 2 / 3 * 1.5 / 5.5, 1.0])
    torch.testing.assert_close(across, expected)


@pytest.mark.parametrize("family", [dist.Normal, dist.Laplace, dist.LogNormal])
def test_gradients_in_the_level_and_in_the_parameters(family: type[dist.Distribution]) -> None:
    loc = torch.tensor([0.0, 1.0], requires_grad=True)
    scale = torch.tensor([1.0, 0.5], requires_grad=True)
    logits = torch.tensor([0.3, -0.2], requires_grad=True)
    p = torch.tensor([0.05, 0.4, 0.9], requires_grad=True)

    def quantile(p: Tensor, loc: Tensor, scale: Tensor, logits: Tensor) -> Tensor:
        return Mixture(dist.Categorical(logits=logits), family(loc, scale)).icdf(p)

    assert torch.autograd.gradcheck(quantile, (p, loc, scale, logits))
    assert torch.autograd.gradgradcheck(quantile, (p, loc, scale, logits))
    actual = torch.func.grad(lambda p: quantile(p, loc, scale, logits).sum())(p)
    torch.testing.assert_close(
        actual, torch.autograd.grad(quantile(p, loc, scale, logits).sum(), p)[0]
    )


def test_components_without_weight_may_hold_anything() -> None:
    loc = torch.tensor([0.0, math.nan, 2.0])
    components = dist.Normal(loc, 1.0, validate_args=False)
    mixture = Mixture(dist.Categorical(torch.tensor([1.0, 0.0, 1.0])), components)
    torch.testing.assert_close(mixture.icdf(torch.tensor(0.5)), torch.tensor(1.0))
    torch.testing.assert_close(mixture.cdf(torch.tensor(1.0)), torch.tensor(0.5))


def test_marginals_of_an_aggregated_posterior_of_many_points(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoding = dist.Normal(torch.randn(500, 3).float(), 0.2 + torch.rand(500, 3).float())
    agg = pv.AggregatedPosterior(encoding.to_event(1))
    marginal = agg.marginal(1)
    levels = torch.tensor([[0.1, 0.5], [0.9, 0.99]], dtype=torch.float32)
    z = marginal.icdf(levels)
    assert z.shape == (2, 2) and z.dtype == torch.float32
    torch.testing.assert_close(marginal.cdf(z), levels)
    monkeypatch.setattr(quantiles, "PAIRS", 64)
    torch.testing.assert_close(marginal.icdf(levels), z)
    assert marginal.expand((7,)).icdf(torch.tensor(0.5)).shape == (7,)
    with pytest.raises(ValueError, match=r"Take \.marginal\(d\) first"):
        agg.icdf(torch.tensor(0.5))


@pytest.mark.parametrize("level", [-0.1, 1.0001, math.nan])
def test_a_level_that_is_none_is_named(level: float) -> None:
    with pytest.raises(pv.InputError, match="expected probabilities from 0 to 1; got"):
        MIXTURES["near"]().icdf(torch.tensor([0.5, level]))


def test_a_number_that_is_none_is_refused() -> None:
    with pytest.raises(pv.InputError, match="got NaN at 1 of 2, the first in row 1"):
        MIXTURES["near"]().cdf(torch.tensor([0.5, math.nan]))


@pytest.mark.parametrize("ask", [lambda m, x: m.cdf(x), lambda m, x: m.icdf(x)])
def test_what_to_use_where_no_quantile_is_known(ask: object) -> None:
    components = dist.StudentT(5.0, torch.tensor([-1.0, 1.0]), 1.0)
    mixture = uneven(components)
    with pytest.raises(NotImplementedError, match=r"got StudentT\. Use draws") as raised:
        ask(mixture, torch.tensor(0.5))  # type: ignore[operator]
    for advice in ("(z <= value).double().mean()", "z.quantile(p)"):
        assert advice in str(raised.value)
    z, value, p = mixture.sample((10_000,)), torch.tensor(0.5), torch.tensor([0.25, 0.75])
    assert 0.3 < float((z <= value).double().mean()) < 0.7
    assert z.quantile(p).shape == (2,)
