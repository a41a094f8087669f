"""The distribution function of a mixture over numbers, and its inverse."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.errors import InputError
from pyrovae.mixture import families

#: Pairs of point and component held in memory at once.
PAIRS = 1 << 22
#: Steps of a search. Each halves the bracket or the last step, so float64 never needs as many.
STEPS = 200
#: Relative rounding error of a sum: a search that comes this close is over.
ROUNDING = 4 * torch.finfo(torch.float64).eps


def cdf(components: dist.Distribution, weights: Tensor, value: Tensor) -> Tensor:
    """Σ_n w_n F_n(value), in the shape of ``value``, in blocks of components.

    Args:
        components: over numbers, batch shape ``(N,)``.
        weights: shape ``(N,)``; a weight of 0 leaves a component out.
        value: any shape.

    Raises:
        InputError: if a value is NaN.
        NotImplementedError: for a family without a ``cdf``, saying what to use.
    """
    if bool(value.isnan().any()):
        raise InputError("expected numbers; got NaN among the values. Leave these out.")
    total = torch.zeros_like(value)
    for part, weight in _blocks(components, weights, value.numel()):
        probability = _probability(part, value.unsqueeze(-1))
        total = total + probability @ weight.to(probability.dtype)
    return total


def icdf(components: dist.Distribution, weights: Tensor, probability: Tensor) -> Tensor:
    r"""The number z with Σ_n w_n F_n(z) = p, in float64: Newton's method, kept within a bracket.

    The components' own quantiles are the bracket. The result can be differentiated in p and in the
    parameters any number of times:

    .. math:: dz = \frac{dp - \sum_n d(w_n F_n)(z)}{\sum_n w_n q_n(z)}

    Args:
        components: over numbers, of a family with ``cdf`` and ``icdf``; batch shape ``(N,)``.
        weights: shape ``(N,)``; a weight of 0 leaves a component out.
        probability: p from 0 to 1, any shape.

    Raises:
        InputError: if a p is not between 0 and 1.
        NotImplementedError: for a family without these, saying what to use.
    """
    p = probability.double()
    outside = ~((p >= 0) & (p <= 1))
    if bool(outside.any()):
        raise InputError(
            f"expected probabilities from 0 to 1; got {float(p[outside][0]):g}. Check how they "
            "were computed."
        )
    tensors: list[Tensor] = []

    def to_double(tensor: Tensor) -> Tensor:
        tensors.append(tensor.double() if tensor.is_floating_point() else tensor)
        return tensors[-1]

    wide_components, weights = families.convert(components, to_double), weights.double()
    with torch.no_grad():
        root = _root(wide_components, weights, p)
    if not any(tensor.requires_grad for tensor in (p, weights, *tensors)):
        return root
    result: Tensor = _Quantile.apply(root, wide_components, p, weights, *tensors)  # type: ignore[no-untyped-call]
    return result


class _Quantile(torch.autograd.Function):
    """The root z of F(z) = p, with gradients; saved as an output, for second derivatives."""

    @staticmethod
    def forward(root: Tensor, components: dist.Distribution, *parameters: Tensor) -> Tensor:
        return root.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.components = inputs[1]
        ctx.save_for_backward(output, *inputs[2:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, _, *parameters = ctx.saved_tensors

        def probability(weights: Tensor, *tensors: Tensor) -> Tensor:
            return cdf(families.replace_tensors(ctx.components, tensors), weights, z)

        weights, *tensors = parameters
        slope = grad / _density(families.replace_tensors(ctx.components, tensors), weights, z)
        pull = torch.func.vjp(probability, *parameters)[1]  # autograd would recurse through z
        return None, None, slope, *pull(-slope)


def _root(components: dist.Distribution, weights: Tensor, p: Tensor) -> Tensor:
    """The least z with F(z) ≥ p: Newton, or bisection where that leaves the bracket or stalls."""
    low, high = _bracket(components, weights, p)
    active = (low != high) & (p > 0) & (p < 1)
    z = torch.where(active, 0.5 * low + 0.5 * high, torch.where(p < 1, low, high))
    last_step = high - low
    for _ in range(STEPS):
        if not bool(active.any()):
            break
        z_now, below, above = z[active], low[active], high[active]
        excess = cdf(components, weights, z_now) - p[active]
        below, above = torch.where(excess < 0, z_now, below), torch.where(excess < 0, above, z_now)
        density = _density(components, weights, z_now)
        step = excess / density
        within = (z_now - step > below) & (z_now - step < above)
        newton = within & (2 * step.abs() < last_step[active].abs())
        step = torch.where(newton, step, z_now - (0.5 * below + 0.5 * above))
        # in a gap between supports F is flat: the search goes on to the least z
        exact = (excess.abs() <= ROUNDING * p[active]) & (density > 0)
        step = torch.where(exact, 0.0, step)
        low[active], high[active], last_step[active], z[active] = below, above, step, z_now - step
        active[active.clone()] = step.abs() > ROUNDING * z_now.abs()
    return z


def _bracket(components: dist.Distribution, weights: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """The least and greatest quantile of any component: that of the mixture lies between."""
    low, high = torch.full_like(p, math.inf), torch.full_like(p, -math.inf)
    for part, _ in _blocks(components, weights, p.numel()):
        quantiles = _quantile(part, p.unsqueeze(-1))
        low, high = low.minimum(quantiles.amin(-1)), high.maximum(quantiles.amax(-1))
    return low, high


def _density(components: dist.Distribution, weights: Tensor, value: Tensor) -> Tensor:
    total = torch.zeros_like(value)
    for part, weight in _blocks(components, weights, value.numel()):
        inside, safe = _inside(part, value.unsqueeze(-1))
        total = total + torch.where(inside, part.log_prob(safe).exp(), 0.0) @ weight
    return total


def _blocks(
    components: dist.Distribution, weights: Tensor, points: int
) -> Iterator[tuple[dist.Distribution, Tensor]]:
    """Components with a weight above zero, in blocks that fit in memory with so many points."""
    weighted = (weights > 0).nonzero().squeeze(-1)
    for index in weighted.split(max(1, PAIRS // max(1, points))):
        all_weighted = len(index) == len(weights)
        yield components if all_weighted else families.take(components, index), weights[index]


def _inside(part: dist.Distribution, value: Tensor) -> tuple[Tensor, Tensor]:
    """Which values lie in each component's support; the values, with others replaced by means."""
    inside: Tensor = part.support.check(value.expand(*value.shape[:-1], *part.batch_shape))
    return inside, value if bool(inside.all()) else torch.where(inside, value, part.mean)


def _probability(part: dist.Distribution, value: Tensor) -> Tensor:
    """F_n(value): 0 below and 1 above the support, and right in the far tails of normals too."""
    normal = families.diagonal_normal(part)
    if normal is not None:
        loc, scale = (t.squeeze(-1) for t in normal)
        return 0.5 * torch.special.erfc((loc - value) / (math.sqrt(2) * scale))
    inside, safe = _inside(part, value)
    probability = _call_known(part.cdf, safe, part)
    if safe is value:
        return probability
    return torch.where(inside, probability, (value > safe).to(probability))


def _quantile(part: dist.Distribution, p: Tensor) -> Tensor:
    """F_n⁻¹(p), right in the far tails of normals too."""
    normal = families.diagonal_normal(part)
    if normal is None:
        return _call_known(part.icdf, p, part)
    loc, scale = (t.squeeze(-1) for t in normal)
    return loc + scale * torch.special.ndtri(p)


def _call_known(
    function: Callable[[Tensor], Tensor], value: Tensor, part: dist.Distribution
) -> Tensor:
    try:
        return function(value)
    except NotImplementedError as error:
        raise NotImplementedError(
            f"expected components whose cdf and icdf are known; got {families.family(part)}. Use "
            "draws, z = mixture.sample((10_000,)): (z <= value).double().mean() and z.quantile(p)."
        ) from error
