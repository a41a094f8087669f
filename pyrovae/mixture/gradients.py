"""The log density of diagonal normals as a differentiable function of points and parameters.

Small problems are one dense product in float64, differentiable any number of times. Large ones go
through `pyrovae.mixture.screening`: the gradient in z is the score from the same pass, that of the
parameters is summed block by block, and B × N numbers are never held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyrovae.mixture.logdensity import differences, keys, queries, roundoff
from pyrovae.mixture.screening import BLOCK, CHUNK_BYTES, TOLERANCE, DiagonalNormals

#: Up to this many (point, component) pairs are evaluated as one dense product …
DENSE_PAIRS = 1 << 19
#: … if they are evaluated from differences, up to this many (point, component, unit) triples.
DENSE_TRIPLES = 1 << 22


def log_density(
    z: Tensor,
    loc: Tensor,
    scale: Tensor,
    log_weight: Tensor,
    held: Callable[[], DiagonalNormals],
) -> Tensor:
    r"""log Σ_n w_n N(z; μ_n, σ_n²), differentiable in all four tensors.

    Args:
        z: points, shape ``(B, D)``.
        loc, scale: shape ``(N, D)``.
        log_weight: normalised log weights, shape ``(N,)``.
        held: returns the evaluator of these components, made at the first call and kept.

    Returns:
        log densities, shape ``(B,)``, in the wider dtype of ``z`` and ``loc``, at least float32;
        error ≤ 1e-4 nats in float32 (see `TOLERANCE`), plus the rounding of the result.
    """
    dtype = torch.promote_types(torch.promote_types(z.dtype, loc.dtype), torch.float32)
    if len(z) * len(loc) <= DENSE_PAIRS:
        dense = _dense(z, loc, scale, log_weight, held, TOLERANCE[dtype])
        if dense is not None:
            return dense.to(dtype)
    tensors = (z, loc, scale, log_weight)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        result: Tensor = _LargeLogDensity.apply(*tensors, held)  # type: ignore[no-untyped-call]
        return result.to(dtype)
    return held().evaluate(z).log_prob.to(dtype)


def _dense(
    z: Tensor,
    loc: Tensor,
    scale: Tensor,
    log_weight: Tensor,
    held: Callable[[], DiagonalNormals],
    tolerance: float,
) -> Tensor | None:
    """All pairs at once in float64, or None if they must be evaluated from too many differences."""
    learned = torch.is_grad_enabled() and (
        loc.requires_grad or scale.requires_grad or log_weight.requires_grad
    )
    if learned:
        loc, scale, log_weight = loc.double(), scale.double(), log_weight.double()
        centre = loc.detach().mean(0)
        key = keys(loc - centre, scale, log_weight)
        largest = key.detach().abs().amax(0)
    else:
        normals = held()
        loc, scale, log_weight = normals.loc, normals.scale, normals.log_weight
        centre, largest = normals.centre, normals.largest.amax(0)
        normals.cached_keys(torch.float64)
        key = normals.keys(slice(0, normals.size))
    query = queries(z.double() - centre)
    magnitude = query.detach().abs().amax(0) @ largest if len(z) else largest.sum()
    if float(magnitude) * roundoff(key.shape[-1], torch.float64) <= tolerance:
        return (query @ key.mT).logsumexp(-1)
    if len(z) * loc.numel() <= DENSE_TRIPLES:
        scores = differences(z.double(), loc.double(), scale.double(), log_weight.double())
        return scores.logsumexp(-1)
    return None


class _LargeLogDensity(torch.autograd.Function):
    """Log density with the score of the same pass as its gradient in z; differentiable once."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        loc: Tensor,
        scale: Tensor,
        log_weight: Tensor,
        held: Callable[[], DiagonalNormals],
    ) -> Tensor:
        evaluation = held().evaluate(z)
        ctx.save_for_backward(
            z, loc, scale, log_weight, evaluation.log_prob, evaluation.score.to(z.dtype)
        )
        return evaluation.log_prob

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, loc, scale, log_weight, log_prob, score = ctx.saved_tensors
        grad_z = (grad.unsqueeze(-1) * score).to(z.dtype) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:4]):
            return grad_z, None, None, None, None
        found = parameter_gradients(z, loc, scale, log_weight, log_prob, grad)
        return grad_z, *found, None


def parameter_gradients(
    z: Tensor, loc: Tensor, scale: Tensor, log_weight: Tensor, log_prob: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Σ_b g_b ∂ log Σ_n w_n N(z_b; μ_n, σ_n²) with respect to μ, σ and log w, block by block.

    .. math:: ∂_{μ_n} = \sum_b g_b r_{bn} \frac{z_b - μ_n}{σ_n^2}, \quad
              ∂_{σ_n} = \sum_b g_b r_{bn} \frac{(z_b - μ_n)^2 - σ_n^2}{σ_n^3}, \quad
              ∂_{\log w_n} = \sum_b g_b r_{bn}

    The sums over b are moments of z about a centre, which is moved to each block's own mean; the
    responsibilities are float64.
    """
    grads = (torch.zeros_like(loc), torch.zeros_like(scale), torch.zeros_like(log_weight))
    points = max(1, CHUNK_BYTES // (8 * 4 * BLOCK))
    for start in range(0, len(loc), BLOCK):
        rows = slice(start, start + BLOCK)
        key_loc, key_scale, weight = (t[rows].double() for t in (loc, scale, log_weight))
        centre = key_loc.mean(0)
        key = keys(key_loc - centre, key_scale, weight)
        moments = torch.zeros_like(key)
        for first in range(0, len(z), points):
            part = slice(first, first + points)
            query = queries(z[part].double() - centre)
            share = (query @ key.mT - log_prob[part].unsqueeze(-1)).clamp(max=0.0).exp()
            moments += (share * grad[part].double().unsqueeze(-1)).mT @ query
        dim = loc.shape[-1]
        second, first_moment, mass = moments.split([dim, dim, 1], -1)
        mean = key_loc - centre
        pull = first_moment - mass * mean
        spread = second - 2 * mean * first_moment + mass * mean.square()
        grads[0][rows] = (pull / key_scale.square()).to(loc.dtype)
        grads[1][rows] = ((spread / key_scale.square() - mass) / key_scale).to(scale.dtype)
        grads[2][rows] = mass.squeeze(-1).to(log_weight.dtype)
    return grads
