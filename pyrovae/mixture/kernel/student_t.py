"""Log densities of vectors of independent Student-t units, one logarithm for several units."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.mixture.families import convert
from pyrovae.mixture.kernel import torch_transforms
from pyrovae.mixture.kernel.any_family import Components

#: Factors 1 + u²/ν of which one logarithm is taken.
FACTORS = 8
#: Components and points in one block, which stays in a core's cache.
BLOCK, POINTS = 1024, 64


class StudentTs(Components):
    r"""Weighted components of independent Student-t units.

    .. math:: \log w_n q_n(z) = c_n - \sum_d \frac{ν_{nd} + 1}{2} \log \Big(1 + \frac{1}{ν_{nd}}
              \Big(\frac{z_d - μ_{nd}}{σ_{nd}}\Big)^2\Big)

    Where the units of a component share their degrees of freedom, one logarithm is taken of the
    product over `FACTORS` of them, in float64. Where that overflows, and where derivatives are
    needed, components are evaluated as those of any family.

    Args:
        components: batch shape ``(N,)``, event shape ``(D,)``, of which
            `pyrovae.mixture.families.student_t` knows the parameters.
        log_weight: normalised log weights, shape ``(N,)``; −inf leaves the component out.
    """

    def __init__(self, components: dist.Distribution, log_weight: Tensor) -> None:
        super().__init__(convert(components, Tensor.detach), log_weight.detach())
        base = self.components.base_dist
        degrees, loc, scale = (t.double().mT.contiguous() for t in (base.df, base.loc, base.scale))
        self.loc, self.inverse = loc, (scale * degrees.sqrt()).reciprocal()
        self.power = (degrees + 1) / 2
        norm = self.power.lgamma() - (degrees / 2).lgamma() - 0.5 * (degrees * math.pi).log()
        self.constant = self.log_weight.double() + (norm - scale.log()).sum(0)
        self.factors = FACTORS if bool((degrees == degrees[:1]).all()) else 1
        self.block, self.points = min(self.size, BLOCK), POINTS

    @property
    def tensors(self) -> list[Tensor]:
        """None: there are no gradients in the parameters."""
        return []

    def scores(self, z: Tensor, rows: slice, replacements: Sequence[Tensor] = ()) -> Tensor:
        """log w_n + log q_n(z) for some components, shape ``(B, n)``, in float64."""
        if not len(z) or torch_transforms.active() or torch_transforms.need_derivatives(z):
            return super().scores(z, rows, replacements)
        scores = self.constant[rows].expand(len(z), -1).clone()
        square, product = torch.empty_like(scores), torch.empty_like(scores)
        parameters = (self.loc[:, rows], self.inverse[:, rows])
        units = list(zip(z.double().mT.unsqueeze(-1), *parameters, strict=True))
        for start in range(0, len(units), self.factors):
            product.fill_(1.0)
            for unit, loc, inverse in units[start : start + self.factors]:
                torch.sub(unit, loc, out=square).mul_(inverse).square_()
                product.addcmul_(product, square)
            scores.addcmul_(product.log_(), self.power[start, rows], value=-1)
        if not math.isfinite(scores.sum().item()):
            return super().scores(z, rows, replacements)
        return scores
