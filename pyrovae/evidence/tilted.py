"""Where a mixture in the prior's place has its posterior: the components that explain a datum."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.evidence.local_mixture import LocalMixture, local_mixture
from pyrovae.evidence.modes import find_modes
from pyrovae.evidence.normal_components import NormalComponents, normal_components
from pyrovae.evidence.proposal import as_one
from pyrovae.evidence.target import Target
from pyrovae.mixture import families

CHOSEN = 16  # components that a row's proposal is made of
SCREENED = 512  # components whose posterior mass is computed, of those that are nearest
LOCAL = {False: (256, 64), True: (32, 16)}  # those that tune it, diagonal and of full covariance:
# of most mass, and nearest to the row's highest starting point
LARGE = 2  # times as many components as these, from which on a part of them tunes
STEPS = 4  # towards the mode of a component's posterior, for each of two curvatures


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


@dataclass(frozen=True)
class Tilted:
    """The components of a mixture that carry most of each row's posterior, as Gaussians.

    Args:
        mean: shape ``(B, K, D)``; the last component is as wide as all of them together.
        factor: shape ``(B, K, D, D)``.
        log_mass: shape ``(B, K)``.
        near: the part of the mixture that each row's proposal is to be tuned by, if it is large.
    """

    mean: Tensor
    factor: Tensor
    log_mass: Tensor
    near: LocalMixture | None


def under_many(target: Target) -> bool:
    """Whether the prior is a mixture of many normals, of which a part tunes each row's proposal.

    Its posterior is one of many narrow components, which a guide does not resemble.
    """
    if (mixture := mixture_of(target, target.code_prior)) is None:
        return False
    components = mixture.component_distribution
    full = families.full_normal(components) is not None
    exact = full or families.diagonal_normal(components) is not None
    return exact and components.batch_shape[-1] > LARGE * sum(LOCAL[full])


def tilted_components(
    target: Target, mixture: dist.Distribution, start: Tensor, scale: Tensor, highest: Tensor
) -> Tilted:
    r"""The components of a mixture that carry most of each row's posterior, as Gaussians.

    The likelihood is expanded to second order around the mode that it has together with a Gaussian
    of the mixture's moments, :math:`\log p(x|z) \approx g^T z - \tfrac12 z^T Λ z`. Each component
    then has a posterior in closed form, from which its product with the likelihood is climbed.

    Args:
        target: the densities.
        mixture: p(z), N components.
        start: where to look for the first mode, shape ``(B, D)``.
        scale: unit of length, shape ``(B, D)``.
        highest: another point where the posterior may lie, shape ``(B, D)``.
    """
    components = normal_components(mixture)
    middle, whole = (m.reshape(-1).double() for m in (mixture.mean, mixture.variance))
    broad = dist.Normal(middle.to(target.dtype), whole.sqrt().to(target.dtype)).to_event(1)
    easy = replace(target, prior=broad)
    row = torch.arange(len(start), device=start.device)
    first = find_modes(easy, start, row, scale)
    inverse = torch.linalg.inv(first.factor)
    precision = inverse.mT @ inverse
    curvature = _positive(precision - torch.diag(1 / whole))
    slope = (precision @ first.u.unsqueeze(-1)).squeeze(-1) - middle / whole
    sizes, of_row = LOCAL[components.factor is not None], []
    for at_row in zip(curvature, slope, first.u, first.factor, highest, strict=True):
        of_row.append(_of_row(components, *at_row, sizes))
    u, number = (torch.stack(column) for column in zip(*of_row, strict=True))
    near = local_mixture(components, first.u, number) if under_many(target) else None
    k = u.shape[1]
    product = Product(easy, broad, components, number[:, :k].flatten(), row.repeat_interleave(k))
    u, value = product.climb(u.flatten(0, 1), curvature)
    best = u.view(-1, k, u.shape[-1])[row, value.view(-1, k).argmax(1)]
    width = first.factor.square().sum(-1).sqrt()
    hessian = easy.curvature(best, row, width / 4) + torch.diag(1 / whole)
    curvature = _positive(-hessian)
    u, value = product.climb(u, curvature)
    lower = product.lower(curvature)
    identity = torch.eye(u.shape[-1], dtype=u.dtype, device=u.device).expand_as(lower)
    factor = torch.linalg.solve_triangular(lower, identity, upper=False).mT
    log_mass = value - lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    mean, factor, log_mass = (part.unflatten(0, (-1, k)) for part in (u, factor, log_mass))
    wide_mean, wide_factor = as_one(mean, factor, log_mass)
    return Tilted(
        torch.cat([mean, wide_mean.unsqueeze(1)], 1),
        torch.cat([factor, wide_factor.unsqueeze(1)], 1),
        torch.cat([log_mass, log_mass.logsumexp(1, keepdim=True) + math.log(0.1)], 1),
        near,
    )


@dataclass(frozen=True)
class Product:
    r"""The likelihoods of rows, each times one component of the mixture, :math:`w p(x | z) N(z)`.

    It has a mode of its own, where the mixture has one for many components that overlap.

    Args:
        easy: the rows' densities with a broad prior, through which the likelihood is computed.
        broad: that prior.
        components: of the mixture.
        number: of the component in each of n products, shape ``(n,)``.
        row: number of its row, shape ``(n,)``.
    """

    easy: Target
    broad: dist.Distribution
    components: NormalComponents
    number: Tensor
    row: Tensor

    def climb(self, u: Tensor, curvature: Tensor) -> tuple[Tensor, Tensor]:
        """Positions nearer to the modes, ``(n, D)``, and how high they are, ``(n,)``.

        Steps are those of Newton with a curvature of the likelihood that stays what it is.

        Args:
            u: where to start, shape ``(n, D)``.
            curvature: of each row's negated log likelihood, shape ``(B, D, D)``.
        """
        lower = self.lower(curvature)
        value, gradient = self._slope(u)
        length = torch.ones_like(value)
        for _ in range(STEPS):
            step = torch.cholesky_solve(gradient.unsqueeze(-1), lower).squeeze(-1)
            tried = u + length.unsqueeze(-1) * step
            height, slope = self._slope(tried)
            higher = height > value
            u = torch.where(higher.unsqueeze(-1), tried, u)
            gradient = torch.where(higher.unsqueeze(-1), slope, gradient)
            value = torch.where(higher, height, value)
            length = torch.where(higher, (2 * length).clamp_max(1.0), length / 3)
        return u, value

    def lower(self, curvature: Tensor) -> Tensor:
        """Cholesky factors of the products' negated Hessians, shape ``(n, D, D)``."""
        precision = self.components.precision(self.number)
        lower: Tensor = torch.linalg.cholesky(precision + curvature[self.row])
        return lower

    def _slope(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """log of the product and its gradient, ``(n,)`` and ``(n, D)``."""
        height, gradient = self.easy.slope(u, self.row)
        mean, precision = self.components.mean, self.components.precision(self.number)
        own = self.components.log_prob(u, self.number, precision)
        own = own + self.components.log_weight[self.number]
        toward = (precision @ (mean[self.number].double() - u).unsqueeze(-1)).squeeze(-1)
        away = (u - self.broad.mean) / self.broad.variance
        broad = self.broad.log_prob(u.to(self.easy.dtype)).double()
        return (height + own - broad).nan_to_num(nan=-math.inf), gradient + away + toward


def _positive(curvature: Tensor) -> Tensor:
    """Symmetric matrices with their negative eigenvalues at 0."""
    values, vectors = torch.linalg.eigh(curvature.nan_to_num(0.0, 0.0, 0.0))
    return (vectors * values.clamp_min(0).unsqueeze(-2)) @ vectors.mT


def _of_row(
    components: NormalComponents,
    curvature: Tensor,
    slope: Tensor,
    near: Tensor,
    factor: Tensor,
    highest: Tensor,
    sizes: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Posterior means of the components of most mass for one row, ``(K, D)``, and numbers.

    Numbers are those of the components of most mass, in falling order, and behind them of those
    that are nearest to another point.
    """
    own = (factor @ factor.mT).diagonal()
    number = _nearest(components, near, own, SCREENED)
    mean = components.mean[number].double()
    precision = components.precision(number)
    lower = torch.linalg.cholesky(precision + curvature)
    linear = (precision @ mean.unsqueeze(-1)).squeeze(-1)
    shift = linear + slope
    u = torch.cholesky_solve(shift.unsqueeze(-1), lower).squeeze(-1)
    log_mass = (
        components.log_weight[number]
        - components.log_scale(number)
        - (linear * mean).sum(-1) / 2
        + (shift * u).sum(-1) / 2
        - lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    )
    order = log_mass.argsort(descending=True)
    other = _nearest(components, highest, own, sizes[1])
    return u[order[:CHOSEN]], torch.cat([number[order[: sizes[0]]], other])


def _nearest(components: NormalComponents, point: Tensor, width: Tensor, size: int) -> Tensor:
    """Numbers of the components whose density, made wider, is highest at a point, ``(n,)``."""
    dtype = components.mean.dtype
    spread = components.variance + width.to(dtype)
    square = (components.mean - point.to(dtype)).square() / spread
    score = components.log_weight - (square + spread.log()).sum(-1) / 2
    return score.topk(min(size, len(score))).indices
