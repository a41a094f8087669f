"""Modes of log f by damped Newton steps, many at once, with the curvature around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

STEPS = 12  # of Newton, at most
CLOSE = 1e-3  # nats that a quadratic still promises, below which a mode is reached
LENGTHS = (1.0, 0.6, 0.3, 0.1, 0.03, 0.003, 2.0)  # of a Newton step that are tried
APART = 0.25  # conditional standard deviations between the two gradients of a curvature
FLATTEST = 0.05  # curvature in units of the prior's, below which an axis counts as flat


class Density(Protocol):
    """What is climbed: positions ``(n, D)``, each with a number that says of which density."""

    def log_density(self, u: Tensor, row: Tensor) -> Tensor:
        """log f, shape ``(n,)``."""

    def slope(self, u: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """log f and its gradient, ``(n,)`` and ``(n, D)``."""

    def curvature(self, u: Tensor, row: Tensor, step: Tensor) -> Tensor:
        """The Hessian of log f, shape ``(n, D, D)``."""


@dataclass(frozen=True)
class Modes:
    """Where log f is highest around some starting points, and how wide it is there.

    Args:
        u: positions, shape ``(n, D)``.
        value: log f there, shape ``(n,)``.
        factor: A with A Aᵀ the inverse of the curvature, shape ``(n, D, D)``.
    """

    u: Tensor
    value: Tensor
    factor: Tensor

    def log_mass(self) -> Tensor:
        """log of the integral of the Gaussian that is as high and as wide, but for a constant."""
        return self.value + torch.linalg.slogdet(self.factor).logabsdet


@torch.no_grad()
def find_modes(target: Density, u: Tensor, row: Tensor, scale: Tensor) -> Modes:
    """Climb log f from some positions, by Newton steps with a search along each.

    Where the curvature isn't negative definite, its eigenvalues are taken by size, and those that
    are flatter than the prior by far are raised: it then says how far to go, no more. That makes a
    better or worse proposal, and not a wrong estimate.

    Args:
        target: the densities, such as a ``Target``.
        u: where to start, shape ``(n, D)``.
        row: numbers of the rows, shape ``(n,)``.
        scale: unit of length along each unit, as the prior's standard deviation, ``(n, D)``.
    """
    u, value = u.clone(), target.log_density(u, row)
    value = torch.where(value.isnan(), -torch.inf, value)
    active = torch.arange(len(u), device=u.device)
    width = 0.3 * scale
    factor = torch.diag_embed(scale)
    for _ in range(STEPS):
        at, number = u[active], row[active]
        _, gradient = target.slope(at, number)
        hessian = target.curvature(at, number, APART * width[active])
        inverse, conditional = invert(hessian, scale[active])
        factor[active], width[active] = inverse, conditional
        direction = (inverse @ (inverse.mT @ gradient.unsqueeze(-1))).squeeze(-1)
        promised = (direction * gradient).sum(-1) / 2
        reached, height = _search(target, at, number, direction, value[active])
        gain = height - value[active]
        u[active], value[active] = reached, height
        moving = (promised > CLOSE) & (gain > CLOSE / 10)
        active = active[moving]
        if not len(active):
            break
    hessian = target.curvature(u, row, APART * width)
    return Modes(u, value, invert(hessian, scale)[0])


def invert(hessian: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """A factor of the inverse of a negated Hessian, and the conditional width along each unit.

    Args:
        hessian: shape ``(n, D, D)``.
        scale: unit of length along each unit, shape ``(n, D)``.

    Returns:
        A, shape ``(n, D, D)``, and 1/√ of the negated diagonal, shape ``(n, D)``, at most the unit.
    """
    precision = -hessian * scale.unsqueeze(-1) * scale.unsqueeze(-2)
    identity = torch.eye(scale.shape[1], dtype=scale.dtype, device=scale.device)
    usable = precision.isfinite().all(-1).all(-1)
    precision = torch.where(usable.view(-1, 1, 1), precision, identity)
    values, vectors = torch.linalg.eigh(precision)
    values = values.abs().clamp_min(FLATTEST)
    diagonal = precision.diagonal(dim1=-2, dim2=-1).clamp_min(1.0)
    factor = scale.unsqueeze(-1) * vectors / values.sqrt().unsqueeze(-2)
    return factor, scale / diagonal.sqrt()


def _search(
    target: Density, u: Tensor, row: Tensor, direction: Tensor, value: Tensor
) -> tuple[Tensor, Tensor]:
    """The best of some lengths along a direction, or where it began, and how high it is there."""
    lengths = torch.tensor(LENGTHS, dtype=u.dtype, device=u.device)
    tried = u.unsqueeze(0) + lengths.view(-1, 1, 1) * direction
    height = target.log_density(tried.flatten(0, 1), row.repeat(len(lengths)))
    height = torch.where(height.isfinite(), height, -torch.inf).view(len(lengths), -1)
    best, index = height.max(0)
    better = best > value
    number = torch.arange(len(u), device=u.device)
    reached = torch.where(better.unsqueeze(-1), tried[index, number], u)
    return reached, torch.where(better, best, value)
