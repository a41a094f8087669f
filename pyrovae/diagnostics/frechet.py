"""The Fréchet distance between two samples, taken for normal."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrovae.estimates import Estimate


def frechet_distance(first: Tensor, second: Tensor) -> Estimate:
    r"""The squared 2-Wasserstein distance between normals with the moments of two samples.

    .. math:: \|m_1 - m_2\|^2 + \mathrm{tr}\,(S_1 + S_2)
              - 2\,\mathrm{tr}\,(S_1^{1/2} S_2 S_1^{1/2})^{1/2}

    It is convex in the means and covariances, for which the sample has unbiased estimates: so it is
    too high on average (Jensen), by an amount that falls as one over the number of rows and grows
    with the number of features. Only distances between samples of the same sizes compare.

    The standard error is that of the first order (Rippl et al. 2016): by the optimal map between
    the two normals, row i of the first sample moves the distance by φ(x_i)/n with

    .. math:: φ(x) = 2 (m_1 - m_2)^T (x - m_1) + (x - m_1)^T (1 - A) (x - m_1), \quad
              A = S_1^{-1/2} (S_1^{1/2} S_2 S_1^{1/2})^{1/2} S_1^{-1/2}

    It is about this mean of the estimate: the bias is not in it.

    Args:
        first, second: independent rows of features, shapes ``(n, F)`` and ``(m, F)``, n, m ≥ 2.

    Returns:
        in squared units of the features, as an upper bound.

    Dowson & Landau 1982, "The Fréchet distance between multivariate normal distributions"; Heusel
    et al. 2017, arXiv:1706.08500; Chong & Forsyth 2020, arXiv:1911.07023, on the bias.

    >>> first, second = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [3.0]])
    >>> round(frechet_distance(first, second).value, 9)
    1.0
    """
    first, second = first.double(), second.double()
    shift = first.mean(0) - second.mean(0)
    sides = [rows - rows.mean(0) for rows in (first, second)]
    factors = [torch.linalg.qr(rows / math.sqrt(len(rows) - 1)) for rows in sides]
    # With X the first and Y the second rows over √(n−1): S_1 = XᵀX, the trace of the root is the
    # sum of the singular values of XYᵀ = U s Vᵀ, and X A Xᵀ = U s Uᵀ: no inverse is needed.
    u, root, v = torch.linalg.svd(factors[0].R @ factors[1].R.mT, full_matrices=False)
    distance, variance = shift.square().sum() - 2 * root.sum(), 0.0
    for rows, factor, turned, sign in zip(sides, factors, (u, v.mT), (1, -1), strict=True):
        spread = rows.square().sum(1)
        moved = (len(rows) - 1) * (factor.Q @ turned).square() @ root
        distance += spread.sum() / (len(rows) - 1)
        variance += float((2 * sign * rows @ shift + spread - moved).var()) / len(rows)
    return Estimate(
        float(distance), math.sqrt(variance), min(len(first), len(second)), "data", "upper"
    )
