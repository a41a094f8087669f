"""Priors: modules whose forward returns p(z)."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.mixture.mixture import Mixture
from pyrovae.models.state import measuring
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
        ValueError: if there is none, one lies outside the bounds, or the encoder does not take
            them.
    """

    def __init__(
        self, encoder: nn.Module, inputs: Tensor, *, bounds: tuple[float, float] | None = None
    ) -> None:
        super().__init__()
        if len(inputs) < 1:
            raise ValueError("expected at least one pseudo-input; got none.")
        check_inputs(encoder, inputs)
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

    @classmethod
    def at_random(
        cls,
        encoder: nn.Module,
        like: Tensor,
        components: int,
        *,
        bounds: tuple[float, float] | None = None,
        seed: int = 0,
    ) -> VampPrior:
        """Start from draws with the mean and the standard deviation of each entry of the data.

        They are normal, and within bounds truncated to them, as the paper starts them.

        Args:
            encoder, bounds: as of the class.
            like: rows of data, shape ``(N, *event_shape)``, N ≥ 2.
            components: number of pseudo-inputs K, which may be larger than N.
            seed: names the draws.

        Raises:
            ValueError: for fewer than one pseudo-input or two rows.
        """
        if components < 1 or len(like) < 2:
            raise ValueError(
                f"expected at least one pseudo-input and two rows to draw them like; got "
                f"{components} and {len(like)}."
            )
        low, high = bounds or (-torch.inf, torch.inf)
        location, scale = like.mean(0), like.std(0)
        divisor = torch.where(scale > 0, scale, 1.0)
        normal = dist.Normal(0.0, 1.0)
        with seeded(seed):
            uniform = torch.rand(components, *location.shape, dtype=torch.float64)
        least, greatest = (
            normal.cdf(((bound - location) / divisor).double()) for bound in (low, high)
        )
        standard = normal.icdf(least + (greatest - least) * uniform.to(location.device))
        drawn = location + scale * standard.to(scale)
        return cls(encoder, drawn.clamp(low, high), bounds=bounds)  # what is outside is rounding

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


def check_inputs(encoder: nn.Module, rows: Tensor) -> dist.Distribution:
    """What an encoder makes of the first two rows, batch shape ``(2,)``, event shape ``(D,)``.

    Raises:
        ValueError: if the encoder does not take such rows, or returns no distribution over vectors.
    """
    few = rows[:2]
    try:
        with torch.no_grad(), measuring(encoder):
            found: dist.Distribution = encoder(few)
    except RuntimeError as error:
        raise ValueError(
            f"expected rows that the encoder takes; got shape {tuple(few.shape[1:])}, dtype "
            f"{few.dtype}: {error}. Give rows like the data's."
        ) from error
    batch, event = tuple(found.batch_shape), tuple(found.event_shape)
    if batch != (len(few),) or len(event) != 1:
        raise ValueError(
            f"expected the encoder to return a distribution with batch shape ({len(few)},) and "
            f"event shape (D,); got {batch} and {event}. Declare the units of a code as event "
            "dimensions with .to_event(1)."
        )
    return found


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
