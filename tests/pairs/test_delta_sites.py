"""Points in a guide, such as MAP estimates: the density at a point is not part of log p(x)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoNormal
from pyro.nn import PyroParam
from torch import Tensor

import pyrovae as pv

ROWS = 20
X = torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(0)).double()
AT = 0.7  # where the point is

# z ~ N(0, 1), x_0 ~ N(z, 1); u ~ a prior of any width, x_1 ~ N(u, 1)


def model_with(width: float) -> Callable[[Tensor], None]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(torch.zeros(1), width).to_event(1))
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(torch.cat([z, u], -1), 1.0).to_event(1), obs=x)

    return model


def posterior(x: Tensor) -> dist.Distribution:
    return dist.Normal(x[:, :1] / 2, math.sqrt(0.5)).to_event(1)


def log_prob_given(u: Tensor | float) -> Tensor:
    """log p(x | u) in closed form."""
    return dist.Normal(0.0, math.sqrt(2)).log_prob(X[:, 0]) + dist.Normal(u, 1.0).log_prob(X[:, 1])


def delta_of_an_event(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("u", dist.Delta(torch.full((len(x), 1), AT)).to_event(1))
        pyro.sample("z", posterior(x))


def delta_with_event_dim(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", posterior(x))
        pyro.sample("u", dist.Delta(torch.full((len(x), 1), AT), event_dim=1))


def delta_with_a_density(x: Tensor) -> None:
    """A point with an unnormalised density of its own, which does not count either."""
    with pyro.plate("data", len(x)):
        log_density = torch.full((len(x),), 3.0)
        pyro.sample("u", dist.Delta(torch.full((len(x), 1), AT), log_density, event_dim=1))
        pyro.sample("z", posterior(x))


def masked_delta(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        point = dist.Delta(torch.full((len(x), 1), AT), event_dim=1)
        pyro.sample("u", point.mask(torch.ones(len(x), dtype=torch.bool)))
        pyro.sample("z", posterior(x))


POINTS = [delta_of_an_event, delta_with_event_dim, delta_with_a_density, masked_delta]


@pytest.mark.parametrize("guide", POINTS, ids=lambda guide: guide.__name__)
@pytest.mark.parametrize("width", [0.01, 100.0])
def test_the_prior_of_a_point_is_left_out_and_that_is_said(guide: Any, width: float) -> None:
    with pytest.warns(UserWarning, match="point at u and no density"):
        evidence = pv.log_evidence(model_with(width), guide, X, draws=4)
    assert torch.allclose(evidence.values, log_prob_given(AT), rtol=0, atol=1e-9)
    assert evidence.bound is None
    assert evidence.mean().bound is None
    assert any("prior is left out" in concern for concern in evidence.concerns)


def test_a_point_that_depends_on_the_code() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", posterior(x))
            pyro.sample("u", dist.Delta(AT + 0 * z, event_dim=1))

    with pytest.warns(UserWarning, match="point at u"):
        evidence = pv.log_evidence(model_with(3.0), guide, X, draws=4)
    assert torch.allclose(evidence.values, log_prob_given(AT), rtol=0, atol=1e-9)


def test_points_of_autoguides() -> None:
    model = model_with(0.01)
    guide = AutoGuideList(model)
    guide.append(AutoNormal(poutine.block(model, hide=["u"])))
    guide.append(AutoDelta(poutine.block(model, expose=["u"])))
    guide(X)
    set_exactly(guide[0], "z", X[:, :1] / 2)
    with pytest.warns(UserWarning, match="point at u"):
        evidence = pv.log_evidence(model, guide, X, draws=4)
    u = guide[1](X)["u"][:, 0].detach()
    assert torch.allclose(evidence.values, log_prob_given(u), rtol=0, atol=1e-9)


def set_exactly(guide: AutoNormal, site: str, loc: Tensor) -> None:
    setattr(guide.locs, site, PyroParam(loc.clone()))
    scale = torch.full_like(loc, math.sqrt(0.5))
    setattr(guide.scales, site, PyroParam(scale, constraint=constraints.positive))


def positive_model(x: Tensor) -> None:
    """u is positive, and log u is normal: an autoguide needs a transform."""
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.LogNormal(torch.zeros(1), 1.0).to_event(1))
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(torch.cat([z, u.log()], -1), 1.0).to_event(1), obs=x)


def test_deltas_inside_autoguides_are_no_points() -> None:
    truth = dist.Normal(0.0, math.sqrt(2)).log_prob(X).sum(1)
    auto = AutoNormal(positive_model)
    auto(X)
    set_exactly(auto, "z", X[:, :1] / 2)
    set_exactly(auto, "u", X[:, 1:] / 2)

    class Grouped(EasyGuide):
        def guide(self, x: Tensor) -> None:
            with self.plate("data", len(x)):
                q = dist.Normal(x.flip(-1) / 2, math.sqrt(0.5)).to_event(1)  # u comes first
                self.group(match="u|z").sample("g", q)

    for guide in (auto, Grouped(positive_model)):
        guide(X)
        evidence = pv.log_evidence(positive_model, guide, X, draws=4)
        assert evidence.bound == "lower"
        assert not evidence.notes
        assert torch.allclose(evidence.values, truth, rtol=0, atol=1e-9)


def test_a_discrete_value_has_a_probability_which_counts() -> None:
    share = torch.tensor([0.2, 0.8])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(share))
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            loc = torch.cat([z, y.unsqueeze(-1).to(z)], -1)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Delta(torch.ones(len(x))))
            pyro.sample("z", posterior(x))

    evidence = pv.log_evidence(model, guide, X, draws=4)
    assert torch.allclose(evidence.values, log_prob_given(1.0) + math.log(0.8), rtol=0, atol=1e-9)
    assert evidence.bound == "lower"
    assert not evidence.concerns


def test_a_point_at_the_site_itself_is_refused() -> None:
    for guide in POINTS:
        with pytest.raises(pv.InputError, match="density at the guide's site 'u'; got a point"):
            pv.log_evidence(model_with(1.0), guide, X, site="u", draws=4)
    auto = AutoDelta(model_with(1.0))
    auto(X)
    with pytest.raises(pv.InputError, match="density at the guide's site 'z'; got a point"):
        pv.log_evidence(model_with(1.0), auto, X, draws=4)


@pytest.mark.parametrize("method", ["annealed", "prior"])
def test_ways_that_know_nothing_of_points_name_the_one_that_does(method: Any) -> None:
    with pytest.raises(pv.InputError, match=r"got also \['u'\], at which .*method='importance'"):
        pv.log_evidence(model_with(1.0), delta_of_an_event, X, method=method, draws=30)
