"""Pairs in the structure of Pyro's public tutorials, each trained by nothing but ``SVI.step``."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.optim import Adam
from torch import Tensor, nn
from torch.nn.functional import softplus

PIXELS, CLASSES = 16, 3


def images(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Grey images of one bright bar, and which of three bars it is."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (rows,), generator=generator)
    centre = 3.0 + 5.0 * labels + torch.randn(rows, generator=generator)
    distance = (torch.arange(PIXELS) - centre.unsqueeze(-1)).abs()
    return torch.exp(-distance / 2), labels


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 16), nn.Softplus(), nn.Linear(16, outputs))


def beside(one: Tensor, other: Tensor) -> Tensor:
    """Two inputs of a network as one, whichever of them is enumerated."""
    shape = torch.broadcast_shapes(one.shape[:-1], other.shape[:-1])
    return torch.cat([part.expand(*shape, part.shape[-1]) for part in (one, other)], -1)


class ImageVAE(nn.Module):
    """The VAE tutorial: ``pyro.module`` in model and guide, grey pixels in a Bernoulli."""

    def __init__(self, latent: int = 2) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(PIXELS, 2 * latent), mlp(latent, PIXELS)
        self.z_dim = latent

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = x.new_zeros(torch.Size((x.shape[0], self.z_dim)))
            z_scale = x.new_ones(torch.Size((x.shape[0], self.z_dim)))
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            loc_img = torch.sigmoid(self.decoder(z))
            pyro.sample(
                "obs",
                dist.Bernoulli(loc_img, validate_args=False).to_event(1),
                obs=x.reshape(-1, PIXELS),
            )

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("latent", dist.Normal(z_loc, z_scale.exp()).to_event(1))


class SemiSupervised(nn.Module):
    """The semi-supervised tutorial: labels observed for some rows, enumerated for the others."""

    def __init__(self, latent: int = 2) -> None:
        super().__init__()
        self.z_dim = latent
        self.encoder_y = mlp(PIXELS, CLASSES)
        self.encoder_z = mlp(PIXELS + CLASSES, 2 * latent)
        self.decoder = mlp(latent + CLASSES, PIXELS)

    def model(self, xs: Tensor, ys: Tensor | None = None) -> None:
        pyro.module("ss_vae", self)
        batch_size = xs.size(0)
        with pyro.plate("data"):
            prior_loc = xs.new_zeros([batch_size, self.z_dim])
            prior_scale = xs.new_ones([batch_size, self.z_dim])
            zs = pyro.sample("z", dist.Normal(prior_loc, prior_scale).to_event(1))
            alpha = xs.new_ones([batch_size, CLASSES]) / CLASSES
            ys = pyro.sample("y", dist.OneHotCategorical(alpha), obs=ys)
            loc = torch.sigmoid(self.decoder(beside(zs, ys)))
            pyro.sample("x", dist.Bernoulli(loc, validate_args=False).to_event(1), obs=xs)

    def guide(self, xs: Tensor, ys: Tensor | None = None) -> None:
        with pyro.plate("data"):
            if ys is None:
                alpha = self.encoder_y(xs).softmax(-1)
                ys = pyro.sample("y", dist.OneHotCategorical(alpha))
            loc, scale = self.encoder_z(beside(xs, ys)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, softplus(scale)).to_event(1))


def counts(rows: int, seed: int) -> Tensor:
    """Counts of 16 genes in cells of three types and of any depth."""
    x, _ = images(rows, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    depth = 40.0 * torch.exp(0.5 * torch.randn(rows, 1, generator=generator))
    return torch.poisson(depth * x / x.sum(-1, keepdim=True), generator=generator)


class SingleCell(nn.Module):
    """The single-cell tutorial: a latent library size, scaled sites, a global parameter."""

    def __init__(self, latent: int = 2) -> None:
        super().__init__()
        self.z_dim = latent
        self.encoder, self.decoder = mlp(PIXELS, 2 * latent + 2), mlp(latent, PIXELS)

    def model(self, x: Tensor) -> None:
        pyro.module("cells", self)
        theta = pyro.param(
            "inverse_dispersion",
            10.0 * x.new_ones(PIXELS),
            constraint=dist.constraints.positive,
        )
        with pyro.plate("batch", len(x)), pyro.poutine.scale(scale=1 / 200):
            z = pyro.sample("z", dist.Normal(0, x.new_ones(self.z_dim)).to_event(1))
            size = pyro.sample("l", dist.LogNormal(3.5, x.new_ones(1)).to_event(1))
            mu = size * self.decoder(z).softmax(-1)
            counted = dist.NegativeBinomial(theta, logits=(mu + 1e-6).log() - theta.log())
            pyro.sample("x", counted.to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("cells", self)
        with pyro.plate("batch", len(x)), pyro.poutine.scale(scale=1 / 200):
            parts = self.encoder(torch.log1p(x)).split([self.z_dim, self.z_dim, 1, 1], -1)
            loc, scale, l_loc, l_scale = parts
            size = dist.LogNormal(l_loc + 3.0, softplus(l_scale)).to_event(1)
            pyro.sample("l", size)
            pyro.sample("z", dist.Normal(loc, softplus(scale)).to_event(1))


def train(model: Any, guide: Any, *batch: Tensor, elbo: Any = None, steps: int = 150) -> None:
    svi = SVI(model, guide, Adam({"lr": 0.01}), loss=elbo or Trace_ELBO())
    for _ in range(steps):
        svi.step(*batch)


def semi_supervised(seen: Tensor, labels: Tensor) -> SemiSupervised:
    """Trained on labelled rows and on others by turns."""
    vae = SemiSupervised()
    half = len(seen) // 2
    unlabelled = TraceEnum_ELBO(max_plate_nesting=1)
    for _ in range(3):
        train(vae.model, vae.guide, seen[:half], labels[:half], steps=40)
        train(vae.model, config_enumerate(vae.guide), seen[half:], elbo=unlabelled, steps=20)
    return vae
