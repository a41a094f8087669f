"""The Gaussian of full covariance with the highest ELBO for each of many densities at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrovae.evidence.target import Target

STEPS = 300  # of Adam
DRAWS = 8  # in each step, half of them mirrored
RATE = 0.03  # at the first step, in units of the widths it starts from; falls to 0 along a cosine
MEMORY = (0.9, 0.99)  # of Adam's two averages


@torch.no_grad()
def climb_elbo(target: Target, mean: Tensor, factor: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    r"""Climb E_q[log f(u) − log q(u)] over q = N(m, A Aᵀ) from where it is, by its own draws.

    The gradient is that of Roeder et al. 2017, "Sticking the landing", which has no noise left
    where q is exact.

    Args:
        target: the densities.
        mean: m, shape ``(n, D)``.
        factor: A, shape ``(n, D, D)``.
        row: numbers of the rows, shape ``(n,)``.

    Returns:
        m and A of the best found; a step that is not a number is not made.
    """
    n, d = mean.shape
    identity = torch.eye(d, dtype=mean.dtype, device=mean.device)
    # in coordinates v in which the first q is standard: v ~ N(shift, C Cᵀ), C lower triangular
    free = [torch.zeros_like(mean), torch.zeros_like(factor)]
    averages = [[torch.zeros_like(part) for part in free] for _ in MEMORY]
    for step in range(STEPS):
        shift, lower = free[0], _triangle(free[1])
        half = torch.randn(DRAWS // 2, n, d, dtype=mean.dtype, device=mean.device)
        noise = torch.cat([half, -half])
        v = shift + torch.einsum("nde,sne->snd", lower, noise)
        u = mean + torch.einsum("nde,sne->snd", factor, v)
        _, slope = target.slope(u.flatten(0, 1), row.repeat(DRAWS))
        slope = torch.einsum("nde,snd->sne", factor, slope.view(DRAWS, n, d))
        inverse = torch.linalg.solve_triangular(lower, identity.expand(n, d, d), upper=False)
        slope = slope + torch.einsum("nde,snd->sne", inverse, noise)
        outer = torch.einsum("snd,sne->nde", slope, noise).tril() / DRAWS
        diagonal = outer.diagonal(dim1=-2, dim2=-1) * lower.diagonal(dim1=-2, dim2=-1)
        gradients = [slope.mean(0), outer.tril(-1) + torch.diag_embed(diagonal)]
        rate = RATE * (1 + math.cos(math.pi * step / STEPS)) / 2
        for index, gradient in enumerate(gradients):
            for average, memory, power in zip(averages, MEMORY, (1, 2), strict=True):
                average[index] = memory * average[index] + (1 - memory) * gradient**power
            first, second = (
                average[index] / (1 - memory ** (step + 1))
                for average, memory in zip(averages, MEMORY, strict=True)
            )
            change = rate * first / (second.sqrt() + 1e-8)
            free[index] = free[index] + torch.where(change.isfinite(), change, 0.0)
    moved = mean + torch.einsum("nde,ne->nd", factor, free[0])
    return moved, factor @ _triangle(free[1])


def _triangle(free: Tensor) -> Tensor:
    """A lower triangle with a positive diagonal, the exponential of what is there."""
    return free.tril(-1) + torch.diag_embed(free.diagonal(dim1=-2, dim2=-1).exp())
