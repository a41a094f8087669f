"""Log densities of mixtures of any family, exactly, a block of points and components at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.mixture.families import (
    convert,
    floating_parameter,
    replace_tensors,
    take,
    tensors,
)
from pyrovae.mixture.families.nested import MixtureByRow
from pyrovae.mixture.kernel import torch_transforms
from pyrovae.mixture.kernel.cache import leave_inference_mode
from pyrovae.mixture.kernel.first_order import forbid_second
from pyrovae.mixture.kernel.support import differs, inside, unchecked

#: Bytes that one block of component log densities may take.
BLOCK_BYTES = 1 << 26


class Components:
    """Weighted components of any family that `pyrovae.mixture.families.take` can take apart.

    Args:
        components: batch shape ``(N,)``.
        log_weight: normalised log weights, shape ``(N,)``; −inf leaves the component out.
    """

    def __init__(self, components: dist.Distribution, log_weight: Tensor) -> None:
        self.index, components, log_weight = drop_zero_weights(components, log_weight)
        if floating_parameter(components).is_inference():
            components = convert(components, leave_inference_mode)
        #: Whether a point may lie in the support of some components but not of others.
        self.differs = differs(components)
        self.components, self.log_weight = components, leave_inference_mode(log_weight)
        self.size, self.dtype = len(log_weight), floating_parameter(components).dtype
        self.in_float64 = self.dtype == torch.float64 or _can_be_rebuilt(components)
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
        """The parameter tensors of the components, each with N rows; none if they are not known."""
        rebuildable = self.in_float64 and _can_be_rebuilt(self.components)
        return tensors(self.components) if rebuildable else []

    def scores(self, z: Tensor, rows: slice, replacements: Sequence[Tensor] = ()) -> Tensor:
        """log w_n + log q_n(z) for some components, −∞ outside their support, shape ``(B, n)``.

        Computed in float64, unless the components contain modules, which have their own dtype.

        Args:
            z: points, shape ``(B, ...)``.
            rows: which components.
            replacements: log weights and tensors to use in place of those of the components.
        """
        if not len(z):  # distributions refuse this
            return z.new_zeros(0, len(self.log_weight[rows]), dtype=torch.float64)
        part = self.components if self.size <= self.block else take(self.components, rows)
        log_weight, *new_tensors = replacements or (self.log_weight[rows],)
        if new_tensors:
            part = replace_tensors(part, new_tensors)
        if self.in_float64 and self.dtype != torch.float64:
            part = convert(part, _to_double)
        points = z.unsqueeze(z.dim() - len(self.components.event_shape))
        points = _to_double(points) if self.in_float64 else points.to(self.dtype)
        # Older versions of torch can't check arguments inside of its transforms.
        deep = self.differs or torch_transforms.active()
        scores: Tensor = unchecked(part, deep=deep).log_prob(points) + log_weight
        if self.differs:
            scores = torch.where(inside(part, points), scores, -math.inf)
        return scores.double()

    def log_prob(self, z: Tensor) -> Tensor:
        """log Σ_n w_n q_n(z), shape ``(B,)``; with more than one block, differentiable once.

        Inside ``torch.func`` and with forward-mode derivatives it can be differentiated any number
        of times, which keeps all blocks in memory.
        """
        if self.size <= self.block and len(z) <= self.points:
            return self.scores(z, slice(0, self.size)).logsumexp(-1)
        inputs = (z, self.log_weight, *self.tensors)
        if torch_transforms.transformed(*inputs):
            return self.total(z)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
            result: Tensor = _InBlocks.apply(self, *inputs)  # type: ignore[no-untyped-call]
            return result
        return self.total(z)

    def total(self, z: Tensor) -> Tensor:
        """`log_prob` by torch's own differentiation."""
        parts = [
            torch.stack([self.scores(part, rows).logsumexp(-1) for rows in self.rows()])
            for part in z.split(self.points)
        ]
        return torch.cat([blocks.logsumexp(0) for blocks in parts])

    def score(self, z: Tensor) -> Tensor:
        """∇_z log Σ_n w_n q_n(z), shape of ``z``."""
        with torch.enable_grad():
            points = leave_inference_mode(z.detach()).requires_grad_()
            return torch.autograd.grad(self.log_prob(points).sum(), points)[0]

    def rows(self) -> Iterator[slice]:
        """The blocks of components."""
        for start in range(0, self.size, self.block):
            yield slice(start, min(start + self.block, self.size))


class _InBlocks(torch.autograd.Function):
    """The log density in blocks, which are computed again one at a time for the gradients.

    Otherwise autograd would save tensors of every block; even small ones fragment the memory that
    the next block could use.
    """

    @staticmethod
    def forward(ctx: Any, components: Components, z: Tensor, *parameters: Tensor) -> Tensor:
        total = components.total(z)
        ctx.components = components
        ctx.save_for_backward(z, *parameters, total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, total = ctx.saved_tensors
        sums = [
            tensor.new_zeros(tensor.shape, dtype=torch.float64) if needed else None
            for tensor, needed in zip(inputs, ctx.needs_input_grad[1:], strict=True)
        ]
        with torch.no_grad():
            for start in range(0, len(total), ctx.components.points):
                part = slice(start, start + ctx.components.points)
                for rows in ctx.components.rows():
                    places = (part, *(rows,) * (len(inputs) - 1))
                    leaves = [t[place] for t, place in zip(inputs, places, strict=True)]
                    needed = [s is not None for s in sums]
                    outer = (total[part], grad[part])
                    slopes = _slopes(ctx.components, rows, leaves, needed, outer)
                    for total_slope, place, slope in zip(sums, places, slopes, strict=True):
                        if total_slope is not None and slope is not None:
                            total_slope[place] += slope
        gradients = [s if s is None else s.to(t.dtype) for s, t in zip(sums, inputs, strict=True)]
        limit = "for one block of components and points"
        return None, *forbid_second(gradients, limit, [grad, *inputs])


def _slopes(
    components: Components,
    rows: slice,
    inputs: Sequence[Tensor],
    needed: Sequence[bool],
    log_prob_and_grad: tuple[Tensor, Tensor],
) -> list[Tensor | None]:
    """Gradients of Σ_b g_b log q(z_b) through the scores of some components.

    Args:
        components: the mixture.
        rows: which components.
        inputs: points, and the log weights and tensors of these components.
        needed: for each input, whether its gradient is needed.
        log_prob_and_grad: log q(z_b) and g_b, each of shape ``(B,)``.
    """
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_(w) for t, w in zip(inputs, needed, strict=True)]
        scores = components.scores(leaves[0], rows, leaves[1:] if any(needed[1:]) else ())
    total, grad = log_prob_and_grad
    share = (scores.detach() - total.unsqueeze(-1)).exp() * grad.unsqueeze(-1)
    needed_leaves = [leaf for leaf, w in zip(leaves, needed, strict=True) if w]
    slopes = iter(torch.autograd.grad(scores, needed_leaves, share, allow_unused=True))
    return [next(slopes) if w else None for w in needed]


def drop_zero_weights(
    components: dist.Distribution, log_weight: Tensor
) -> tuple[Tensor | None, dist.Distribution, Tensor]:
    """The components with a weight above zero; the others may hold anything, even NaN.

    Args:
        components: batch shape ``(N,)``.
        log_weight: shape ``(N,)``; a NaN does not count as a weight of zero.

    Returns:
        their numbers, or None if these are all; the components; their log weights.
    """
    weightless = log_weight.detach() == -math.inf
    if not torch_transforms.any_true(weightless):
        return None, components, log_weight
    index = (~weightless).nonzero().squeeze(-1)
    return index, take(components, index), log_weight[index]


def _can_be_rebuilt(components: dist.Distribution) -> bool:
    try:
        take(components, slice(0, 1))
    except ValueError:
        return False
    return True


def _to_double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
