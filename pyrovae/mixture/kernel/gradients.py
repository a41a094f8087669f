"""The log density of diagonal normals as a differentiable function of points and parameters.

Small problems are one dense product in float64, differentiable any number of times. Large ones go
through `search.py`: the gradient in z is the score from the same pass, that in the parameters is
summed block by block, and B × N numbers are never stored.
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
from pyrovae.mixture.kernel.cache import leave_inference_mode
from pyrovae.mixture.kernel.diagonal_normals import BLOCK, TOLERANCE, DiagonalNormals
from pyrovae.mixture.kernel.error_bound import roundoff
from pyrovae.mixture.kernel.first_order import forbid_second
from pyrovae.mixture.kernel.parts import NormalsInParts
from pyrovae.mixture.kernel.scalar_product import (
    constants,
    differences,
    keys,
    queries,
    squared_length,
)
from pyrovae.mixture.kernel.search import evaluate, log_prob

Parameters = Sequence[Tensor]

#: Up to this many (point, component) pairs are one dense evaluation.
DENSE_PAIRS = 1 << 20
#: It is from differences for up to this many (point, component, unit) triples,
FEW_TRIPLES = 1 << 15
#: or, where the expanded form cancels, for up to this many.
DENSE_TRIPLES = 1 << 22
#: Up to this many pairs, a score is the gradient of a dense evaluation; beyond, a search.
DENSE_SCORES = 1 << 16
#: Log densities below −LOW are so low that their rounding would affect the responsibilities.
LOW = 1e6
#: Up to this many scores are summed by ``torch.logsumexp``, which underflow would slow down.
FEW_SCORES = 1 << 13


def log_density(
    z: Tensor,
    evaluator: Callable[[], DiagonalNormals | NormalsInParts],
    parameters: Parameters | None = None,
) -> Tensor:
    r"""log Σ_n w_n N(z; μ_n, σ_n²), differentiable in z and in the parameters.

    Args:
        z: points, shape ``(B, D)``.
        evaluator: returns the evaluator of the components, which the caller may cache.
        parameters: location ``(N, D)``, scale ``(N, D)`` and normalised log weights ``(N,)``, if
            they need gradients, or if building an evaluator would not pay for so few points.

    Returns:
        log densities, shape ``(B,)``, in the wider dtype of points and components, at least
        float32. Beyond the error of float64 brute force they are off by at most `TOLERANCE` and
        the rounding of the result.
    """
    components = evaluator() if parameters is None else parameters
    parameter = components[0] if isinstance(components, Sequence) else components.loc
    dtype = torch.promote_types(torch.promote_types(z.dtype, parameter.dtype), torch.float32)
    inputs = (z, *(parameters or ()))
    transformed = torch_transforms.transformed(*inputs)
    differentiable = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    result: Tensor
    if z.shape[0] * parameter.shape[0] <= DENSE_PAIRS:
        few_triples = z.shape[0] * parameter.numel() <= FEW_TRIPLES
        if parameters and differentiable and few_triples and not transformed:
            result = _FewLogDensity.apply(z, *parameters)  # type: ignore[no-untyped-call]
            return result.to(dtype)
        scores = _dense_scores(z, components, parameter.numel(), TOLERANCE[dtype])
        if scores is not None:
            return _log_sum(scores).to(dtype)
    if not (differentiable or transformed):
        return log_prob(evaluator(), z).to(dtype)
    parameters_move = parameters is not None and torch_transforms.need_derivatives(*parameters)
    differentiated = parameters if parameters and parameters_move else (None, None, None)
    result, _ = _LargeLogDensity.apply(z, *differentiated, evaluator)  # type: ignore[no-untyped-call]
    return result.to(dtype)


def score(z: Tensor, normals: DiagonalNormals | NormalsInParts) -> Tensor:
    """∇_z log Σ_n w_n N(z; μ_n, σ_n²), shape ``(B, D)``; without gradient."""
    if z.shape[0] * normals.size > min(DENSE_SCORES, DENSE_PAIRS):
        return evaluate(normals, z).score.to(z.dtype)
    with torch.enable_grad():
        points = leave_inference_mode(z.detach()).requires_grad_()
        return torch.autograd.grad(log_density(points, lambda: normals).sum(), points)[0]


def _dense_scores(
    z: Tensor,
    components: DiagonalNormals | NormalsInParts | Parameters,
    numbers: int,
    tolerance: float,
) -> Tensor | None:
    """All scores in float64, shape ``(B, N)``; None if that would take too many differences."""
    if isinstance(components, NormalsInParts):
        if numbers > DENSE_TRIPLES:
            return None
        components = components.parameters(z.device)
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
    # relative to the largest: the rounding of a sum like −1e10, 1e-6, would reach the shares
    largest = scores.detach().amax(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).min)
    return (scores - largest).logsumexp(-1) + largest.squeeze(-1)


class _FewLogDensity(torch.autograd.Function):
    """Log density from differences, with explicit gradients: half as many calls as by autograd.

    Not for ``torch.func``, which needs another form of function, half as slow again.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, loc: Tensor, scale: Tensor, log_weight: Tensor) -> Tensor:
        terms = _with_differences(z, loc, scale, log_weight)
        ctx.save_for_backward(z, loc, scale, log_weight, *terms)
        return terms[1].logsumexp(-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, loc, scale, log_weight, difference, scores = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient may be differentiated
            difference, scores = _with_differences(z, loc, scale, log_weight)
        gradients: list[Tensor | None] = [None] * 4
        share, wide = scores.softmax(-1) * grad.unsqueeze(-1), scale.double()
        pull, mass = share.unsqueeze(-1) * difference / wide, share.sum(0)
        if ctx.needs_input_grad[0]:
            gradients[0] = -pull.sum(1).to(z.dtype)
        if ctx.needs_input_grad[1]:
            gradients[1] = pull.sum(0).to(loc.dtype)
        if ctx.needs_input_grad[2]:
            widen = (pull * difference).sum(0) - mass.unsqueeze(-1) / wide
            gradients[2] = widen.to(scale.dtype)
        if ctx.needs_input_grad[3]:
            gradients[3] = mass.to(log_weight.dtype)
        return tuple(gradients)


def _with_differences(
    z: Tensor, loc: Tensor, scale: Tensor, log_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """(z − μ)/σ, shape ``(B, N, D)``, and component log densities, ``(B, N)``, in float64."""
    wide = scale.double()  # the other terms are promoted with it
    difference = (z.double().unsqueeze(1) - loc) / wide
    constant = constants(wide, log_weight)
    return difference, torch.add(constant, squared_length(difference), alpha=-0.5)


class _LargeLogDensity(torch.autograd.Function):
    """Log density with the score of the same pass as its gradient in z; differentiable once.

    Parameters are None unless derivatives in them are needed; the score is a second result.
    """

    @staticmethod
    def forward(
        z: Tensor,
        loc: Tensor | None,
        scale: Tensor | None,
        log_weight: Tensor | None,
        evaluator: Callable[[], DiagonalNormals | NormalsInParts],
    ) -> tuple[Tensor, Tensor]:
        if loc is None or scale is None or log_weight is None:
            evaluation = evaluate(evaluator(), z)
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
        info: Any, in_dims: tuple[int | None, ...], z: Tensor, *rest: Any
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        """Evaluate the points of all mapped calls as one set of points."""
        if any(place is not None for place in in_dims[1:]) or in_dims[0] is None:
            raise InputError(
                "expected torch.vmap over points; got one over the parameters of mixtures. Use "
                f"at most {DENSE_PAIRS} pairs of point and component in each, or evaluate the "
                "mixtures one by one."
            )
        z = z.movedim(in_dims[0], 0)
        log_prob, score = _LargeLogDensity.apply(z.flatten(0, 1), *rest)  # type: ignore[no-untyped-call]
        return (log_prob.view(z.shape[:2]), score.view(z.shape)), (0, 0)

    @staticmethod
    def jvp(ctx: Any, z: Tensor | None, *tangents: Tensor | None) -> tuple[Tensor | None, None]:
        *inputs, log_prob, score = ctx.saved_tensors
        slope = torch.zeros_like(log_prob)
        if z is not None:
            slope = slope + (score * z).sum(-1)
        if any(tangent is not None for tangent in tangents[:3]):
            slope = slope + _parameter_slopes(inputs[0], inputs[1:], tangents[:3], log_prob)
        tensors = [tensor for tensor in inputs if tensor is not None]
        return forbid_second([slope], f"up to {DENSE_PAIRS} pairs of point and component", tensors)[
            0
        ], None

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        *inputs, log_prob, score = ctx.saved_tensors
        gradients: list[Tensor | None] = [None] * 4
        with torch.no_grad():
            if ctx.needs_input_grad[0]:
                gradients[0] = (grad.unsqueeze(-1) * score).to(score.dtype)
            if any(ctx.needs_input_grad[1:4]):
                gradients[1:] = _ParameterGradients.apply(*inputs, log_prob, grad)  # type: ignore[no-untyped-call]
        linked = [grad, *(tensor for tensor in inputs if tensor is not None)]
        return *forbid_second(
            gradients, f"up to {DENSE_PAIRS} pairs of point and component", linked
        ), None


class _ParameterGradients(torch.autograd.Function):
    """`parameter_gradients`, one set at a time inside ``torch.vmap``; without derivatives."""

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
        results = [
            _ParameterGradients.apply(  # type: ignore[no-untyped-call]
                *(t if d is None else t.select(d, i) for t, d in zip(tensors, in_dims, strict=True))
            )
            for i in range(info.batch_size)
        ]
        return tuple(torch.stack(column) for column in zip(*results, strict=True)), (0, 0, 0)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[None, None, None]:
        return None, None, None


def _parameter_slopes(
    z: Tensor, parameters: Parameters, tangents: Sequence[Tensor | None], log_prob: Tensor
) -> Tensor:
    """Derivatives of log Σ_n w_n N(z_b; μ_n, σ_n²) along tangents of the parameters, ``(B,)``.

    Computed from differences, a block of components and some points at a time.
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

    The responsibilities are in float64. The sums over b are moments of z about a block's mean or,
    where these cancel, of (z − μ)/σ over the pairs with a responsibility above zero.

    Args:
        z: shape ``(B, D)``.
        parameters: location, scale and log weights.
        log_prob: log densities at z, float64, shape ``(B,)``.
        grad: g, shape ``(B,)``.
    """
    totals = tuple(torch.zeros_like(parameter) for parameter in parameters)
    excess = _excess(z, parameters, log_prob)
    for rows, block in _blocks(z, parameters):
        sums = _Sums(block, z)
        for part, above in _scores_above(block, z, log_prob):
            share = (above - excess[part].unsqueeze(-1)).exp()
            sums.add(part, share * grad[part].double().unsqueeze(-1))
        for total, value in zip(totals, sums.gradients(), strict=True):
            weighted = slice(None) if block.index is None else block.index
            total[rows][weighted] = value.to(total.dtype)
    return totals[0], totals[1], totals[2]


def _blocks(z: Tensor, parameters: Parameters) -> Iterator[tuple[slice, DiagonalNormals]]:
    """The components in blocks, without those of weight zero."""
    for start in range(0, len(z) and len(parameters[0]), BLOCK):
        rows = slice(start, start + BLOCK)
        block = DiagonalNormals(*(parameter[rows] for parameter in parameters), ordered=False)
        if block.size:
            yield rows, block


def _scores_above(
    block: DiagonalNormals, z: Tensor, level: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """Component log densities minus a level for each point, some points at a time."""
    for first in range(0, len(z), block.points):
        part = slice(first, first + block.points)
        yield part, block.scores(z[part], slice(None)) - level[part].unsqueeze(-1)


def _excess(z: Tensor, parameters: Parameters, log_prob: Tensor) -> Tensor:
    """log Σ_n exp(score − log q): differs from 0 only by the rounding of very low log densities."""
    if not bool((log_prob.abs() > LOW).any()):
        return torch.zeros_like(log_prob)
    total = torch.full_like(log_prob, -math.inf)
    for _, block in _blocks(z, parameters):
        parts = [above.logsumexp(-1) for _, above in _scores_above(block, z, log_prob)]
        total = total.logaddexp(torch.cat(parts))
    return total


class _Sums:
    """Σ_b of weights, of weights times (z_b − μ_n)/σ_n, and of weights times its square.

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
        """Add some points with weights of shape ``(b, N)``."""
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
        """The gradients in μ, σ and log w."""
        dim = self.block.dim
        second, first, mass = self.moments.split([dim, dim, 1], -1)
        scale = self.block.scale.double()
        if not self.cancels:
            mean = self.block.loc.double() - self.block.centre
            second = (second - 2 * mean * first + mass * mean.square()) / scale.square()
            first = (first - mass * mean) / scale
        return first / scale, (second - mass) / scale, mass.squeeze(-1)
