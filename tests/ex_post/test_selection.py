"""The ex-post prior: what is tried, how it is scored, and which one is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch

from pyrovae.ex_post import candidates
from pyrovae.ex_post.candidates import (
    Flow,
    Inflated,
    InflatedByUnit,
    Recipe,
    Reduced,
    inflate,
    leave_one_out_amounts,
)
from pyrovae.ex_post.selection import default_candidates, fit_ex_post_prior
from pyrovae.mixture.aggregated import AggregatedPosterior
from pyrovae.mixture.mixture import Mixture

D = 4


def narrow_kernels(size: int) -> dist.Distribution:
    """Codes of standard normal data with a far too narrow encoder: a memorised density."""
    return dist.Normal(torch.randn(size, D), torch.full((size, D), 0.02)).to_event(1)


def test_inflation_adds_variance() -> None:
    agg = AggregatedPosterior(narrow_kernels(200))
    wide = inflate(agg, 0.3)
    spread = agg.encoding.mean.var(0, correction=0)
    torch.testing.assert_close(wide.mean, agg.mean)
    torch.testing.assert_close(wide.variance, agg.variance + 0.3 * spread)
    full = AggregatedPosterior(dist.MultivariateNormal(agg.encoding.mean, 4e-4 * torch.eye(D)))
    torch.testing.assert_close(inflate(full, 0.3).variance, wide.variance)
    z = agg.sample((5,))
    torch.testing.assert_close(inflate(full, 0.3).log_prob(z), wide.log_prob(z))


def test_memorised_density_is_smoothed() -> None:
    """The choice has a higher held-out density than the raw mixture, by many standard errors."""
    agg, held_out = AggregatedPosterior(narrow_kernels(300)), narrow_kernels(300)
    ex_post_prior = fit_ex_post_prior(agg, held_out=held_out)
    assert len(ex_post_prior.table) == len(default_candidates(agg))
    raw = ex_post_prior.table[0]
    assert raw.amount == 0.0 and raw.difference.value < -4 * raw.difference.standard_error
    best = max(ex_post_prior.table, key=lambda row: row.held_out.value)
    assert best.difference.value == 0.0 and best.difference.standard_error == 0.0
    fresh = narrow_kernels(300).sample()
    assert ex_post_prior.distribution.log_prob(fresh).mean() > agg.log_prob(fresh).mean() + 10
    assert isinstance(ex_post_prior.distribution, Mixture) and ex_post_prior.choice in {
        r.name for r in ex_post_prior.table
    }


def test_choice_is_the_smoothest_within_one_standard_error() -> None:
    agg, held_out = AggregatedPosterior(narrow_kernels(500)), narrow_kernels(30)
    recipes = [Inflated(h) for h in torch.linspace(0.1, 0.5, 30).tolist()]
    ex_post_prior = fit_ex_post_prior(agg, held_out=held_out, candidates=recipes)
    close = [r for r in ex_post_prior.table if -r.difference.value <= r.difference.standard_error]
    chosen = next(r for r in ex_post_prior.table if r.name == ex_post_prior.choice)
    assert len(close) > 1 and chosen.amount == max(r.amount for r in close)


def test_errors_are_of_differences_paired_by_data_point() -> None:
    """The spread that all candidates share, here from points far away, does not count."""
    agg = AggregatedPosterior(narrow_kernels(100))
    loc = torch.linspace(1, 30, 12).unsqueeze(-1) * torch.randn(12, D)
    held_out = dist.Normal(loc, 1e-9).to_event(1)
    recipes = [Reduced(1, "full"), Inflated(0.5), Inflated(0.45)]
    ex_post_prior = fit_ex_post_prior(agg, held_out=held_out, candidates=recipes)
    values = torch.stack([recipe.fit(agg, seed=0).log_prob(loc) for recipe in recipes])
    best = values[values.mean(1).argmax()]
    for row, value in zip(ex_post_prior.table, values, strict=True):
        paired = (value - best).std() / math.sqrt(12)
        assert row.difference.value == pytest.approx(float((value - best).mean()), rel=1e-4)
        assert row.difference.standard_error == pytest.approx(float(paired), rel=1e-4)
        assert row.held_out.standard_error == pytest.approx(float(value.std() / 12**0.5), rel=1e-4)


def test_ties_go_to_the_smoother_with_amounts_by_unit_among_them() -> None:
    """With two points, a candidate as good as the best at one is within one standard error of it.

    Narrow kernels are best at one of their means, and wide ones at a point far from all means.
    """
    agg = AggregatedPosterior(narrow_kernels(200))
    loc = torch.stack([agg.encoding.mean[0], torch.full((D,), 2.5)])
    held_out = dist.Normal(loc, 1e-6).to_event(1)
    recipes: list[Recipe] = [Inflated(0.0), Inflated(0.001), InflatedByUnit()]
    ex_post_prior = fit_ex_post_prior(agg, held_out=held_out, candidates=recipes)
    amount = leave_one_out_amounts(agg, steps=40, codes=128, seed=0).log().mean().exp()
    assert [row.amount for row in ex_post_prior.table] == [0.0, 0.001, pytest.approx(float(amount))]
    assert ex_post_prior.choice == recipes[2].name and amount > 0.001
    wider = Inflated(2 * float(amount))
    ex_post_prior = fit_ex_post_prior(agg, held_out=held_out, candidates=[wider, *recipes])
    assert ex_post_prior.choice == wider.name


@pytest.mark.parametrize("rows", [2, 5])
def test_few_held_out_points_make_simple_choices(rows: int) -> None:
    agg, held_out = AggregatedPosterior(narrow_kernels(60)), narrow_kernels(rows)
    ex_post_prior = fit_ex_post_prior(agg, held_out=held_out)
    chosen = next(row for row in ex_post_prior.table if row.name == ex_post_prior.choice)
    assert chosen.parameters == min(row.parameters for row in ex_post_prior.table)
    assert chosen.held_out.size == rows
    assert all(row.held_out.unresolved == "too few rows to tell" for row in ex_post_prior.table)


def test_reduced_mixtures_are_candidates_and_fewer_numbers_are_simpler() -> None:
    """Codes of three clusters: three wide normals beat kernels at every inflation."""
    centre = 5.0 * torch.randn(3, D)

    def encoding(size: int) -> dist.Distribution:
        loc = centre.repeat(size // 3, 1) + torch.randn(size // 3 * 3, D)
        return dist.Normal(loc, 0.02).to_event(1)

    agg = AggregatedPosterior(encoding(300))
    recipes: list[Recipe] = [Inflated(h) for h in (0.01, 0.1, 1.0)]
    recipes += [Reduced(3), Reduced(30), Reduced(3, covariance="full", starts=2)]
    ex_post_prior = fit_ex_post_prior(agg, held_out=encoding(300), candidates=recipes)
    assert [row.components for row in ex_post_prior.table] == [300] * 3 + [3, 30, 6]
    assert [row.parameters for row in ex_post_prior.table] == [300 * 9 - 1] * 3 + [
        26,
        269,
        6 * 15 - 1,
    ]
    assert ex_post_prior.choice.startswith("reduced to 3 components")
    assert isinstance(ex_post_prior.distribution, Mixture)
    # the chosen one is the simplest of those that are within a standard error of the best
    chosen = next(row for row in ex_post_prior.table if row.name == ex_post_prior.choice)
    near = [r for r in ex_post_prior.table if r.difference.value >= -r.difference.standard_error]
    assert chosen.parameters == min(row.parameters for row in near)
    assert ex_post_prior.distribution.size == chosen.components


def test_averages_of_shrunk_full_covariances_win_on_a_curved_surface() -> None:
    """Full covariance, shrinkage and averaging each gain on fresh codes of a curved surface."""
    bend = torch.randn(3, 8)

    def encoding(size: int) -> dist.Distribution:
        loc = torch.sin(2 * torch.randn(size, 3) @ bend) + 0.1 * torch.randn(size, 8)
        return dist.Normal(loc, 0.02).to_event(1)

    agg, held_out = AggregatedPosterior(encoding(600)), encoding(1000)
    single = Reduced(60, covariance="full", shrinkage=6.0)
    recipes = [Reduced(60), single, Reduced(60, covariance="full", shrinkage=6.0, starts=4)]
    ex_post_prior = fit_ex_post_prior(agg, held_out=held_out, candidates=recipes)
    diagonal, full, averaged = (row.difference for row in ex_post_prior.table)
    assert ex_post_prior.choice == "reduced to 60 components of full covariance, 4 averaged"
    assert averaged.value == 0
    assert diagonal.value < full.value < -4 * full.standard_error
    average = ex_post_prior.distribution
    assert isinstance(average, Mixture) and average.size == 240
    parts = average.component_distribution.mean.split(60)
    assert torch.equal(single.fit(agg, seed=0).component_distribution.mean, parts[0])
    torch.testing.assert_close(average.weights.view(4, 60).sum(-1), torch.full((4,), 0.25))


def test_no_start_is_shared_between_seeds() -> None:
    """With seed + start, neighbouring seeds would share all but one of their starts."""
    agg = AggregatedPosterior(narrow_kernels(200))
    fits = [Reduced(5, starts=3).fit(agg, seed=seed) for seed in (0, 0, 1, 2)]
    first, again, *others = [fit.component_distribution.mean for fit in fits]
    assert torch.equal(first, again)
    means = torch.cat([first, *others])
    assert len(means.unique(dim=0)) == 3 * 3 * 5


def test_amounts_by_unit_follow_the_units() -> None:
    """A unit whose means lie on two points needs almost no smoothing; normal ones need much."""

    def encoding(size: int) -> dist.Distribution:
        loc = torch.randn(size, 3)
        loc[:, 0] = loc[:, 0].sign()
        return dist.Normal(loc, 0.05).to_event(1)

    agg = AggregatedPosterior(encoding(400))
    amount = leave_one_out_amounts(agg, steps=40, codes=128, seed=0)
    assert amount[0] < 0.5 * amount[1:].min() and (amount[1:] > 0.02).all()
    recipes: list[Recipe] = [Inflated(h) for h in (0.0, 0.02, 0.05, 0.1, 0.2, 0.5)]
    ex_post_prior = fit_ex_post_prior(
        agg, held_out=encoding(500), candidates=[*recipes, InflatedByUnit()]
    )
    assert ex_post_prior.table[-1].difference.value == 0
    alike = AggregatedPosterior(dist.Normal(torch.zeros(5, 2), torch.ones(5, 2)).to_event(1))
    assert leave_one_out_amounts(alike, steps=2, codes=5, seed=0).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_leave_one_out_gradients_are_those_of_autograd(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks of components, the last of which holds one that is left out, and no other."""
    monkeypatch.setattr(candidates, "SCORES_AT_ONCE", 5 * 10)
    key, constant = -torch.rand(41, 6, dtype=dtype), torch.randn(41, dtype=dtype)
    z, own = 20 * torch.randn(5, 3, dtype=dtype), torch.tensor([40, 0, 7, 7, 23])
    leaves = [key.requires_grad_(), constant.requires_grad_()]
    scores = constant + torch.cat([z.square(), z], -1) @ key.mT
    (-scores.scatter(1, own.unsqueeze(-1), -torch.inf).logsumexp(-1).mean()).backward()
    found = candidates._leave_one_out_gradients(key.detach(), constant.detach(), z, own)
    for gradient, leaf in zip(found, leaves, strict=True):
        torch.testing.assert_close(gradient, leaf.grad, rtol=1e-4, atol=1e-6)


def test_a_flow_is_a_candidate() -> None:
    """It is a normalised density, and learns a ring, which a single normal can't."""
    angle = 6.28 * torch.rand(400)
    loc = torch.stack([3 * angle.cos() + 20, 0.3 * angle.sin()], -1)
    agg = AggregatedPosterior(dist.Normal(loc, torch.tensor([0.3, 0.03])).to_event(1))
    recipes = [Reduced(1, covariance="full"), Flow(150, layers=2, hidden=(16,), learning_rate=0.02)]
    ex_post_prior = fit_ex_post_prior(agg, held_out=agg.encoding, candidates=recipes)
    normal, flow = ex_post_prior.table
    assert (
        ex_post_prior.choice == "a flow of 2 couplings, 150 steps" == flow.name
        and flow.components == 0
    )
    assert flow.parameters > normal.parameters
    grid = torch.cartesian_prod(torch.linspace(10, 30, 400), torch.linspace(-1, 1, 400))
    total = ex_post_prior.distribution.log_prob(grid).exp().sum() * 20 / 399 * 2 / 399
    torch.testing.assert_close(total, torch.tensor(1.0), atol=0.02, rtol=0)
    z = ex_post_prior.distribution.sample((4000,))
    assert ((z.mean(0) - loc.mean(0)).abs() < 0.3 * loc.std(0)).all()
    again = fit_ex_post_prior(agg, held_out=agg.encoding, candidates=recipes)
    assert again.table == ex_post_prior.table


@pytest.mark.parametrize("dim", [2, 8])
def test_a_flow_starts_at_the_normal_with_the_moments_of_the_mixture(dim: int) -> None:
    """Exact for a single component: the flow's log density is that of the component.

    Moments from 2,000 draws lose D/2,000 nats, and slopes of 1.001 some more.
    """
    component = dist.Normal(torch.randn(1, dim), torch.rand(1, dim) + 0.5).to_event(1)
    agg = AggregatedPosterior(component)
    z = agg.sample((2000,))
    start = Flow(1, layers=2, learning_rate=1e-9).fit(agg, seed=0)
    assert float((agg.log_prob(z) - start.log_prob(z)).mean()) < 0.02 * dim


@pytest.mark.parametrize("dim", [2, 8])
def test_the_flow_of_the_defaults_bends(dim: int) -> None:
    """Codes on parabolas: it gains over the normal it starts from, and over a full one."""

    def encoding(size: int) -> dist.Distribution:
        x = torch.randn(size, dim)
        bent = 0.3 * x[:, 1::2] + x[:, ::2].square()
        return dist.Normal(torch.cat([x[:, ::2], bent], -1), 0.1).to_event(1)

    agg, held_out = AggregatedPosterior(encoding(1000)), encoding(500)
    assert default_candidates(agg)[-1] == Flow()
    recipes: list[Recipe] = [Reduced(1), Reduced(1, "full"), Flow()]
    ex_post_prior = fit_ex_post_prior(agg, held_out=held_out, candidates=recipes)
    for normal in ex_post_prior.table[:2]:
        assert -normal.difference.value > dim / 2 * 0.4 + 4 * normal.difference.standard_error
    assert ex_post_prior.choice == Flow().name


@pytest.mark.parametrize(
    ("size", "dim", "is_default"),
    [(1000, 2, True), (1000, 16, True), (999, 2, False), (1000, 17, False), (1000, 1, False)],
)
def test_a_flow_is_tried_where_it_costs_little(size: int, dim: int, is_default: bool) -> None:
    agg = AggregatedPosterior(dist.Normal(torch.randn(size, dim), 0.1).to_event(1))
    assert (Flow() in default_candidates(agg)) == is_default


def test_defaults_fit_the_data_there_are() -> None:
    small = default_candidates(AggregatedPosterior(narrow_kernels(40)))
    assert max(r.components for r in small if isinstance(r, Reduced)) == 10
    images = AggregatedPosterior(dist.Normal(torch.randn(9, 2, 2), 1.0).to_event(2))
    assert all(isinstance(r, Inflated) for r in default_candidates(images))
    full = AggregatedPosterior(dist.MultivariateNormal(torch.randn(30, 2), torch.eye(2)))
    assert {type(r) for r in default_candidates(full)} == {Inflated, Reduced}
    assert len(fit_ex_post_prior(full, held_out=full.encoding).table) == 9


def test_seed_decides_the_draws_and_leaves_the_state() -> None:
    agg, held_out = AggregatedPosterior(narrow_kernels(50)), narrow_kernels(20)
    state = torch.get_rng_state()
    first = fit_ex_post_prior(agg, held_out=held_out, seed=3)
    assert (torch.get_rng_state() == state).all()
    assert first.table == fit_ex_post_prior(agg, held_out=held_out, seed=3).table
    assert first.table != fit_ex_post_prior(agg, held_out=held_out, seed=4).table


MADE: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (Inflated, {"amount": -0.1}, "amount of at least 0; got -0.1"),
    (Inflated, {"amount": math.nan}, "finite amount.*got nan"),
    (InflatedByUnit, {"steps": 0}, "steps of at least 1"),
    (InflatedByUnit, {"codes": 0}, "codes of at least 1"),
    (Reduced, {"components": 0}, "components of at least 1"),
    (Reduced, {"components": 2.5}, "whole number; got 2.5"),
    (Reduced, {"components": 2, "starts": 0}, "starts of at least 1"),
    (Reduced, {"components": 2, "covariance": "ful"}, "'diagonal' or 'full'; got 'ful'"),
    (Reduced, {"components": 2, "shrinkage": -1.0}, "shrinkage of at least 0; got -1"),
    (Flow, {"steps": 0}, "steps of at least 1"),
    (Flow, {"batch": 0}, "batch of at least 1"),
    (Flow, {"layers": 0}, "layers of at least 1"),
    (Flow, {"hidden": ()}, "hidden of at least 1"),
    (Flow, {"hidden": (8, 0)}, "hidden of at least 1"),
    (Flow, {"learning_rate": 0.0}, "learning rate above 0"),
]


@pytest.mark.parametrize(("recipe", "arguments", "message"), MADE)
def test_recipes_are_checked_when_made(
    recipe: Callable[..., Any], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        recipe(**arguments)


def normals(*shape: int) -> dist.Distribution:
    return dist.Normal(torch.randn(*shape), 0.1).to_event(len(shape) - 1)


def correlated(size: int, dim: int) -> dist.Distribution:
    return dist.MultivariateNormal(torch.randn(size, dim), torch.eye(dim))


UNFIT: list[tuple[dist.Distribution, list[Any], str]] = [
    (normals(9, 1), [Flow()], "at least 2 units for a flow.*Use Reduced"),
    (normals(9, 2, 2), [Flow()], r"vectors, event shape \(D,\); got \(2, 2\)"),
    (normals(9, 2, 2), [Reduced(2)], r"vectors, event shape \(D,\); got \(2, 2\)"),
    (normals(9, 2, 2), [InflatedByUnit()], r"vectors, event shape \(D,\); got \(2, 2\)"),
    (normals(9, 2), [Reduced(10)], "expected 1 to 9 components; got 10"),
    (correlated(9, 2), [InflatedByUnit()], "diagonal normal components"),
    (normals(1, 2), [InflatedByUnit()], "at least 2 diagonal normal components.*got 1"),
    (dist.OneHotCategorical(logits=torch.randn(5, 2)), [Inflated(0.1)], "OneHotCategorical"),
    (normals(9, 2), [], "at least one candidate; got none"),
    (normals(9, 2), [Flow], "candidates like .*got <class"),
]


@pytest.mark.parametrize(("encoding", "candidates", "message"), UNFIT)
def test_candidates_are_checked_before_any_fit(
    encoding: dist.Distribution,
    candidates: list[Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fitted(*_: object, **__: object) -> None:
        raise RuntimeError("a fit was begun")

    monkeypatch.setattr("pyrovae.ex_post.candidates.inflate", fitted)
    monkeypatch.setattr("pyrovae.ex_post.candidates.fewer_components", fitted)
    agg = AggregatedPosterior(encoding)
    held_out = encoding.expand([9]) if len(agg) == 1 else encoding
    with pytest.raises(ValueError, match=message):
        fit_ex_post_prior(
            agg, held_out=held_out, candidates=[Inflated(), *candidates] if candidates else []
        )
    for recipe in candidates:
        if isinstance(recipe, InflatedByUnit | Reduced | Flow):
            with pytest.raises(ValueError, match=message):
                recipe.fit(agg, seed=0)


BAD = dist.Normal(torch.tensor([[0.0], [math.nan], [1.0]]), 1.0, validate_args=False)
HELD_OUT: list[tuple[dict[str, Any], str]] = [
    ({"draws": 0}, "draws of at least 1"),
    ({"held_out": torch.zeros(5, D)}, r"an encoding; got Tensor. Use encode\("),
    ({"held_out": normals(5, 3)}, r"event shape \(4,\).*got batch shape \(5,\) and .* \(3,\)"),
    ({"held_out": normals(1, D)}, r"at least 2 data points.*got batch shape \(1,\)"),
    ({"held_out": normals(D)}, r"got batch shape \(4,\) and event shape \(\)"),
    ({"held_out": BAD.expand([3, D]).to_event(1)}, "others at 1 of 3 data points, .*in row 1"),
    ({"agg": normals(5, D)}, r"aggregated posterior; got Independent. Use aggregate\("),
    ({"candidates": Inflated()}, r"at least one candidate; got Inflated\(amount=0.0\)"),
]


@pytest.mark.parametrize(("arguments", "message"), HELD_OUT)
def test_bad_requests_say_what_to_do(arguments: dict[str, Any], message: str) -> None:
    good = {"agg": AggregatedPosterior(narrow_kernels(50)), "held_out": narrow_kernels(20)}
    with pytest.raises(ValueError, match=message):
        fit_ex_post_prior(**{**good, **arguments})


def test_components_that_are_not_normal_are_left_as_they_are() -> None:
    encoding = dist.LogNormal(torch.randn(40, 2), 0.3).to_event(1)
    agg = AggregatedPosterior(encoding)
    ex_post_prior = fit_ex_post_prior(agg, held_out=encoding)
    assert [row.name for row in ex_post_prior.table] == ["as it is"]
    with pytest.raises(ValueError, match="LogNormal"):
        fit_ex_post_prior(agg, held_out=encoding, candidates=[Inflated(0.1)])
