"""One- and two-dimensional marginals of densities over z, on grids for plotting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import numpy as np
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovae.diagnostics import Collapse, unit_log_densities
from pyrovae.mixture import Mixture, families

Array = NDArray[np.float64]
MARGIN = 0.12  # on either side, as a share of the range of the codes


def most_active(activity: Collapse, most: int) -> list[int]:
    """The units with the largest variance of means, in that order."""
    order = activity.variance_of_means.argsort(descending=True)
    return [int(unit) for unit in order[:most]]


def line(codes: Tensor, size: int = 300) -> Tensor:
    """A grid over the range of one unit's codes and of a standard normal."""
    low, high = float(codes.min()), float(codes.max())
    margin = MARGIN * max(high - low, 1e-6)
    ends = min(low - margin, -3.0), max(high + margin, 3.0)
    return torch.linspace(*ends, size, dtype=codes.dtype, device=codes.device)


def unit_density(distribution: dist.Distribution, unit: int, grid: Tensor) -> Array | None:
    """The density of one unit on a grid, shape ``(G,)``; ``None`` if it is not known."""
    if _has_marginals(distribution):
        log_density: Tensor = distribution.marginal(unit).log_prob(grid)
    else:
        columns = _columns(distribution, {unit: grid})
        if distribution.event_shape[0] == 1:
            log_density = distribution.log_prob(columns)
        else:
            marginals = unit_log_densities(distribution, columns)
            if marginals is None:
                return None
            log_density = marginals[..., unit]
    return _numpy(log_density.exp())


def pair_density(
    distribution: dist.Distribution, units: Sequence[int], x: Tensor, y: Tensor
) -> Array | None:
    """The density of two units on a grid, shape ``(len(y), len(x))``; ``None`` if not known.

    Args:
        distribution: density over z, event shape ``(D,)``.
        units: the two units.
        x, y: values of the first and of the second unit on the grid.
    """
    first, second = (values.flatten() for values in torch.meshgrid(x, y, indexing="xy"))
    if _has_marginals(distribution):
        log_density = distribution.marginal(list(units)).log_prob(torch.stack([first, second], -1))
    else:
        columns = _columns(distribution, {units[0]: first, units[1]: second})
        marginals = unit_log_densities(distribution, columns)
        if marginals is not None:
            log_density = marginals[..., list(units)].sum(-1)
        elif distribution.event_shape[0] == 2 and list(units) == [0, 1]:
            log_density = distribution.log_prob(columns)
        else:
            return None
    return _numpy(log_density.exp()).reshape(len(y), len(x))


def _has_marginals(distribution: dist.Distribution) -> TypeGuard[Mixture]:
    """Whether a distribution is a mixture whose marginals are mixtures of known densities."""
    return isinstance(distribution, Mixture) and families.has_marginals(
        distribution.component_distribution
    )


def mass_levels(density: Array, shares: Sequence[float]) -> list[float]:
    """The heights above which a density on a regular grid has these shares of its mass, rising.

    >>> mass_levels(np.array([4.0, 1.0, 3.0, 2.0]), [0.5, 0.9])
    [2.0, 3.0]
    """
    heights = np.sort(density, axis=None)[::-1]
    mass = heights.cumsum() / heights.sum()
    index = np.searchsorted(mass, shares).clip(max=len(mass) - 1)
    return sorted({float(height) for height in heights[index]})


def _columns(distribution: dist.Distribution, values: dict[int, Tensor]) -> Tensor:
    """Codes with these values of some units, and zero in all other units."""
    first = next(iter(values.values()))
    z = first.new_zeros(len(first), distribution.event_shape[0])
    for unit, column in values.items():
        z[:, unit] = column
    return z


def _numpy(values: Tensor) -> Array:
    return values.detach().double().cpu().numpy()
