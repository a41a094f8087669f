"""The paper's networks of one and of two latent layers, and its optimiser."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.models import (
    BernoulliDecoder,
    DiscretizedLogistic,
    GatedLinear,
    Standardize,
    gated_mlp,
)

HIDDEN, LATENT, PSEUDO_INPUTS = 300, 40, 500
INITIAL = {"he": nn.init.kaiming_normal_, "glorot": nn.init.xavier_normal_}


class Once(nn.Sequential):
    """A network that sees each of some images once where draws repeat all of them in turn."""

    def forward(self, x: Tensor) -> Tensor:
        images = x if torch.is_grad_enabled() else x[: _period(x)]
        outputs: Tensor = super().forward(images)
        return outputs if len(images) == len(x) else outputs.repeat(len(x) // len(images), 1)


def _period(x: Tensor) -> int:
    """The number of rows that are repeated over and over; that of all if they are not."""
    copies = (x == x[0]).flatten(1).all(1).nonzero().flatten()
    period = int(copies[1]) if len(copies) > 1 else len(x)
    if len(x) % period:
        return len(x)
    first = x[:period]
    return period if bool((x.view(-1, *first.shape) == first).all()) else len(x)


class LimitedNormal(nn.Module):
    """N(μ, σ²) with log σ² limited to [-6, 2], from a network with 2·D outputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> dist.Distribution:
        loc, log_variance = self.network(x).chunk(2, -1)
        scale = (0.5 * nn.functional.hardtanh(log_variance, -6, 2)).exp()
        return dist.Normal(loc, scale).to_event(1)


class LimitedLogistic(nn.Module):
    """256 grey levels with log τ limited to [-4.5, 0] in units of the range of the levels."""

    def __init__(self, network: nn.Module, shape: torch.Size) -> None:
        super().__init__()
        self.network = network
        self.shape = shape

    def forward(self, z: Tensor) -> dist.Distribution:
        mean, log_scale = self.network(z).unflatten(-1, (*self.shape, 2)).unbind(-1)
        loc = 256 * mean.sigmoid() - 0.5
        scale = 256 * nn.functional.hardtanh(log_scale, -4.5, 0).exp()
        return DiscretizedLogistic(loc, scale).to_event(len(self.shape))


class NormalizedAdam(torch.optim.Adam):
    """Adam on gradients divided by their norm, parameter by parameter."""

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        super().__init__(parameters, lr=lr, fused=True)

    @torch.no_grad()
    def step(self, closure: object = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad /= parameter.grad.norm() + 1e-10
        super().step()


def build(
    layers: int, prior: str, weights: str, train: Tensor, *, levels: float, grey: float, seed: int
) -> pv.VAE | pv.HierarchicalVAE:
    """The paper's pair for these images.

    Args:
        layers: 1 or 2 latent layers of 40 units each.
        prior: ``"standard"``, or that of 500 pseudo-inputs, of the top layer: ``"vamp"`` starts
            them from training images, ``"vamp-random"`` near one image of a single grey.
        weights: law of the initial ones, normal of variance 2 / inputs (``"he"``) or
            2 / (inputs + outputs) (``"glorot"``) of each layer, a gate being a layer of its own.
        train: training images.
        levels: greatest value of a pixel; above 1 the likelihood is a discretised logistic.
        grey: share of it that random pseudo-inputs start near.
        seed: which training images.
    """
    shape = train.shape[1:]
    pixels = math.prod(shape)
    # Pixels enter the networks as numbers in [0, 1].
    flat = nn.Sequential(Standardize(torch.zeros(()), torch.tensor(levels)), nn.Flatten())
    encoder = LimitedNormal(Once(flat, gated_mlp((pixels, HIDDEN, HIDDEN, 2 * LATENT))))
    outputs = pixels * (2 if levels > 1 else 1)
    if layers == 1:
        network: nn.Module = gated_mlp((LATENT, HIDDEN, HIDDEN, outputs))
    else:
        network = gated_mlp((2 * HIDDEN, HIDDEN, outputs))
    decoder = LimitedLogistic(network, shape) if levels > 1 else BernoulliDecoder(network, shape)
    standard = pv.StandardNormal(LATENT)
    if layers == 1:
        pair: pv.VAE | pv.HierarchicalVAE = pv.VAE(encoder, decoder, standard)
    else:
        pair = pv.HierarchicalVAE(
            encoder,
            pv.Branches((GatedLinear(LATENT, HIDDEN), GatedLinear(LATENT, HIDDEN)), decoder),
            standard,
            inner_encoder=pv.Branches(
                (Once(flat, GatedLinear(pixels, HIDDEN)), GatedLinear(LATENT, HIDDEN)),
                LimitedNormal(gated_mlp((2 * HIDDEN, HIDDEN, 2 * LATENT))),
            ),
            conditional=LimitedNormal(gated_mlp((LATENT, HIDDEN, HIDDEN, 2 * LATENT))),
        )
    for module in pair.modules():
        if isinstance(module, nn.Linear):
            for layer in module.weight.chunk(1 if module.out_features == pixels else 2):
                INITIAL[weights](layer)
            nn.init.zeros_(module.bias)
    bounds = 0.0, levels
    if prior == "vamp":
        learned = pv.VampPrior.from_data(encoder, train, PSEUDO_INPUTS, bounds=bounds, seed=seed)
        return pair.with_prior(learned)
    if prior == "vamp-random":
        inputs = levels * (grey + 0.01 * torch.randn(PSEUDO_INPUTS, *shape))
        return pair.with_prior(pv.VampPrior(encoder, inputs, bounds=bounds))
    return pair
