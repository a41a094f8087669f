"""The linear-Gaussian VAE, for which every quantity that the library estimates is known exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.errors import InputError
from pyrovae.models import VAE, StandardNormal
from pyrovae.randomness import seeded


@dataclass(frozen=True)
class LinearGaussian:
    """p(z) = N(0, I), p(x | z) = N(Wz + b, s²I), and all that follows from them.

    The columns of W are orthogonal, so that p(z | x) has a diagonal covariance and the guide of
    :meth:`vae` is exact (Tipping & Bishop 1999).

    Args:
        weight: W, shape ``(P, D)``, columns orthogonal to each other.
        bias: b, shape ``(P,)``.
        noise: s > 0, standard deviation of each entry of x given z.
    """

    weight: Tensor
    bias: Tensor
    noise: float

    def evidence(self) -> dist.MultivariateNormal:
        """p(x) = N(b, WWᵀ + s²I), batch shape ``()``, event shape ``(P,)``."""
        identity = torch.eye(len(self.bias), dtype=self.weight.dtype)
        covariance = self.weight @ self.weight.T + self.noise**2 * identity
        return dist.MultivariateNormal(self.bias, covariance)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), shape ``(B,)``, for rows of shape ``(B, P)``."""
        return self.evidence().log_prob(x)

    def posterior(self, x: Tensor) -> dist.Distribution:
        """p(z | x), a diagonal Gaussian with batch shape ``(B,)``, event shape ``(D,)``."""
        variance = 1 / (1 + self.weight.square().sum(0) / self.noise**2)
        loc = variance * ((x - self.bias) @ self.weight) / self.noise**2
        return dist.Normal(loc, variance.sqrt().expand_as(loc)).to_event(1)

    def sample(self, rows: int, *, seed: int = 0) -> Tensor:
        """Draws from p(x), shape ``(rows, P)``."""
        with seeded(seed, "rows of p(x)"):
            return self.evidence().sample(torch.Size([rows]))

    def vae(self, *, scale: float = 1.0, shift: float = 0.0) -> VAE:
        """The pair with the exact decoder, and the exact guide unless scaled or shifted.

        Args:
            scale: factor on the guide's standard deviations; 1 is exact.
            shift: added to the guide's means, in units of the exact standard deviations.
        """
        return VAE(
            _Function(lambda x: self._distorted(x, scale, shift)),
            _Function(lambda z: dist.Normal(z @ self.weight.T + self.bias, self.noise).to_event(1)),
            StandardNormal(self.weight.shape[1]).to(self.weight.dtype),
        )

    def _distorted(self, x: Tensor, scale: float, shift: float) -> dist.Distribution:
        exact = self.posterior(x)
        deviation = exact.variance.sqrt()
        return dist.Normal(exact.mean + shift * deviation, scale * deviation).to_event(1)


class _Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], dist.Distribution]) -> None:
        super().__init__()
        self.function = function

    def forward(self, value: Tensor) -> dist.Distribution:
        return self.function(value)


def linear_gaussian_vae(
    data_dim: int = 6, latent: int = 2, *, noise: float = 0.5, seed: int = 0
) -> LinearGaussian:
    """A linear-Gaussian VAE with random weights in float64.

    Args:
        data_dim: entries P of a row; at least ``latent``.
        latent: number of latent units D.
        noise: standard deviation of each entry given its code.
        seed: names the random weights.

    >>> exact = linear_gaussian_vae(6, 2)
    >>> x = exact.sample(3)
    >>> z = exact.posterior(x).mean
    >>> exact.log_prob(x).shape, z.shape
    (torch.Size([3]), torch.Size([3, 2]))
    """
    if data_dim < latent:
        raise InputError(
            f"expected data_dim ≥ latent; got {data_dim} < {latent}. Take more entries."
        )
    with seeded(seed, "weights of a linear decoder"):
        raw = torch.randn(data_dim, latent, dtype=torch.float64)
        bias = torch.randn(data_dim, dtype=torch.float64)
    columns, _ = torch.linalg.qr(raw)
    lengths = torch.linspace(2.0, 0.5, latent, dtype=torch.float64)
    return LinearGaussian(columns * lengths, bias, noise)
