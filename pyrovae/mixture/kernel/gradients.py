"""The log density of diagonal normals as a differentiable function of points and parameters.

Small problems are one dense product in float64, differentiable any number of times. Large ones go
through `search.py`: the gradient in z is the score from the same pass, that of the parameters is
summed block by block, and B × N numbers are never held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pyrovae.errors import InputError
from pyrovae.mixture.kernel import torch_transforms
from pyrovae.mixture.kernel.attention import shares
from pyrovae.mixture.kernel.cache import usable
from pyrovae.mixture.kernel.diagonal_normals import BLOCK, TOLERANCE, DiagonalNormals
from pyrovae.mixture.kernel.first_order import once
from pyrovae.mixture.kernel.scalar_product import (
    constants,
    differences,
    keys,
    queries,
    roundoff,
    squared_length,
)
from pyrovae.mixture.kernel.search import evaluate, log_prob

Parameters = Sequence[Tensor]

#: Up to this many (point, component) pairs are evaluated at once …
DENSE_PAIRS = 1 << 20
#: … from differences if the (point, component, unit) triples are as few as this, and then always …
FEW_TRIPLES = 1 << 15
#: … or as few as this, where the expanded form cancels.
DENSE_TRIPLES = 1 << 22
#: A score alone is one dense product and its gradient up to this many pairs, then one search.
DENSE_SCORES = 1 << 16
#: Log densities so low that their rounding would reach the responsibilities.
LOW = 1e6
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
    inputs = (z, *(parameters or ()))
    special = torch_transforms.active() or any(map(torch_transforms.forward_mode, inputs))
    differentiable = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    result: Tensor
    if z.shape[0] * like.shape[0] <= DENSE_PAIRS:
        few = z.shape[0] * like.numel() <= FEW_TRIPLES
        if parameters and differentiable and few and not special:
            result = _FewLogDensity.apply(z, *parameters)  # type: ignore[no-untyped-call]
            return result.to(dtype)
        scores = _dense(z, components, like.numel(), TOLERANCE[dtype])
        if scores is not None:
            return _log_sum(scores).to(dtype)
    if not (differentiable or special):
        return log_prob(held(), z).to(dtype)
    moving = parameters is not None and any(map(torch_transforms.moving, parameters))
    taking_part = parameters if parameters and moving else (None, None, None)
    result, _ = _LargeLogDensity.apply(z, *taking_part, held)  # type: ignore[no-untyped-call]
    return result.to(dtype)


def score(z: Tensor, normals: DiagonalNormals) -> Tensor:
    """∇_z log Σ_n w_n N(z; μ_n, σ_n²), shape of ``z``, ``(B, D)``; without gradient."""
    if z.shape[0] * normals.size > min(DENSE_SCORES, DENSE_PAIRS):
        return evaluate(normals, z).score.to(z.dtype)
    with torch.enable_grad():
        points = usable(z.detach()).requires_grad_()
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
        magnitude = torch_transforms.largest(query.detach().abs().amax(0) @ largest)
        if magnitude * roundoff(key.shape[-1], torch.float64) <= tolerance:
            return query @ key.mT
        if triples > DENSE_TRIPLES:
            return None
    if isinstance(components, DiagonalNormals):
        return differences(z, *components.exact_all)
    return _with_differences(z, *components)[1]


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
    """Log density from differences, its gradients written out: half as many calls as autograd's.

    Not for ``torch.func``, which asks for a form of functions that takes half as long again.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, loc: Tensor, scale: Tensor, log_weight: Tensor) -> Tensor:
        made = _with_differences(z, loc, scale, log_weight)
        ctx.save_for_backward(z, loc, scale, log_weight, *made)
        return made[1].logsumexp(-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, loc, scale, log_weight, difference, scores = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            difference, scores = _with_differences(z, loc, scale, log_weight)
        found: list[Tensor | None] = [None] * 4
        share, wide = scores.softmax(-1) * grad.unsqueeze(-1), scale.double()
        pull, mass = share.unsqueeze(-1) * difference / wide, share.sum(0)
        if ctx.needs_input_grad[0]:
            found[0] = -pull.sum(1).to(z.dtype)
        if ctx.needs_input_grad[1]:
            found[1] = pull.sum(0).to(loc.dtype)
        if ctx.needs_input_grad[2]:
            widen = (pull * difference).sum(0) - mass.unsqueeze(-1) / wide
            found[2] = widen.to(scale.dtype)
        if ctx.needs_input_grad[3]:
            found[3] = mass.to(log_weight.dtype)
        return tuple(found)


def _with_differences(
    z: Tensor, loc: Tensor, scale: Tensor, log_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """(z − μ)/σ, shape ``(B, N, D)``, and component log densities, ``(B, N)``, in float64."""
    wide = scale.double()  # the rest is promoted by what it meets
    difference = (z.double().unsqueeze(1) - loc) / wide
    constant = constants(wide, log_weight)
    return difference, torch.add(constant, squared_length(difference), alpha=-0.5)


class _LargeLogDensity(torch.autograd.Function):
    """Log density with the score of the same pass as its gradient in z; differentiable once.

    Parameters are given where they take part in the derivatives; the score is a second result.
    """

    @staticmethod
    def forward(
        z: Tensor,
        loc: Tensor | None,
        scale: Tensor | None,
        log_weight: Tensor | None,
        held: Callable[[], DiagonalNormals],
    ) -> tuple[Tensor, Tensor]:
        if loc is None or scale is None or log_weight is None:
            evaluation = evaluate(held(), z)
        else:
            evaluation = evaluate(DiagonalNormals(loc, scale, log_weight), z)
        return evaluation.log_prob, evaluation.score.to(z.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs[:4], *output)
        ctx.save_for_forward(*inputs[:4], *output)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], z: Tensor, *others: Any
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        """The points of all that is mapped over are one set of points more."""
        if any(place is not None for place in in_dims[1:]) or in_dims[0] is None:
            raise InputError(
                "expected torch.vmap over points; got one over the parameters of mixtures. Map "
                f"over up to {DENSE_PAIRS} pairs of point and component in each, or take the "
                "mixtures one by one."
            )
        z = z.movedim(in_dims[0], 0)
        log_prob, score = _LargeLogDensity.apply(z.flatten(0, 1), *others)  # type: ignore[no-untyped-call]
        return (log_prob.view(z.shape[:2]), score.view(z.shape)), (0, 0)

    @staticmethod
    def jvp(ctx: Any, z: Tensor | None, *tangents: Tensor | None) -> tuple[Tensor | None, None]:
        *inputs, log_prob, score = ctx.saved_tensors
        slope = torch.zeros_like(log_prob)
        if z is not None:
            slope = slope + (score * z).sum(-1)
        if any(tangent is not None for tangent in tangents[:3]):
            slope = slope + _parameter_slopes(inputs[0], inputs[1:], tangents[:3], log_prob)
        given = [tensor for tensor in inputs if tensor is not None]
        return once([slope], f"up to {DENSE_PAIRS} pairs of point and component", given)[0], None

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        *inputs, log_prob, score = ctx.saved_tensors
        found: list[Tensor | None] = [None] * 4
        with torch.no_grad():
            if ctx.needs_input_grad[0]:
                found[0] = (grad.unsqueeze(-1) * score).to(score.dtype)
            if any(ctx.needs_input_grad[1:4]):
                found[1:] = _ParameterGradients.apply(*inputs, log_prob, grad)  # type: ignore[no-untyped-call]
        linked = [grad, *(tensor for tensor in inputs if tensor is not None)]
        return *once(found, f"up to {DENSE_PAIRS} pairs of point and component", linked), None


class _ParameterGradients(torch.autograd.Function):
    """`parameter_gradients`, one set after the other inside of ``torch.vmap``; for `once`."""

    @staticmethod
    def forward(*tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, loc, scale, log_weight, log_prob, grad = tensors
        return parameter_gradients(z, (loc, scale, log_weight), log_prob, grad)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, int, int]]:
        each = [
            _ParameterGradients.apply(  # type: ignore[no-untyped-call]
                *(t if d is None else t.select(d, i) for t, d in zip(tensors, in_dims, strict=True))
            )
            for i in range(info.batch_size)
        ]
        return tuple(torch.stack(column) for column in zip(*each, strict=True)), (0, 0, 0)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[None, None, None]:
        return None, None, None


def _parameter_slopes(
    z: Tensor, parameters: Parameters, tangents: Sequence[Tensor | None], log_prob: Tensor
) -> Tensor:
    """Derivatives of log Σ_n w_n N(z_b; μ_n, σ_n²) as the parameters move along tangents, ``(B,)``.

    From differences, a block of components and some points at a time.
    """
    parts = []
    for first in range(0, len(z), max(1, DENSE_TRIPLES // (BLOCK * z.shape[1]))):
        part = slice(first, first + max(1, DENSE_TRIPLES // (BLOCK * z.shape[1])))
        slope, total = torch.zeros_like(log_prob[part]), torch.zeros_like(log_prob[part])
        for start in range(0, len(parameters[0]), BLOCK):
            rows = slice(start, start + BLOCK)
            block = [parameter[rows] for parameter in parameters]
            of_loc, of_scale, of_weight = (t if t is None else t[rows] for t in tangents)
            difference, scores = _with_differences(z[part], *block)
            share = (scores - log_prob[part].unsqueeze(-1)).exp()
            move, scale = torch.zeros_like(scores), block[1].double()
            if of_loc is not None:
                move = move + (difference * (of_loc / scale)).sum(-1)
            if of_scale is not None:
                move = move + ((difference.square() - 1) * (of_scale / scale)).sum(-1)
            if of_weight is not None:
                move = move + of_weight
            slope, total = slope + (share * move).sum(-1), total + share.sum(-1)
        parts.append(slope / total)
    return torch.cat(parts)


def parameter_gradients(
    z: Tensor, parameters: Parameters, log_prob: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Σ_b g_b ∂ log Σ_n w_n N(z_b; μ_n, σ_n²) with respect to μ, σ and log w, block by block.

    .. math:: ∂_{μ_n} = \sum_b g_b r_{bn} \frac{z_b - μ_n}{σ_n^2}, \quad
              ∂_{σ_n} = \sum_b g_b r_{bn} \frac{(z_b - μ_n)^2 - σ_n^2}{σ_n^3}, \quad
              ∂_{\log w_n} = \sum_b g_b r_{bn}

    The responsibilities are float64; the sums over b are moments of z about a block's mean or,
    where these cancel, of (z − μ)/σ over the pairs with a responsibility above zero.

    Args:
        z: shape ``(B, D)``.
        parameters: location, scale and log weights.
        log_prob: log densities at z, float64, shape ``(B,)``.
        grad: g, shape ``(B,)``.
    """
    found = tuple(torch.zeros_like(parameter) for parameter in parameters)
    excess = _excess(z, parameters, log_prob)
    for rows, block in _blocks(z, parameters):
        sums = _Sums(block, z)
        for part, above in _above(block, z, log_prob):
            share = (above - excess[part].unsqueeze(-1)).exp()
            sums.add(part, share * grad[part].double().unsqueeze(-1))
        for total, value in zip(found, sums.gradients(), strict=True):
            kept = slice(None) if block.index is None else block.index
            total[rows][kept] = value.to(total.dtype)
    return found[0], found[1], found[2]


def _blocks(z: Tensor, parameters: Parameters) -> Iterator[tuple[slice, DiagonalNormals]]:
    """A number of components at a time, those without weight left out."""
    for start in range(0, len(z) and len(parameters[0]), BLOCK):
        rows = slice(start, start + BLOCK)
        block = DiagonalNormals(*(parameter[rows] for parameter in parameters), ordered=False)
        if block.size:
            yield rows, block


def _above(block: DiagonalNormals, z: Tensor, level: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Component log densities above a level for each point, some points at a time."""
    for first in range(0, len(z), block.points):
        part = slice(first, first + block.points)
        yield part, block.scores(z[part], slice(None)) - level[part].unsqueeze(-1)


def _excess(z: Tensor, parameters: Parameters, log_prob: Tensor) -> Tensor:
    """log Σ_n exp(score − log q): above 0 only by the rounding of very low log densities."""
    if not bool((log_prob.abs() > LOW).any()):
        return torch.zeros_like(log_prob)
    total = torch.full_like(log_prob, -math.inf)
    for _, block in _blocks(z, parameters):
        parts = [above.logsumexp(-1) for _, above in _above(block, z, log_prob)]
        total = total.logaddexp(torch.cat(parts))
    return total


class _Sums:
    """Σ_b of weights, of weights times (z_b − μ_n)/σ_n and of weights times its square.

    Args:
        block: the components n.
        z: the points b, shape ``(B, D)``.
    """

    def __init__(self, block: DiagonalNormals, z: Tensor) -> None:
        self.block, self.z = block, z.double()
        self.query = queries(self.z - block.centre)
        magnitude = float(self.query.abs().amax(0) @ block.largest_of_all)
        error = magnitude * roundoff(block.features, torch.float64)
        self.cancels = not error <= TOLERANCE[torch.float64]
        self.moments = torch.zeros_like(block.all_keys())

    def add(self, part: slice, weight: Tensor) -> None:
        """Add some points, weights of shape ``(b, N)``."""
        if not self.cancels:
            self.moments += weight.mT @ self.query[part]
            return
        self.moments[:, -1] += weight.sum(0)
        points, (loc, scale, _) = self.z[part], self.block.exact(slice(None))
        for pairs in weight.nonzero().split(max(1, BLOCK * BLOCK // self.block.dim)):
            b, n = pairs.unbind(-1)
            difference = (points[b] - loc[n]) / scale[n]
            both = torch.cat([difference.square(), difference], -1)
            self.moments[:, :-1].index_add_(0, n, both * weight[b, n].unsqueeze(-1))

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """With respect to μ, σ and log w."""
        dim = self.block.dim
        second, first, mass = self.moments.split([dim, dim, 1], -1)
        scale = self.block.scale.double()
        if not self.cancels:
            mean = self.block.loc.double() - self.block.centre
            second = (second - 2 * mean * first + mass * mean.square()) / scale.square()
            first = (first - mass * mean) / scale
        return first / scale, (second - mass) / scale, mass.squeeze(-1)
