"""Where a mixture has a density, and which points and components are no numbers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyrovae.errors import InputError
from pyrovae.mixture import families
from pyrovae.mixture.kernel import torch_transforms

#: Pairs of point and component that are looked at together, at most.
PAIRS = 1 << 20


class OfAnyComponent(constraints.Constraint):
    """The support of at least one of several components.

    Args:
        components: batch shape ``(N,)``.
    """

    def __init__(self, components: dist.Distribution) -> None:
        self.components, self.of_all = components, components.support
        self.size = max(1, components.batch_shape.numel())
        self.is_discrete, self.event_dim = self.of_all.is_discrete, self.of_all.event_dim
        super().__init__()

    def __repr__(self) -> str:
        return f"of some component: {self.of_all}"

    def check(self, value: Tensor) -> Tensor:
        """Shape of ``value`` without that of an event."""
        batch = value.shape[: value.dim() - self.event_dim]
        points = value.reshape(-1, 1, *value.shape[len(batch) :])
        parts = points.split(-(-PAIRS // self.size))
        return torch.cat([inside(self.components, part).any(-1) for part in parts]).reshape(batch)


def differs(distribution: dist.Distribution) -> bool:
    """Whether the support is made of parameters, so that it may differ between components."""
    while isinstance(distribution, torch.distributions.Independent):
        distribution = distribution.base_dist
    if _pushes_forward(distribution):
        return True
    try:
        support = distribution.support
    except NotImplementedError:  # of a family that does not say
        return False
    of_parameters = Tensor | torch.distributions.Distribution
    return any(isinstance(bound, of_parameters) for bound in _bounds(support))


def _bounds(constraint: Any) -> Iterator[Any]:
    if isinstance(constraint, list | tuple):
        for part in constraint:
            yield from _bounds(part)
    elif isinstance(constraint, constraints.Constraint):
        for part in vars(constraint).values():
            yield from _bounds(part)
    else:
        yield constraint


def _pushes_forward(distribution: dist.Distribution) -> bool:
    """Whether the support is that of another distribution, by row, behind transforms."""
    transformed = torch.distributions.TransformedDistribution
    return isinstance(distribution, transformed) and differs(distribution.base_dist)


def inside(components: dist.Distribution, points: Tensor) -> Tensor:
    """Which points lie in the support of which components: points broadcast to these."""
    if isinstance(components, torch.distributions.Independent):
        of_units = inside(components.base_dist, points)
        for _ in range(components.reinterpreted_batch_ndims):
            of_units = of_units.all(-1)
        return of_units
    if isinstance(components, torch.distributions.MixtureSameFamily):
        rank = points.dim() - len(components.event_shape)
        return inside(components.component_distribution, points.unsqueeze(rank)).any(-1)
    within: Tensor = components.support.check(points)
    if not _pushes_forward(components):
        return within
    for step in reversed(components.transforms):
        points = step.inv(points)
    return within & inside(components.base_dist, points)


def unchecked(distribution: dist.Distribution, *, deep: bool) -> dist.Distribution:
    """The same distribution without torch's check that points lie in its support.

    Args:
        deep: whether that of the distributions which it is made of goes too.
    """
    same = copy.copy(distribution)
    same._validate_args = False
    wrapped = isinstance(distribution, torch.distributions.Independent)
    for name, part in vars(same).items() if deep or wrapped else ():
        if isinstance(part, torch.distributions.Distribution):
            vars(same)[name] = unchecked(part, deep=deep)
    return same


def no_numbers(distribution: dist.Distribution) -> Tensor | None:
    """Which members of a batch have parameters that are NaN or, as those of normals, infinite.

    Returns:
        shape of the first batch dimension; None for a family that is not made of parameters.
    """
    if isinstance(families.innermost(distribution), families.Editable):
        return None  # made of rows, which its function looks at
    try:
        made_of: Sequence[Tensor] = families.tensors(distribution)
    except InputError:
        return None
    normal = families.diagonal_normal(distribution) or families.full_normal(distribution)
    masks = [~t.isfinite() for t in normal] if normal else [t.isnan() for t in made_of]
    rows = distribution.batch_shape[0]
    return torch.stack([mask.reshape(rows, -1).any(1) for mask in masks]).any(0)


def check_shape(z: Tensor, event_shape: torch.Size) -> torch.Size:
    """The shape of points without that of an event.

    Raises:
        InputError: if it is another one.
    """
    if not isinstance(z, Tensor):
        raise InputError(f"expected points as a tensor; got {type(z).__name__}.")
    rank = z.dim() - len(event_shape)
    if rank < 0 or z.shape[rank:] != event_shape:
        raise InputError(
            f"expected points of shape (..., {', '.join(map(str, event_shape))}); got "
            f"{tuple(z.shape)}."
        )
    return z.shape[:rank]


def check_points(z: Tensor, components: dist.Distribution) -> None:
    """Check that points lie where components have a density, if that is one place for all.

    Raises:
        InputError: with the row of the first that does not, or is NaN.
    """
    check_numbers(z, components.event_shape)
    if not z.numel() or differs(components):
        return
    try:
        support = components.support
    except NotImplementedError:
        return
    outside = ~support.check(z)
    if torch_transforms.some(outside):
        raise InputError(
            f"expected points in the support of the components, {support}; got others"
            f"{named(outside)}. Leave these out."
        )


def check_numbers(z: Tensor, event_shape: torch.Size) -> None:
    """Check that no point is NaN.

    Raises:
        InputError: with its row.
    """
    wrong = z.isnan()
    if torch_transforms.some(wrong):
        wrong = wrong.reshape(*z.shape[: z.dim() - len(event_shape)], -1).any(-1)
        raise InputError(f"expected points without NaN; got NaN{named(wrong)}. Leave these out.")


def named(wrong: Tensor) -> str:
    """How many points are wrong and which is the first, to follow on what is wrong with them.

    Args:
        wrong: for each point whether it is, of any shape.
    """
    if (
        torch_transforms.active() or not wrong.dim()
    ):  # torch.func may not let single ones be looked at
        return ""
    first = wrong.nonzero()[0].tolist()
    row = first[0] if len(first) == 1 else tuple(first)
    return f" at {int(wrong.sum())} of {wrong.numel()}, the first in row {row}"
