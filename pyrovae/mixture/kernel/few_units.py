r"""Log densities in few units: points in tiles, each with the components that can matter there.

In one or two units a score costs less than its exponential, and a component reaches a small part
of the space. So points are put into tiles of neighbours. With the distances f_n and g_n of a
component from the farthest and the nearest point of a tile's box, in its own scales, the density
everywhere in the tile is at least :math:`L = \sum_n e^{c_n - f_n^2/2}`, and the component adds at
most :math:`e^{c_n - g_n^2/2}`. Those for which that is below `NEGLIGIBLE` · L / N are left out: the
log density moves by at most `NEGLIGIBLE`. The scores of the others are summed in float32.

Differences of float32 numbers do not cancel. So with c_n ≤ 0, the constants less their largest, a
score s_n is off by at most (D + 8) u |s_n|, with u the unit roundoff. That moves the log density
by at most (D + 8) u (log N − log q), as :math:`\sum_n r_n |s_n| = H(r) - \log q` for
responsibilities r and q relative to the largest constant. Where that is more than `ROUNDING`, far
from all components, nothing is claimed. A run of `RUN` exponentials and its sum add (`RUN` + 4) u.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrovae.mixture.kernel.diagonal_normals import DiagonalNormals
from pyrovae.mixture.kernel.ordering import tile_order

#: Units up to which, and points, and pairs of point and component from which on this is faster than
#: the search and a try that fails costs little.
UNITS, POINTS, PAIRS = 2, 2048, 4_000_000
#: What the components that are left out may add up to, relative to the density.
NEGLIGIBLE = 1e-6
#: Largest error of a log density by the rounding of scores, in nats.
ROUNDING = 3.5e-5
#: Points and tiles that are tried first, to see whether this pays for the others.
PROBE, PROBE_TILES = 16, 4
#: It does not if more than this part of the components reach a tile, or fewer points are near them.
SPREAD, NEAR = 0.7, 0.9
#: Exponentials that are summed in float32.
RUN = 128
#: Scores below this are raised to it: exponentials that underflow take ten times as long.
LOWEST = -87.0
#: Scores in memory at once for each thread: they fit its cache.
SCORES = 1 << 16


def applies(normals: DiagonalNormals, z: Tensor) -> bool:
    """Whether `log_prob` can take these components and points, and may be the faster way."""
    dtype = torch.promote_types(torch.promote_types(z.dtype, normals.loc.dtype), torch.float32)
    return (
        0 < normals.dim <= UNITS
        and len(z) >= POINTS
        and len(z) * normals.size >= PAIRS
        and z.device.type == "cpu"
        and dtype == torch.float32
        and bool(normals.centre.isfinite().all())
        and bool(normals.single_columns[1].isfinite().all())
    )


def log_prob(normals: DiagonalNormals, z: Tensor) -> tuple[Tensor, Tensor]:
    """log Σ_n w_n N(z; μ_n, σ_n²) where float32 is precise enough.

    Args:
        normals: the components.
        z: points, shape ``(B, D)``.

    Returns:
        log densities in float64, and which of them are within the bound, shape ``(B,)``: none if a
        try at a few shows that this would not pay.
    """
    mass = z.new_zeros(len(z), dtype=torch.float64)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        sums = _Sums(normals)
        points = z.detach().float()
        size = _tile_size(normals.size, len(z))
        order = tile_order(points, size)
        points = points[order]
        if sums.pay(points, size):
            parts = [sums.of(tile, sums.reaching(tile)) for tile in points.split(size)]
            mass[order] = torch.cat(parts)
        log_mass = mass.log()
        return log_mass + normals.largest_constant, log_mass >= sums.floor


def _floor(normals: DiagonalNormals) -> float:
    """The log density, less the largest constant, from which on the bound is below `ROUNDING`."""
    # next to e^floor, all e^LOWEST together, those of the padding too, are below 1e-9
    return math.log(normals.size + RUN) - ROUNDING / ((normals.dim + 8) * 2**-24)


def _tile_size(components: int, points: int) -> int:
    """Points in a tile: more of them if they lie closer together or components are few."""
    size = max(math.sqrt(points) / 2, (1 << 18) / components)
    return int(min(512, max(32, 1 << round(math.log2(size)))))


class _Sums:
    """Densities relative to the largest constant, a tile at a time, in memory that all share."""

    def __init__(self, normals: DiagonalNormals) -> None:
        self.loc, self.inverse, self.constant = normals.single_columns
        self.distance, self.reach = torch.empty_like(self.loc), torch.empty_like(self.loc)
        self.bound = torch.empty_like(self.constant)
        self.cut = math.log(NEGLIGIBLE / normals.size)
        self.floor = _floor(normals)
        self.memory = self.loc.new_empty(2, SCORES * torch.get_num_threads())

    def reaching(self, tile: Tensor) -> Tensor:
        """The components that may matter for those of the points ``(T, D)`` above the floor."""
        low, high = tile.aminmax(dim=0)
        centre = low + (high - low) / 2
        # wider than the box by more than the rounding of differences from its centre
        half = (torch.maximum(high - centre, centre - low) * (1 + 2**-20)).unsqueeze(-1)
        torch.sub(self.loc, centre.unsqueeze(-1), out=self.distance).abs_()
        torch.sub(self.distance, half, out=self.reach).clamp_min_(0.0).mul_(self.inverse)
        self.distance.add_(half).mul_(self.inverse)
        lower = _less_squares(self.constant, self.distance, self.bound).clamp_min_(LOWEST).exp_()
        least = max(self.floor, float(lower.sum(dtype=torch.float64).log()))
        bound = _less_squares(self.constant, self.reach, self.bound)
        return (bound >= least + self.cut).nonzero().squeeze(-1)

    def pay(self, points: Tensor, size: int) -> bool:
        """Whether most of some points are above the floor and few components reach some tiles."""
        step = max(1, len(points) // PROBE)
        some = points[step // 2 :: step]
        every = torch.arange(len(self.constant), device=some.device)
        near = self.of(some, every).log() >= self.floor
        if float(near.double().mean()) < NEAR:
            return False
        tiles = points.split(size)
        spaced = tiles[:: max(8, len(tiles) // PROBE_TILES)]
        reached = sum(len(self.reaching(tile)) for tile in spaced)
        return reached <= SPREAD * len(spaced) * len(self.constant)

    def of(self, tile: Tensor, index: Tensor) -> Tensor:
        """Σ_n e^score over some components, float64, shape ``(T,)``."""
        padding = -len(index) % RUN
        index = torch.cat([index, index[:1].expand(padding)])
        loc, inverse = self.loc.index_select(1, index), self.inverse.index_select(1, index)
        constant = self.constant[index]
        constant[len(index) - padding :] = LOWEST
        total = tile.new_zeros(len(tile), dtype=torch.float64)
        columns = tile.mT.unsqueeze(-1)
        step = max(1, self.memory.shape[1] // (len(tile) * RUN)) * RUN
        for start in range(0, len(index), step):
            rows = slice(start, start + step)
            shape = (len(tile), len(constant[rows]))
            difference, scores = (m[: shape[0] * shape[1]].view(shape) for m in self.memory)
            base = constant[rows]
            for z, mean, factor in zip(columns, loc[:, rows], inverse[:, rows], strict=True):
                torch.sub(z, mean, out=difference).mul_(factor)
                base = torch.addcmul(base, difference, difference, value=-1.0, out=scores)
            runs = scores.clamp_min_(LOWEST).exp_().view(len(tile), -1, RUN)
            total += runs.sum(-1).sum(-1, dtype=torch.float64)
        return total


def _less_squares(constant: Tensor, distance: Tensor, out: Tensor) -> Tensor:
    """c_n − Σ_d x_dn², shape ``(N,)``."""
    for row in distance:
        constant = torch.addcmul(constant, row, row, value=-1.0, out=out)
    return constant
