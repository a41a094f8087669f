"""Log densities of normals with full covariances, by matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from pyrovae.mixture.families import convert, take
from pyrovae.mixture.kernel import torch_transforms
from pyrovae.mixture.kernel.any_family import BLOCK_BYTES, Components
from pyrovae.mixture.kernel.error_bound import roundoff
from pyrovae.mixture.kernel.scalar_product import full_keys, full_queries

#: Numbers that one chunk of work may hold.
CHUNK = 1 << 22
#: Largest rounding error of a score, in nats.
TOLERANCE = 1e-6


class FullNormals(Components):
    r"""Weighted ``MultivariateNormal`` components whose scores are one matrix product.

    .. math:: \log w_n N(z; μ_n, Σ_n) = ⟨((z_a z_b)_{a ≥ b}, z, 1), (Q_n, P_n μ_n, c_n)⟩,
              \qquad P_n = Σ_n^{-1}, \quad Q_n = (-P_{ab}, \; -P_{aa}/2)

    The product has D(D + 3)/2 + 1 terms, in float64 and with points relative to the mixture's mean,
    and is five to nine times as fast as triangular solves. Where the terms are so large that their
    rounding might exceed 1e-6 nats, triangular solves are used instead. Differentiable in z.

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
        self.features = dim * (dim + 3) // 2 + 1
        self.block = min(self.size, max(1, CHUNK // self.features))
        self.points = max(1, CHUNK // max(self.block, self.features))

    @property
    def tensors(self) -> list[Tensor]:
        """None: there are no gradients in the parameters."""
        return []

    def scores(self, z: Tensor, rows: slice, replacements: Sequence[Tensor] = ()) -> Tensor:
        """log w_n + log q_n(z) for some components, shape ``(B, n)``, in float64."""
        key, shifted = self.keys(rows), z.double() - self.centre
        query = full_queries(shifted)
        scores = query @ key.mT
        error = query.detach().abs() @ key.abs().amax(0) * roundoff(self.features, torch.float64)
        cancels = ~(error <= TOLERANCE)
        if not torch_transforms.any_true(cancels):
            return scores
        if torch_transforms.active():  # rows can't be picked out there
            return self.solve(z, rows)
        loose = cancels.nonzero().squeeze(-1)
        return scores.index_copy(0, loose, self.solve(z[loose], rows))

    def solve(self, z: Tensor, rows: slice) -> Tensor:
        """`scores` by triangular solves, which do not cancel."""
        components = Components(
            convert(take(self.components, rows), Tensor.double), self.log_weight[rows].double()
        )
        all_rows = slice(0, components.size)
        pairs = max(1, BLOCK_BYTES // (8 * 8 * len(self.centre)))
        parts = z.double().split(max(1, pairs // components.size))
        return torch.cat([components.scores(part, all_rows) for part in parts])

    def keys(self, rows: slice) -> Tensor:
        """The components' side of the product, shape ``(n, D(D + 3)/2 + 1)``."""
        return self._all_keys[rows] if self.size <= self.block else self._keys(rows)

    @cached_property
    def _all_keys(self) -> Tensor:
        return self._keys(slice(0, self.size))

    def _keys(self, rows: slice) -> Tensor:
        loc = self.components.loc[rows].double() - self.centre
        factor = self.components.scale_tril[rows].double()
        return full_keys(loc, factor, self.log_weight[rows].double())
