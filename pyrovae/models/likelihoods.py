"""Decoders: a network and the distribution that its outputs parametrise, z → p(x | z)."""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.models.discretized import DiscretizedLogistic


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
    """p(x | z) = N(x; m + s·f(z), (s·σ)²): network f, one learned σ, units m and s of the data.

    Args:
        network: f, maps codes ``(..., D)`` to ``(..., prod(event_shape))``.
        event_shape: shape of one row.
        location, scale: m and s, which broadcast against a row; by default 0 and 1.
    """

    location: Tensor
    scale: Tensor

    def __init__(
        self,
        network: nn.Module,
        event_shape: torch.Size,
        *,
        location: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.event_shape = event_shape
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.register_buffer("location", torch.zeros(()) if location is None else location)
        self.register_buffer("scale", torch.ones(()) if scale is None else scale)

    def forward(self, z: Tensor) -> dist.Distribution:
        loc = self.location + self.scale * self.network(z).unflatten(-1, self.event_shape)
        deviation = self.scale * self.log_scale.exp()
        return dist.Normal(loc, deviation.expand_as(loc)).to_event(len(self.event_shape))


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


class LogisticDecoder(nn.Module):
    """p(x | z) = Π DiscretizedLogistic(x_j; m_j(z), τ_j(z)) for images of 256 grey levels 0–255.

    Args:
        network: maps codes ``(..., D)`` to ``(..., prod(event_shape) · 2)``: the logit of m/256 and
            log(τ/256) for each pixel.
        event_shape: shape of one row.
    """

    levels = 256

    def __init__(self, network: nn.Module, event_shape: torch.Size) -> None:
        super().__init__()
        self.network = network
        self.event_shape = event_shape

    def forward(self, z: Tensor) -> dist.Distribution:
        outputs = self.network(z).unflatten(-1, (*self.event_shape, 2))
        loc = self.levels * outputs[..., 0].sigmoid() - 0.5
        scale = self.levels * outputs[..., 1].exp()
        return DiscretizedLogistic(loc, scale, self.levels).to_event(len(self.event_shape))


LIKELIHOODS: dict[str, Callable[[nn.Module, torch.Size], nn.Module]] = {
    "bernoulli": BernoulliDecoder,
    "normal": NormalDecoder,
    "categorical": CategoricalDecoder,
    "logistic": LogisticDecoder,
}
"""Likelihoods by the name that recipes and the command line know."""
