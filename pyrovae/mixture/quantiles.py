"""The distribution function of a mixture over numbers, and its inverse."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.errors import InputError
from pyrovae.mixture import families

#: Pairs of point and component that are held at once.
PAIRS = 1 << 22
#: Of a search, each of which halves its bracket or the step before: more than doubles can need.
STEPS = 200
#: Relative rounding of a sum, at which a search is over.
ROUNDING = 4 * torch.finfo(torch.float64).eps


def cdf(components: dist.Distribution, weights: Tensor, value: Tensor) -> Tensor:
    """Σ_n w_n F_n(value), shape of ``value``, in blocks of components.

    Args:
        components: over numbers, batch shape ``(N,)``.
        weights: shape ``(N,)``; those of 0 leave a component out.
        value: any shape.

    Raises:
        InputError: for a value that is NaN.
        NotImplementedError: for a family that does not know its ``cdf``, saying what to use.
    """
    if bool(value.isnan().any()):
        raise InputError("expected numbers; got NaN among the values. Leave these out.")
    total = torch.zeros_like(value)
    for part, weight in _blocks(components, weights, value.numel()):
        found = _probability(part, value.unsqueeze(-1))
        total = total + found @ weight.to(found.dtype)
    return total


def icdf(components: dist.Distribution, weights: Tensor, probability: Tensor) -> Tensor:
    r"""The number z with Σ_n w_n F_n(z) = p, in float64: Newton's method, kept within a bracket.

    The bracket is that of the components' own quantiles. The result has gradients in p and in the
    parameters, any number of times:

    .. math:: dz = \frac{dp - \sum_n d(w_n F_n)(z)}{\sum_n w_n q_n(z)}

    Args:
        components: over numbers, of a family that knows ``cdf`` and ``icdf``; batch shape ``(N,)``.
        weights: shape ``(N,)``; those of 0 leave a component out.
        probability: p from 0 to 1, any shape.

    Raises:
        InputError: for a p that is not from 0 to 1.
        NotImplementedError: for a family that does not know them, saying what to use.
    """
    p = probability.double()
    outside = ~((p >= 0) & (p <= 1))
    if bool(outside.any()):
        raise InputError(
            f"expected probabilities from 0 to 1; got {float(p[outside][0]):g}. Check what they "
            "were computed from."
        )
    tensors: list[Tensor] = []

    def widened(tensor: Tensor) -> Tensor:
        tensors.append(tensor.double() if tensor.is_floating_point() else tensor)
        return tensors[-1]

    wide, weights = families.convert(components, widened), weights.double()
    with torch.no_grad():
        root = _root(wide, weights, p)
    if not any(tensor.requires_grad for tensor in (p, weights, *tensors)):
        return root
    result: Tensor = _Quantile.apply(root, wide, p, weights, *tensors)  # type: ignore[no-untyped-call]
    return result


class _Quantile(torch.autograd.Function):
    """A root, which moves so that F(z) stays p; saved as an output, for second derivatives."""

    @staticmethod
    def forward(root: Tensor, components: dist.Distribution, *made_of: Tensor) -> Tensor:
        return root.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.components = inputs[1]
        ctx.save_for_backward(output, *inputs[2:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, _, *made_of = ctx.saved_tensors

        def probability(weights: Tensor, *tensors: Tensor) -> Tensor:
            return cdf(_of(ctx.components, tensors), weights, z)

        weights, *tensors = made_of
        slope = grad / _density(_of(ctx.components, tensors), weights, z)
        pull = torch.func.vjp(probability, *made_of)[1]  # autograd would follow z back to here
        return None, None, slope, *pull(-slope)


def _of(components: dist.Distribution, tensors: Sequence[Tensor]) -> dist.Distribution:
    """The same family of other tensors, in the order in which `convert` comes by them."""
    replaced = iter(tensors)
    return families.convert(components, lambda _: next(replaced))


def _root(components: dist.Distribution, weights: Tensor, p: Tensor) -> Tensor:
    """The least z with F(z) ≥ p: Newton, or a bisection where that leaves the bracket or stalls."""
    low, high = _bracket(components, weights, p)
    going = (low != high) & (p > 0) & (p < 1)
    z = torch.where(going, 0.5 * low + 0.5 * high, torch.where(p < 1, low, high))
    last = high - low
    for _ in range(STEPS):
        if not bool(going.any()):
            break
        at, below, above = z[going], low[going], high[going]
        left = cdf(components, weights, at) - p[going]
        below, above = torch.where(left < 0, at, below), torch.where(left < 0, above, at)
        density = _density(components, weights, at)
        step = left / density
        newton = (at - step > below) & (at - step < above) & (2 * step.abs() < last[going].abs())
        step = torch.where(newton, step, at - (0.5 * below + 0.5 * above))
        exact = (left.abs() <= ROUNDING * p[going]) & (density > 0)  # not within a gap
        step = torch.where(exact, 0.0, step)
        low[going], high[going], last[going], z[going] = below, above, step, at - step
        going[going.clone()] = step.abs() > ROUNDING * at.abs()
    return z


def _bracket(components: dist.Distribution, weights: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the greatest of the components' quantiles, between which the mixture's lies."""
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
    """Components with a weight, as many at a time as may be held for so many points."""
    above = (weights > 0).nonzero().squeeze(-1)
    for index in above.split(max(1, PAIRS // max(1, points))):
        whole = len(index) == len(weights)
        yield components if whole else families.take(components, index), weights[index]


def _inside(part: dist.Distribution, value: Tensor) -> tuple[Tensor, Tensor]:
    """Which values each component's support holds, and values that it holds in any case."""
    inside: Tensor = part.support.check(value.expand(*value.shape[:-1], *part.batch_shape))
    return inside, value if bool(inside.all()) else torch.where(inside, value, part.mean)


def _probability(part: dist.Distribution, value: Tensor) -> Tensor:
    """F_n(value): 0 and 1 beside the support; right also where torch's own of a normal is 0."""
    normal = families.diagonal_normal(part)
    if normal is not None:
        loc, scale = (t.squeeze(-1) for t in normal)
        return 0.5 * torch.special.erfc((loc - value) / (math.sqrt(2) * scale))
    inside, safe = _inside(part, value)
    found = _known(part.cdf, safe, part)
    return found if safe is value else torch.where(inside, found, (value > safe).to(found))


def _quantile(part: dist.Distribution, p: Tensor) -> Tensor:
    """F_n⁻¹(p), likewise."""
    normal = families.diagonal_normal(part)
    if normal is None:
        return _known(part.icdf, p, part)
    loc, scale = (t.squeeze(-1) for t in normal)
    return loc + scale * torch.special.ndtri(p)


def _known(function: Callable[[Tensor], Tensor], value: Tensor, part: dist.Distribution) -> Tensor:
    try:
        return function(value)
    except NotImplementedError as error:
        raise NotImplementedError(
            f"expected components whose cdf and icdf are known; got {families.family(part)}. Use "
            "draws, z = mixture.sample((10_000,)): (z <= value).double().mean() and z.quantile(p)."
        ) from error
