"""EM rounds on the components of a mixture, for `reduce`: new ones of full covariances."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.mixture.em_rounds import LOOSE, NEGLIGIBLE, DiagonalRounds, Normals, is_narrow
from pyrovae.mixture.families import CORRELATED_NORMALS
from pyrovae.mixture.kernel.attention import shares
from pyrovae.mixture.kernel.error_bound import roundoff
from pyrovae.mixture.kernel.scalar_product import constants, full_keys
from pyrovae.mixture.mixture import Mixture

#: Components whose second moments are in memory at once; few enough to stay in the cache.
ROWS = 2048
#: Numbers in the products of a round from which on pairs with a share are told from others, ...
LARGE = 1 << 27
#: ... which is a share above this, ...
NEAR = 1e-8
#: ... and the share of all pairs, for each feature, up to which rounds over these alone pay.
SPARSE = 3e-5


@dataclass(frozen=True)
class Pairs:
    """Pairs of old and new component, by new one.

    Args:
        rows: numbers of the old components of each new one.
        row: the same as one tensor.
    """

    rows: tuple[Tensor, ...]
    row: Tensor

    def shares(self, scores: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Log-sum-exps of the scores of each old component, and the pairs' shares."""
        largest = scores.new_full((size,), -math.inf).scatter_reduce(0, self.row, scores, "amax")
        share = (scores - largest[self.row]).exp()
        mass = scores.new_zeros(size).index_add(0, self.row, share)
        return largest + mass.log(), share / mass[self.row]


class FullRounds(DiagonalRounds):
    """EM rounds with full covariances, in the mixture's dtype: data are (E[z zᵀ], E[z], 1)."""

    #: What has a share in the last complete round, if that is few of all.
    pairs: Pairs | None = None

    def __init__(self, mixture: Mixture, shrinkage: float) -> None:
        super().__init__(mixture, shrinkage)
        if self.dtype == torch.float64:
            self.lowest_dtype = torch.float64

    def scale_of(self, scale: Tensor) -> Tensor:
        return torch.diag_embed(scale)

    def fused_round(self, normals: Normals, dtype: torch.dtype) -> tuple[Normals, float] | None:
        """A round as matrix products; None where they cancel."""
        self.pairs = None
        key = full_keys(normals.mean, normals.scale, normals.log_weight)
        error = float(self.largest @ key.abs().amax(0))
        if not error * roundoff(key.shape[-1], dtype) <= LOOSE:
            dtype = torch.float64
        if not error * roundoff(key.shape[-1], dtype) <= LOOSE:
            return None
        key = key.to(dtype)
        if (found := self.few_pairs(key)) is not None:
            self.pairs, share, bound = found
            updated = self.near_moments(normals, self.pairs, share)
            return None if updated is None else (updated, bound)
        sums, bound = torch.zeros_like(key, dtype=torch.float64), 0.0
        for rows, data in self.blocks(dtype):
            weight = self.log_weight[rows].exp()
            total, share = shares(data.mT @ key.mT)
            share = torch.threshold_(share, NEGLIGIBLE, 0.0)  # products would underflow: ten times
            sums += share.mul_(weight.unsqueeze(-1)).mT @ data.mT  # as slow in float32
            bound += float(weight @ total.double())
        mass, (row, column) = sums[:, -1], self.triangle
        mean = sums[:, len(row) : -1] / mass.unsqueeze(-1)
        covariance = torch.empty(len(mean), *[len(self.unit)] * 2).to(mean)
        covariance[:, row, column] = sums[:, : len(row)] / mass.unsqueeze(-1)
        covariance[:, column, row] = covariance[:, row, column]
        covariance -= mean.unsqueeze(-1) * mean.unsqueeze(-2)
        updated = self.normals(mass, mean, covariance, dtype)
        if updated is None and dtype != torch.float64:
            self.lowest_dtype = torch.float64  # the next rounds would be done twice as well
            return self.fused_round(normals, torch.float64)
        return None if updated is None else (updated, bound)

    def normals(
        self, mass: Tensor, mean: Tensor, covariance: Tensor, dtype: torch.dtype
    ) -> Normals | None:
        """Normals of some moments, without those to which nothing is assigned; None if they cancel.

        Pairs are kept only where they are of the same new components.

        Args:
            mass, mean, covariance: in float64.
            dtype: in which second moments were summed.
        """
        some = mass > 0
        mass, mean, covariance = mass[some], mean[some], covariance[some]
        scale, failed = torch.linalg.cholesky_ex(covariance)
        # of each unit, given the units before it
        conditional_variance = scale.diagonal(dim1=-2, dim2=-1).square()
        second = mean.square() + covariance.diagonal(dim1=-2, dim2=-1)  # what was rounded
        cancels = failed.any() | is_narrow(second, conditional_variance, dtype).any()
        if bool(cancels | ~some.all()):
            self.pairs = None
        return None if bool(cancels) else Normals((mass / mass.sum()).log(), mean, scale)

    def few_pairs(self, key: Tensor) -> tuple[Pairs, Tensor, float] | None:
        """The pairs with a share, these shares, and the bound; None if they are not few."""
        if key.numel() * len(self.log_weight) < LARGE or self.is_correlated or self.held is None:
            return None
        found, kept, bound = list[Tensor](), list[Tensor](), 0.0
        for rows, data in self.blocks(key.dtype):
            total, share = shares(data.mT @ key.mT)
            bound += float(self.log_weight[rows].exp() @ total.double())
            old, new = (share > NEAR).nonzero(as_tuple=True)
            if len(old) > SPARSE * key.shape[-1] * share.numel():
                return None
            found.append(torch.stack([rows[old], new]))
            kept.append(share[old, new].double().log())
        index = torch.cat(found, -1)
        order = index[1].argsort(stable=True)
        sizes = index[1].bincount(minlength=len(key)).tolist()
        pairs = Pairs(index[0, order].split(sizes), index[0, order])
        return pairs, pairs.shares(torch.cat(kept)[order], len(self.log_weight))[1], bound

    def settle(
        self, normals: Normals, bounds: list[float], rounds: int, tolerance: float
    ) -> Normals:
        """Rounds over the pairs that had a share in the last complete one (Neal & Hinton 1998)."""
        gain = math.inf
        while self.pairs is not None and gain >= tolerance and len(bounds) < rounds - 1:
            found = self.near_round(normals, self.pairs)
            if found is None:
                break
            normals = self.check(self.shrink(found[0]))
            bound = found[1] - float(self.unit.log().sum())
            gain = bound - bounds[-1]
            bounds.append(bound)
        return normals

    def near_round(self, normals: Normals, pairs: Pairs) -> tuple[Normals, float] | None:
        """A round in which all other pairs have no share; None where it cancels."""
        eye = torch.eye(len(self.unit)).to(normals.scale)
        inverse = torch.linalg.solve_triangular(normals.scale, eye, upper=False)
        constant = constants(normals.scale.diagonal(dim1=-2, dim2=-1), normals.log_weight)
        scores = []
        for j, rows in enumerate(pairs.rows):
            mean, variance = self.moments(rows)
            square = ((mean - normals.mean[j]) @ inverse[j].mT).square().sum(-1)
            square += variance @ inverse[j].square().sum(0)
            scores.append(constant[j] - 0.5 * square)
        total, share = pairs.shares(torch.cat(scores), len(self.log_weight))
        updated = self.near_moments(normals, pairs, share)
        return None if updated is None else (updated, float(self.log_weight.exp() @ total))

    def near_moments(self, normals: Normals, pairs: Pairs, share: Tensor) -> Normals | None:
        """The normals that some pairs make, from differences to the means before."""
        size, dim = normals.mean.shape
        mass, shift = normals.mean.new_zeros(size), torch.zeros_like(normals.mean)
        covariance = normals.mean.new_zeros(size, dim, dim)
        parts = zip(pairs.rows, share.split([len(rows) for rows in pairs.rows]), strict=True)
        for j, (rows, part) in enumerate(parts):
            if not len(rows):
                continue
            mean, variance = self.moments(rows)
            weight = part * self.log_weight[rows].exp()
            mass[j] = weight.sum()
            difference, weight = mean - normals.mean[j], weight / mass[j]
            shift[j] = weight @ difference
            covariance[j] = (difference * weight.unsqueeze(-1)).mT @ difference
            covariance[j] += torch.diag(weight @ variance) - shift[j].outer(shift[j])
        return self.normals(mass, normals.mean + shift, covariance, torch.float64)

    @cached_property
    def largest(self) -> Tensor:
        maxima = [data.abs().amax(1).double() for _, data in self.blocks(torch.float32)]
        return torch.stack(maxima).amax(0)

    @cached_property
    def triangle(self) -> tuple[Tensor, Tensor]:
        """Rows and columns of the lower triangle of a symmetric matrix."""
        row, column = torch.tril_indices(len(self.unit), len(self.unit), device=self.unit.device)
        return row, column

    @property
    def is_correlated(self) -> bool:
        return isinstance(self.mixture.component_distribution, CORRELATED_NORMALS)

    def few_rows(self) -> Iterator[Tensor]:
        """Numbers of all old components, few at a time."""
        for part in self.parts():
            numbers = torch.arange(part.start, part.stop, device=self.unit.device)
            yield from numbers.split(ROWS)

    def blocks(self, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
        """Numbers of a few old components and their `second_moments`, in memory that is used again.

        Memory of its own for each of them would take longer, and end up in pieces.
        """
        features = len(self.triangle[0]) + len(self.unit) + 1
        moments = self.unit.new_empty(features, ROWS, dtype=dtype)
        for rows in self.few_rows():
            yield rows, self.second_moments(rows, moments[:, : len(rows)])

    def second_moments(self, rows: Tensor, moments: Tensor) -> Tensor:
        """(E[z_a z_b] for a ≥ b, E[z], 1) of some old components, in a matrix's columns."""
        means, variances = (moment.to(moments.dtype) for moment in self.moments(rows))
        mean, (row, column) = means.mT.contiguous(), self.triangle
        pairs = moments[: len(row)]
        # Slices of rows take a tenth of the time that indexing by row and column does.
        for part, unit in zip(pairs.split(list(range(1, len(mean) + 1))), mean, strict=True):
            torch.mul(mean[: len(part)], unit, out=part)
        if self.is_correlated:
            covariance = self.components(rows).covariance_matrix.double()
            pairs += (covariance[:, row, column] / (self.unit[row] * self.unit[column])).mT
        else:
            pairs[row == column] += variances.mT
        moments[len(row) : -1] = mean
        moments[-1] = 1
        return moments

    def factors(self, rows: Tensor) -> Tensor:
        """Lower Cholesky factors of some old components, shape ``(n, D, D)``."""
        if not self.is_correlated:
            return torch.diag_embed(self.moments(rows)[1].sqrt())
        return self.components(rows).scale_tril.double() / self.unit.unsqueeze(-1)

    @property
    def width(self) -> int:
        return len(self.unit) ** (2 if self.is_correlated else 1)

    def scorer(self, normals: Normals) -> Callable[[Tensor], Tensor]:
        eye = torch.eye(len(self.unit)).to(normals.scale)
        inverse = torch.linalg.solve_triangular(normals.scale, eye, upper=False)
        constant = constants(normals.scale.diagonal(dim1=-2, dim2=-1), normals.log_weight)

        def scores(rows: Tensor) -> Tensor:
            mean, variance = self.moments(rows)
            difference = mean - normals.mean.unsqueeze(1)
            square = (difference @ inverse.mT).square().sum(-1).mT
            if self.is_correlated:
                trace = inverse.unsqueeze(1) @ self.factors(rows)
                return constant - 0.5 * (square + trace.square().sum((-2, -1)).mT)
            return constant - 0.5 * (square + variance @ inverse.square().sum(-2).mT)

        return scores

    def component_moments(self, rows: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        means, _ = self.moments(rows)
        mean = share @ means
        scale = mean.new_zeros(len(mean), 0)
        parts = (t.split(ROWS) for t in (rows, means, share.sqrt()))
        for part, part_means, root_share in zip(*parts, strict=True):
            within = (root_share.view(-1, 1, 1) * self.factors(part).mT).flatten(0, 1)
            between = root_share.unsqueeze(-1) * (part_means - mean)
            scale = _triangular_root(torch.cat([scale.mT, within, between]))
        return mean, scale

    def shrink_scale(self, scale: Tensor, weight: Tensor, own: Tensor) -> Tensor:
        weight, own = weight.view(-1, 1, 1), own.view(-1, 1, 1)
        common = _triangular_root((weight.sqrt() * scale.mT).flatten(0, 1)).mT
        return _triangular_root(torch.cat([own.sqrt() * scale.mT, (1 - own).sqrt() * common], -2))

    def distribution(self, loc: Tensor, rounding: Tensor, scale: Tensor) -> dist.Distribution:
        widened = _triangular_root(
            torch.cat([scale.mT, rounding.unsqueeze(-2)], -2)
        ) * self.unit.unsqueeze(-1)
        return dist.MultivariateNormal(loc, scale_tril=widened.to(self.dtype))


def _triangular_root(rows: Tensor) -> Tensor:
    """Lower triangular L with L Lᵀ = BᵀB; in the product itself rounding would drown thin axes."""
    upper = torch.linalg.qr(rows, mode="r").R
    return (upper * upper.diagonal(dim1=-2, dim2=-1).sgn().unsqueeze(-1)).mT
