"""Order components so that neighbours in memory are neighbours in space."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Halvings beyond those that would give every group a cell of its own.
EXTRA = 3


def locality_order(loc: Tensor, scale: Tensor, group: int) -> Tensor:
    """A permutation of components after which every run of ``group`` of them lies close together.

    Units are halved at quantiles of a normal, each time the one that is longest relative to the
    components' scales, and components are sorted by the cell that they fall into (Morton 1966). It
    costs one sort.

    Args:
        loc: shape ``(N, D)``.
        scale: shape ``(N, D)``.
        group: number of components that are to lie close together.

    Returns:
        component numbers, shape ``(N,)``.
    """
    mean, deviation = loc.mean(0), loc.std(0, correction=0)
    length = (deviation / scale.square().mean(0).sqrt()).double().nan_to_num(0.0, 0.0, 0.0).tolist()
    halved: list[int] = []
    for _ in range(math.ceil(math.log2(max(1, len(loc) / group))) + EXTRA):
        unit = max(range(len(length)), key=length.__getitem__)
        halved.append(unit)
        length[unit] /= 2
    cell = torch.zeros(len(loc), dtype=torch.long, device=loc.device)
    lower: dict[int, Tensor] = {}  # quantile within the unit's current cell, from 0 to 1
    for unit in halved:
        if unit not in lower:
            spread = deviation[unit].clamp(min=torch.finfo(loc.dtype).tiny)
            lower[unit] = torch.special.ndtr((loc[:, unit] - mean[unit]) / spread)
        twice = 2 * lower[unit]
        upper = twice >= 1
        lower[unit] = twice - upper.to(twice.dtype)
        cell = 2 * cell + upper
    return cell.argsort(stable=True)
