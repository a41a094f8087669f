"""Evaluate chosen (group of components, point) pairs in float64, and sum them for each point."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pyrovae.mixture.kernel.attention import peaks
from pyrovae.mixture.kernel.diagonal_normals import DiagonalNormals
from pyrovae.mixture.kernel.scalar_product import queries

#: Bytes of one batch of pairs: it is computed and reduced while it fits the processor's cache.
BATCH_BYTES = 1 << 21
#: Numbers collected before they are added to the sums.
PENDING = 1 << 20
#: Largest number of points evaluated together against one group.
WIDTH = 64

#: Mean scores, and mean log densities less the largest, shapes ``(..., D)`` and ``(...)``.
_Means = tuple[Tensor, Tensor]


class Sum:
    """A running log-sum-exp for each of B points, with the mean score and the entropy.

    Args:
        points: number of points B.
        dim: number of units D of the score.
        moments: whether to sum also for mean scores and entropies.
        device: device of the sums.
    """

    def __init__(self, points: int, dim: int, *, moments: bool, device: torch.device) -> None:
        self.largest = torch.full((points,), -math.inf, dtype=torch.float64, device=device)
        self.mass = torch.zeros_like(self.largest)
        self.excess = torch.zeros_like(self.largest)  # Σ e^(s − largest) (s − largest)
        self.score = self.mass.new_zeros(points, dim if moments else 0)

    def add(
        self,
        rows: Tensor,
        peak: Tensor,
        log_mass: Tensor | None = None,
        means: _Means | None = None,
    ) -> None:
        """Add e^(peak + log_mass) to some points, any of them more than once.

        Args:
            rows: the points, shape ``(P,)``.
            peak: the largest scores, shape ``(P,)``.
            log_mass: log-sum-exps less the largest scores, shape ``(P,)``; 0 by default.
            means: means over the scores of each entry.
        """
        largest = self.largest.scatter_reduce(0, rows, peak, "amax")
        shift = torch.where(largest > -math.inf, largest, 0.0)
        below_largest = peak - shift[rows]
        decay = (self.largest - shift).exp()
        share = (below_largest if log_mass is None else below_largest + log_mass).exp()
        if means is not None:
            score, expected = means
            score = self._weighted(score, share)
            self.score = (self.score * decay.unsqueeze(-1)).index_add_(0, rows, score)
            excess = self._weighted(expected + below_largest, share)
            old_excess = self.excess + torch.where(
                decay > 0, self.mass * (self.largest - shift), 0.0
            )
            self.excess = (old_excess * decay).index_add_(0, rows, excess)
        self.largest, self.mass = largest, (self.mass * decay).index_add_(0, rows, share)

    def add_scores(self, scores: Tensor) -> None:
        """Add e^score for every point, shape ``(B, n)``."""
        peak, log_mass, share = peaks(scores)
        rows = torch.arange(len(scores), device=scores.device)
        means = scores.new_zeros(len(scores), 0), _expected(scores, peak, share)
        self.add(rows, peak, log_mass, means)

    def put(self, rows: Tensor, other: Sum) -> None:
        """Set the sums of some points to those of another `Sum`."""
        self.largest[rows], self.mass[rows] = other.largest, other.mass
        self.score[rows], self.excess[rows] = other.score, other.excess

    def merge(self, other: Sum) -> None:
        """Add the sums of other components at the same points."""
        mass = other.mass.clamp(min=torch.finfo(other.mass.dtype).tiny)  # 0 where nothing was added
        means = other.score / mass.unsqueeze(-1), other.excess / mass
        rows = torch.arange(len(other.mass), device=other.mass.device)
        self.add(rows, other.largest, other.mass.log(), means)

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-sum-exps, mean scores and the entropy of the shares.

        The entropy is not computed as a difference of log densities, which would cancel far out.
        """
        mean, log_mass = self.score / self.mass.unsqueeze(-1), self.mass.log()
        return self.largest + log_mass, mean, log_mass - self.excess / self.mass

    def share(self, scores: Tensor) -> Tensor:
        """The share of some scores in their point's sum, shape ``(B, k)``."""
        return (scores - self.largest.unsqueeze(-1)).exp() / self.mass.unsqueeze(-1)

    @staticmethod
    def _weighted(values: Tensor, share: Tensor) -> Tensor:
        share = share.view(-1, *(1,) * (values.dim() - 1))
        return torch.where(share > 0, share * values, 0.0)


def _expected(scores: Tensor, peak: Tensor, share: Tensor) -> Tensor:
    """Mean of the scores less the largest, shape of ``peak``."""
    return torch.where(share > 0, share * (scores - peak.unsqueeze(-1)), 0.0).sum(-1)


class Moments:
    """Scores of components at points, group by group, and the moments that these give.

    Args:
        normals: the components.
        z: points in float64, shape ``(B, D)``.
        variance: makes scores expectations under N(z, variance), shape ``(B, D)``.
        exclude: for each point a component to leave out, shape ``(B,)``.
        moments: whether to compute mean scores and entropies too.
    """

    def __init__(
        self,
        normals: DiagonalNormals,
        z: Tensor,
        variance: Tensor | None,
        exclude: Tensor | None,
        *,
        moments: bool,
    ) -> None:
        self.normals, self.z, self.exclude, self.with_moments = normals, z, exclude, moments
        self.variance = None if variance is None else variance.double()
        self.centred = z - normals.centre
        self.query = queries(self.centred, self.variance)

    def scores(self, groups: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Component log densities by the expanded form, ``(e, m, M)``, and keys, ``(e, M, F)``."""
        key = self.normals.keys_of_groups(groups)
        return self._without_excluded(self.query[rows] @ key.mT, groups, rows), key

    def expanded(self, groups: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, _Means | None]:
        """`peaks` and means of groups ``(e,)`` at points ``(e, m)``, by the expanded form."""
        scores, key = self.scores(groups, rows)
        peak, log_mass, share = peaks(scores)
        return (
            peak,
            log_mass,
            self.means_from_keys(share @ key, rows, peak) if self.with_moments else None,
        )

    def means_from_keys(self, mean: Tensor, rows: Tensor, peak: Tensor) -> _Means:
        """Mean score E_r[pμ] − z E_r[p], and mean log density less the largest.

        Args:
            mean: mean keys, shape ``(..., F)``.
            rows: which points.
            peak: largest log densities, shape ``(...)``.
        """
        dim = self.normals.dim
        score = mean[..., dim : 2 * dim] + 2 * self.centred[rows] * mean[..., :dim]
        return score, (mean * self.query[rows]).sum(-1) - peak

    def differences(self, groups: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Component log densities ``(e, m, M)`` from (z − μ)/σ; these quotients and the scales."""
        loc, scale, constant = self.normals.exact_groups(groups)
        difference = (self.z[rows].unsqueeze(2) - loc.unsqueeze(1)) / scale.unsqueeze(1)
        square = difference.square().sum(-1)
        if self.variance is not None:
            square = square + self.variance[rows] @ scale.pow(-2).mT
        scores = torch.add(constant.unsqueeze(1), square, alpha=-0.5)
        return self._without_excluded(scores, groups, rows), difference, scale

    def from_differences(
        self, groups: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor, _Means | None]:
        """The same as `expanded`, but from differences, which do not cancel."""
        scores, difference, scale = self.differences(groups, rows)
        peak, log_mass, share = peaks(scores)
        if not self.with_moments:
            return peak, log_mass, None
        pull = torch.einsum("emn,emnd->emd", share, -difference / scale.unsqueeze(1))
        return peak, log_mass, (pull, _expected(scores, peak, share))

    def _without_excluded(self, scores: Tensor, groups: Tensor, rows: Tensor) -> Tensor:
        if self.exclude is None:
            return scores
        inside = torch.arange(self.normals.group, device=scores.device)
        number = (groups.unsqueeze(-1) * self.normals.group + inside).unsqueeze(1)
        return scores.masked_fill(number == self.exclude[rows].unsqueeze(-1), -math.inf)


def evaluate_pairs(moments: Moments, chosen: Tensor, total: Sum, *, differences: bool) -> None:
    """Add the chosen pairs (group, point) to the points' sums.

    Args:
        moments: the points and components.
        chosen: shape ``(G, B)``.
        total: the sums to add to.
        differences: whether to evaluate from differences instead of the expanded form.
    """
    method = moments.from_differences if differences else moments.expanded
    pending: list[tuple[Tensor, ...]] = []
    pending_size = 0
    for groups, rows, valid in batches(moments.normals, chosen, differences=differences):
        peak, log_mass, means = method(groups, rows)
        columns = (rows, peak, log_mass, *(means or ()))
        pending.append(tuple(column[valid] for column in columns))
        pending_size += peak.numel() * (3 + moments.with_moments * moments.normals.dim)
        if pending_size > PENDING:
            _flush(pending, total)
            pending_size = 0
    if pending:
        _flush(pending, total)


def _flush(pending: list[tuple[Tensor, ...]], total: Sum) -> None:
    rows, peak, log_mass, *means = (torch.cat(column) for column in zip(*pending, strict=True))
    total.add(rows, peak, log_mass, (means[0], means[1]) if means else None)
    pending.clear()


def best_of_pairs(
    moments: Moments, chosen: Tensor, k: int, cancels: Tensor, total: Sum | None
) -> tuple[Tensor, Tensor]:
    """Numbers and scores of the k best components among the chosen pairs, ``(B, k)``.

    Args:
        moments: the points and components.
        chosen: at least k components for every point, shape ``(G, B)``.
        k: number of components.
        cancels: pairs to evaluate from differences, shape ``(G, B)``.
        total: sums to which all scores of the chosen pairs are added, or None.
    """
    candidates: list[tuple[Tensor, Tensor, Tensor]] = []
    for differences in (False, True):
        method = moments.differences if differences else moments.scores
        mask = chosen & (cancels if differences else ~cancels)
        for groups, rows, valid in batches(moments.normals, mask, differences=differences):
            scores = method(groups, rows)[0]
            best = scores.topk(min(k, moments.normals.group))
            number = groups.view(-1, 1, 1) * moments.normals.group + best.indices
            candidates.append((rows[valid], best.values[valid], number[valid]))
            if total is not None:
                peak, log_mass, _ = peaks(scores)
                total.add(rows[valid], peak[valid], log_mass[valid])
    point, score, number = (torch.cat(column) for column in zip(*candidates, strict=True))
    order = point.argsort(stable=True)
    point, score, number = point[order], score[order], number[order]
    count = point.bincount(minlength=len(moments.z))
    place = torch.arange(len(point), device=point.device) - (count.cumsum(0) - count)[point]
    shape = (len(moments.z), int(count.max()), score.shape[-1])
    scores, numbers = score.new_full(shape, -math.inf), number.new_zeros(shape)
    scores[point, place], numbers[point, place] = score, number
    largest = scores.flatten(1).topk(k)
    return numbers.flatten(1).gather(1, largest.indices), largest.values


def batches(
    normals: DiagonalNormals, chosen: Tensor, *, differences: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Chosen pairs in batches of groups ``(e,)`` with points ``(e, m)``, some of which are padding.

    Args:
        normals: the components.
        chosen: shape ``(G, B)``.
        differences: whether the batches need room for differences of all units.

    Returns:
        groups, points, and which of the points are not padding.
    """
    group, point = chosen.nonzero(as_tuple=True)
    if not len(group):
        return
    count = group.bincount(minlength=len(chosen))
    typical = len(group) / int((count > 0).sum())
    width = min(WIDTH, 1 << round(math.log2(typical)))
    entries = (count + width - 1) // width
    position = torch.arange(len(group), device=group.device) - (count.cumsum(0) - count)[group]
    entry = (entries.cumsum(0) - entries)[group] + position // width
    slots = torch.full((int(entries.sum()), width), -1, device=group.device)
    slots[entry, position % width] = point
    of_entry = torch.arange(len(chosen), device=group.device).repeat_interleave(entries)
    numbers = (width + normals.group) * normals.features + 3 * width * normals.group
    if differences:
        numbers += 2 * width * normals.group * normals.dim
    step = max(1, BATCH_BYTES // (8 * numbers))
    for start in range(0, len(slots), step):
        rows = slots[start : start + step]
        yield of_entry[start : start + step], rows.clamp(min=0), rows >= 0
