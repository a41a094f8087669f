"""Distributions that leave out some of what torch's own declare."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints


def declared(distribution: dist.Distribution) -> dist.Distribution:
    """A distribution with a support and a way to draw, made up where its class has none.

    Pyro asks of a distribution at a sample site no more than a density and that it can be called;
    its bridge to zuko, ``pyro.contrib.zuko.ZukoToPyro``, offers just that.

    >>> declared(dist.Normal(0.0, 1.0))
    Normal(loc: 0.0, scale: 1.0)
    """
    if isinstance(distribution, torch.distributions.Independent):
        inner = declared(distribution.base_dist)
        if inner is distribution.base_dist:
            return distribution
        return dist.Independent(inner, distribution.reinterpreted_batch_ndims)
    if _has_support(distribution) and _can_sample(distribution):
        return distribution
    return Declared(distribution)


class Declared(dist.TorchDistribution):
    """A distribution drawn from by calling it, whose support is where its density is positive.

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
        """Its own support, or, where it declares none, all points with a density."""
        return self.fn.support if _has_support(self.fn) else PositiveDensity(self.fn)

    @property
    def mean(self) -> Tensor:
        """That of the distribution."""
        return self.fn.mean

    @property
    def variance(self) -> Tensor:
        """That of the distribution."""
        return self.fn.variance

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Declared:
        """The same for another batch shape."""
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
    """The points at which a distribution has a density.

    Args:
        fn: the distribution.
    """

    is_discrete = False

    def __init__(self, fn: Any) -> None:
        self.fn = fn

    @property
    def event_dim(self) -> int:  # type: ignore[override]
        """Dimensions of one point."""
        return len(self.fn.event_shape)

    def check(self, value: Tensor) -> Tensor:
        """Whether points have a density, shape of a batch of them.

        A density that refuses what is outside is asked a part at a time, and what it refuses is
        outside.
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


def _has_support(distribution: Any) -> bool:
    try:
        support = distribution.support
    except NotImplementedError:
        return False
    return isinstance(support, constraints.Constraint)


def _can_sample(distribution: Any) -> bool:
    """Whether it draws by a method and not only by being called."""
    plain = torch.distributions.Distribution
    kind = type(distribution)
    return kind.sample is not plain.sample or kind.rsample is not plain.rsample
