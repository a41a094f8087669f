"""Small diagnoses of untrained pairs, made once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.diagnostics.diagnosis import Diagnosis, diagnose
from pyrovae.diagnostics.effort import Effort
from pyrovae.training.history import Fit, History

EFFORT = Effort(
    codes=120, evidence_rows=20, evidence_draws=30, export_rows=6, export_draws=5, pictures=9,
    gap_rows=0, samples=30,
)  # fmt: skip
SHAPES = {"image": (6, 6), "colour": (3, 4, 4), "table": (7,), "narrow": (2,), "number": (1,)}


class Flow(nn.Module):
    """A prior that is no mixture and whose marginals are not known."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.latent = latent

    def forward(self) -> dist.Distribution:
        base = dist.Normal(torch.zeros(self.latent), 1.0).to_event(1)
        return dist.TransformedDistribution(base, [dist.transforms.AffineTransform(0.5, 1.5)])


def _prior(name: str, latent: int) -> nn.Module:
    kinds = {"normal": pv.StandardNormal(latent), "mixture": pv.GaussianMixture(latent, 3)}
    return kinds[name] if name in kinds else Flow(latent)


@cache
def _case(data: str, latent: int, prior_name: str = "normal") -> Diagnosis:
    """The measures of a pair with random weights."""
    torch.manual_seed(1)
    shape = SHAPES[data]
    likelihood = "bernoulli" if data in ("image", "colour") else "normal"
    x: Tensor = (
        torch.rand(60, *shape).round() if likelihood == "bernoulli" else torch.randn(60, *shape)
    )
    vae = pv.VAE(
        pv.mlp_encoder(shape, latent, hidden=(8,)),
        pv.mlp_decoder(latent, shape, likelihood, hidden=(8,)),
        _prior(prior_name, latent),
    )
    return diagnose(
        vae.model, vae.guide, x[:40], held_out=x[40:], validation=x[20:40], effort=EFFORT
    )


def _run(epochs: int = 8, *, warmup: bool = False, validation: bool = True) -> Fit:
    """How a training run might have gone."""
    epoch = np.arange(1.0, epochs + 1)
    objective = -20.0 - 30.0 / epoch
    history = History(
        objective,
        objective - 0.5 if validation else np.full(epochs, np.nan),
        np.minimum(epoch / 4, 1.0) if warmup else np.ones(epochs),
        np.ones(epochs),
    )
    return Fit(history, epochs, "epochs", 0)


@pytest.fixture
def case() -> Callable[..., Diagnosis]:
    """``case(data, latent, prior_name)``: a diagnosis, made once."""
    return _case


@pytest.fixture
def run() -> Callable[..., Fit]:
    """``run(epochs, warmup=, validation=)``: a finished training run."""
    return _run
