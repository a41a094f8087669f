"""Chosen pairs of a group of components and a point, evaluated in float64 and summed by point."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pyrovae.mixture.kernel.attention import peaks
from pyrovae.mixture.kernel.diagonal_normals import DiagonalNormals
from pyrovae.mixture.kernel.scalar_product import queries

#: Bytes of one batch of pairs: they are made and reduced while they are in the cache.
BATCH_BYTES = 1 << 21
#: Numbers that are held before they are added to the sums.
PENDING = 1 << 20
#: Points that are taken together against one group, at most.
WIDTH = 64

#: Scores, and expected log densities less the largest, shapes ``(..., D)`` and ``(...)``.
_Given = tuple[Tensor, Tensor]


class Sum:
    """A running log-sum-exp for each of B points, with the mean of what comes along.

    Args:
        points: B.
        dim: units D of the score.
        moments: whether scores and what the entropy is made of are summed too.
        device: where.
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
        given: _Given | None = None,
    ) -> None:
        """Add e^(peak + log_mass) to some points, any of them more than once.

        Args:
            rows: the points, shape ``(P,)``.
            peak: the largest scores, shape ``(P,)``.
            log_mass: how much more all scores make up, shape ``(P,)``; 0 if not given.
            given: what comes along.
        """
        largest = self.largest.scatter_reduce(0, rows, peak, "amax")
        shift = torch.where(largest > -math.inf, largest, 0.0)
        below = peak - shift[rows]
        kept = (self.largest - shift).exp()
        share = (below if log_mass is None else below + log_mass).exp()
        if given is not None:
            score, expected = given
            score = self._weighted(score, share)
            self.score = (self.score * kept.unsqueeze(-1)).index_add_(0, rows, score)
            excess = self._weighted(expected + below, share)
            moved = self.excess + torch.where(kept > 0, self.mass * (self.largest - shift), 0.0)
            self.excess = (moved * kept).index_add_(0, rows, excess)
        self.largest, self.mass = largest, (self.mass * kept).index_add_(0, rows, share)

    def add_scores(self, scores: Tensor) -> None:
        """Add e^score for every point, shape ``(B, n)``."""
        peak, log_mass, share = peaks(scores)
        every = torch.arange(len(scores), device=scores.device)
        given = scores.new_zeros(len(scores), 0), _expected(scores, peak, share)
        self.add(every, peak, log_mass, given)

    def put(self, rows: Tensor, other: Sum) -> None:
        """Take the sums of some points from elsewhere."""
        self.largest[rows], self.mass[rows] = other.largest, other.mass
        self.score[rows], self.excess[rows] = other.score, other.excess

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-sum-exps, mean scores and the entropy of the shares.

        The entropy is no difference of log densities, of which far out nothing would be left.
        """
        mean, log_mass = self.score / self.mass.unsqueeze(-1), self.mass.log()
        return self.largest + log_mass, mean, log_mass - self.excess / self.mass

    def share(self, scores: Tensor) -> Tensor:
        """The part of each point's sum that some of its scores make up, shape ``(B, k)``."""
        return (scores - self.largest.unsqueeze(-1)).exp() / self.mass.unsqueeze(-1)

    @staticmethod
    def _weighted(values: Tensor, share: Tensor) -> Tensor:
        share = share.view(-1, *(1,) * (values.dim() - 1))
        return torch.where(share > 0, share * values, 0.0)


def _expected(scores: Tensor, peak: Tensor, share: Tensor) -> Tensor:
    """Mean of the scores less the largest, shape of the latter."""
    return torch.where(share > 0, share * (scores - peak.unsqueeze(-1)), 0.0).sum(-1)


class Moments:
    """Points as queries, and what a group of components tells about them.

    Args:
        normals: the components.
        z: points in float64, shape ``(B, D)``.
        variance: makes scores expectations under N(z, variance), shape ``(B, D)``.
        exclude: for each point a component to leave out, shape ``(B,)``.
        moments: whether scores and the entropy are wanted too.
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
        self.normals, self.z, self.exclude, self.wanted = normals, z, exclude, moments
        self.variance = None if variance is None else variance.double()
        self.centred = z - normals.centre
        self.query = queries(self.centred, self.variance)

    def scores(self, groups: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Component log densities by the expanded form, ``(e, m, M)``, and keys, ``(e, M, F)``."""
        key = self.normals.keys_of_groups(groups)
        return self._without_excluded(self.query[rows] @ key.mT, groups, rows), key

    def expanded(self, groups: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, _Given | None]:
        """`peaks` and moments of groups ``(e,)`` at points ``(e, m)`` by the expanded form."""
        scores, key = self.scores(groups, rows)
        peak, log_mass, share = peaks(scores)
        return peak, log_mass, self.of_mean(share @ key, rows, peak) if self.wanted else None

    def of_mean(self, mean: Tensor, rows: Tensor, peak: Tensor) -> _Given:
        """Score E_r[pμ] − z E_r[p], and expected log density less the largest.

        Args:
            mean: mean keys, shape ``(..., F)``.
            rows: which points.
            peak: largest log densities, shape ``(...)``.
        """
        dim = self.normals.dim
        score = mean[..., dim : 2 * dim] + 2 * self.centred[rows] * mean[..., :dim]
        return score, (mean * self.query[rows]).sum(-1) - peak

    def differences(self, groups: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Component log densities from (z − μ)/σ, ``(e, m, M)``, with these and the scales."""
        loc, scale, constant = self.normals.exact_groups(groups)
        difference = (self.z[rows].unsqueeze(2) - loc.unsqueeze(1)) / scale.unsqueeze(1)
        square = difference.square().sum(-1)
        if self.variance is not None:
            square = square + self.variance[rows] @ scale.pow(-2).mT
        scores = torch.add(constant.unsqueeze(1), square, alpha=-0.5)
        return self._without_excluded(scores, groups, rows), difference, scale

    def from_differences(
        self, groups: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor, _Given | None]:
        """The same as `expanded`, from differences, which do not cancel."""
        scores, difference, scale = self.differences(groups, rows)
        peak, log_mass, share = peaks(scores)
        if not self.wanted:
            return peak, log_mass, None
        pull = torch.einsum("emn,emnd->emd", share, -difference / scale.unsqueeze(1))
        return peak, log_mass, (pull, _expected(scores, peak, share))

    def _without_excluded(self, scores: Tensor, groups: Tensor, rows: Tensor) -> Tensor:
        if self.exclude is None:
            return scores
        inside = torch.arange(self.normals.group, device=scores.device)
        number = (groups.unsqueeze(-1) * self.normals.group + inside).unsqueeze(1)
        return scores.masked_fill(number == self.exclude[rows].unsqueeze(-1), -math.inf)


def evaluate_pairs(of: Moments, chosen: Tensor, total: Sum, *, differences: bool) -> None:
    """Add the chosen pairs (group, point) to the points' sums.

    Args:
        of: the points and components.
        chosen: shape ``(G, B)``.
        total: where to add.
        differences: from differences instead of the expanded form.
    """
    method = of.from_differences if differences else of.expanded
    pending: list[tuple[Tensor, ...]] = []
    held = 0
    for groups, rows, valid in batches(of.normals, chosen, differences=differences):
        peak, log_mass, given = method(groups, rows)
        columns = (rows, peak, log_mass, *(given or ()))
        pending.append(tuple(column[valid] for column in columns))
        held += peak.numel() * (3 + of.wanted * of.normals.dim)
        if held > PENDING:
            _flush(pending, total)
            held = 0
    if pending:
        _flush(pending, total)


def _flush(pending: list[tuple[Tensor, ...]], total: Sum) -> None:
    rows, peak, log_mass, *given = (torch.cat(column) for column in zip(*pending, strict=True))
    total.add(rows, peak, log_mass, (given[0], given[1]) if given else None)
    pending.clear()


def best_of_pairs(
    of: Moments, chosen: Tensor, k: int, cancels: Tensor, total: Sum | None
) -> tuple[Tensor, Tensor]:
    """Numbers and scores of the k best components among the chosen pairs, ``(B, k)``.

    Args:
        of: the points and components.
        chosen: at least k components for every point, shape ``(G, B)``.
        k: how many.
        cancels: where scores are to be made from differences, shape ``(G, B)``.
        total: where to add all scores of the chosen pairs, if wanted.
    """
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for differences in (False, True):
        method = of.differences if differences else of.scores
        mask = chosen & (cancels if differences else ~cancels)
        for groups, rows, valid in batches(of.normals, mask, differences=differences):
            scores = method(groups, rows)[0]
            best = scores.topk(min(k, of.normals.group))
            number = groups.view(-1, 1, 1) * of.normals.group + best.indices
            found.append((rows[valid], best.values[valid], number[valid]))
            if total is not None:
                peak, log_mass, _ = peaks(scores)
                total.add(rows[valid], peak[valid], log_mass[valid])
    point, score, number = (torch.cat(column) for column in zip(*found, strict=True))
    order = point.argsort(stable=True)
    point, score, number = point[order], score[order], number[order]
    count = point.bincount(minlength=len(of.z))
    place = torch.arange(len(point), device=point.device) - (count.cumsum(0) - count)[point]
    shape = (len(of.z), int(count.max()), score.shape[-1])
    scores, numbers = score.new_full(shape, -math.inf), number.new_zeros(shape)
    scores[point, place], numbers[point, place] = score, number
    largest = scores.flatten(1).topk(k)
    return numbers.flatten(1).gather(1, largest.indices), largest.values


def batches(
    normals: DiagonalNormals, chosen: Tensor, *, differences: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Chosen pairs as batches of groups ``(e,)``, each with points ``(e, m)`` of which some count.

    Args:
        normals: the components.
        chosen: shape ``(G, B)``.
        differences: whether differences of all units will be held.

    Returns:
        groups, points, and which of these are chosen and not filled in.
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
