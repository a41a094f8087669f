"""One contract for all priors."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv

LATENT, SHAPE = 3, (2, 4)


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


def gradients_reach_every_parameter(module: nn.Module, log_density: Tensor) -> bool:
    log_density.sum().backward()
    return all(p.grad is not None and bool(p.grad.ne(0).any()) for p in module.parameters())


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
