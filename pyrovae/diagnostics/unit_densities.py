"""The log density of single latent units at codes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.mixture import Mixture, families

MANY_PAIRS = 1 << 25  # of code and component, from which on a unit's density is interpolated
NODES = 10  # of a polynomial on a panel as wide as the narrowest component
TOLERANCE = 5e-5  # of its last two coefficients, in nats, beyond which codes are evaluated


def unit_log_densities(density: dist.Distribution, z: Tensor) -> Tensor | None:
    """log p_d(z_d) for every unit, shape that of ``z``; ``None`` where marginals are not known.

    Of a large mixture of normals it is interpolated, to some 1e-4 nats, which is the error of the
    mixture's own log density in float32.

    Args:
        density: over vectors.
        z: codes, shape ``(..., D)``.

    >>> density = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    >>> unit_log_densities(density, torch.zeros(3, 2)).shape
    torch.Size([3, 2])
    """
    if isinstance(density, Mixture) and families.has_marginals(density.component_distribution):
        units = range(z.shape[-1])
        return torch.stack([_of_unit(density, d, z[..., d]) for d in units], -1)
    if families.factorised(density):
        log_densities: Tensor = density.base_dist.log_prob(z)
        return log_densities
    return None


def _of_unit(density: Mixture, unit: int, z: Tensor) -> Tensor:
    """log density of a mixture's unit at numbers, shape that of ``z``."""
    marginal = density.marginal(unit)
    normal = families.diagonal_normal(marginal.component_distribution)
    if normal is None or density.size * z.numel() < MANY_PAIRS:
        return marginal.log_prob(z)
    narrowest = float(normal[1][density.log_weights > -math.inf].min())
    return interpolated(marginal.log_prob, z.flatten(), width=narrowest).to(z).view(z.shape)


def interpolated(log_prob: Callable[[Tensor], Tensor], z: Tensor, *, width: float) -> Tensor:
    """A smooth log density at many numbers by that at fewer, in float64, shape ``(B,)``.

    Where numbers lie, the line is cut into panels, each with a polynomial through Chebyshev nodes.
    Where its last coefficients have not died out, as in a gap between two components, numbers are
    evaluated themselves.

    Args:
        log_prob: of numbers, shape ``(n,)``.
        z: where it is wanted, shape ``(B,)``.
        width: of a panel.

    Trefethen 2013, "Approximation theory and approximation practice".
    """
    number = ((z.double() - z.min()) / width).floor()
    panel, inverse = number.unique(return_inverse=True)
    if 2 * NODES * len(panel) > len(z) or not bool(number.isfinite().all()):
        return log_prob(z).double()
    order = torch.arange(NODES, dtype=torch.float64, device=z.device)
    angle = (order + 0.5) * math.pi / NODES
    centre = z.min() + (panel + 0.5) * width
    nodes = centre.unsqueeze(1) + width / 2 * angle.cos()
    values = log_prob(nodes.flatten().to(z)).double().view(nodes.shape)
    coefficients = values @ (order.unsqueeze(1) * angle).cos().mT * (2 / NODES)
    coefficients[:, 0] /= 2
    place = (2 * (z.double() - centre[inverse]) / width).clamp(-1, 1)
    result, before = torch.zeros_like(place), torch.zeros_like(place)
    for column in reversed(coefficients[:, 1:].unbind(1)):  # the recurrence of Clenshaw
        result, before = 2 * place * result - before + column[inverse], result
    result = place * result - before + coefficients[:, 0][inverse]
    settled = coefficients[:, -2:].abs().sum(1) < TOLERANCE  # not so where one is no number
    if len(left := (~settled[inverse]).nonzero().squeeze(1)):
        result[left] = log_prob(z[left]).double()
    return result
