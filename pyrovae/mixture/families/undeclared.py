"""Distributions without a declared support or a method to sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints


def declared(distribution: dist.Distribution) -> dist.Distribution:
    """The distribution itself, or one with a support and a sampler added if it lacks them.

    At a sample site Pyro only needs a density and a call that draws; its bridge to zuko,
    ``pyro.contrib.zuko.ZukoToPyro``, has just these.

    >>> declared(dist.Normal(0.0, 1.0))
    Normal(loc: 0.0, scale: 1.0)
    """
    base = distribution
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
    # Whether it has a method to sample, besides being called.
    plain, kind = torch.distributions.Distribution, type(base)
    can_sample = kind.sample is not plain.sample or kind.rsample is not plain.rsample
    if can_sample and has_support(base):
        return distribution
    if base is distribution:
        return Declared(distribution)
    inner = declared(distribution.base_dist)
    return dist.Independent(inner, distribution.reinterpreted_batch_ndims)


class Declared(dist.TorchDistribution):
    """A distribution that samples by being called, and is supported where its density is positive.

    Args:
        fn: a distribution without a ``support`` or a ``sample`` of its own.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, fn: Any) -> None:
        self.fn = fn
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)

    def __repr__(self) -> str:
        return repr(self.fn)

    @property
    def has_rsample(self) -> bool:
        """Whether draws have gradients."""
        return bool(self.fn.has_rsample)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """The declared support, or, if there is none, all points with a positive density."""
        return self.fn.support if has_support(self.fn) else PositiveDensity(self.fn)

    @property
    def mean(self) -> Tensor:
        """The mean of the distribution."""
        return self.fn.mean

    @property
    def variance(self) -> Tensor:
        """The variance of the distribution."""
        return self.fn.variance

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Declared:
        """The same distribution with another batch shape."""
        return Declared(self.fn.expand(torch.Size(batch_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at a value."""
        return self.fn.log_prob(value)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws, without gradient."""
        with torch.no_grad():
            return self._draw(torch.Size(sample_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws, with gradient if the distribution offers it."""
        return self._draw(torch.Size(sample_shape))

    def _draw(self, shape: torch.Size) -> Tensor:
        drawn: Tensor = self.fn(shape)
        return drawn


class PositiveDensity(constraints.Constraint):
    """The points at which a distribution has a positive density.

    Args:
        fn: the distribution.
    """

    is_discrete = False

    def __init__(self, fn: Any) -> None:
        self.fn = fn

    @property
    def event_dim(self) -> int:  # type: ignore[override]
        """Number of dimensions of one point."""
        return len(self.fn.event_shape)

    def check(self, value: Tensor) -> Tensor:
        """Whether points have a positive density, in their batch shape.

        If the density refuses points outside its support, they are checked in smaller parts, and
        those that it refuses count as outside.
        """
        event = value.shape[value.dim() - self.event_dim :]
        batch = torch.broadcast_shapes(value.shape[: value.dim() - len(event)], self.fn.batch_shape)
        value = value.expand(batch + event)
        try:
            return self.fn.log_prob(value) > -math.inf
        except ValueError:
            if value.dim() - self.event_dim > len(self.fn.batch_shape):
                return torch.stack([self.check(part) for part in value.unbind(0)])
        return torch.zeros(batch, dtype=torch.bool, device=value.device)

    def __repr__(self) -> str:
        return f"where {type(self.fn).__name__} has a density"


def has_support(distribution: Any) -> bool:
    """Whether a distribution declares where it has a density."""
    try:
        support = distribution.support
    except NotImplementedError:
        return False
    return isinstance(support, constraints.Constraint)
