r"""Sums of Bhattacharyya affinities between diagonal normals, over the pairs that can matter.

.. math:: d(i, j) = \sum_d \frac{(μ_i - μ_j)^2}{4 (σ_i^2 + σ_j^2)}
          + \frac12 \log \frac{σ_i^2 + σ_j^2}{2 σ_i σ_j}

is no scalar product of what i and j know. But the logarithms are at least 0, and with the largest
variance S in a group of neighbours, (μ_i − μ_j)² / 4(σ_i² + S) is one, of (1, μ_j, μ_j²): a product
of matrices in float32, less its rounding, tells which pairs are too far apart to matter.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrovae.mixture.kernel.attention import shares
from pyrovae.mixture.kernel.diagonal_normals import SORTED_GROUPS, DiagonalNormals
from pyrovae.mixture.kernel.group_sums import Sum
from pyrovae.mixture.kernel.scalar_product import roundoff

#: Part of a row's sum that pairs may make up which are not evaluated; it is added instead.
NEGLECTED = 1e-9
#: (component, component, unit) triples that are held at once: they fit the cache.
TRIPLES = 1 << 19
#: Rows that are taken at once: by all pairs, and by the search.
FEW_ROWS, ROWS = 256, 1024
#: Rows and groups that tell whether the search pays: if no more than this part of pairs is left.
PROBE_ROWS, PROBE_GROUPS, SPARSE = 64, 8, 0.15


def log_affinities(normals: DiagonalNormals, index: Tensor) -> Tensor:
    """log Σ_j w_j exp −d(i, j) for some components i, or more by up to `NEGLECTED`.

    Args:
        normals: the components j.
        index: the components i, shape ``(R,)``.

    Returns:
        float64, shape ``(R,)``.
    """
    with torch.autocast(index.device.type, enabled=False):
        search = len(index) > 0 and normals.groups >= SORTED_GROUPS and _pays(normals, index)
        method, rows = (_of_near, ROWS) if search else (_of_all, FEW_ROWS)
        return torch.cat([method(normals, part) for part in index.split(rows)])


def _pays(normals: DiagonalNormals, index: Tensor) -> bool:
    """Whether few pairs are left in some groups, spread over all, for some of the rows."""
    index = index[:: -(-len(index) // PROBE_ROWS)]
    groups = range(0, normals.groups, -(-normals.groups // PROBE_GROUPS))
    kept = [float(_near(normals, index, group).double().mean()) for group in groups]
    return sum(kept) <= SPARSE * len(kept)


def _of_near(normals: DiagonalNormals, index: Tensor) -> Tensor:
    """The sums over near pairs, and what all others add up to at most."""
    total = Sum(len(index), normals.dim, moments=False, device=index.device)
    for group in range(normals.groups):
        row, member = _near(normals, index, group).nonzero(as_tuple=True)
        pairs = torch.stack([row, member + group * normals.group])
        for i, j in pairs.split(max(1, TRIPLES // normals.dim), 1):
            total.add(i, _scores(normals, index[i], j))
    neglected = normals.log_weight[index].double() + math.log(NEGLECTED)
    return total.result()[0].logaddexp(neglected)


def _of_all(normals: DiagonalNormals, index: Tensor) -> Tensor:
    total = torch.full((len(index),), -math.inf, dtype=torch.float64, device=index.device)
    every = torch.arange(normals.size, device=index.device)
    for others in every.split(max(1, TRIPLES // (FEW_ROWS * normals.dim))):
        total = total.logaddexp(shares(_scores(normals, index.unsqueeze(-1), others))[0])
    return total


def _scores(normals: DiagonalNormals, i: Tensor, j: Tensor) -> Tensor:
    """log w_j − d(i, j) in float64, shape of the indices broadcast against each other."""
    one, other = (normals.scale[n].double().square() for n in (i, j))
    both = (one + other) / 2
    square = ((normals.loc[i].double() - normals.loc[j]).square() / both).sum(-1)
    own = (one.log().sum(-1) + other.log().sum(-1)) / 4
    return normals.log_weight[j] - square / 8 - both.log().sum(-1) / 2 + own


def _near(normals: DiagonalNormals, index: Tensor, group: int) -> Tensor:
    """Which members j of a group may have w_j exp −d(i, j) > w_i · `NEGLECTED` / N, ``(R, M)``."""
    rows = slice(group * normals.group, (group + 1) * normals.group)
    exact = torch.get_float32_matmul_precision() == "highest"
    dtype = torch.float32 if exact else torch.float64
    centre = normals.loc[rows].mean(0)
    mean, others = ((normals.loc[n] - centre).to(dtype) for n in (index, rows))
    widest = normals.scale[rows].square().amax(0)
    factor = (0.25 / (normals.scale[index].square() + widest)).to(dtype)
    query = torch.cat([factor, -2 * factor * mean], -1)
    key = torch.cat([others.square(), others], -1)
    own = (factor * mean.square()).sum(-1)
    # eight more roundings than in a product alone, and half of what may be neglected for the rest
    error = (query.abs() @ key.abs().amax(0) + own) * roundoff(query.shape[-1] + 8, dtype)
    limit = math.log(2 * normals.size / NEGLECTED) - normals.log_weight[index] - own + error
    return ~(query @ key.mT - normals.log_weight[rows] > limit.unsqueeze(-1))
