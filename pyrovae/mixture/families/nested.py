"""What may stand at each datum beside a plain family: a mixture, or a flow that all data share."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import (
    ComposeTransform,
    IndependentTransform,
    Transform,
    constraints,
)


class MixtureByRow(dist.MixtureSameFamily):
    """A mixture of K components for each of N data points.

    Args:
        mixture_distribution: ``Categorical`` over the components, batch shape ``(N,)``.
        component_distribution: batch shape ``(N, K)``.
    """

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """The support of the components where it is one for all, which Pyro can transform."""
        of_components = self.component_distribution.support
        inner = of_components
        while isinstance(inner, constraints.independent):
            inner = inner.base_constraint
        if any(isinstance(bound, Tensor) for bound in vars(inner).values()):
            return super().support
        return of_components


class Pushed(dist.TransformedDistribution):
    r"""Distributions that are pushed through transforms which all of them share.

    .. math:: \log q_n(z) = \log p_n(u) - \log |\det J_T(u)|, \qquad u = T^{-1}(z)

    As T is one for all n, a mixture of them is the mixture of the p_n pushed through T. The
    transforms keep their dtype: points and draws are cast to it.

    Args:
        base_distribution: p_n over vectors, any batch shape.
        transforms: what they are pushed through, one after the other.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """log q_n(z), differentiable in z.

        Args:
            value: points, shape ``(..., D)``, broadcast against the batch shape.
        """
        found: Tensor = super().log_prob(self._cast(value))
        return found

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws, without gradient."""
        with torch.no_grad():
            return self.push(self.base_dist.sample(torch.Size(sample_shape)))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws with gradients, as far as the base distribution has them."""
        return self.push(self.base_dist.rsample(torch.Size(sample_shape)))

    def push(self, u: Tensor) -> Tensor:
        """T(u)."""
        return push(self.transforms, self._cast(u))

    def shares_with(self, other: Pushed) -> bool:
        """Whether both are pushed through the same function: one object, or alike at some draws."""
        if len(self.transforms) == len(other.transforms) and all(
            one is two for one, two in zip(self.transforms, other.transforms, strict=True)
        ):
            return True
        u = self.base_dist.sample()
        ours, theirs = (push(part.transforms, part._cast(u)) for part in (self, other))
        return ours.shape == theirs.shape and torch.allclose(ours, theirs, equal_nan=True)

    def _cast(self, values: Tensor) -> Tensor:
        modules = (step for step in nested(self.transforms) if isinstance(step, nn.Module))
        dtypes = (p.dtype for module in modules for p in module.parameters())
        return values.to(next(dtypes, values.dtype))


def push(transforms: Sequence[Transform], u: Tensor) -> Tensor:
    """What the transforms, one after the other, make of points."""
    for step in transforms:
        u = step(u)
    return u


def nested(transforms: Sequence[Transform]) -> Iterator[Transform]:
    """Transforms, and those that they are made of."""
    for step in transforms:
        yield step
        inner = getattr(step, "base_transform", None)
        yield from nested([*getattr(step, "parts", ()), *([] if inner is None else [inner])])


def trivial(step: Transform) -> bool:
    """Whether a transform does nothing, as that to the real numbers from themselves."""
    if isinstance(step, IndependentTransform):
        return trivial(step.base_transform)
    return isinstance(step, ComposeTransform) and all(trivial(part) for part in step.parts)


def detached(transforms: list[Transform]) -> list[Transform]:
    """Copies without gradient, which stay as they are when the transforms are trained on."""
    memo: dict[int, Tensor] = {}  # what a transform remembers of its last call can't be copied
    for step in nested(transforms):
        for value in vars(step).values():
            for tensor in value if isinstance(value, tuple) else (value,):
                if isinstance(tensor, Tensor) and not tensor.is_leaf:
                    memo[id(tensor)] = tensor.detach()
    copies = copy.deepcopy(transforms, memo)
    for step in nested(copies):
        if isinstance(step, nn.Module):
            step.requires_grad_(False)
    return copies
