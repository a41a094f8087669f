"""Where a mixture in the prior's place has its posterior: the components that explain a datum."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.evidence.modes import find_modes
from pyrovae.evidence.proposal import as_one
from pyrovae.evidence.target import Target

CHOSEN = 16  # components that a row's proposal is made of
SCREENED = 1024  # components whose posterior mass is computed, of those that are nearest


def mixture_of(target: Target, prior: dist.Distribution | None) -> dist.Distribution | None:
    """The prior, if it is a mixture of densities with moments over all vectors of numbers."""
    if not isinstance(prior, torch.distributions.MixtureSameFamily):
        return None
    if target.support is not torch.distributions.constraints.real_vector:
        bijection = torch.distributions.biject_to(target.support)
        probe = target.rows.new_zeros(prior.event_shape, dtype=torch.float64) + 0.5
        if not torch.equal(bijection(probe), probe):
            return None
    try:
        moments = prior.component_distribution.mean, prior.component_distribution.variance
    except NotImplementedError:
        return None
    shape = (prior.component_distribution.batch_shape[-1], *prior.event_shape)
    return prior if all(moment.shape[-2:] == shape for moment in moments) else None


def tilted_components(
    target: Target, mixture: dist.Distribution, start: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The components of a mixture that carry most of each row's posterior, as Gaussians.

    The likelihood is expanded to second order around the mode that it has together with a Gaussian
    of the mixture's moments, :math:`\log p(x|z) \approx g^T z - \tfrac12 z^T Λ z`. Each component
    then has a posterior in closed form, from which its product with the likelihood is climbed.

    Args:
        target: the densities.
        mixture: p(z), N components.
        start: where to look for the first mode, shape ``(B, D)``.
        scale: unit of length, shape ``(B, D)``.

    Returns:
        mean ``(B, K, D)``, factor ``(B, K, D, D)`` and log mass ``(B, K)``; the last component is
        as wide as all of them together.
    """
    components = mixture.component_distribution
    n, d = components.batch_shape[-1], mixture.event_shape[0]
    mean, variance = (m.reshape(n, d).double() for m in (components.mean, components.variance))
    log_weight = mixture.mixture_distribution.logits.reshape(n).double().log_softmax(0)
    share = log_weight.exp().unsqueeze(-1)
    middle = (share * mean).sum(0)
    whole = (share * (variance + (mean - middle).square())).sum(0)
    broad = dist.Normal(middle.to(target.dtype), whole.sqrt().to(target.dtype)).to_event(1)
    row = torch.arange(len(start), device=start.device)
    first = find_modes(replace(target, prior=broad), start, row, scale)
    inverse = torch.linalg.inv(first.factor)
    precision = inverse.mT @ inverse
    values, vectors = torch.linalg.eigh(precision - torch.diag(1 / whole))
    curvature = (vectors * values.clamp_min(0).unsqueeze(-2)) @ vectors.mT
    slope = (precision @ first.u.unsqueeze(-1)).squeeze(-1) - middle / whole
    parts = [
        _tilted(mean, variance, log_weight, *of_row)
        for of_row in zip(curvature, slope, first.u, first.factor, strict=True)
    ]
    u, chosen = (torch.stack(column) for column in zip(*parts, strict=True))
    b, k = chosen.shape
    every = chosen.flatten()
    product = Product(target, broad, row.repeat_interleave(k), mean[every], variance[every])
    width = variance[every].sqrt()
    climbed = find_modes(product, u.flatten(0, 1), torch.arange(b * k, device=u.device), width)
    own = climbed.u.view(b, k, d)
    masses = (climbed.log_mass() + log_weight[every]).view(b, k)
    wide_mean, wide_factor = as_one(own, climbed.factor.view(b, k, d, d), masses)
    return (
        torch.cat([own, wide_mean.unsqueeze(1)], 1),
        torch.cat([climbed.factor.view(b, k, d, d), wide_factor.unsqueeze(1)], 1),
        torch.cat([masses, masses.logsumexp(1, keepdim=True) + math.log(0.1)], 1),
    )


@dataclass(frozen=True)
class Product:
    r"""The likelihood of a row times one component of the mixture, :math:`p(x | z) N(z; m, v)`.

    It has a mode of its own, where the mixture has one for many components that overlap.

    Args:
        target: the rows' densities.
        broad: any density over all codes, through which the likelihood is computed.
        row: numbers of the rows of n products, shape ``(n,)``.
        mean, variance: of their components, shape ``(n, D)``.
    """

    target: Target
    broad: dist.Distribution
    row: Tensor
    mean: Tensor
    variance: Tensor

    def log_density(self, u: Tensor, number: Tensor) -> Tensor:
        """log f at positions, each of the product with its number, ``(n,)``; ``(n,)``."""
        height = replace(self.target, prior=self.broad).log_density(u, self.row[number])
        return height + self._change(u, number)

    def slope(self, u: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
        """log f and its gradient, ``(n,)`` and ``(n, D)``."""
        height, gradient = replace(self.target, prior=self.broad).slope(u, self.row[number])
        away = (u - self.broad.mean) / self.broad.variance
        toward = (self.mean[number] - u) / self.variance[number]
        return height + self._change(u, number), gradient + away + toward

    def curvature(self, u: Tensor, number: Tensor, step: Tensor) -> Tensor:
        """The Hessian of log f, shape ``(n, D, D)``."""
        hessian = replace(self.target, prior=self.broad).curvature(u, self.row[number], step)
        return hessian + torch.diag_embed(1 / self.broad.variance - 1 / self.variance[number])

    def _change(self, u: Tensor, number: Tensor) -> Tensor:
        mean, variance = self.mean[number], self.variance[number]
        own = ((u - mean).square() / variance + (2 * math.pi * variance).log()).sum(-1) / 2
        return -own - self.broad.log_prob(u.to(self.target.dtype)).double()


def _tilted(
    mean: Tensor,
    variance: Tensor,
    log_weight: Tensor,
    curvature: Tensor,
    slope: Tensor,
    near: Tensor,
    factor: Tensor,
) -> tuple[Tensor, Tensor]:
    """The components of most mass for one row: posterior means ``(K, D)`` and numbers ``(K,)``."""
    spread = variance + (factor @ factor.mT).diagonal()
    score = log_weight - ((mean - near).square() / spread + spread.log()).sum(-1) / 2
    screened = score.topk(min(SCREENED, len(score))).indices
    mean, variance, log_weight = mean[screened], variance[screened], log_weight[screened]
    precision = torch.diag_embed(1 / variance) + curvature
    lower = torch.linalg.cholesky(precision)
    shift = mean / variance + slope
    u = torch.cholesky_solve(shift.unsqueeze(-1), lower).squeeze(-1)
    log_mass = (
        log_weight
        - (variance.log() + mean.square() / variance).sum(-1) / 2
        + (shift * u).sum(-1) / 2
        - lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    )
    chosen = log_mass.topk(min(CHOSEN, len(log_mass))).indices
    return u[chosen], screened[chosen]
