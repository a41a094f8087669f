"""For each row the few components of a large mixture that explain it: a prior to tune by."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyrovae.evidence.normal_components import NormalComponents
from pyrovae.mixture.kernel import constants, full_keys, full_queries, keys, queries


@dataclass(frozen=True)
class LocalMixture:
    r"""A part of a mixture of normals for each row, for a small part of what the mixture costs.

    .. math:: \log p_b(z) = \log \sum_{n \in S_b} w_n N(z; μ_n, Σ_n) \le \log p(z)

    A proposal may be tuned by any density, of which this one is near p where row b has its
    posterior. Weights that count are those of the whole mixture.

    Args:
        centre: what points are relative to, shape ``(B, D)``.
        keys: of K components a row, shape ``(B, K, F)``; see ``pyrovae.mixture.kernel``.
        full: whether the components have full covariances.
    """

    centre: Tensor
    keys: Tensor
    full: bool

    def subset(self, chosen: Tensor) -> LocalMixture:
        """The same at some of the rows."""
        return replace(self, centre=self.centre[chosen], keys=self.keys[chosen])

    def log_prob(self, z: Tensor, row: Tensor) -> Tensor:
        """log p of points, ``(n, D)``, each under the part of the row with its number; ``(n,)``."""
        query = (full_queries if self.full else queries)(z.double() - self.centre[row])
        present, inverse, count = row.unique(return_inverse=True, return_counts=True)
        key = self.keys if len(present) == len(self.keys) else self.keys[present]
        # points are put side by side by row, so that all scores are one batch of products
        order = inverse.argsort(stable=True)
        first = count.cumsum(0) - count
        place = torch.empty_like(order)
        place[order] = torch.arange(len(row), device=row.device) - first[inverse[order]]
        width = int(count.max()) if len(row) else 0
        slot = inverse * width + place
        padded = query.new_zeros(len(key) * width, query.shape[1]).index_copy(0, slot, query)
        scores = padded.view(len(key), width, -1) @ key.mT
        log_prob: Tensor = scores.logsumexp(-1).flatten()[slot]
        return log_prob


def local_mixture(components: NormalComponents, centre: Tensor, number: Tensor) -> LocalMixture:
    """The mixture of some components for each row.

    Args:
        components: of the whole mixture.
        centre: a point near each row's posterior, shape ``(B, D)``.
        number: of the components, shape ``(B, K)``; what comes a second time in a row is left out.
    """
    b, k = number.shape
    ordered, order = number.sort(stable=True, dim=1)
    repeated = torch.zeros_like(number, dtype=torch.bool)
    repeated.scatter_(1, order[:, 1:], ordered[:, 1:] == ordered[:, :-1])
    every, lowest = number.flatten(), torch.finfo(torch.float64).min
    log_weight = components.log_weight[every].masked_fill(repeated.flatten(), lowest)
    log_weight = log_weight.clamp_min(lowest)
    loc = components.mean[every].double() - centre.repeat_interleave(k, 0)
    if components.factor is not None:
        key = full_keys(loc, components.factor[every].double(), log_weight)
    else:
        scale = components.variance[every].double().sqrt()
        key = keys(loc, scale, constants(scale, log_weight))
    return LocalMixture(centre, key.view(b, k, -1), components.factor is not None)
