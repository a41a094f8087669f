"""A proposal for each row: multivariate t's around its modes, with the guide behind them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.evidence.target import Target

DEFENSIVE = 0.1  # weight of the guide, which bounds the weights wherever the guide has mass
HELD = 1 << 22  # numbers that are held at once, of a distance to each component
LEAST = 0.1  # weight that all components have in common, at least


@dataclass(frozen=True)
class Proposal:
    r"""A mixture over positions u of each row's codes, of which the guide is one component.

    .. math:: q(u) = \sum_k α_k t_ν(u; m_k, s² A_k A_kᵀ) + α_0 q(z(u) | x) |dz/du|

    Weights are over this whole density, wherever a draw came from (Owen & Zhou 2000, "Safe and
    effective importance sampling").

    Args:
        target: what it is to resemble.
        guide: q(z | x), batch shape ``(B,)``, or none.
        log_weights: log α of K components and, last, of the guide, shape ``(B, K + 1)``.
        mean: m, shape ``(B, K, D)``.
        factor: A, shape ``(B, K, D, D)``.
        degrees: ν of each row, shape ``(B,)``.
        width: s of each row, shape ``(B,)``.
    """

    target: Target
    guide: dist.Distribution | None
    log_weights: Tensor
    mean: Tensor
    factor: Tensor
    degrees: Tensor
    width: Tensor

    def sample(self, draws: int) -> Tensor:
        """Positions of draws for each row, shape ``(S, B, D)``."""
        b, k, d = self.mean.shape
        chosen = torch.multinomial(self.log_weights.exp(), draws, replacement=True).T
        component = chosen.clamp_max(k - 1)
        noise = torch.randn(draws, b, d, dtype=self.mean.dtype, device=self.mean.device)
        spread = dist.Chi2(self.degrees).sample(torch.Size([draws])) / self.degrees
        length = (self.width / spread.sqrt()).unsqueeze(-1)
        number = torch.arange(b, device=component.device)
        u = self.mean[number, component]
        if k == 1:
            turned = torch.einsum("sbd,bed->sbe", noise, self.factor[:, 0])
        else:
            turned = torch.zeros_like(noise)
            for index in range(k):
                by_component = torch.einsum("sbd,bed->sbe", noise, self.factor[:, index])
                turned = torch.where((component == index).unsqueeze(-1), by_component, turned)
        u = u + length * turned
        if self.guide is None:
            return u
        z = self.guide.sample(torch.Size([draws]))
        return torch.where((chosen == k).unsqueeze(-1), self.target.positions(z), u)

    def log_prob(self, u: Tensor) -> Tensor:
        """log q of positions of shape ``(S, B, D)``, shape ``(S, B)``."""
        return self.terms(u).logsumexp(-1)

    def terms(self, u: Tensor) -> Tensor:
        """log of each component's part of the density, the guide's last, ``(S, B, K + 1)``."""
        own = log_t(self.distances(u), self.log_scale, self.degrees, self.width, u.shape[-1])
        terms = torch.cat([own, self.log_guide(u).unsqueeze(-1)], -1)
        return self.log_weights + terms

    def distances(self, u: Tensor) -> Tensor:
        """Squared Mahalanobis distance to each component at width 1, shape ``(S, B, K)``."""
        inverse = torch.linalg.inv(self.factor)
        parts = [
            torch.einsum("bkde,sbke->sbkd", inverse, part.unsqueeze(2) - self.mean).square().sum(-1)
            for part in u.split(max(1, HELD // self.mean.numel()))
        ]
        return torch.cat(parts)

    @property
    def log_scale(self) -> Tensor:
        """log |A| of each component, shape ``(B, K)``."""
        log_scale: Tensor = torch.linalg.slogdet(self.factor).logabsdet
        return log_scale

    def log_guide(self, u: Tensor) -> Tensor:
        """log density of the guide at positions, −∞ without one, shape ``(S, B)``."""
        if self.guide is None:
            return torch.full(u.shape[:2], -math.inf, dtype=u.dtype, device=u.device)
        return density_of_guide(self.target, self.guide, u)

    def with_components(self, log_weights: Tensor, mean: Tensor, factor: Tensor) -> Proposal:
        """The same guide behind other components."""
        return replace(self, log_weights=log_weights, mean=mean, factor=factor)

    def subset(self, chosen: Tensor) -> Proposal:
        """The proposals of some of the rows."""
        target = self.target.subset(chosen)
        return Proposal(
            target,
            None if self.guide is None else target.encoded.density,
            self.log_weights[chosen],
            self.mean[chosen],
            self.factor[chosen],
            self.degrees[chosen],
            self.width[chosen],
        )

    def exact(self) -> Proposal:
        """The same proposal for the target whose integral is p(x), whatever it was tuned by."""
        return replace(self, target=self.target.exact())

    def where(self, first: Tensor, other: Proposal) -> Proposal:
        """This proposal for some rows, ``(B,)``, another one for the rest."""
        return replace(
            self,
            log_weights=torch.where(first.view(-1, 1), self.log_weights, other.log_weights),
            mean=torch.where(first.view(-1, 1, 1), self.mean, other.mean),
            factor=torch.where(first.view(-1, 1, 1, 1), self.factor, other.factor),
            degrees=torch.where(first, self.degrees, other.degrees),
            width=torch.where(first, self.width, other.width),
        )


def density_of_guide(target: Target, guide: dist.Distribution, u: Tensor) -> Tensor:
    """log density of a guide at positions of shape ``(S, B, D)``, shape ``(S, B)``."""
    z, jacobian, inside = target.codes(u)
    inside = inside & guide.support.check(z)
    if not inside.all():
        z = torch.where(inside.unsqueeze(-1), z, guide.sample(torch.Size([1])))
    with pyro.validation_enabled(False):
        density = guide.log_prob(z).double() + jacobian
    return torch.where(inside & ~density.isnan(), density, -math.inf)


def as_one(mean: Tensor, factor: Tensor, log_mass: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and factor of the covariance of some Gaussians as one mixture.

    Args:
        mean: shape ``(B, K, D)``.
        factor: shape ``(B, K, D, D)``.
        log_mass: shape ``(B, K)``.
    """
    share = log_mass.nan_to_num(nan=-math.inf).softmax(1).unsqueeze(-1)
    middle = (share * mean).sum(1)
    away = mean - middle.unsqueeze(1)
    within = (share.unsqueeze(-1) * (factor @ factor.mT)).sum(1)
    covariance = within + torch.einsum("bkd,bke->bde", share * away, away)
    lower, failed = torch.linalg.cholesky_ex(covariance)
    return middle, torch.where((failed == 0).view(-1, 1, 1), lower, factor[:, 0])


def log_t(
    distances: Tensor, log_scale: Tensor, degrees: Tensor, width: Tensor, units: int
) -> Tensor:
    """log density of a multivariate t by its squared distance, shape ``(S, B, K)``.

    Args:
        distances: at width 1, shape ``(S, B, K)``.
        log_scale: log |A|, shape ``(B, K)``.
        degrees, width: of each row, shape ``(B,)``.
        units: D.
    """
    degrees, width = degrees.unsqueeze(-1), width.unsqueeze(-1)
    constant = (
        torch.lgamma((degrees + units) / 2)
        - torch.lgamma(degrees / 2)
        - units / 2 * (degrees * math.pi).log()
        - log_scale
        - units * width.log()
    )
    return constant - (degrees + units) / 2 * (distances / (width.square() * degrees)).log1p()


def mixture_weights(masses: Tensor, *, guided: bool) -> Tensor:
    """log weights of components and guide from what each component accounts for.

    Args:
        masses: shape ``(B, K)``, each row summing to 1; 0 where there is no component.
        guided: whether there is a guide.
    """
    present = masses > 0
    even = present / present.sum(1, keepdim=True)
    own = (1 - LEAST) * masses + LEAST * even
    share = DEFENSIVE if guided else 0.0
    last = torch.full_like(own[:, :1], share)
    return torch.cat([(1 - share) * own, last], 1).log()
