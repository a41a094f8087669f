"""Priors: modules whose forward returns p(z)."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.mixture.mixture import Mixture
from pyrovae.randomness import seeded


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


class VampPrior(nn.Module):
    """p(z) = 1/K Σ_k q(z | u_k): the aggregated posterior of K learned pseudo-inputs.

    The pseudo-inputs go through the encoder that the guide uses, so that the prior can follow the
    aggregated posterior while both are trained. Within bounds they are kept by a sigmoid, whose
    gradient vanishes nowhere (Tomczak & Welling 2018).

    Args:
        encoder: the pair's own, x → q(z | x).
        inputs: values to start from, shape ``(K, *event_shape)``.
        bounds: least and greatest value of an entry of x, as ``(0.0, 1.0)``; any real number may
            occur if not given. Starting values at a bound begin a twentieth of the way inside it.

    Raises:
        ValueError: if a starting value lies outside the bounds.
    """

    def __init__(
        self, encoder: nn.Module, inputs: Tensor, *, bounds: tuple[float, float] | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.bounds = bounds
        self.raw = nn.Parameter(inputs.clone() if bounds is None else _inside(inputs, bounds))

    @classmethod
    def from_data(
        cls,
        encoder: nn.Module,
        data: Tensor,
        components: int,
        *,
        bounds: tuple[float, float] | None = None,
        seed: int = 0,
    ) -> VampPrior:
        """Start from ``components`` rows of the data, chosen without replacement.

        Raises:
            ValueError: if there are fewer rows than components.
        """
        if not 1 <= components <= len(data):
            raise ValueError(
                f"expected 1 to {len(data)} pseudo-inputs, one row of the data each; got "
                f"{components}. Use fewer, or start from values of your own: VampPrior(encoder, "
                "inputs)."
            )
        with seeded(seed):
            rows = torch.randperm(len(data))[:components]
        return cls(encoder, data[rows], bounds=bounds)

    @property
    def inputs(self) -> Tensor:
        """The pseudo-inputs u_k, shape ``(K, *event_shape)``."""
        if self.bounds is None:
            return self.raw
        low, high = self.bounds
        return low + (high - low) * self.raw.sigmoid()

    def forward(self) -> dist.Distribution:
        components = self.encoder(self.inputs)
        equal = torch.zeros(len(self.raw), device=self.raw.device)
        return Mixture(dist.Categorical(logits=equal), components)


class FlowPrior(nn.Module):
    """p(z): a standard normal through spline couplings (Durkan et al. 2019; Pyro's transforms).

    Args:
        latent: number of latent units D ≥ 2.
        layers: couplings, with the units permuted between them.
        hidden: sizes of the hidden layers that parametrise one coupling.

    Raises:
        ValueError: for a single unit, which has nothing to be coupled with.
    """

    order: Tensor

    def __init__(self, latent: int, *, layers: int = 4, hidden: tuple[int, ...] = (64, 64)) -> None:
        super().__init__()
        if latent < 2:
            raise ValueError(
                f"expected at least 2 latent units to couple; got {latent}. Use GaussianMixture."
            )
        self.base = StandardNormal(latent)
        self.couplings = nn.ModuleList(
            dist.transforms.spline_coupling(latent, hidden_dims=hidden, bound=5.0)
            for _ in range(layers)
        )
        self.register_buffer("order", torch.arange(latent - 1, -1, -1))

    def forward(self) -> dist.Distribution:
        reverse = dist.transforms.Permute(self.order)
        steps = [step for coupling in self.couplings for step in (coupling, reverse)]
        return dist.TransformedDistribution(self.base(), steps)


def _inside(inputs: Tensor, bounds: tuple[float, float]) -> Tensor:
    """The logits of the inputs' places between the bounds, drawn in by a twentieth."""
    low, high = bounds
    least, greatest = float(inputs.min()), float(inputs.max())
    if not low <= least <= greatest <= high:
        raise ValueError(
            f"expected pseudo-inputs in [{low}, {high}]; got values from {least} to {greatest}. "
            "Give the bounds of the data."
        )
    return torch.logit(0.05 + 0.9 * (inputs - low) / (high - low))
