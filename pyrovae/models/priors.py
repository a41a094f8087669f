"""Priors: modules whose forward returns p(z)."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.mixture.mixture import Mixture


class StandardNormal(nn.Module):
    """p(z) = N(0, I).

    Args:
        latent: number of latent units D.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(latent))
        self.register_buffer("scale", torch.ones(latent))

    def forward(self) -> dist.Distribution:
        return dist.Normal(self.loc, self.scale).to_event(1)


class GaussianMixture(nn.Module):
    """p(z) = Σ_k π_k N(z; m_k, diag s_k²), with weights, means and scales learned.

    Args:
        latent: number of latent units D.
        components: number of components K; their means start as draws from N(0, I).
    """

    def __init__(self, latent: int, components: int) -> None:
        super().__init__()
        if components < 1:
            raise ValueError(f"expected at least one component; got {components}.")
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(torch.randn(components, latent))
        self.log_scale = nn.Parameter(torch.zeros(components, latent))

    def forward(self) -> dist.Distribution:
        component = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
        return Mixture(dist.Categorical(logits=self.logits), component)
