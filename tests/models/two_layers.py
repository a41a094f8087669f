"""A linear-Gaussian pair with two latent layers, for which everything has a closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.randomness import seeded

TOP, INNER, DATA = 2, 3, 4


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


@dataclass(frozen=True)
class TwoLayers:
    """p(z2) = N(m, I), p(z1 | z2) = N(A z2 + a, s²I), p(x | z1, z2) = N(B z1 + C z2 + b, t²I).

    All of (z2, z1, x) is one normal; a conditional of it comes from its mean and covariance.
    """

    a_matrix: Tensor
    b_matrix: Tensor
    c_matrix: Tensor
    offsets: tuple[Tensor, Tensor, Tensor]
    deviations: tuple[float, float]

    def joint(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance of (z2, z1, x)."""
        top, inner, data = self.offsets
        s, t = self.deviations
        # each part as a linear function of independent noise for each layer
        first = torch.cat([torch.eye(TOP).to(top), torch.zeros(TOP, INNER + DATA).to(top)], 1)
        second = self.a_matrix @ first
        second[:, TOP : TOP + INNER] += s * torch.eye(INNER).to(top)
        third = self.b_matrix @ second + self.c_matrix @ first
        third[:, TOP + INNER :] += t * torch.eye(DATA).to(top)
        inner = self.a_matrix @ top + inner
        mean = torch.cat([top, inner, self.b_matrix @ inner + self.c_matrix @ top + data])
        factor = torch.cat([first, second, third])
        return mean, factor @ factor.T

    def conditional(self, part: slice, known: slice, values: Tensor) -> dist.MultivariateNormal:
        """The exact conditional of one part of (z2, z1, x) given another, one for each row."""
        mean, covariance = self.joint()
        gain = torch.linalg.solve(covariance[known, known], covariance[known, part]).T
        left = covariance[part, part] - gain @ covariance[known, part]
        return dist.MultivariateNormal(mean[part] + (values - mean[known]) @ gain.T, left)

    def marginal(self, part: slice) -> dist.MultivariateNormal:
        mean, covariance = self.joint()
        return dist.MultivariateNormal(mean[part], covariance[part, part])

    def log_prob(self, x: Tensor) -> Tensor:
        return self.marginal(X).log_prob(x)

    def sample(self, rows: int, *, seed: int = 0) -> Tensor:
        with seeded(seed, "two layers"):
            return self.marginal(X).sample(torch.Size([rows]))

    def posterior(self, x: Tensor) -> dist.MultivariateNormal:
        """p(z2, z1 | x)."""
        return self.conditional(LATENT, X, x)

    def prior(self) -> dist.MultivariateNormal:
        """p(z2, z1)."""
        return self.marginal(LATENT)

    def pair(self, *, widen: float = 1.0, shift: float = 0.0) -> pv.HierarchicalVAE:
        """The exact pair; the guide's covariances and means can be distorted."""

        def distorted(exact: dist.MultivariateNormal) -> dist.Distribution:
            tril = widen * exact.scale_tril
            rows = tril.expand(*exact.loc.shape, tril.shape[-1])
            return dist.MultivariateNormal(exact.loc + shift, scale_tril=rows)

        def inner(x: Tensor, z2: Tensor) -> dist.Distribution:
            known = torch.cat([z2, x], -1)
            mean, covariance = self.joint()
            index = torch.tensor([*range(TOP), *range(TOP + INNER, TOP + INNER + DATA)])
            gain = torch.linalg.solve(covariance[index][:, index], covariance[index, Z1]).T
            left = covariance[Z1, Z1] - gain @ covariance[index, Z1]
            loc = mean[Z1] + (known - mean[index]) @ gain.T
            return distorted(dist.MultivariateNormal(loc, left))

        s, t = self.deviations
        return pv.HierarchicalVAE(
            Function(lambda x: distorted(self.conditional(Z2, X, x))),
            Function(
                lambda z1, z2: dist.Normal(
                    z1 @ self.b_matrix.T + z2 @ self.c_matrix.T + self.offsets[2], t
                ).to_event(1)
            ),
            Function(lambda: dist.Normal(self.offsets[0], 1.0).to_event(1)),
            inner_encoder=Function(inner),
            conditional=Function(
                lambda z2: dist.Normal(z2 @ self.a_matrix.T + self.offsets[1], s).to_event(1)
            ),
        )


Z2, Z1 = slice(0, TOP), slice(TOP, TOP + INNER)
LATENT, X = slice(0, TOP + INNER), slice(TOP + INNER, TOP + INNER + DATA)


def two_layers(prior: Tensor | None = None) -> TwoLayers:
    """A pair with fixed random weights in float64; ``prior`` is the mean m of z2."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    matrices = random(INNER, TOP), random(DATA, INNER), random(DATA, TOP)
    offsets = random(TOP), random(INNER), random(DATA)
    if prior is not None:
        offsets = (prior.to(offsets[0]), *offsets[1:])
    return TwoLayers(*matrices, offsets, (0.7, 0.5))
