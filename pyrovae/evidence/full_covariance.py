"""The Gaussian of full covariance with the highest ELBO for each of many densities at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrovae.evidence.target import Target

STEPS = 150  # of Adam; twice as many make weights no more even
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
        m and A of the last step; a slope that is not a number counts as none.
    """
    n, d = mean.shape
    identity = torch.eye(d, dtype=mean.dtype, device=mean.device)
    # in coordinates v in which the first q is standard: v ~ N(shift, C Cᵀ), C lower triangular
    shift, free = torch.zeros_like(mean), torch.zeros_like(factor)
    optimizer = torch.optim.Adam([shift, free], betas=MEMORY)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * step / STEPS)) / 2
        lower = _triangle(free)
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
        # Adam goes down, and a slope that is not a number must not reach its averages.
        shift.grad = -slope.mean(0).nan_to_num(0.0, 0.0, 0.0)
        free.grad = -(outer.tril(-1) + torch.diag_embed(diagonal)).nan_to_num(0.0, 0.0, 0.0)
        optimizer.step()
    moved = mean + torch.einsum("nde,ne->nd", factor, shift)
    return moved, factor @ _triangle(free)


def _triangle(free: Tensor) -> Tensor:
    """A lower triangle with a positive diagonal, the exponential of what is there."""
    return free.tril(-1) + torch.diag_embed(free.diagonal(dim1=-2, dim2=-1).exp())
