"""log p(x) under learned priors, whatever the method, against the integral over a grid of codes."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.evidence.annealed import Annealing

# A few draws are enough for what is tested here; that they are too few for a k̂ is said elsewhere.
pytestmark = pytest.mark.filterwarnings("ignore:(.|\n)*k̂:UserWarning")

LATENT, SHAPE = 2, (5,)
EXEMPLARS = torch.rand(9, *SHAPE, generator=torch.Generator().manual_seed(1)).double()
PRIORS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "VampPrior": lambda encoder: pv.VampPrior(encoder, EXEMPLARS[:4]),
    "exemplars": lambda encoder: pv.ExemplarPrior(encoder, EXEMPLARS),
    "flow": lambda encoder: pv.FlowPrior(LATENT, layers=2, hidden=(8,)),
}
SLACK = {"VampPrior": 1e-6, "exemplars": 1e-6, "flow": 5e-3}  # of the grid: the flow has kinks
PATH = Annealing(temperatures=12, leapfrog=2, progress=False)


@cache
def pair(name: str) -> pv.VAE:
    """A pair of no special structure: a nonlinear decoder, a prior far from standard normal."""
    torch.manual_seed(0)
    encoder = pv.mlp_encoder(SHAPE, LATENT, hidden=(6,)).double()
    prior = PRIORS[name](encoder).double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter += (0.1 if name == "flow" else 0.3) * torch.randn_like(parameter)
    decoder = pv.mlp_decoder(LATENT, SHAPE, "normal", hidden=(6,)).double()
    return pv.VAE(encoder, decoder, prior).eval()


@torch.no_grad()
def exact(name: str, x: Tensor) -> Tensor:
    vae, line = pair(name), torch.linspace(-7.0, 7.0, 301)
    z = torch.cartesian_prod(line, line)
    joint = vae.prior().log_prob(z).unsqueeze(1) + vae.decoder(z.unsqueeze(1)).log_prob(x)
    return joint.logsumexp(0) + 2 * (line[1] - line[0]).log()


def rows(name: str, count: int) -> Tensor:
    """Rows simulated from the pair, on which every method has to do well."""
    vae = pair(name)
    with torch.no_grad():
        return vae.decoder(vae.prior().sample(torch.Size([count]))).sample()


@pytest.mark.filterwarnings("ignore:For .* data points k̂:UserWarning")  # as noisy as it says
@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize(("method", "draws"), [("prior", 5000), (PATH, 200)])
def test_every_method_finds_the_integral(name: str, method: object, draws: int) -> None:
    # Each row within 4.5 standard errors: a right estimate fails for 5 of 100,000 seeds.
    vae, x = pair(name), rows(name, 6)
    evidence = pv.log_evidence(vae.model, vae.guide, x, method=method, draws=draws)
    error = (evidence.values - exact(name, x)).abs()
    assert bool((error <= 4.5 * evidence.standard_error + SLACK[name]).all())


@pytest.mark.parametrize("name", PRIORS)
def test_both_sides_hold(name: str) -> None:
    # w/p(x) forwards and p(x)/w backwards have the mean 1 over simulated rows, chains or not.
    vae = pair(name)
    like = torch.zeros(80, *SHAPE)
    both = pv.sandwich(vae.model, vae.guide, like=like, annealing=PATH, chains=4, seed=1)
    truth = exact(name, both.x)
    for ratio in ((both.lower.values - truth).exp(), (truth - both.upper.values).exp()):
        slack = 4.5 * float(ratio.std()) / 80**0.5 + SLACK[name]
        assert abs(float(ratio.mean()) - 1) < slack < 0.5
