r"""The scores of diagonal normals as scalar products.

The log density of every component is a scalar product of a *query*, which depends on the point
only, and a *key*, which depends on the component only:

.. math:: \log w_n N(z; μ_n, σ_n^2) = ⟨(z^2, z, 1), (-p_n/2, p_n μ_n, c_n)⟩, \qquad p_n = σ_n^{-2}

so log Σ_n is the log-sum-exp of an attention layer and the softmax mean of the keys gives the
score. The price of this *expanded* form is cancellation, which ``error_bound.py`` bounds;
`differences` has none.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: A last dimension shorter than this is summed by a product.
SHORT = 8


def keys(loc: Tensor, scale: Tensor, constant: Tensor) -> Tensor:
    """The keys (−p/2, pμ, c) of diagonal normals, differentiable.

    Args:
        loc: means relative to the centre of the expansion, shape ``(N, D)``.
        scale: standard deviations, shape ``(N, D)``.
        constant: log densities at the means, from `constants`, shape ``(N,)``.

    Returns:
        keys, shape ``(N, 2D + 1)``.
    """
    precision = scale.pow(-2)
    scaled = precision * loc
    at_centre = constant - 0.5 * (scaled * loc).sum(-1)
    return torch.cat([-0.5 * precision, scaled, at_centre.unsqueeze(-1)], -1)


def queries(z: Tensor, variance: Tensor | None = None) -> Tensor:
    """The queries (z² + v, z, 1), with which a score is the expected log density under N(z, v)."""
    square = z * z if variance is None else z * z + variance
    return torch.cat([square, z, torch.ones_like(z[:, :1])], -1)


def full_queries(z: Tensor) -> Tensor:
    """The queries of `full_keys`, (z_a z_b for a ≥ b, z, 1), shape ``(B, D(D + 3)/2 + 1)``."""
    row, column = torch.tril_indices(z.shape[-1], z.shape[-1], device=z.device)
    return torch.cat([z[:, row] * z[:, column], z, torch.ones_like(z[:, :1])], -1)


def constants(scale: Tensor, log_weight: Tensor) -> Tensor:
    """log w_n − Σ_d log σ_nd − D/2 log 2π: log densities at the means, shape ``(N,)``."""
    return log_weight - scale.log().sum(-1) - 0.5 * math.log(2 * math.pi) * scale.shape[-1]


def full_keys(loc: Tensor, factor: Tensor, log_weight: Tensor) -> Tensor:
    """The keys of normals with full covariances, for `full_queries`.

    Args:
        loc: means relative to the centre of the expansion, shape ``(N, D)``.
        factor: lower Cholesky factors of the covariances, shape ``(N, D, D)``.
        log_weight: shape ``(N,)``.

    Returns:
        keys, shape ``(N, D(D + 3)/2 + 1)``.
    """
    dim = loc.shape[-1]
    row, column = torch.tril_indices(dim, dim, device=loc.device)
    precision = torch.cholesky_inverse(factor)
    linear = (precision @ loc.unsqueeze(-1)).squeeze(-1)
    constant = constants(factor.diagonal(dim1=-2, dim2=-1), log_weight)
    constant = constant - 0.5 * (linear * loc).sum(-1)
    square = precision[:, row, column] * torch.where(row == column, -0.5, -1.0)
    return torch.cat([square, linear, constant.unsqueeze(-1)], -1)


def differences(
    z: Tensor, loc: Tensor, scale: Tensor, constant: Tensor, variance: Tensor | None = None
) -> Tensor:
    """Component log densities from (z − μ)/σ, without cancellation, differentiable.

    Args:
        z: points, shape ``(B, D)``.
        loc, scale: shape ``(N, D)``.
        constant: from `constants`, shape ``(N,)``.
        variance: v as in `queries`, which makes the scores expectations, shape ``(B, D)``.

    Returns:
        shape ``(B, N)``.
    """
    if loc.mT.is_contiguous():  # as in `exact_all`: sums over a short last dimension are slow
        difference = z.mT.unsqueeze(-1) - loc.mT.unsqueeze(1)
        square = (difference / scale.mT.unsqueeze(1)).square().sum(0)
    else:
        square = squared_length((z.unsqueeze(1) - loc) / scale)
    if variance is not None:
        square = square + variance @ scale.pow(-2).mT
    return torch.add(constant, square, alpha=-0.5)


def squared_length(vectors: Tensor) -> Tensor:
    """Σ_d v_d² over the last dimension; by a product if it is short, where a sum would be slow."""
    square = vectors.square()
    if square.shape[-1] < SHORT:
        return square @ square.new_ones(square.shape[-1])
    return square.sum(-1)
