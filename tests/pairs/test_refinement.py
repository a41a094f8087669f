"""q(z | x) climbs the ELBO of each row within its family, up to the best member of it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.mixture.families import family
from pyrovae.pairs import Pair, elbo_draws, measuring
from pyrovae.testing import linear_gaussian_vae

STEPS = 200


def test_refined_codes_of_a_shifted_guide_are_the_exact_posterior() -> None:
    exact = linear_gaussian_vae(8, 3)
    vae, x = exact.vae(scale=0.5, shift=1.5), exact.sample(300)  # more than one block of rows
    posterior = exact.posterior(x)
    refined = pv.encode(vae.guide, x, model=vae.model, refine=STEPS)
    assert float(((refined.mean - posterior.mean) / posterior.stddev).abs().max()) < 1e-2
    assert float((refined.stddev / posterior.stddev - 1).abs().max()) < 1e-2
    agg = pv.aggregate(vae.guide, x, model=vae.model, refine=STEPS)
    z = torch.randn(5, 3)
    assert torch.allclose(agg.log_prob(z), pv.AggregatedPosterior(posterior).log_prob(z), atol=0.05)


def correlated(x: Tensor) -> None:
    """z ~ N(0, I) of two units, x | z ~ N(z1 + z2, 0.5²): posterior precision [[5, 4], [4, 5]]."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 0.5).to_event(1), obs=x)


def guide_of(site: Callable[[Tensor], dist.Distribution]) -> Callable[[Tensor], None]:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", site(0.3 * x.expand(-1, 2)))

    return guide


def test_a_diagonal_family_ends_at_its_best_member_and_a_full_one_at_the_posterior() -> None:
    x = torch.tensor([[1.0], [-2.0], [0.5]])
    mean = (4 / 9 * x).expand(-1, 2)  # the posterior's, and that of the best diagonal Gaussian
    guide = guide_of(lambda loc: dist.Normal(loc, 0.9).to_event(1))
    diagonal = pv.encode(guide, x, model=correlated, refine=400)
    assert torch.allclose(diagonal.mean, mean, atol=1e-2)
    # Its variances are the inverses of the precision's diagonal.
    assert torch.allclose(diagonal.stddev, torch.full((3, 2), 5**-0.5), atol=1e-2)
    guide = guide_of(lambda loc: dist.MultivariateNormal(loc, torch.eye(2)))
    full = pv.encode(guide, x, model=correlated, refine=400)
    precision = torch.tensor([[5.0, 4.0], [4.0, 5.0]])
    assert torch.allclose(full.mean, mean, atol=1e-2)
    assert torch.allclose(full.covariance_matrix, precision.inverse().expand(3, 2, 2), atol=1e-2)


def counts(x: Tensor, exposure: Tensor) -> None:
    """z ~ Gamma(2, 1), x ~ Poisson(exposure · z): the posterior is Gamma(2 + x, 1 + exposure)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Gamma(torch.full((len(x), 1), 2.0), 1.0).to_event(1))
        pyro.sample("x", dist.Poisson(exposure * z).to_event(1), obs=x)


def counts_guide(x: Tensor, exposure: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Gamma(1 + x, 1.0 + 0 * exposure).to_event(1))


def test_positive_codes_of_a_pair_of_two_arguments() -> None:
    x, exposure = torch.tensor([[0.0], [3.0], [9.0]]), torch.tensor([[1.0], [2.0], [3.0]])
    refined = pv.encode(counts_guide, (x, exposure), model=counts, refine=400)
    assert family(refined) == "Gamma"
    posterior = dist.Gamma(2 + x, 1 + exposure)
    start = torch.distributions.kl_divergence(dist.Gamma(1 + x, torch.ones(3, 1)), posterior)
    end = torch.distributions.kl_divergence(refined.base_dist, posterior)
    assert bool((start > 0.1).all()) and bool((end < 1e-2).all())


def layers(x: Tensor) -> None:
    """z2 ~ N(0, 1), z1 | z2 ~ N(z2, 1), x | z1 ~ N(z1, 1): z2 | x ~ N(x/3, 2/3)."""
    with pyro.plate("data", len(x)):
        top = pyro.sample("z2", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))
        inner = pyro.sample("z1", dist.Normal(top, 1.0).to_event(1))
        pyro.sample("x", dist.Normal(inner, 1.0).to_event(1), obs=x)


def layers_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        top = pyro.sample("z2", dist.Normal(0.0 * x + 1.0, 0.4).to_event(1))
        pyro.sample("z1", dist.Normal((x + top) / 2, 0.5**0.5).to_event(1))


def test_the_top_layer_is_refined_through_the_guide_of_the_layer_below() -> None:
    x = torch.tensor([[1.0], [-2.0], [0.5]])
    refined = pv.encode(layers_guide, x, site="z2", model=layers, refine=400)
    assert torch.allclose(refined.mean, x / 3, atol=1e-2)
    assert torch.allclose(refined.stddev, torch.full((3, 1), (2 / 3) ** 0.5), atol=1e-2)


def test_layers_that_depend_on_each_other_are_refused_as_one_vector() -> None:
    x = torch.zeros(3, 1)
    with pytest.raises(pv.InputError, match="Name the site that is drawn first alone"):
        pv.encode(layers_guide, x, site=("z2", "z1"), model=layers, refine=5)


@pytest.mark.parametrize("steps", [1, 5, 50])
@pytest.mark.parametrize("scale", [0.01, 1.0, 4.0])
def test_the_elbo_falls_nowhere(steps: int, scale: float) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 6))
        x = torch.randn(20, 6)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.1).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :2], scale).to_event(1))

    before = pv.encode(guide, x)
    after = pv.encode(guide, x, model=model, refine=steps)
    pair, elbo = Pair(model, guide), []
    with torch.no_grad(), measuring(model, guide):
        for q in (before, after):
            torch.manual_seed(1)
            elbo.append(elbo_draws(pair, (x,), q, 4000))
    gain = elbo[1] - elbo[0]
    assert bool((gain.mean(0) >= -4 * gain.std(0) / math.sqrt(len(gain))).all())
    if steps > 1:
        assert float(gain.mean()) > 0


def test_a_seed_names_the_draws_and_nothing_else_counts() -> None:
    exact = linear_gaussian_vae()
    vae, x = exact.vae(scale=2.0), exact.sample(30)

    def mean(**options: int) -> Tensor:
        return pv.encode(vae.guide, x, model=vae.model, refine=3, **options).mean

    state = torch.random.get_rng_state()
    first = mean()
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first, mean(batch_size=7))
    assert not torch.equal(first, mean(seed=1))
    assert all(parameter.grad is None for parameter in vae.parameters())
    with torch.inference_mode():
        assert torch.allclose(first, mean())


def test_what_has_no_gradient_or_no_rows_of_its_own_is_refused() -> None:
    x = torch.zeros(3, 1)
    angle = guide_of(lambda loc: dist.VonMises(loc, 1.0).to_event(1))
    with pytest.raises(pv.InputError, match="reparametrised draws; got VonMises"):
        pv.encode(angle, x, model=correlated, refine=5)
    with pytest.raises(pv.InputError, match="Give it with model="):
        pv.encode(angle, x, refine=5)
    for steps in (-1, 2.5, True):
        with pytest.raises(pv.InputError, match="a whole number of steps"):
            pv.encode(angle, x, model=correlated, refine=steps)  # type: ignore[arg-type]

    def by_place(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(3, 2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    with pytest.raises(pv.InputError, match="any number of rows"):
        pv.encode(by_place, x, model=correlated, refine=5)
