"""The pair: an ELBO that is right for the whole data set, and parameters that stay its own."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.models.pair import Pair
from pyrovae.testing import linear_gaussian_vae


def elbo(vae: pv.VAE, x: Tensor, size: int | None = None) -> float:
    return -Trace_ELBO().loss(vae.model, vae.guide, x, size=size)


def test_elbo_of_the_exact_guide_is_log_p() -> None:
    exact = linear_gaussian_vae()
    x = exact.sample(30)
    assert elbo(exact.vae(), x) == pytest.approx(float(exact.log_prob(x).sum()), rel=1e-12)


@pytest.mark.parametrize("batch", [1, 10, 15])
def test_elbo_of_minibatches_is_unbiased_for_the_data_set(batch: int) -> None:
    # With the exact guide each minibatch's ELBO has no noise of its own, so the mean over a
    # partition into minibatches must be the full ELBO to rounding.
    exact = linear_gaussian_vae()
    x = exact.sample(30)
    parts = [elbo(exact.vae(), rows, size=30) for rows in x.split(batch)]
    assert sum(parts) / len(parts) == pytest.approx(float(exact.log_prob(x).sum()), rel=1e-12)


def test_elbo_of_minibatches_is_unbiased_under_an_inexact_guide() -> None:
    exact = linear_gaussian_vae()
    x, vae = exact.sample(12), exact.vae(scale=0.7, shift=0.5)
    parts = torch.tensor([elbo(vae, rows, size=12) for _ in range(400) for rows in x.split(3)])
    # The guide's KL to the exact posterior is known: ELBO = log p(x) − KL(q‖p(z|x)).
    q, p = vae.encoder(x), exact.posterior(x)
    expected = exact.log_prob(x) - torch.distributions.kl_divergence(q, p)
    means = parts.view(400, 4).mean(1)
    assert float(means.mean()) == pytest.approx(
        float(expected.sum()), abs=4 * float(means.std()) / 20
    )


def small(seed: int = 0, prior: nn.Module | None = None) -> pv.VAE:
    torch.manual_seed(seed)
    return pv.VAE(
        pv.mlp_encoder((4,), 2, hidden=(5,)),
        pv.mlp_decoder(2, (4,), hidden=(5,)),
        prior or pv.StandardNormal(2),
    )


def test_a_second_vae_keeps_its_own_parameters() -> None:
    x = torch.ones(3, 4)
    first, second = small(0), small(1)
    before = {name: value.clone() for name, value in second.state_dict().items()}
    first.model(x)
    second.model(x)
    first.guide(x)
    assert all(torch.equal(second.state_dict()[name], before[name]) for name in before)
    assert not torch.equal(first.encoder(x).mean, second.encoder(x).mean)


def test_plain_svi_trains_it() -> None:
    vae, x = small(), torch.bernoulli(torch.full((64, 4), 0.2))
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    losses = [svi.step(x) for _ in range(60)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_another_prior_shares_the_networks() -> None:
    vae = small()
    prior = dist.Normal(torch.ones(2), 0.5).to_event(1)
    other = vae.with_prior(prior)
    assert other.decoder is vae.decoder
    x, z = torch.ones(3, 4), torch.randn(3, 2)
    _, log_prior = Pair(other.model, other.guide).log_joint(x, z)
    assert torch.allclose(log_prior, prior.log_prob(z))


@pytest.mark.parametrize(
    ("vae", "message"),
    [
        (pv.VAE(pv.mlp_encoder((4,), 3), pv.mlp_decoder(2, (4,)), pv.StandardNormal(2)), "prior"),
        (pv.VAE(pv.mlp_encoder((4,), 2), pv.mlp_decoder(2, (5,)), pv.StandardNormal(2)), "decoder"),
    ],
)
def test_modules_that_do_not_fit_are_named(vae: pv.VAE, message: str) -> None:
    vae = vae.double()
    with pytest.raises(ValueError, match=message):
        Trace_ELBO().loss(vae.model, vae.guide, torch.ones(3, 4))


def test_event_dimension_that_was_forgotten_is_named() -> None:
    class Forgotten(nn.Module):
        def forward(self, x: Tensor) -> dist.Distribution:
            return dist.Normal(x[:, :2], 1.0)

    vae = pv.VAE(Forgotten(), pv.mlp_decoder(2, (4,)), pv.StandardNormal(2))
    with pytest.raises(ValueError, match="to_event"):
        vae.guide(torch.ones(3, 4))


def test_size_smaller_than_the_batch_is_an_error() -> None:
    with pytest.raises(ValueError, match="size"):
        small().model(torch.ones(3, 4), size=2)
