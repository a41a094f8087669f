"""Mixtures of any family: exact, a block of points and components at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pyrovae.mixture.families import convert, floating_parameter, take
from pyrovae.mixture.kept import usable

#: Bytes that one block of component log densities may hold.
BLOCK_BYTES = 1 << 26


class Components:
    """Weighted components of any family that `pyrovae.mixture.families.take` can take apart.

    Args:
        components: batch shape ``(N,)``.
        log_weight: normalised log weights, shape ``(N,)``; −inf leaves the component out.
    """

    def __init__(self, components: dist.Distribution, log_weight: Tensor) -> None:
        kept = log_weight.detach() > -math.inf
        self.index = None if bool(kept.all()) else kept.nonzero().squeeze(-1)
        if self.index is not None:
            components, log_weight = take(components, self.index), log_weight[self.index]
        if floating_parameter(components).is_inference():
            components = convert(components, usable)
        self.components, self.log_weight = components, usable(log_weight)
        self.size, self.dtype = len(log_weight), floating_parameter(components).dtype
        self.wide = self.dtype == torch.float64 or _can_be_rebuilt(components)
        width = max(1, math.prod(components.event_shape))
        cost = 8 * 8 * width  # bytes per pair, with room for intermediate results
        if isinstance(components, torch.distributions.MultivariateNormal):
            cost *= 4
        pairs = max(1, BLOCK_BYTES // cost)
        self.block = min(self.size, max(1, math.isqrt(pairs) * 4))
        self.points = max(1, pairs // self.block)

    def scores(self, z: Tensor, rows: slice) -> Tensor:
        """log w_n + log q_n(z) for some components, shape ``(B, n)``.

        In float64, unless the components are made of modules, which have a dtype of their own.
        """
        if not len(z):  # which distributions refuse
            return z.new_zeros(0, len(self.log_weight[rows]), dtype=torch.float64)
        part = self.components if self.size <= self.block else take(self.components, rows)
        if self.wide and self.dtype != torch.float64:
            part = convert(part, _precise)
        points = z.unsqueeze(z.dim() - len(self.components.event_shape))
        points = _precise(points) if self.wide else points.to(self.dtype)
        found: Tensor = part.log_prob(points) + self.log_weight[rows]
        return found.double()

    def log_prob(self, z: Tensor) -> Tensor:
        """log Σ_n w_n q_n(z), shape ``(B,)``; blocks are computed again for gradients."""
        parts = [self._log_prob(part) for part in z.split(self.points)]
        return torch.cat(parts) if parts else z.new_empty(0)

    def _log_prob(self, z: Tensor) -> Tensor:
        blocks = list(self.rows())
        if len(blocks) == 1:
            return self._log_sum(z, blocks[0])
        log_sum: Callable[[Tensor, slice], Tensor] = self._log_sum
        if torch.is_grad_enabled():  # nothing is random here: no state of a generator to keep
            log_sum = partial(checkpoint, log_sum, use_reentrant=False, preserve_rng_state=False)
        return torch.stack([log_sum(z, rows) for rows in blocks]).logsumexp(0)

    def _log_sum(self, z: Tensor, rows: slice) -> Tensor:
        return self.scores(z, rows).logsumexp(-1)

    def score(self, z: Tensor) -> Tensor:
        """∇_z log Σ_n w_n q_n(z) at no more than `points` points, shape of ``z``."""
        with torch.enable_grad():
            points = usable(z.detach()).requires_grad_()
            return torch.autograd.grad(self._log_prob(points).sum(), points)[0]

    def rows(self) -> Iterator[slice]:
        """The blocks of components."""
        for start in range(0, self.size, self.block):
            yield slice(start, min(start + self.block, self.size))


def _can_be_rebuilt(components: dist.Distribution) -> bool:
    try:
        take(components, slice(0, 1))
    except ValueError:
        return False
    return True


def _precise(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
