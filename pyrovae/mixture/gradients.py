"""The log density of diagonal normals as a differentiable function of points and parameters.

Small problems are one dense product in float64, differentiable any number of times. Large ones go
through `pyrovae.mixture.screening`: the gradient in z is the score from the same pass, that of the
parameters is summed block by block, and B × N numbers are never held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyrovae.mixture.attention import shares
from pyrovae.mixture.logdensity import (
    constants,
    differences,
    keys,
    queries,
    roundoff,
    squared_length,
)
from pyrovae.mixture.normals import BLOCK, TOLERANCE, DiagonalNormals
from pyrovae.mixture.screening import evaluate, log_prob

Parameters = Sequence[Tensor]

#: Up to this many (point, component) pairs are evaluated at once …
DENSE_PAIRS = 1 << 20
#: … from differences if the (point, component, unit) triples are as few as this, and then always …
FEW_TRIPLES = 1 << 15
#: … or as few as this, where the expanded form cancels.
DENSE_TRIPLES = 1 << 22
#: A score alone is one dense product and its gradient up to this many pairs, then one search.
DENSE_SCORES = 1 << 16
#: Up to this many, scores are summed by one call, which underflow may slow down.
FEW_SCORES = 1 << 13


def log_density(
    z: Tensor, held: Callable[[], DiagonalNormals], parameters: Parameters | None = None
) -> Tensor:
    r"""log Σ_n w_n N(z; μ_n, σ_n²), differentiable in z and in the parameters.

    Args:
        z: points, shape ``(B, D)``.
        held: returns the evaluator of the components; it is kept by the caller.
        parameters: location ``(N, D)``, scale ``(N, D)`` and normalised log weights ``(N,)`` if
            they take part in the gradient, or if an evaluator for few points would not pay.

    Returns:
        log densities, shape ``(B,)``, in the wider dtype of points and components, at least
        float32; what it adds to the error of float64 brute force is at most `TOLERANCE` and the
        rounding of the result.
    """
    components = held() if parameters is None else parameters
    like = components.loc if isinstance(components, DiagonalNormals) else components[0]
    dtype = torch.promote_types(torch.promote_types(z.dtype, like.dtype), torch.float32)
    given = parameters or (None, None, None)
    differentiable = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (z, *given)
    )
    result: Tensor
    if z.shape[0] * like.shape[0] <= DENSE_PAIRS:
        if parameters and differentiable and z.shape[0] * like.numel() <= FEW_TRIPLES:
            result = _FewLogDensity.apply(z, *parameters)  # type: ignore[no-untyped-call]
            return result.to(dtype)
        scores = _dense(z, components, like.numel(), TOLERANCE[dtype])
        if scores is not None:
            return _log_sum(scores).to(dtype)
    if not differentiable:
        return log_prob(held(), z).to(dtype)
    result = _LargeLogDensity.apply(z, *given, held)  # type: ignore[no-untyped-call]
    return result.to(dtype)


def score(z: Tensor, normals: DiagonalNormals) -> Tensor:
    """∇_z log Σ_n w_n N(z; μ_n, σ_n²), shape of ``z``, ``(B, D)``; without gradient."""
    if z.shape[0] * normals.size > min(DENSE_SCORES, DENSE_PAIRS):
        return evaluate(normals, z).score.to(z.dtype)
    with torch.enable_grad():
        points = z.detach().requires_grad_()
        return torch.autograd.grad(log_density(points, lambda: normals).sum(), points)[0]


def _dense(
    z: Tensor, components: DiagonalNormals | Parameters, numbers: int, tolerance: float
) -> Tensor | None:
    """All scores in float64, shape ``(B, N)``; None if they need too many differences."""
    z = z.double()
    triples = z.shape[0] * numbers
    if triples > FEW_TRIPLES:
        if isinstance(components, DiagonalNormals):
            key, centre = components.all_keys(), components.centre
            largest = components.largest_of_all
        else:
            loc, scale, log_weight = (t.double() for t in components)
            centre = loc.detach().mean(0)
            key = keys(loc - centre, scale, constants(scale, log_weight))
            largest = key.detach().abs().amax(0)
        query = queries(z - centre)
        magnitude = float(query.detach().abs().amax(0) @ largest)
        if magnitude * roundoff(key.shape[-1], torch.float64) <= tolerance:
            return query @ key.mT
        if triples > DENSE_TRIPLES:
            return None
    if isinstance(components, DiagonalNormals):
        return differences(z, *components.exact_all)
    return _differences(z, *components)


def _differences(z: Tensor, loc: Tensor, scale: Tensor, log_weight: Tensor) -> Tensor:
    scale = scale.double()  # the rest is promoted by what it meets
    return differences(z.double(), loc, scale, constants(scale, log_weight))


def _log_sum(scores: Tensor) -> Tensor:
    """Log-sum-exp over the last dimension; the shares in its gradient sum to one."""
    if scores.numel() > FEW_SCORES:
        return shares(scores)[0]
    if not scores.requires_grad:
        return scores.logsumexp(-1)
    # relative to the largest: of a sum of −1e10 the shares would bear the rounding, 1e-6
    best = scores.detach().amax(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).min)
    return (scores - best).logsumexp(-1) + best.squeeze(-1)


class _FewLogDensity(torch.autograd.Function):
    """Log density from differences, its gradients written out: half as many calls as autograd's."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, loc: Tensor, scale: Tensor, log_weight: Tensor) -> Tensor:
        wide = scale.double()  # the rest is promoted by what it meets
        difference = (z.double().unsqueeze(1) - loc) / wide
        constant = constants(wide, log_weight)
        scores = torch.add(constant, squared_length(difference), alpha=-0.5)
        ctx.save_for_backward(z, loc, scale, log_weight, wide, difference, scores)
        return scores.logsumexp(-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, scale, difference, scores = ctx.saved_tensors
        needed = ctx.needs_input_grad
        if torch.is_grad_enabled():  # to be differentiated again
            again = _log_sum(_differences(*inputs))
            wanted = [t for t, need in zip(inputs, needed, strict=True) if need]
            slopes = iter(torch.autograd.grad(again, wanted, grad, create_graph=True))
            return tuple(next(slopes) if need else None for need in needed)
        share = scores.softmax(-1) * grad.unsqueeze(-1)
        pull = share.unsqueeze(-1) * difference / scale
        found: list[Tensor | None] = [None] * 4
        if needed[0]:
            found[0] = -pull.sum(1)
        if needed[1]:
            found[1] = pull.sum(0)
        if needed[2] or needed[3]:
            mass = share.sum(0)
            found[2] = (pull * difference).sum(0) - mass.unsqueeze(-1) / scale
            found[3] = mass
        return tuple(
            g.to(t.dtype) if g is not None and need else None
            for g, t, need in zip(found, inputs, needed, strict=True)
        )


class _LargeLogDensity(torch.autograd.Function):
    """Log density with the score of the same pass as its gradient in z; differentiable once."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        loc: Tensor | None,
        scale: Tensor | None,
        log_weight: Tensor | None,
        held: Callable[[], DiagonalNormals],
    ) -> Tensor:
        evaluation = evaluate(held(), z)
        score = evaluation.score.to(z.dtype)
        ctx.save_for_backward(z, loc, scale, log_weight, evaluation.log_prob, score)
        return evaluation.log_prob

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, log_prob, score = ctx.saved_tensors
        found: list[Tensor | None] = [None] * 4
        with torch.no_grad():
            if ctx.needs_input_grad[0]:
                found[0] = (grad.unsqueeze(-1) * score).to(score.dtype)
            if any(ctx.needs_input_grad[1:4]):
                found[1:] = parameter_gradients(inputs[0], inputs[1:], log_prob, grad)
        if torch.is_grad_enabled():
            linked = [grad, *(tensor for tensor in inputs if tensor is not None)]
            found = [None if f is None else _Once.apply(f, *linked) for f in found]  # type: ignore[no-untyped-call]
        return *found, None


class _Once(torch.autograd.Function):
    """A gradient that refuses to be differentiated again instead of being taken for a constant."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *inputs: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "expected one derivative of this log density; got a request for a second one, which is "
            f"available up to {DENSE_PAIRS} pairs of point and component. Use fewer points at once."
        )


def parameter_gradients(
    z: Tensor, parameters: Parameters, log_prob: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Σ_b g_b ∂ log Σ_n w_n N(z_b; μ_n, σ_n²) with respect to μ, σ and log w, block by block.

    .. math:: ∂_{μ_n} = \sum_b g_b r_{bn} \frac{z_b - μ_n}{σ_n^2}, \quad
              ∂_{σ_n} = \sum_b g_b r_{bn} \frac{(z_b - μ_n)^2 - σ_n^2}{σ_n^3}, \quad
              ∂_{\log w_n} = \sum_b g_b r_{bn}

    The responsibilities are float64; the sums over b are moments of z about a block's mean.

    Args:
        z: shape ``(B, D)``.
        parameters: location, scale and log weights.
        log_prob: log densities at z, float64, shape ``(B,)``.
        grad: g, shape ``(B,)``.
    """
    found = tuple(torch.zeros_like(parameter) for parameter in parameters)
    for start in range(0, len(z) and len(parameters[0]), BLOCK):
        rows = slice(start, start + BLOCK)
        block = DiagonalNormals(*(parameter[rows] for parameter in parameters), ordered=False)
        if block.size == 0:
            continue
        moments = torch.zeros_like(block.all_keys())
        for first in range(0, len(z), block.points):
            part = slice(first, first + block.points)
            scores = block.scores(z[part], slice(None))
            share = (scores - log_prob[part].unsqueeze(-1)).clamp(max=0.0).exp()
            weight = share * grad[part].double().unsqueeze(-1)
            moments += weight.mT @ queries(z[part].double() - block.centre)
        second, first_moment, mass = moments.split([block.dim, block.dim, 1], -1)
        mean, scale = block.loc.double() - block.centre, block.scale.double()
        pull = (first_moment - mass * mean) / scale.square()
        spread = second - 2 * mean * first_moment + mass * mean.square()
        widen = (spread / scale.square() - mass) / scale
        for total, value in zip(found, (pull, widen, mass.squeeze(-1)), strict=True):
            kept = slice(None) if block.index is None else block.index
            total[rows][kept] = value.to(total.dtype)
    return found[0], found[1], found[2]
