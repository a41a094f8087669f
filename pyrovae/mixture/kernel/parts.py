"""Diagonal normals that are evaluated part by part, so that one part at a time is in memory.

Each part has a running log-sum-exp of its own, and these are merged: over the parts of one process,
and over processes that have different parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from pyrovae.mixture.kernel.diagonal_normals import DiagonalNormals
from pyrovae.mixture.kernel.group_sums import Sum


class Processes(Protocol):
    """Processes that evaluate the same points, each under components of its own."""

    def check_points(self, z: Tensor) -> None:
        """Raise unless all have these points."""

    def add_up(self, total: Sum) -> None:
        """Make each process's sums the sums over all of them."""

    def join(self, index: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
        """The columns of all processes side by side, each of shape ``(B, k)``."""


class NormalsInParts:
    """A weighted set of diagonal normals that is laid out for evaluation a part at a time.

    Args:
        loc: shape ``(N, D)``; it and the scales may lie in files that are mapped into memory, and
            be of half precision, of which each part is made single.
        scale: shape ``(N, D)``.
        log_weight: normalised log weights, shape ``(N,)``; −inf leaves the component out.
        parts: ranges of the components that this process evaluates.
        done: called after each part, to let go of what was read for it.
        processes: those that evaluate the other components, if there are any.
        check: raises if locations and scales, whose first row is given, can't be components.
    """

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        log_weight: Tensor,
        parts: Sequence[slice],
        *,
        done: Callable[[], object],
        processes: Processes | None,
        check: Callable[[int, Tensor, Tensor], None],
    ) -> None:
        self.loc, self.scale, self.log_weight = loc, scale, log_weight
        self.parts, self.done, self.processes, self.check = parts, done, processes, check
        self.dim = loc.shape[1]
        self.size = int((log_weight != -math.inf).sum())
        self.index = None  # numbers are those of all components, also of those without weight

    def parameters(
        self, device: torch.device, rows: slice = slice(None)
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Locations, scales and log weights of some components, on a device."""
        dtype = torch.promote_types(self.loc.dtype, torch.float32)
        loc, scale = (t[rows].to(device, dtype) for t in (self.loc, self.scale))
        log_weight = self.log_weight[rows].to(device)
        self.check(rows.start or 0, loc, scale)
        return loc, scale, log_weight

    def on(self, device: torch.device) -> Iterator[tuple[int, DiagonalNormals]]:
        """Each part with the number of its first component, laid out on a device."""
        for rows in self.parts:
            part = DiagonalNormals(*self.parameters(device, rows))
            if part.size:
                yield rows.start, part
            del part
            self.done()


def position_in(part: DiagonalNormals, first: int, number: Tensor) -> Tensor:
    """Where a part has the components of some numbers, −1 where it hasn't got them.

    Args:
        part: what `NormalsInParts.on` made.
        first: the number of its first component.
        number: numbers among all components.
    """
    relative = number - first
    if part.index is None:
        return torch.where((relative >= 0) & (relative < part.size), relative, -1)
    position = torch.full((int(part.index.max()) + 1,), -1, device=number.device)
    position[part.index] = torch.arange(part.size, device=number.device)
    inside = (relative >= 0) & (relative < len(position))
    return torch.where(inside, position[relative.clamp(0, len(position) - 1)], -1)
