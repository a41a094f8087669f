"""Draws from a mixture of diagonal normals as differentiable functions of its parameters.

The component that a draw comes from can only jump, but the draw itself can move smoothly: it is the
point whose distribution functions, unit by unit given the units before, are fixed uniform numbers,

.. math:: F_d(z_d | z_{<d}) = \\sum_n ω_n(z_{<d}) Φ\\Big(\\frac{z_d - μ_{nd}}{σ_{nd}}\\Big), \\qquad
          ω_n(z_{<d}) ∝ w_n \\prod_{e < d} N(z_e; μ_{ne}, σ_{ne}^2)

and moves with the parameters φ by dz = −(∂F/∂z)⁻¹ ∂F/∂φ dφ, where ∂F/∂z is triangular.

Graves 2016, "Stochastic backpropagation through mixture density distributions"; Figurnov et al.
2018, "Implicit reparameterization gradients".
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

#: (draw, component, unit) triples held in memory at once.
TRIPLES = 1 << 22


def reparametrised(z: Tensor, loc: Tensor, scale: Tensor, log_weight: Tensor) -> Tensor:
    """The draws, differentiable in the parameters any number of times.

    The time of a gradient is in proportion to B · N · D, its memory to the larger of `TRIPLES` and
    N · D.

    Args:
        z: draws from the mixture, shape ``(B, D)``; their values stay the same.
        loc: shape ``(N, D)``.
        scale: shape ``(N, D)``.
        log_weight: normalised log weights, shape ``(N,)``; −inf leaves the component out.
    """
    result: Tensor = _Draws.apply(z, loc, scale, log_weight)  # type: ignore[no-untyped-call]
    return result


class _Draws(torch.autograd.Function):
    """Returns the draws; its output is saved, so that second derivatives pass through it."""

    @staticmethod
    def forward(z: Tensor, loc: Tensor, scale: Tensor, log_weight: Tensor) -> Tensor:
        return z.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(output, *inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, *parameters = ctx.saved_tensors
        loc, scale, log_weight = (parameter.double() for parameter in parameters)
        weightless = (log_weight == -math.inf).unsqueeze(-1)  # these may hold anything
        loc, scale = loc.masked_fill(weightless, 0.0), scale.masked_fill(weightless, 1.0)
        sums = [torch.zeros_like(parameter) for parameter in (loc, scale, log_weight)]
        step = max(1, TRIPLES // max(1, loc.numel()))
        for points, slope in zip(z.double().split(step), grad.double().split(step), strict=True):
            part = _gradients(points, loc, scale, log_weight, slope)
            sums = [total + addend for total, addend in zip(sums, part, strict=True)]
        return None, *(s.to(p.dtype) for s, p in zip(sums, parameters, strict=True))


def _gradients(
    z: Tensor, loc: Tensor, scale: Tensor, log_weight: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Gradients of Σ_bd g_bd z_bd in μ, σ and log w, from the last unit to the first.

    With λ_n the derivative of the sum in log w_n through the units after d, and r_n the
    responsibilities given the units up to d,

    .. math:: c = g_d + \sum_n λ_n \frac{u_n}{σ_n}, \quad
              ∂_{μ_{nd}} = c\, r_n - λ_n \frac{u_n}{σ_n}, \quad
              ∂_{σ_{nd}} = c\, r_n u_n - λ_n \frac{u_n^2 - 1}{σ_n}, \quad
              λ_n ← λ_n + c\, ω_n \frac{Φ(u_n) - F_d}{∂F_d/∂z_d}, \quad u_n = \frac{z_d - μ_n}{σ_n}

    and at the end ∂_{log w_n} = −λ_n, all summed over the draws.
    """
    normalised = [(z[:, d, None] - loc[:, d]) / scale[:, d] for d in range(z.shape[1])]
    joint = [log_weight.expand(len(z), -1)]  # log w_n + log N(z_≤d; …), d = 0, 1, …
    for u, width in zip(normalised, scale.unbind(1), strict=True):
        joint.append(joint[-1] - 0.5 * u.square() - width.log() - 0.5 * math.log(2 * math.pi))
    pull = torch.zeros_like(joint[0])
    slopes: list[tuple[Tensor, Tensor]] = []
    for d in reversed(range(z.shape[1])):
        u, width, before, after = normalised[d], scale[:, d], joint[d], joint[d + 1]
        push = pull * u / width
        moved = grad[:, d, None] + push.sum(1, keepdim=True)
        share = moved * after.softmax(1)
        slopes.append(((share - push).sum(0), (share * u - push * u + pull / width).sum(0)))
        rate = (before - after.logsumexp(1, keepdim=True)).exp()  # ω_n over ∂F_d/∂z_d
        pull = pull + moved * rate * _excess(u, before.softmax(1))
    of_loc, of_scale = (torch.stack(part[::-1], 1) for part in zip(*slopes, strict=True))
    return of_loc, of_scale, -pull.sum(0)


def _excess(u: Tensor, share: Tensor) -> Tensor:
    """Φ(u_n) − Σ_m ω_m Φ(u_m), from the smaller tail, which is rounded less."""
    below, above = (0.5 * torch.special.erfc(tail / math.sqrt(2)) for tail in (-u, u))
    mean_below, mean_above = ((share * tail).sum(1, keepdim=True) for tail in (below, above))
    return torch.where(mean_below <= 0.5, below - mean_below, mean_above - above)
