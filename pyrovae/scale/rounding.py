r"""Diagonal normals in fewer bits than they were computed in, and how much that changes them.

What the rounding of means and scales costs a row is a divergence between two normals,

.. math:: KL(q_n ‖ \hat q_n) = \sum_d \log \frac{\hat σ_d}{σ_d}
          + \frac{σ_d^2 + (μ_d - \hat μ_d)^2}{2 \hat σ_d^2} - \frac12

and as divergences are convex, that of two mixtures with the same weights is at most the weighted
mean of those of their rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.errors import InputError
from pyrovae.mixture import families

#: Nats that rounding may change a row by: a tenth of the least difference that advice counts.
MOST = 0.01
#: Of its standard deviations, how far an encoding may move between two runs of one guide.
SAME = 1e-3


def round_normals(
    loc: Tensor, scale: Tensor, dtype: torch.dtype, *, first: int
) -> tuple[Tensor, Tensor]:
    """Means and scales in a dtype, on the CPU, each ``(B, D)``.

    Args:
        loc, scale: what to round.
        dtype: what to round it to.
        first: number of the first row, for the message.

    Raises:
        InputError: if a number becomes infinite, a scale 0, or a row another normal: one of a
            divergence above `MOST`.
    """
    loc, scale = loc.detach().cpu(), scale.detach().cpu()
    rounded = loc.to(dtype), scale.to(dtype)
    infinite = ~(rounded[0].isfinite() & rounded[1].isfinite())
    changed = torch.zeros(len(loc), dtype=torch.float64)
    if torch.finfo(dtype).eps > torch.finfo(loc.dtype).eps:
        changed = divergences((loc, scale), rounded)
    for what, wrong in (
        ("an infinite number", infinite.any(1)),
        ("a scale of 0", (rounded[1] == 0).any(1)),
        ("another normal", ~(changed <= MOST)),
    ):
        if not bool(wrong.any()):
            continue
        row = int(wrong.nonzero()[0])
        if what == "another normal":
            what = f"another normal, {changed[row]:.2g} nats from it where {MOST} is the most,"
        wider = torch.float32 if dtype == torch.float16 else torch.float64
        raise InputError(
            f"expected encodings that {str(dtype).removeprefix('torch.')} can hold; got {what} "
            f"once row {first + row} of the data (counted from 0) is rounded to it. Use "
            f"dtype={wider}, into another folder."
        )
    return rounded


def divergences(normals: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """KL from each row of some diagonal normals to that of others, float64, shape ``(B,)``.

    Args:
        normals, others: means and scales, each ``(B, D)``.
    """
    (loc, scale), (other_loc, other_scale) = ([t.double() for t in ts] for ts in (normals, others))
    ratio = scale / other_scale
    shift = (loc - other_loc) / other_scale
    return (0.5 * (ratio.square() + shift.square() - 1) - ratio.log()).sum(1)


def same_normals(normals: Sequence[Tensor], others: Sequence[Tensor], stored: torch.dtype) -> bool:
    """Whether diagonal normals, all finite, are the same but for another run and for rounding.

    Args:
        normals, others: means and scales, each ``(B, D)``; shapes may differ.
        stored: a dtype that the others have been rounded to; they may have been to single ones.
    """
    if any(a.shape != b.shape for a, b in zip(normals, others, strict=True)):
        return False
    coarser = max(map(torch.finfo, (stored, torch.float32)), key=lambda found: found.eps)
    limit = SAME * normals[1].double()
    for one, other in zip(normals, others, strict=True):
        rounding = coarser.eps * (one.double().abs() + coarser.tiny)
        close = (one.double() - other.double()).abs() <= limit + rounding
        if not bool((close & rounding.isfinite() & limit.isfinite()).all()):
            return False
    return True


class RoundedNormal(dist.Normal):
    """Normals whose parameters lie in half precision, and are single ones wherever they are read.

    Rows that are taken, moved or put together become a Normal in single precision.

    Args:
        loc, scale: of a shape ``(N, D)``, or both of ``(N,)``, float16.
    """

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        self.rounded = loc, scale
        torch.distributions.Distribution.__init__(self, loc.shape, validate_args=False)

    @property
    def loc(self) -> Tensor:
        """All means, in single precision."""
        return self.rounded[0].float()

    @property
    def scale(self) -> Tensor:
        """All scales, in single precision."""
        return self.rounded[1].float()

    @property
    def like(self) -> Tensor:
        """Of the dtype that its rows are read in."""
        return self.rounded[0].new_empty(0, dtype=torch.float32)

    def rebuild(self, parts: Sequence[Any], edit: families.Edit) -> dist.Normal:
        """A Normal of edited rows; see `pyrovae.mixture.families.Editable`."""
        loc, scale = (
            edit(list(tensors)) for tensors in zip(*(p.rounded for p in parts), strict=True)
        )
        return dist.Normal(*(_at_least_single(t) for t in (loc, scale)), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> dist.Normal:
        """The same normals in another batch shape, in single precision."""
        return dist.Normal(self.loc, self.scale, validate_args=False).expand(batch_shape)


def _at_least_single(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def diagonal_normals(loc: Tensor, scale: Tensor) -> dist.Distribution:
    """Normals of independent units, of the family that their dtype needs.

    Args:
        loc, scale: shape ``(N, D)``, or ``(N,)`` for numbers.
    """
    if loc.dtype == torch.float16:
        base: dist.Distribution = RoundedNormal(loc, scale)
    else:
        base = dist.Normal(loc, scale, validate_args=False)
    return base.to_event(loc.dim() - 1)
