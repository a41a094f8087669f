"""Recipes for networks: each returns a plain module, to be used or replaced."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.models.likelihoods import LIKELIHOODS


class NormalEncoder(nn.Module):
    """q(z | x) = N(μ(x), diag σ²(x)), from a network with 2·D outputs.

    σ is the softplus of the second half of the outputs.

    Args:
        network: maps rows ``(B, ...)`` to ``(B, 2·D)``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> dist.Distribution:
        loc, raw = self.network(x).chunk(2, dim=-1)
        return dist.Normal(loc, nn.functional.softplus(raw)).to_event(1)


class Standardize(nn.Module):
    """(x − location)/scale, so that a network sees numbers of order one.

    Args:
        location, scale: broadcast against a row; kept with the parameters, not trained.
    """

    location: Tensor
    scale: Tensor

    def __init__(self, location: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("location", location)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.location) / self.scale


def mlp(sizes: Sequence[int], activation: type[nn.Module] = nn.SiLU) -> nn.Sequential:
    """Linear layers of the given sizes with an activation between them.

    >>> mlp((64, 32, 4))
    Sequential(
      (0): Linear(in_features=64, out_features=32, bias=True)
      (1): SiLU()
      (2): Linear(in_features=32, out_features=4, bias=True)
    )
    """
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


class GatedLinear(nn.Module):
    """(Ax + a) · sigmoid(Bx + b): a linear layer whose outputs are gated by the inputs.

    Dauphin et al. 2017; the layers of Tomczak & Welling 2018.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, 2 * outputs)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.glu(self.linear(x), dim=-1)


def gated_mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Gated linear layers of the given sizes and a plain linear one at the end.

    >>> gated_mlp((64, 32, 4))
    Sequential(
      (0): GatedLinear(
        (linear): Linear(in_features=64, out_features=64, bias=True)
      )
      (1): Linear(in_features=32, out_features=4, bias=True)
    )
    """
    gated = [GatedLinear(*pair) for pair in itertools.pairwise(sizes[:-1])]
    return nn.Sequential(*gated, nn.Linear(sizes[-2], sizes[-1]))


def mlp_encoder(
    data_shape: Sequence[int], latent: int, *, hidden: Sequence[int] = (256, 256)
) -> NormalEncoder:
    """A multilayer perceptron from a flattened row to a diagonal Gaussian over ``latent`` units."""
    sizes = (math.prod(data_shape), *hidden, 2 * latent)
    return NormalEncoder(nn.Sequential(nn.Flatten(), *mlp(sizes)))


def mlp_decoder(
    latent: int,
    data_shape: Sequence[int],
    likelihood: str = "bernoulli",
    *,
    hidden: Sequence[int] = (256, 256),
    categories: int | None = None,
) -> nn.Module:
    """A multilayer perceptron from a code to a distribution over one row.

    Args:
        latent: number of latent units D.
        data_shape: shape of one row.
        likelihood: ``"bernoulli"``, ``"normal"``, ``"categorical"`` or ``"logistic"``.
        hidden: sizes of the hidden layers, from the code outwards.
        categories: number of categories of a categorical likelihood.

    Raises:
        ValueError: for an unknown likelihood, or categories that are missing or out of place.
    """
    if likelihood not in LIKELIHOODS:
        raise ValueError(
            f"expected a likelihood among {', '.join(LIKELIHOODS)}; got {likelihood!r}."
        )
    if (likelihood == "categorical") != (categories is not None):
        raise ValueError(
            f"expected categories= with a categorical likelihood and with no other; got "
            f"categories={categories} with {likelihood!r}."
        )
    outputs = math.prod(data_shape) * (2 if likelihood == "logistic" else categories or 1)
    network = mlp((latent, *hidden, outputs))
    return LIKELIHOODS[likelihood](network, torch.Size(data_shape))
