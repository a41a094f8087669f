"""One contract for everything whose forward returns a distribution."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.models.discretized import DiscretizedLogistic
from pyrovae.models.likelihoods import LIKELIHOODS
from pyrovae.models.networks import NormalEncoder, gated_mlp

ROWS, LATENT, SHAPE = 5, 3, (2, 4)

DECODERS: dict[str, Callable[[], nn.Module]] = {
    "bernoulli": lambda: pv.mlp_decoder(LATENT, SHAPE, "bernoulli", hidden=(6,)),
    "normal": lambda: pv.mlp_decoder(LATENT, SHAPE, "normal", hidden=(6,)),
    "categorical": lambda: pv.mlp_decoder(LATENT, SHAPE, "categorical", hidden=(6,), categories=3),
    "logistic": lambda: pv.mlp_decoder(LATENT, SHAPE, "logistic", hidden=(6,)),
}


def pseudo_inputs(components: int, bounds: tuple[float, float] | None) -> pv.VampPrior:
    encoder = pv.mlp_encoder(SHAPE, LATENT, hidden=(6,))
    return pv.VampPrior(encoder, torch.rand(components, *SHAPE), bounds=bounds)


PRIORS: dict[str, Callable[[], nn.Module]] = {
    "standard normal": lambda: pv.StandardNormal(LATENT),
    "mixture of one": lambda: pv.GaussianMixture(LATENT, 1),
    "mixture": lambda: pv.GaussianMixture(LATENT, 4),
    "VampPrior": lambda: pseudo_inputs(5, (0.0, 1.0)),
    "VampPrior of one": lambda: pseudo_inputs(1, None),
    "flow": lambda: pv.FlowPrior(LATENT, layers=2),
}


def test_every_likelihood_is_under_contract() -> None:
    assert set(DECODERS) == set(LIKELIHOODS)


def gradients_reach_every_parameter(module: nn.Module, log_density: Tensor) -> bool:
    log_density.sum().backward()
    return all(p.grad is not None and bool(p.grad.ne(0).any()) for p in module.parameters())


@pytest.mark.parametrize("name", DECODERS)
def test_decoder(name: str) -> None:
    decoder = DECODERS[name]()
    likelihood = decoder(torch.randn(ROWS, LATENT))
    assert likelihood.batch_shape == (ROWS,)
    assert likelihood.event_shape == SHAPE
    x = likelihood.sample()
    assert bool(likelihood.support.check(x).all())
    assert gradients_reach_every_parameter(decoder, likelihood.log_prob(x))
    assert decoder(torch.randn(7, ROWS, LATENT)).batch_shape == (7, ROWS)


@pytest.mark.parametrize("name", ["bernoulli", "categorical"])
def test_discrete_likelihood_is_normalised(name: str) -> None:
    torch.manual_seed(0)
    levels = 2 if name == "bernoulli" else 3
    categories = None if name == "bernoulli" else levels
    decoder = pv.mlp_decoder(LATENT, (3,), name, hidden=(6,), categories=categories)
    x = torch.cartesian_prod(*[torch.arange(levels, dtype=torch.get_default_dtype())] * 3)
    z = torch.randn(1, LATENT).expand(len(x), LATENT)
    assert float(decoder(z).log_prob(x).exp().sum().detach()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("name", PRIORS)
def test_prior(name: str) -> None:
    torch.manual_seed(0)
    prior = PRIORS[name]()
    density = prior()
    assert density.batch_shape == ()
    assert density.event_shape == (LATENT,)
    z = density.sample(torch.Size([20_000]))
    weights = (torch.distributions.Normal(0, 0.5).log_prob(z).sum(-1) - density.log_prob(z)).exp()
    # E_p[N(z; 0, I/4)/p(z)] = 1 if draws and density are of the same, normalised law; 4 s.e.
    weights = weights.detach()
    assert float(weights.mean()) == pytest.approx(1.0, abs=4 * float(weights.std()) / 141)
    parameters = list(prior.parameters())
    if parameters and name != "mixture of one":  # one component's weight is 1 whatever its logit
        assert gradients_reach_every_parameter(prior, prior().log_prob(z[:10]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("poisson", None), "bernoulli, normal, categorical, logistic"),
        (("categorical", None), "categories"),
        (("normal", 3), "categories"),
    ],
)
def test_bad_recipe(arguments: tuple[str, int | None], message: str) -> None:
    likelihood, categories = arguments
    with pytest.raises(ValueError, match=message):
        pv.mlp_decoder(LATENT, SHAPE, likelihood, categories=categories)


def test_mixture_prior_needs_a_component() -> None:
    with pytest.raises(ValueError, match="at least one"):
        pv.GaussianMixture(2, 0)


def test_vamp_prior_is_the_aggregated_posterior_of_its_inputs() -> None:
    prior = pseudo_inputs(7, (0.0, 1.0))
    z = torch.randn(9, LATENT)
    encoded = prior.encoder(prior.inputs)
    assert torch.allclose(prior().log_prob(z), pv.AggregatedPosterior(encoded).log_prob(z))


def test_pseudo_inputs_keep_their_bounds_and_their_gradients() -> None:
    data = torch.bernoulli(torch.full((30, *SHAPE), 0.3))  # every value at a bound
    encoder = pv.mlp_encoder(SHAPE, LATENT, hidden=(6,))
    prior = pv.VampPrior.from_data(encoder, data, 10, bounds=(0.0, 1.0))
    assert bool(((prior.inputs > 0) & (prior.inputs < 1)).all())
    assert torch.equal(prior.inputs.round(), pv.VampPrior.from_data(encoder, data, 10).inputs)
    prior().log_prob(torch.randn(4, LATENT)).sum().backward()
    assert bool(prior.raw.grad.ne(0).all())


def test_bad_pseudo_inputs() -> None:
    encoder = pv.mlp_encoder(SHAPE, LATENT, hidden=(6,))
    with pytest.raises(ValueError, match="1 to 5 pseudo-inputs"):
        pv.VampPrior.from_data(encoder, torch.rand(5, *SHAPE), 6)
    with pytest.raises(ValueError, match=r"in \[0.0, 1.0\]"):
        pv.VampPrior(encoder, torch.full((2, *SHAPE), 1.5), bounds=(0.0, 1.0))
    with pytest.raises(ValueError, match="at least 2"):
        pv.FlowPrior(1)


@pytest.mark.parametrize("scale", [1e-3, 0.3, 5.0, 1e4])
def test_discretized_logistic_is_normalised_and_drawn_from(scale: float) -> None:
    torch.manual_seed(0)
    likelihood = DiscretizedLogistic(torch.tensor(3.2), torch.tensor(scale), levels=8)
    probabilities = likelihood.log_prob(torch.arange(8.0)).exp()
    assert float(probabilities.sum()) == pytest.approx(1.0, abs=1e-12)
    counts = torch.bincount(likelihood.sample(torch.Size([10_000])).long(), minlength=8)
    errors = (probabilities * (1 - probabilities) * 10_000).sqrt() + 1e-9
    assert bool(((counts - 10_000 * probabilities).abs() <= 4.5 * errors).all())


def test_gated_layers_take_part_in_a_pair() -> None:
    encoder = NormalEncoder(nn.Sequential(nn.Flatten(), gated_mlp((8, 6, 5, 2 * LATENT))))
    assert encoder(torch.rand(ROWS, *SHAPE)).event_shape == (LATENT,)
