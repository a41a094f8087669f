"""Mixtures of any family: exact, a block of points and components at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.mixture.families import convert, floating_parameter, take, tensors
from pyrovae.mixture.families.nested import MixtureByRow
from pyrovae.mixture.kernel import torch_transforms
from pyrovae.mixture.kernel.cache import usable
from pyrovae.mixture.kernel.first_order import once
from pyrovae.mixture.kernel.support import differs, inside, unchecked

#: Bytes that one block of component log densities may hold.
BLOCK_BYTES = 1 << 26


class Components:
    """Weighted components of any family that `pyrovae.mixture.families.take` can take apart.

    Args:
        components: batch shape ``(N,)``.
        log_weight: normalised log weights, shape ``(N,)``; −inf leaves the component out.
    """

    def __init__(self, components: dist.Distribution, log_weight: Tensor) -> None:
        self.index, components, log_weight = weighted(components, log_weight)
        if floating_parameter(components).is_inference():
            components = convert(components, usable)
        #: Whether points may lie in the support of some components and not of others.
        self.differs = differs(components)
        self.components, self.log_weight = components, usable(log_weight)
        self.size, self.dtype = len(log_weight), floating_parameter(components).dtype
        self.wide = self.dtype == torch.float64 or _can_be_rebuilt(components)
        width = max(1, math.prod(components.event_shape))
        cost = 8 * 8 * width  # bytes per pair, with room for intermediate results
        if isinstance(components, torch.distributions.MultivariateNormal):
            cost *= 4
        if isinstance(components, MixtureByRow):
            cost *= components.component_distribution.batch_shape[-1]
        pairs = max(1, BLOCK_BYTES // cost)
        self.block = min(self.size, max(1, math.isqrt(pairs) * 4))
        self.points = max(1, pairs // self.block)

    @cached_property
    def tensors(self) -> list[Tensor]:
        """What the components are made of, each with N rows."""
        known = self.wide and _can_be_rebuilt(self.components)
        return tensors(self.components) if known else []

    def scores(self, z: Tensor, rows: slice, given: Sequence[Tensor] = ()) -> Tensor:
        """log w_n + log q_n(z) for some components, −∞ outside of their support, ``(B, n)``.

        In float64, unless the components are made of modules, which have a dtype of their own.

        Args:
            z: points, shape ``(B, ...)``.
            rows: which components.
            given: their log weights and tensors, in place of those that are held.
        """
        if not len(z):  # which distributions refuse
            return z.new_zeros(0, len(self.log_weight[rows]), dtype=torch.float64)
        part = self.components if self.size <= self.block else take(self.components, rows)
        log_weight, *others = given or (self.log_weight[rows],)
        if others:
            replaced = iter(others)
            part = convert(part, lambda _: next(replaced))
        if self.wide and self.dtype != torch.float64:
            part = convert(part, _precise)
        points = z.unsqueeze(z.dim() - len(self.components.event_shape))
        points = _precise(points) if self.wide else points.to(self.dtype)
        found: Tensor = unchecked(part, deep=self.differs).log_prob(points) + log_weight
        if self.differs:
            found = torch.where(inside(part, points), found, -math.inf)
        return found.double()

    def log_prob(self, z: Tensor) -> Tensor:
        """log Σ_n w_n q_n(z), shape ``(B,)``; more than one block is differentiable once.

        Inside of ``torch.func`` and with forward-mode derivatives it is so any number of times, and
        then all blocks are remembered.
        """
        if self.size <= self.block and len(z) <= self.points:
            return self.scores(z, slice(0, self.size)).logsumexp(-1)
        inputs = (z, self.log_weight, *self.tensors)
        if torch_transforms.active() or any(map(torch_transforms.forward_mode, inputs)):
            return self.total(z)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
            result: Tensor = _InBlocks.apply(self, *inputs)  # type: ignore[no-untyped-call]
            return result
        return self.total(z)

    def total(self, z: Tensor) -> Tensor:
        """`log_prob` as torch differentiates it."""
        found = [
            torch.stack([self.scores(part, rows).logsumexp(-1) for rows in self.rows()])
            for part in z.split(self.points)
        ]
        return torch.cat([blocks.logsumexp(0) for blocks in found])

    def score(self, z: Tensor) -> Tensor:
        """∇_z log Σ_n w_n q_n(z), shape of ``z``."""
        with torch.enable_grad():
            points = usable(z.detach()).requires_grad_()
            return torch.autograd.grad(self.log_prob(points).sum(), points)[0]

    def rows(self) -> Iterator[slice]:
        """The blocks of components."""
        for start in range(0, self.size, self.block):
            yield slice(start, min(start + self.block, self.size))


class _InBlocks(torch.autograd.Function):
    """The log density in blocks, which are made again for gradients, one at a time.

    What autograd would remember of all blocks, were it little, would break up the memory that the
    next block could use.
    """

    @staticmethod
    def forward(ctx: Any, components: Components, z: Tensor, *made_of: Tensor) -> Tensor:
        total = components.total(z)
        ctx.components = components
        ctx.save_for_backward(z, *made_of, total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, total = ctx.saved_tensors
        sums = [
            tensor.new_zeros(tensor.shape, dtype=torch.float64) if wanted else None
            for tensor, wanted in zip(inputs, ctx.needs_input_grad[1:], strict=True)
        ]
        with torch.no_grad():
            for start in range(0, len(total), ctx.components.points):
                part = slice(start, start + ctx.components.points)
                for rows in ctx.components.rows():
                    places = (part, *(rows,) * (len(inputs) - 1))
                    leaves = [t[place] for t, place in zip(inputs, places, strict=True)]
                    wanted = [s is not None for s in sums]
                    slopes = _slopes(
                        ctx.components, rows, leaves, wanted, (total[part], grad[part])
                    )
                    for whole, place, slope in zip(sums, places, slopes, strict=True):
                        if whole is not None and slope is not None:
                            whole[place] += slope
        found = [s if s is None else s.to(t.dtype) for s, t in zip(sums, inputs, strict=True)]
        return None, *once(found, "for one block of components and points", [grad, *inputs])


def _slopes(
    components: Components,
    rows: slice,
    inputs: Sequence[Tensor],
    wanted: Sequence[bool],
    of: tuple[Tensor, Tensor],
) -> list[Tensor | None]:
    """Gradients of Σ_b g_b log q(z_b) by way of some components' scores, where they are wanted.

    Args:
        components: all of them.
        rows: which of them.
        inputs: points, and the log weights and tensors of these components.
        wanted: for each input.
        of: log q(z_b) and g_b, each ``(B,)``.
    """
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_(w) for t, w in zip(inputs, wanted, strict=True)]
        scores = components.scores(leaves[0], rows, leaves[1:] if any(wanted[1:]) else ())
    total, grad = of
    share = (scores.detach() - total.unsqueeze(-1)).exp() * grad.unsqueeze(-1)
    asked = [leaf for leaf, w in zip(leaves, wanted, strict=True) if w]
    slopes = iter(torch.autograd.grad(scores, asked, share, allow_unused=True))
    return [next(slopes) if w else None for w in wanted]


def weighted(
    components: dist.Distribution, log_weight: Tensor
) -> tuple[Tensor | None, dist.Distribution, Tensor]:
    """The components that have a weight, which others may have no say beside, NaN as they may be.

    Args:
        components: batch shape ``(N,)``.
        log_weight: shape ``(N,)``; NaN is no weight of zero.

    Returns:
        their numbers, None if these are all; they themselves, and their log weights.
    """
    without = log_weight.detach() == -math.inf
    if not torch_transforms.some(without):
        return None, components, log_weight
    index = (~without).nonzero().squeeze(-1)
    return index, take(components, index), log_weight[index]


def _can_be_rebuilt(components: dist.Distribution) -> bool:
    try:
        take(components, slice(0, 1))
    except ValueError:
        return False
    return True


def _precise(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
