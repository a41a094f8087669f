"""Decoders: a network and the distribution that its outputs parametrise, z → p(x | z)."""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor, nn


class BernoulliDecoder(nn.Module):
    """p(x | z) = Π Bernoulli(x_j; sigmoid of the network's outputs), for x in {0, 1}.

    Args:
        network: maps codes ``(..., D)`` to logits ``(..., prod(event_shape))``.
        event_shape: shape of one row.
    """

    def __init__(self, network: nn.Module, event_shape: torch.Size) -> None:
        super().__init__()
        self.network = network
        self.event_shape = event_shape

    def forward(self, z: Tensor) -> dist.Distribution:
        logits = self.network(z).unflatten(-1, self.event_shape)
        return dist.Bernoulli(logits=logits).to_event(len(self.event_shape))


class NormalDecoder(nn.Module):
    """p(x | z) = N(x; network's outputs, s²) with one learned scale s for all entries.

    Args:
        network: maps codes ``(..., D)`` to means ``(..., prod(event_shape))``.
        event_shape: shape of one row.
    """

    def __init__(self, network: nn.Module, event_shape: torch.Size) -> None:
        super().__init__()
        self.network = network
        self.event_shape = event_shape
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor) -> dist.Distribution:
        loc = self.network(z).unflatten(-1, self.event_shape)
        return dist.Normal(loc, self.log_scale.exp()).to_event(len(self.event_shape))


class CategoricalDecoder(nn.Module):
    """p(x | z) = Π Categorical(x_j; softmax of the network's outputs), for integer x.

    Args:
        network: maps codes ``(..., D)`` to logits ``(..., prod(event_shape) · categories)``.
        event_shape: shape of one row.
    """

    def __init__(self, network: nn.Module, event_shape: torch.Size) -> None:
        super().__init__()
        self.network = network
        self.event_shape = event_shape

    def forward(self, z: Tensor) -> dist.Distribution:
        logits = self.network(z).unflatten(-1, (*self.event_shape, -1))
        return dist.Categorical(logits=logits).to_event(len(self.event_shape))


LIKELIHOODS: dict[str, Callable[[nn.Module, torch.Size], nn.Module]] = {
    "bernoulli": BernoulliDecoder,
    "normal": NormalDecoder,
    "categorical": CategoricalDecoder,
}
"""Likelihoods by the name that recipes and the command line know."""
