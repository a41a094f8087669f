"""Where a mixture has a density, and which points and components are NaN or infinite."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyrovae.errors import InputError
from pyrovae.mixture import families
from pyrovae.mixture.kernel import torch_transforms

#: Pairs of point and component checked at once.
PAIRS = 1 << 20


class OfAnyComponent(constraints.Constraint):
    """The union of the supports of several components.

    Args:
        components: batch shape ``(N,)``.
    """

    def __init__(self, components: dist.Distribution) -> None:
        self.components, self.shared = components, components.support
        self.size = max(1, components.batch_shape.numel())
        self.is_discrete, self.event_dim = self.shared.is_discrete, self.shared.event_dim
        super().__init__()

    def __repr__(self) -> str:
        return f"of some component: {self.shared}"

    def check(self, value: Tensor) -> Tensor:
        """Whether values lie in it, shape of ``value`` without the event dimensions."""
        batch = value.shape[: value.dim() - self.event_dim]
        points = value.reshape(-1, 1, *value.shape[len(batch) :])
        parts = points.split(-(-PAIRS // self.size))
        return torch.cat([inside(self.components, part).any(-1) for part in parts]).reshape(batch)


def differs(distribution: dist.Distribution) -> bool:
    """Whether the support depends on parameters, so that it may differ between components."""
    while isinstance(distribution, torch.distributions.Independent):
        distribution = distribution.base_dist
    if _pushes_forward(distribution):
        return True
    try:
        support = distribution.support
    except NotImplementedError:  # the family does not declare one
        return False
    parameter_types = Tensor | torch.distributions.Distribution
    return any(isinstance(bound, parameter_types) for bound in _bounds(support))


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
    """Whether it is a transformed distribution whose base has a support that differs by row."""
    transformed = torch.distributions.TransformedDistribution
    return isinstance(distribution, transformed) and differs(distribution.base_dist)


def inside(components: dist.Distribution, points: Tensor) -> Tensor:
    """Which points lie in the support of which components; the two are broadcast."""
    if isinstance(components, torch.distributions.Independent):
        inside_units = inside(components.base_dist, points)
        for _ in range(components.reinterpreted_batch_ndims):
            inside_units = inside_units.all(-1)
        return inside_units
    if isinstance(components, torch.distributions.MixtureSameFamily):
        rank = points.dim() - len(components.event_shape)
        return inside(components.component_distribution, points.unsqueeze(rank)).any(-1)
    inside_support: Tensor = components.support.check(points)
    if not _pushes_forward(components):
        return inside_support
    for step in reversed(components.transforms):
        points = step.inv(points)
    return inside_support & inside(components.base_dist, points)


def unchecked(distribution: dist.Distribution, *, deep: bool) -> dist.Distribution:
    """The same distribution without torch's check that points lie in its support.

    Args:
        deep: whether to switch it off in the distributions that it contains, too.
    """
    copied = copy.copy(distribution)
    copied._validate_args = False
    wrapped = isinstance(distribution, torch.distributions.Independent)
    for name, part in vars(copied).items() if deep or wrapped else ():
        if isinstance(part, torch.distributions.Distribution):
            vars(copied)[name] = unchecked(part, deep=deep)
    return copied


def no_numbers(distribution: dist.Distribution) -> Tensor | None:
    """Which members of a batch have parameters that are NaN or, for normals, infinite.

    Returns:
        one entry per member of the first batch dimension; None for a family without parameters.
    """
    normal = families.diagonal_normal(distribution) or families.full_normal(distribution)
    if normal:
        masks = [~tensor.isfinite() for tensor in normal]
    elif isinstance(families.innermost(distribution), families.Editable):
        return None  # its function checks its own rows
    else:
        try:
            masks = [tensor.isnan() for tensor in families.tensors(distribution)]
        except InputError:
            return None
    rows = distribution.batch_shape[0]
    return torch.stack([mask.reshape(rows, -1).any(1) for mask in masks]).any(0)


def check_shape(z: Tensor, event_shape: torch.Size) -> torch.Size:
    """The batch shape of points, which must have the given event shape.

    Raises:
        InputError: if they don't.
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
    """Check that no point is NaN or outside the support, if all components have the same support.

    Raises:
        InputError: with the row of the first that is.
    """
    check_numbers(z, components.event_shape)
    if not z.numel() or differs(components):
        return
    try:
        support = components.support
    except NotImplementedError:
        return
    outside = ~support.check(z)
    if torch_transforms.any_true(outside):
        raise InputError(
            f"expected points in the support of the components, {support}; got others"
            f"{describe_rows(outside)}. Leave these out."
        )


def check_numbers(z: Tensor, event_shape: torch.Size) -> None:
    """Check that no point is NaN.

    Raises:
        InputError: with the row of the first that is.
    """
    wrong = z.isnan()
    if torch_transforms.any_true(wrong):
        wrong = wrong.reshape(*z.shape[: z.dim() - len(event_shape)], -1).any(-1)
        raise InputError(
            f"expected points without NaN; got NaN{describe_rows(wrong)}. Leave these out."
        )


def describe_rows(wrong: Tensor) -> str:
    """How many rows are wrong and which is the first, as the end of a clause in a message.

    Args:
        wrong: for each row whether it is wrong, of any shape.
    """
    if torch_transforms.active() or not wrong.dim():  # torch.func hides single entries
        return ""
    first = wrong.nonzero()[0].tolist()
    row = first[0] if len(first) == 1 else tuple(first)
    return f" at {int(wrong.sum())} of {wrong.numel()}, the first in row {row}"
