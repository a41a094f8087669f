from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pairs
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import Tensor

from pyrovae.training.objectives import as_objective, elbo

MIXTURE = dist.MixtureSameFamily(
    dist.Categorical(torch.ones(2)),
    dist.Normal(torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), torch.ones(2, 2)).to_event(1),
)


def at_seed(function: Callable[[], Any]) -> Tensor:
    function()  # a first call draws the initial parameters
    torch.manual_seed(3)
    return torch.as_tensor(function())


def with_prior(prior: Any) -> pairs.Functions:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z @ torch.ones(2, 5), 1.0).to_event(1), obs=x)

    return pairs.Functions(model, pairs.plain().guide)


def hierarchy(same_order: bool) -> pairs.Functions:
    """p(b) p(a | b) with a guide that draws b and then a, or a and then b."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
            a = pyro.sample("a", dist.Normal(0.7 * b, 1.0))
            pyro.sample("x", dist.Normal(a.unsqueeze(-1).expand(-1, 5), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        w = pyro.param("w", torch.tensor(0.3))
        with pyro.plate("data", len(x)):
            if same_order:
                b = pyro.sample("b", dist.Normal(w * x.sum(-1), 0.5))
                pyro.sample("a", dist.Normal(w * x[:, 0] + b, 0.8))
            else:
                a = pyro.sample("a", dist.Normal(w * x[:, 0], 0.8))
                pyro.sample("b", dist.Normal(w * a, 0.5))

    return pairs.Functions(model, guide)


@pytest.mark.parametrize("size", [None, 600])
def test_analytic_divergence_is_pyros_mean_field_estimate(size: int | None) -> None:
    pair, x = pairs.plain(size), pairs.data()
    mine = at_seed(lambda: elbo(*pair, x))
    assert mine.item() == pytest.approx(
        -at_seed(lambda: TraceMeanField_ELBO().loss(*pair, x)).item(), rel=1e-12
    )


def test_without_a_registered_divergence_it_is_pyros_plain_estimate() -> None:
    pair, x = with_prior(MIXTURE), pairs.data()
    mine = at_seed(lambda: elbo(*pair, x))
    assert mine.item() == pytest.approx(
        -at_seed(lambda: Trace_ELBO().loss(*pair, x)).item(), rel=1e-12
    )


def test_a_latent_that_the_guide_draws_later_forbids_the_analytic_divergence() -> None:
    """With b after a in the guide but before it in the model, KL(q(a) ‖ p(a | b)) is no term."""
    pair, x = hierarchy(same_order=False), pairs.data()
    torch.manual_seed(0)
    draws = torch.stack([elbo(*pair, x).detach() for _ in range(800)])
    plain = torch.tensor([-Trace_ELBO().loss(*pair, x) for _ in range(800)])
    error = (draws.var() / 800 + plain.var() / 800).sqrt()
    assert abs(draws.mean() - plain.mean()) < 4 * error  # two-sided false alarm 6e-5, seed fixed
    with pytest.warns(UserWarning, match="mean field"):
        wrong = torch.tensor([-TraceMeanField_ELBO().loss(*pair, x) for _ in range(800)])
    assert abs(wrong.mean() - plain.mean()) > 4 * error  # what would go wrong does go wrong


def test_in_the_same_order_the_analytic_divergence_is_used() -> None:
    pair, x = hierarchy(same_order=True), pairs.data()
    mine = at_seed(lambda: elbo(*pair, x))
    pyros = -at_seed(lambda: TraceMeanField_ELBO().loss(*pair, x))
    assert mine.item() == pytest.approx(pyros.item(), rel=1e-12)


def test_gradients_are_those_of_pyro() -> None:
    pair, x = pairs.plain(), pairs.data()
    at_seed(lambda: elbo(*pair, x)).backward()
    store = dict(pyro.get_param_store().named_parameters())
    mine = {name: p.grad.clone() for name, p in store.items() if p.grad is not None}
    for p in store.values():
        p.grad = None
    at_seed(lambda: TraceMeanField_ELBO().differentiable_loss(*pair, x)).backward()
    assert set(mine) == set(store)
    for name, p in store.items():
        torch.testing.assert_close(mine[name], -p.grad)


def test_warm_up_weighs_the_latent_terms_alone() -> None:
    pair, x = pairs.plain(), pairs.data()
    full, none, half = (at_seed(lambda w=w: elbo(*pair, x, kl_weight=w)) for w in (1.0, 0.0, 0.5))
    torch.testing.assert_close(half, (full + none) / 2)
    assert none > full  # the divergence is positive
    pyros = as_objective(TraceMeanField_ELBO())
    torch.testing.assert_close(half, at_seed(lambda: pyros(*pair, x, kl_weight=0.5)))


def test_particles_average_and_leave_the_mean_alone() -> None:
    pair, x = pairs.plain(), pairs.data()
    torch.manual_seed(0)
    single = torch.stack([elbo(*pair, x).detach() for _ in range(400)])
    ten = torch.stack([elbo(*pair, x, particles=10).detach() for _ in range(100)])
    error = (single.var() / 400 + ten.var() / 100).sqrt()
    assert abs(single.mean() - ten.mean()) < 4 * error
    assert 5 < single.var() / ten.var() < 20  # 10, to an F test's 4 standard errors


def test_a_full_size_plate_scales_to_the_full_data() -> None:
    x = pairs.data()
    small = at_seed(lambda: elbo(*pairs.plain(), x))
    torch.testing.assert_close(10 * small, at_seed(lambda: elbo(*pairs.plain(10 * len(x)), x)))


def test_a_scaled_model_site_is_not_given_the_unscaled_divergence() -> None:
    model, guide = pairs.plain()
    x = pairs.data()
    scaled = pyro.poutine.scale(model, scale=0.5)
    mine = at_seed(lambda: elbo(scaled, guide, x))
    assert mine.item() == pytest.approx(
        -at_seed(lambda: Trace_ELBO().loss(scaled, guide, x)).item()
    )


def test_a_guide_that_is_not_reparametrised_is_refused_and_pyros_estimator_helps() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(loc[k], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        logits = pyro.param("logits", torch.zeros(2))
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})

    x = torch.randn(20)
    with pytest.raises(ValueError, match=r"reparametrised.*site 'k'.*TraceEnum_ELBO"):
        elbo(model, guide, x)
    summed = as_objective(TraceEnum_ELBO(max_plate_nesting=1))(model, guide, x)
    assert summed.requires_grad
    assert summed.item() == pytest.approx(
        -TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, x)
    )


def test_a_latent_without_a_guide_site_is_named() -> None:
    model, _ = pairs.plain()
    with pytest.raises(ValueError, match=r"got none for \['z'\]"):
        elbo(model, lambda x: None, pairs.data())


def test_an_estimator_without_a_differentiable_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="RenyiELBO"):
        as_objective(RenyiELBO(num_particles=2))


def test_a_constrained_delta_keeps_its_log_density() -> None:
    """Pyro registers KL(Delta ‖ p) without the Delta's own log density; that is not used."""

    def model(x: Tensor) -> None:
        s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, s), obs=x)

    guide = pyro.infer.autoguide.AutoNormal(model)
    x = torch.randn(10)
    guide(x)
    mine = at_seed(lambda: elbo(model, guide, x))
    assert mine.item() == pytest.approx(-at_seed(lambda: Trace_ELBO().loss(model, guide, x)).item())
    assert constraints.positive.check(mine.exp())
