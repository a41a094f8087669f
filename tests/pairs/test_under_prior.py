"""A model under another prior is the same model except at its latent site."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import pyrovae as pv
from pyrovae.evidence.importance import compare_priors
from pyrovae.pairs import Pair, elbo_terms
from pyrovae.pairs.under_prior import UnderPrior
from pyrovae.testing import linear_gaussian_vae

EXACT = linear_gaussian_vae(6, 2)
X = EXACT.sample(30)
LOC = torch.tensor([[0.5, -1.0], [2.0, 0.3], [-0.4, 0.8]], dtype=torch.float64)
PRIOR = pv.AggregatedPosterior(dist.Normal(LOC, 0.3).to_event(1))


def by_hand() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The linear-Gaussian VAE written as plain Pyro functions, in a subsampling plate."""

    def model(x: Tensor) -> None:
        noise = pyro.param("noise", torch.tensor(EXACT.noise))
        with pyro.plate("data", 100, subsample=torch.arange(len(x))):
            z = pyro.sample("code", dist.Normal(X.new_zeros(2), 1.0).to_event(1))
            mean = z @ EXACT.weight.T + EXACT.bias
            pyro.sample("x", dist.Normal(mean, noise).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        q = EXACT.posterior(x)
        with pyro.plate("data", 100, subsample=torch.arange(len(x))):
            pyro.sample("code", dist.Normal(q.mean, q.stddev).to_event(1))

    return model, guide


def vae() -> tuple[Callable[..., Any], Callable[..., Any]]:
    exact_vae = EXACT.vae()
    return exact_vae.model, exact_vae.guide


PAIRS = pytest.mark.parametrize(("make", "site"), [(vae, "z"), (by_hand, "code")])


@pytest.mark.filterwarnings("ignore:For .* data points k")  # few draws are enough to be equal
@PAIRS
def test_log_evidence_is_that_of_the_prior_in_the_place_of_the_model_s(
    make: Callable[[], tuple[Any, Any]], site: str
) -> None:
    model, guide = make()
    agg = pv.aggregate(guide, X, site=site)
    ex_post_prior = pv.fit_ex_post_prior(agg, held_out=pv.encode(guide, X, site=site))
    under = ex_post_prior.in_model(model, site=site)
    new = pv.log_evidence(under, guide, X, method="importance", draws=50, site=site, seed=3)
    pair = Pair(model, guide, site)
    expected = compare_priors(pair, X, {"": ex_post_prior.distribution}, draws=50, seed=3)[""]
    torch.testing.assert_close(new.values, expected.values)
    own = compare_priors(pair, X, {"": None}, draws=50, seed=3)[""]
    assert not torch.allclose(new.values, own.values, atol=1e-2)


@PAIRS
def test_pair_reads_the_prior_and_the_same_likelihood(
    make: Callable[[], tuple[Any, Any]], site: str
) -> None:
    model, guide = make()
    pair, old = Pair(UnderPrior(model, PRIOR, site=site), guide, site), Pair(model, guide, site)
    z = torch.randn(len(X), 2)
    torch.testing.assert_close(pair.prior(X).log_prob(z), PRIOR.log_prob(z))
    likelihood, prior = pair.log_joint(X, z)
    torch.testing.assert_close(prior, PRIOR.log_prob(z))
    torch.testing.assert_close(likelihood, elbo_terms(old, X, z)[0])


def test_vae_with_prior_is_the_same_model() -> None:
    exact_vae = EXACT.vae()
    by_method, by_wrapper = exact_vae.with_prior(PRIOR).model, UnderPrior(exact_vae.model, PRIOR)
    z = PRIOR.sample((len(X),))
    traces = [
        poutine.trace(poutine.condition(m, {"z": z})).get_trace(X, size=90)
        for m in (by_method, by_wrapper)
    ]
    sums = [trace.log_prob_sum() for trace in traces]
    torch.testing.assert_close(sums[1], sums[0])  # both are scaled by 90/30


def test_draws_come_from_the_prior() -> None:
    """Means of 4,000 draws, within 5 of their standard errors: a false alarm in 10^6."""
    model, _ = vae()
    x = X[:1].expand(4000, -1)
    with torch.no_grad():
        trace = poutine.trace(UnderPrior(model, PRIOR)).get_trace(x)
    z = trace.nodes["z"]["value"]
    assert ((z.mean(0) - PRIOR.mean).abs() < 5 * (PRIOR.variance / len(z)).sqrt()).all()
    assert (z.unique(dim=0).shape) == z.shape


def test_masks_stay() -> None:
    mask = torch.tensor([True, False, True])

    def model() -> Tensor:
        with pyro.plate("data", 3):
            density = dist.Normal(torch.zeros(2), 1.0).to_event(1)
            return pyro.sample("z", density.expand([3]).mask(mask))

    node = poutine.trace(UnderPrior(model, PRIOR)).get_trace().nodes["z"]
    expected = torch.where(mask, PRIOR.log_prob(node["value"]), 0.0)
    torch.testing.assert_close(node["fn"].log_prob(node["value"]), expected)


def test_what_does_not_fit_is_said() -> None:
    model, _ = vae()
    with pytest.raises(ValueError, match="expected a site 'w' in the model"):
        UnderPrior(model, PRIOR, site="w")(X)
    with pytest.raises(ValueError, match=r"event shape at site 'z', \(2,\); got \(3,\)"):
        UnderPrior(model, dist.Normal(torch.zeros(3), 1.0).to_event(1))(X)
    with pytest.raises(ValueError, match=r"event shape at site 'z', \(2,\); got \(\).*to_event"):
        UnderPrior(model, dist.Normal(torch.zeros(2), 1.0))(X)
    with pytest.raises(ValueError, match=r"batch shape \(\), at site 'z'; got \(7,\)"):
        UnderPrior(model, dist.Normal(torch.zeros(7, 2), 1.0).to_event(1))(X)
