r"""Sums of Bhattacharyya affinities between diagonal normals, over the pairs that can matter.

.. math:: d(i, j) = \sum_d \frac{(μ_i - μ_j)^2}{4 (σ_i^2 + σ_j^2)}
          + \frac12 \log \frac{σ_i^2 + σ_j^2}{2 σ_i σ_j}

is not a scalar product of a vector for i and one for j. But the logarithms are at least 0, and with
S the largest variance in a group of neighbours j, (μ_i − μ_j)² / 4(σ_i² + S) is one: j enters as
(1, μ_j, μ_j²). So a matrix product in float32, less its rounding error, tells which pairs are too
far apart to matter.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrovae.mixture.kernel.attention import shares
from pyrovae.mixture.kernel.diagonal_normals import SORTED_GROUPS, DiagonalNormals
from pyrovae.mixture.kernel.error_bound import roundoff
from pyrovae.mixture.kernel.group_sums import Sum

#: Largest part of a row's sum that may go unevaluated; this bound is added in its place.
NEGLECTED = 1e-9
#: (component, component, unit) triples in memory at once: they fit the processor's cache.
TRIPLES = 1 << 19
#: Rows taken at once, over all pairs and in the search.
FEW_ROWS, ROWS = 256, 1024
#: Rows and groups that are probed; the search pays if it leaves at most this part of their pairs.
PROBE_ROWS, PROBE_GROUPS, SPARSE = 64, 8, 0.15


def log_affinities(normals: DiagonalNormals, index: Tensor) -> Tensor:
    """log Σ_j w_j exp −d(i, j) for some components i, too large by at most `NEGLECTED`.

    Args:
        normals: the components j.
        index: the components i, shape ``(R,)``.

    Returns:
        float64, shape ``(R,)``.
    """
    with torch.autocast(index.device.type, enabled=False):
        search = len(index) > 0 and normals.groups >= SORTED_GROUPS and _search_pays(normals, index)
        method, rows = (_sum_near, ROWS) if search else (_sum_all, FEW_ROWS)
        return torch.cat([method(normals, part) for part in index.split(rows)])


def _search_pays(normals: DiagonalNormals, index: Tensor) -> bool:
    """Whether the search leaves few pairs, by a probe of evenly spaced rows and groups."""
    index = index[:: -(-len(index) // PROBE_ROWS)]
    groups = range(0, normals.groups, -(-normals.groups // PROBE_GROUPS))
    near_shares = [float(_near(normals, index, group).double().mean()) for group in groups]
    return sum(near_shares) <= SPARSE * len(near_shares)


def _sum_near(normals: DiagonalNormals, index: Tensor) -> Tensor:
    """The sums over near pairs, plus an upper bound on the sum over all others."""
    total = Sum(len(index), normals.dim, moments=False, device=index.device)
    for group in range(normals.groups):
        row, member = _near(normals, index, group).nonzero(as_tuple=True)
        pairs = torch.stack([row, member + group * normals.group])
        for i, j in pairs.split(max(1, TRIPLES // normals.dim), 1):
            total.add(i, _scores(normals, index[i], j))
    neglected = normals.log_weight[index].double() + math.log(NEGLECTED)
    return total.result()[0].logaddexp(neglected)


def _sum_all(normals: DiagonalNormals, index: Tensor) -> Tensor:
    """The sums over all pairs."""
    total = torch.full((len(index),), -math.inf, dtype=torch.float64, device=index.device)
    components = torch.arange(normals.size, device=index.device)
    for part in components.split(max(1, TRIPLES // (FEW_ROWS * normals.dim))):
        total = total.logaddexp(shares(_scores(normals, index.unsqueeze(-1), part))[0])
    return total


def _scores(normals: DiagonalNormals, i: Tensor, j: Tensor) -> Tensor:
    """log w_j − d(i, j) in float64, in the broadcast shape of the indices."""
    variance_i, variance_j = (normals.scale[n].double().square() for n in (i, j))
    mean_variance = (variance_i + variance_j) / 2
    square = ((normals.loc[i].double() - normals.loc[j]).square() / mean_variance).sum(-1)
    own = (variance_i.log().sum(-1) + variance_j.log().sum(-1)) / 4
    return normals.log_weight[j] - square / 8 - mean_variance.log().sum(-1) / 2 + own


def _near(normals: DiagonalNormals, index: Tensor, group: int) -> Tensor:
    """Which members j of a group may have w_j exp −d(i, j) > w_i · `NEGLECTED` / N, ``(R, M)``."""
    rows = slice(group * normals.group, (group + 1) * normals.group)
    exact = torch.get_float32_matmul_precision() == "highest"
    dtype = torch.float32 if exact else torch.float64
    centre = normals.loc[rows].mean(0)
    mean, members = ((normals.loc[n] - centre).to(dtype) for n in (index, rows))
    widest = normals.scale[rows].square().amax(0)
    factor = (0.25 / (normals.scale[index].square() + widest)).to(dtype)
    query = torch.cat([factor, -2 * factor * mean], -1)
    key = torch.cat([members.square(), members], -1)
    own_term = (factor * mean.square()).sum(-1)
    # eight roundings more than in the product alone; half of what may be neglected is for the rest
    error = (query.abs() @ key.abs().amax(0) + own_term) * roundoff(query.shape[-1] + 8, dtype)
    limit = math.log(2 * normals.size / NEGLECTED) - normals.log_weight[index] - own_term + error
    return ~(query @ key.mT - normals.log_weight[rows] > limit.unsqueeze(-1))
