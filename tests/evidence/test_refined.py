"""log p(x) by a proposal of its own for each datum, against exact values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.evidence import Evidence
from pyrovae.evidence.refined import counted
from pyrovae.evidence.target import target_for
from pyrovae.evidence.tuning import fit_proposal
from pyrovae.pairs import Pair
from pyrovae.testing import linear_gaussian_vae

refined = partial(pv.log_evidence, method="refined")
Guide = Callable[[Tensor], object]


def off(found: Evidence, truth: Tensor) -> Tensor:
    """How many standard errors each estimate is off."""
    return (found.values - truth) / found.standard_error


def right(found: Evidence, truth: Tensor) -> bool:
    """Each row within 4.5 standard errors, and their mean square as that of a normal."""
    z = off(found, truth)
    bound = 1 + 4.5 * (2 / len(z)) ** 0.5
    return bool(z.abs().max() < 4.5) and float(z.square().mean()) < bound


def grid(model: Callable[..., object], x: Tensor, z: Tensor, site: str = "z") -> Tensor:
    """log p(x) of each row by a sum over codes of one unit, shape ``(G,)``, evenly spaced."""
    values = []
    for row in x:
        rows = row.expand(len(z), *row.shape)
        trace = pyro.poutine.trace(
            pyro.poutine.condition(model, {site: z.unsqueeze(-1)})
        ).get_trace(rows)
        trace.compute_log_prob()
        joint = sum(node["log_prob"] for node in trace.nodes.values() if "log_prob" in node)
        values.append(joint.logsumexp(0) + (z[1] - z[0]).log())
    return torch.stack(values)


# -- exact models ----------------------------------------------------------------------------------


@pytest.mark.parametrize("latent", [2, 10])
@pytest.mark.parametrize(("scale", "shift"), [(0.3, 2.0), (1.0, 2.0), (3.0, 0.0)])
def test_a_poor_guide_does_not_matter(latent: int, scale: float, shift: float) -> None:
    exact = linear_gaussian_vae(20, latent)
    vae, x = exact.vae(scale=scale, shift=shift), exact.sample(64)
    found = refined(vae.model, vae.guide, x)
    assert right(found, exact.log_prob(x))
    assert float(found.pareto_k.max()) < 0.7
    assert found.bound == "lower"


def correlated(latent: int) -> tuple[Guide, Guide, dist.MultivariateNormal]:
    """A linear model whose posterior is far from diagonal, a factorised guide, and p(x)."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(6, latent, generator=generator) @ torch.randn(
        latent, latent, generator=generator
    )

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(latent), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.T, 0.3).to_event(1), obs=x)

    precision = torch.eye(latent) + weight.T @ weight / 0.09

    def guide(x: Tensor) -> None:
        loc = torch.linalg.solve(precision, weight.T @ x.T / 0.09).T
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, precision.diagonal().rsqrt()).to_event(1))

    covariance = weight @ weight.T + 0.09 * torch.eye(6)
    return model, guide, dist.MultivariateNormal(torch.zeros(6), covariance)


def test_a_correlated_posterior() -> None:
    model, guide, evidence = correlated(4)
    x = evidence.sample(torch.Size([64]))
    found = refined(model, guide, x)
    assert right(found, evidence.log_prob(x))
    assert float(found.pareto_k.max()) < 0.7


def test_another_prior_takes_the_place_of_the_model_s_own() -> None:
    exact = linear_gaussian_vae()
    vae, x = exact.vae(scale=0.3, shift=2.0), exact.sample(64)
    prior = dist.Normal(torch.tensor([0.2, -0.1]), 0.8).to_event(1)
    covariance = 0.64 * exact.weight @ exact.weight.T + exact.noise**2 * torch.eye(6)
    truth = dist.MultivariateNormal(exact.weight @ prior.mean + exact.bias, covariance)
    assert right(refined(vae.model, vae.guide, x, prior=prior), truth.log_prob(x))


def test_weights_have_the_mean_p_x_and_their_logarithm_errs_low() -> None:
    exact = linear_gaussian_vae(8, 3)
    vae, x = exact.vae(scale=0.3, shift=2.0), exact.sample(50)
    target = target_for(Pair(vae.model, vae.guide), x, None)
    weights = counted(fit_proposal(target, seed=1).proposal, 2000, seed=2)
    relative = weights - exact.log_prob(x)
    ratio = relative.exp().flatten()
    assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / len(ratio) ** 0.5
    pairs = (relative.view(2, -1).logsumexp(0) - torch.tensor(2.0).log()).flatten()
    assert float(pairs.mean()) < -4 * float(pairs.std()) / len(pairs) ** 0.5


# -- shapes of posteriors --------------------------------------------------------------------------


def test_both_modes_are_found_from_a_guide_that_sees_one() -> None:
    # x = z² + noise: the posterior has a mode on either side, and the guide is on the right one.
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.square(), 0.2).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = x.clamp_min(0.1).sqrt()
            pyro.sample("z", dist.Normal(loc, 0.1 / loc.clamp_min(0.3)).to_event(1))

    # Of the last rows no draw of the prior comes near the other mode.
    x = torch.linspace(0.5, 13.0, 60).unsqueeze(-1)
    truth = grid(model, x, torch.linspace(-6, 6, 20_001))
    found = refined(model, guide, x)
    assert right(found, truth)
    assert float(found.pareto_k.max()) < 0.7


def positive(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Gamma(torch.full((1,), 0.7), 0.5).to_event(1))
        pyro.sample("x", dist.Poisson(z).to_event(1), obs=x)


def positive_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.LogNormal((x + 3.0).log(), 0.2).to_event(1))


def interval(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Beta(torch.full((1,), 1.5), 2.5).to_event(1))
        pyro.sample("x", dist.Binomial(8, z).to_event(1), obs=x)


def interval_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Beta(x + 9.0, 12.0 - x).to_event(1))


def counts_of_positive(x: Tensor) -> Tensor:
    """A Gamma-Poisson mixture is a negative binomial."""
    return dist.GammaPoisson(0.7, 0.5).log_prob(x.squeeze(-1))


def counts_of_interval(x: Tensor) -> Tensor:
    return dist.BetaBinomial(1.5, 2.5, total_count=8).log_prob(x.squeeze(-1))


@pytest.mark.parametrize(
    ("model", "guide", "truth"),
    [
        (positive, positive_guide, counts_of_positive),
        (interval, interval_guide, counts_of_interval),
    ],
)
def test_codes_of_bounded_support(
    model: Guide, guide: Guide, truth: Callable[[Tensor], Tensor]
) -> None:
    x = torch.arange(9.0).unsqueeze(-1)
    found = refined(model, guide, x)
    assert right(found, truth(x))
    assert float(found.pareto_k.max()) < 0.7


def test_codes_on_a_simplex() -> None:
    # Dirichlet prior, counts of three kinds: log p(x) is that of the Dirichlet-multinomial.
    concentration = torch.tensor([0.8, 1.5, 3.0])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Dirichlet(concentration))
            pyro.sample("x", dist.Multinomial(probs=z, total_count=10), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Dirichlet(x.flip(-1) + 2.0))

    truth = dist.DirichletMultinomial(concentration, total_count=10)
    x = truth.sample(torch.Size([30]))
    found = refined(model, guide, x)
    assert right(found, truth.log_prob(x))
    assert float(found.pareto_k.max()) < 0.7


# -- several sites ---------------------------------------------------------------------------------


def hierarchy(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        top = pyro.sample("top", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        z = pyro.sample("z", dist.Normal(top.expand(-1, 2), 0.7).to_event(1))
        pyro.sample("x", dist.Normal(2 * z, 0.5).to_event(1), obs=x)


def hierarchy_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x / 2 + 0.3, 0.1).to_event(1))
        pyro.sample("top", dist.Normal(z.mean(-1, keepdim=True), 0.3).to_event(1))


HIERARCHY = dist.MultivariateNormal(
    torch.zeros(2, dtype=torch.float64),
    4 * (torch.ones(2, 2, dtype=torch.float64) + 0.49 * torch.eye(2, dtype=torch.float64))
    + 0.25 * torch.eye(2, dtype=torch.float64),
)


@pytest.mark.parametrize("site", ["z", "top", ("top", "z")])
def test_all_sites_of_a_hierarchy_are_one_code(site: str | tuple[str, ...]) -> None:
    x = HIERARCHY.sample(torch.Size([40]))
    found = refined(hierarchy, hierarchy_guide, x, site=site)
    assert right(found, HIERARCHY.log_prob(x))
    assert float(found.pareto_k.max()) < 0.7


def test_a_prior_of_one_site_leaves_the_others_their_own() -> None:
    # z ~ N(m, 0.5²) in place of N(top, 0.7²): the site above then is no part of p(x).
    prior = dist.Normal(torch.tensor([0.3, -0.2]), 0.5).to_event(1)
    truth = dist.Normal(2 * prior.mean, (4 * 0.25 + 0.25) ** 0.5).to_event(1)
    x = truth.sample(torch.Size([40]))
    assert right(refined(hierarchy, hierarchy_guide, x, prior=prior), truth.log_prob(x))


# -- the rules -------------------------------------------------------------------------------------


def test_result_depends_on_seed_alone_and_leaves_no_trace() -> None:
    exact = linear_gaussian_vae()
    vae, x = exact.vae(scale=0.5, shift=1.0), exact.sample(70)  # more than one block
    state = torch.get_rng_state()
    results = [refined(vae.model, vae.guide, x, draws=100, seed=s) for s in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert vae.training
    assert pyro.distributions.is_validation_enabled()
    assert all(p.grad is None for p in vae.parameters())
    assert torch.equal(results[0].values, results[1].values)
    assert not torch.equal(results[0].values, results[2].values)


def test_what_it_cannot_take_is_refused_in_words() -> None:
    def numpy(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = torch.as_tensor(z.numpy().repeat(3, 1))
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def anew(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
            mean = z.repeat(1, 3)
            pyro.sample("x", dist.Normal(mean, scale.unsqueeze(-1)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    x = torch.zeros(4, 6)
    for model, words in ((anew, "draws other latent sites"), (numpy, "a gradient in z")):
        with pytest.raises(ValueError, match=rf"(?s){words}.*method='importance'"):
            refined(model, guide, x)
    with pytest.raises(ValueError, match="at least 2 draws"):
        refined(anew, guide, x, draws=1)


@pytest.mark.filterwarnings("ignore:(.|\n)*k̂:UserWarning")  # at few rows, where it is not told
@pytest.mark.parametrize(("latent", "components"), [(5, 300), (10, 300)])
def test_raw_q_agg_in_the_prior_s_place(latent: int, components: int) -> None:
    # A mixture of narrow Gaussians over z makes p(x) a mixture of Gaussians over x.
    exact = linear_gaussian_vae(2 * latent, latent, noise=0.3)
    vae, x = exact.vae(), exact.sample(40, seed=2)
    agg = pv.aggregate(vae.guide, exact.sample(components, seed=1))
    parts = agg.component_distribution
    within = exact.weight @ torch.diag(parts.variance[0]) @ exact.weight.T  # the same for all
    covariance = within + exact.noise**2 * torch.eye(2 * latent)
    means = parts.mean @ exact.weight.T + exact.bias
    truth = dist.MixtureSameFamily(
        dist.Categorical(logits=agg.log_weights),
        dist.MultivariateNormal(means, covariance.expand(components, -1, -1)),
    ).log_prob(x)
    found = refined(vae.model, vae.guide, x, prior=agg)
    told = ~found.unresolved
    assert float(told.double().mean()) > 0.75
    z = ((found.values - truth) / found.standard_error)[told]
    assert float(z.abs().max()) < 4.5
