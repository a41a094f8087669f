"""Families built from others: a mixture at every row, or one flow that all rows share."""

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
        """The support of the components, in a form that Pyro can transform if all share it."""
        component_support = self.component_distribution.support
        inner = component_support
        while isinstance(inner, constraints.independent):
            inner = inner.base_constraint
        if any(isinstance(bound, Tensor) for bound in vars(inner).values()):
            return super().support
        return component_support


class Pushed(dist.TransformedDistribution):
    r"""A batch of distributions pushed through the same transforms.

    .. math:: \log q_n(z) = \log p_n(u) - \log |\det J_T(u)|, \qquad u = T^{-1}(z)

    As all n share T, a mixture of them is the mixture of the p_n pushed through T. The transforms
    keep their dtype: points and draws are cast to it.

    Args:
        base_distribution: p_n over vectors, any batch shape.
        transforms: T, applied one after the other.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """log q_n(z), differentiable in z.

        Args:
            value: points, shape ``(..., D)``, broadcast against the batch shape.
        """
        log_density: Tensor = super().log_prob(self._cast(value))
        return log_density

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws, without gradient."""
        with torch.no_grad():
            return self.push(self.base_dist.sample(torch.Size(sample_shape)))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws with gradients, if the base distribution offers them."""
        return self.push(self.base_dist.rsample(torch.Size(sample_shape)))

    def push(self, u: Tensor) -> Tensor:
        """T(u)."""
        return push(self.transforms, self._cast(u))

    def shares_with(self, other: Pushed) -> bool:
        """Whether both have the same transforms: the same objects, or the same values at draws."""
        if len(self.transforms) == len(other.transforms) and all(
            first is second for first, second in zip(self.transforms, other.transforms, strict=True)
        ):
            return True
        u = self.base_dist.sample()
        ours, theirs = (push(part.transforms, part._cast(u)) for part in (self, other))
        return ours.shape == theirs.shape and torch.allclose(ours, theirs, equal_nan=True)

    def _cast(self, values: Tensor) -> Tensor:
        modules = (step for step in walk_transforms(self.transforms) if isinstance(step, nn.Module))
        dtypes = (p.dtype for module in modules for p in module.parameters())
        return values.to(next(dtypes, values.dtype))


def push(transforms: Sequence[Transform], u: Tensor) -> Tensor:
    """Apply transforms to points, one after the other."""
    for step in transforms:
        u = step(u)
    return u


def walk_transforms(transforms: Sequence[Transform]) -> Iterator[Transform]:
    """Transforms, and all transforms inside them."""
    for step in transforms:
        yield step
        inner = getattr(step, "base_transform", None)
        yield from walk_transforms(
            [*getattr(step, "parts", ()), *([] if inner is None else [inner])]
        )


def is_identity(step: Transform) -> bool:
    """Whether a transform does nothing, such as that from real numbers to real numbers."""
    if isinstance(step, IndependentTransform):
        return is_identity(step.base_transform)
    return isinstance(step, ComposeTransform) and all(is_identity(part) for part in step.parts)


def detach_transforms(transforms: list[Transform]) -> list[Transform]:
    """Copies without gradient, which further training of the transforms does not change."""
    memo: dict[int, Tensor] = {}  # the tensors of a transform's last call can't be deep-copied
    for step in walk_transforms(transforms):
        for value in vars(step).values():
            for tensor in value if isinstance(value, tuple) else (value,):
                if isinstance(tensor, Tensor) and not tensor.is_leaf:
                    memo[id(tensor)] = tensor.detach()
    copies = copy.deepcopy(transforms, memo)
    for step in walk_transforms(copies):
        if isinstance(step, nn.Module):
            step.requires_grad_(False)
    return copies
