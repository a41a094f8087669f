"""Normals with full covariances, evaluated as products of matrices."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from pyrovae.mixture.families import convert, take
from pyrovae.mixture.kernel import torch_transforms
from pyrovae.mixture.kernel.any_family import BLOCK_BYTES, Components
from pyrovae.mixture.kernel.scalar_product import constants, roundoff

#: Numbers that one chunk of the work may hold.
CHUNK = 1 << 22
#: Largest error, in nats, that rounding may put into a score.
TOLERANCE = 1e-6


class FullNormals(Components):
    r"""Weighted ``MultivariateNormal`` components whose scores are one matrix product.

    .. math:: \log w_n N(z; μ_n, Σ_n) = ⟨((z_a z_b)_{a ≥ b}, z, 1), (Q_n, P_n μ_n, c_n)⟩,
              \qquad P_n = Σ_n^{-1}, \quad Q_n = (-P_{ab}, \; -P_{aa}/2)

    It has D(D + 3)/2 + 1 terms, taken in float64 with points relative to the mixture's mean, and is
    five to nine times as fast as triangular solves. Where the terms are so large that their
    rounding might exceed 1e-6 nats, the solves are taken instead. Differentiable in z.

    Args:
        components: batch shape ``(N,)``, event shape ``(D,)``.
        log_weight: normalised log weights, shape ``(N,)``; −inf leaves the component out.
    """

    def __init__(
        self, components: torch.distributions.MultivariateNormal, log_weight: Tensor
    ) -> None:
        super().__init__(convert(components, Tensor.detach), log_weight.detach())
        loc: Tensor = self.components.loc
        self.centre = self.log_weight.double().exp() @ loc.double()
        dim = len(self.centre)
        self.row, self.column = torch.tril_indices(dim, dim, device=loc.device)
        self.features = len(self.row) + dim + 1
        self.block = min(self.size, max(1, CHUNK // self.features))
        self.points = max(1, CHUNK // max(self.block, self.features))

    @property
    def tensors(self) -> list[Tensor]:
        """Nothing that gradients could be asked for."""
        return []

    def scores(self, z: Tensor, rows: slice, given: Sequence[Tensor] = ()) -> Tensor:
        """log w_n + log q_n(z) for some components, shape ``(B, n)``, in float64."""
        key, shifted = self.keys(rows), z.double() - self.centre
        square = shifted[:, self.row] * shifted[:, self.column]
        query = torch.cat([square, shifted, torch.ones_like(shifted[:, :1])], -1)
        found = query @ key.mT
        error = query.detach().abs() @ key.abs().amax(0) * roundoff(self.features, torch.float64)
        cancels = ~(error <= TOLERANCE)
        if not torch_transforms.some(cancels):
            return found
        if torch_transforms.active():  # where rows can't be picked out
            return self.solved(z, rows)
        loose = cancels.nonzero().squeeze(-1)
        return found.index_copy(0, loose, self.solved(z[loose], rows))

    def solved(self, z: Tensor, rows: slice) -> Tensor:
        """`scores` by triangular solves, which do not cancel."""
        precise = Components(
            convert(take(self.components, rows), Tensor.double), self.log_weight[rows].double()
        )
        every = slice(0, precise.size)
        pairs = max(1, BLOCK_BYTES // (8 * 8 * len(self.centre)))
        parts = z.double().split(max(1, pairs // precise.size))
        return torch.cat([precise.scores(part, every) for part in parts])

    def keys(self, rows: slice) -> Tensor:
        """What the components contribute to the product, shape ``(n, D(D + 3)/2 + 1)``."""
        return self._every[rows] if self.size <= self.block else self._keys(rows)

    @cached_property
    def _every(self) -> Tensor:
        return self._keys(slice(0, self.size))

    def _keys(self, rows: slice) -> Tensor:
        loc = self.components.loc[rows].double() - self.centre
        factor = self.components.scale_tril[rows].double()
        precision = torch.cholesky_inverse(factor)
        linear = (precision @ loc.unsqueeze(-1)).squeeze(-1)
        constant = constants(factor.diagonal(dim1=-2, dim2=-1), self.log_weight[rows].double())
        constant = constant - 0.5 * (linear * loc).sum(-1)
        square = precision[:, self.row, self.column]
        square = square * torch.where(self.row == self.column, -0.5, -1.0)
        return torch.cat([square, linear, constant.unsqueeze(-1)], -1)
