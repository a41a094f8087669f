"""Small pairs written in the ways that people write them, and a run that a test can kill.

As a script, ``python pairs.py CHECKPOINT OUT EPOCHS`` trains and writes the parameters at its end.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

ROWS, COLUMNS, LATENT = 60, 5, 2


class Functions(NamedTuple):
    model: Callable[..., Any]
    guide: Callable[..., Any]


def data(rows: int = ROWS, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.linspace(-1, 1, LATENT * COLUMNS).reshape(LATENT, COLUMNS)
    z = torch.randn(rows, LATENT, generator=generator)
    return z @ weight + 0.3 * torch.randn(rows, COLUMNS, generator=generator) + 1


def plain(size: int | None = None) -> Functions:
    """A linear-Gaussian pair of ``pyro.param`` alone; ``size`` makes a plate of the full data."""

    def plate(x: Tensor) -> Any:
        if size is None:
            return pyro.plate("data", len(x))
        return pyro.plate("data", size, subsample=torch.arange(len(x)))

    def model(x: Tensor) -> None:
        weight = pyro.param("weight", lambda: 0.1 * torch.randn(LATENT, COLUMNS))
        bias = pyro.param("bias", lambda: torch.zeros(COLUMNS))
        noise = pyro.param("noise", lambda: torch.tensor(1.0), constraint=constraints.positive)
        with plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight + bias, noise).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        matrix = pyro.param("matrix", lambda: 0.1 * torch.randn(COLUMNS, LATENT))
        shift = pyro.param("shift", lambda: torch.zeros(LATENT))
        scale = pyro.param("scale", lambda: torch.ones(LATENT), constraint=constraints.positive)
        with plate(x):
            pyro.sample("z", dist.Normal(x @ matrix + shift, scale).to_event(1))

    return Functions(model, guide)


class Noisy(nn.Module):
    """A network that is hard to resume: it has dropout draws and running statistics."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, 16),
            nn.BatchNorm1d(16),
            nn.Tanh(),
            nn.Dropout(0.1),
            nn.Linear(16, outputs),
        )

    def forward(self, value: Tensor) -> Tensor:
        return self.layers(value)


def registered(seed: int = 0) -> tuple[Functions, Noisy, Noisy]:
    """Functions that call networks registered with ``pyro.module``."""
    torch.manual_seed(seed)
    encoder, decoder = Noisy(COLUMNS, 2 * LATENT), Noisy(LATENT, COLUMNS)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Functions(model, guide), encoder, decoder


def main(checkpoint: str, out: str, epochs: str) -> None:
    from pyrovae.training.fit import adam, fit

    pair, encoder, decoder = registered()
    run = fit(
        *pair,
        data(200),
        validation=data(50, seed=1),
        epochs=int(epochs),
        batch_size=7,
        kl_warmup=3,
        optimizer=adam(3e-3),
        transform=lambda x, g: x + 0.01 * torch.randn(x.shape, generator=g),
        checkpoint=checkpoint,
        resume=True,
    )
    history = {n: torch.tensor(v) for n, v in run.history.to_dict().items() if n != "seconds"}
    torch.save(
        {"encoder": encoder.state_dict(), "decoder": decoder.state_dict(), "history": history}, out
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
