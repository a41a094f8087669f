"""EM rounds on the components of a mixture, for `reduce`: new ones of independent units."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.errors import InputError
from pyrovae.mixture.families import family, floating_parameter, take
from pyrovae.mixture.kernel.attention import block_log_sum_exp, block_log_sums, shares
from pyrovae.mixture.kernel.error_bound import roundoff
from pyrovae.mixture.kernel.scalar_product import constants, differences, keys, queries
from pyrovae.mixture.mixture import Mixture
from pyrovae.randomness import seeded

#: Candidates drawn for the start, per new component.
START = 10
#: Old components in the first of several stages: at least, and per new component.
FEW, EACH = 10_000, 200
#: By how much a stage has more of them than the one before.
GROWTH = 4
#: Numbers that a stage may hold of a mixture that isn't held as a whole.
HELD = 1 << 24
#: Largest rounding error in an assignment, in nats; beyond it a round needs more precision.
LOOSE = 0.5
#: The same for a round in float64, whose assignments are to sum to 1.
TIGHT = 1e-8
#: A variance below this many rounding errors of the second moment needs more precision.
NARROW = 2048
#: Smallest new standard deviation, relative to that of the mixture, that float64 tells from 0.
LEAST = 16 * torch.finfo(torch.float64).eps
#: Pairs whose share is below this are left out.
NEGLIGIBLE = 1e-20
#: Numbers in a chunk of pairs: they fit the processor's cache, which is ten times as fast.
CHUNK = 1 << 18


@dataclass(frozen=True)
class Normals:
    """Normals with log weights; scale as deviations ``(K, D)`` or Cholesky ``(K, D, D)``."""

    log_weight: Tensor
    mean: Tensor
    scale: Tensor


class DiagonalRounds:
    """EM rounds on the components of a mixture, in units of its standard deviations."""

    #: The dtype of rounds, where it is precise enough.
    lowest_dtype = torch.float32

    def __init__(self, mixture: Mixture, shrinkage: float) -> None:
        self.shrinkage, self.mixture = shrinkage, mixture
        log_weight = mixture.log_weights
        has_weight = log_weight > -math.inf
        self.weighted = None if bool(has_weight.all()) else has_weight.nonzero().squeeze(-1)
        self.log_weight = log_weight[has_weight].double().log_softmax(-1)
        weight = self.log_weight.exp()
        self.count = 1 / float(weight.square().sum())
        self.dtype = floating_parameter(mixture.component_distribution).dtype
        held = self.read(slice(None)) if len(tuple(mixture.in_parts())) == 1 else None
        means, squares = [], []
        for rows in self.parts():
            mean, _ = held or self.read(rows)
            means.append(weight[rows] @ mean)
        self.shift = torch.stack(means).sum(0)
        for rows in self.parts():
            mean, variance = held or self.read(rows)
            squares.append(weight[rows] @ (variance + (mean - self.shift).square()))
        self.unit = torch.stack(squares).sum(0).sqrt()
        if not bool((self.unit > 0).all()):
            unit = int((self.unit <= 0).nonzero()[0, 0])
            raise InputError(f"expected units that vary; got variance 0 in unit {unit}. Drop it.")
        #: `moments` of all old components, where they are one part.
        self.held = None if held is None else self.in_units(*held)

    def parts(self) -> Iterator[slice]:
        """Ranges of the old components with a weight, to have in memory one at a time."""
        for rows in self.mixture.in_parts():
            if self.weighted is None:
                yield rows
                continue
            ends = torch.tensor([rows.start, rows.stop], device=self.weighted.device)
            start, stop = torch.searchsorted(self.weighted, ends).tolist()
            if stop > start:
                yield slice(start, stop)

    def moments(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Means and variances of some old components in units of the mixture, shape ``(n, D)``."""
        if self.held is None:
            return self.in_units(*self.read(rows))
        return self.held[0][rows], self.held[1][rows]

    def in_units(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances in units of the mixture's standard deviations, from its mean."""
        return (mean - self.shift) / self.unit, variance / self.unit.square()

    def read(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Means and variances of some old components in float64, shape ``(n, D)``, all finite."""
        components = self.components(rows)
        try:
            moments = components.mean, components.variance
        except NotImplementedError as error:
            raise InputError(
                f"expected components of known means and variances; got {family(components)}. "
                "Reduce normals with the same moments, estimated from draws."
            ) from error
        mean, variance = (moment.detach().double() for moment in moments)
        wrong = ~(mean.isfinite() & variance.isfinite()).all(-1)
        if bool(wrong.any()):
            numbers = torch.arange(self.mixture.size, device=wrong.device)
            numbers = numbers if self.weighted is None else numbers[self.weighted]
            raise InputError(
                f"expected finite means and variances; got {int(wrong.sum())} of {len(mean)} "
                f"components without, the first at index {int(numbers[rows][wrong][0])}. Leave "
                "them out, or give them a weight of 0."
            )
        return mean, variance

    def components(self, rows: Tensor | slice) -> dist.Distribution:
        """Some old components, by their numbers among those with a weight."""
        index = rows if self.weighted is None else self.weighted[rows]
        return take(self.mixture.component_distribution, index)

    def start(self, components: int, seed: int) -> Normals:
        """k-means++ centres among components drawn by weight, widened by the spread about them."""
        with seeded(seed, "start of a reduction"):
            candidates, log_weight = _draw(self.log_weight, START * components)
            mean, variance = self.moments(candidates)
            points = torch.cat([mean, variance.sqrt()], -1)
            chosen, distance = _spread(points, log_weight, components)
        spread = log_weight.softmax(-1) @ distance / len(self.unit)
        equal = torch.full_like(log_weight[chosen], -math.log(len(chosen)))
        scale = (variance[chosen] + spread).sqrt()
        return self.check(Normals(equal, mean[chosen], self.scale_of(scale)))

    def scale_of(self, scale: Tensor) -> Tensor:
        """Standard deviations ``(K, D)`` as the scale of normals."""
        return scale

    def stages(self, components: int, seed: int) -> Iterator[Self]:
        """The same problem over growing parts of the old components, drawn by weight."""
        size = max(FEW, EACH * components)
        most = len(self.log_weight) if self.held else HELD // len(self.unit)
        while GROWTH * size <= len(self.log_weight) and size <= most:
            with seeded(seed, "part of a reduction", size):
                index, log_weight = _draw(self.log_weight, size)
            index, order = index.sort()
            part = copy(self)
            part.weighted = index if self.weighted is None else self.weighted[index]
            part.log_weight = log_weight[order].log_softmax(-1)
            # `count` stays that of all: covariances shrunk more would be far from where they end.
            part.held = self.moments(index)
            yield part
            size *= GROWTH

    def climb(
        self, normals: Normals, rounds: int, tolerance: float
    ) -> tuple[Normals, Normals, list[float], bool]:
        """Rounds until one gains less: the normals before and after the last, and all bounds."""
        before, bounds, converged = normals, list[float](), False
        while len(bounds) < rounds and not converged:
            before = normals
            normals, bound = self.round(before, self.lowest_dtype)
            converged = len(bounds) > 0 and bound - bounds[-1] < tolerance
            bounds.append(bound)
            if not converged:
                normals = self.settle(normals, bounds, rounds, tolerance)
        return before, normals, bounds, converged

    def settle(
        self, normals: Normals, bounds: list[float], rounds: int, tolerance: float
    ) -> Normals:
        """Cheaper rounds between two complete ones, where there are any; appends their bounds."""
        return normals

    def round(self, normals: Normals, dtype: torch.dtype) -> tuple[Normals, float]:
        """One EM round in a dtype or better: the new normals, and the bound of the old ones."""
        updated, bound = self.fused_round(normals, dtype) or self.pairwise_round(normals)
        return self.check(self.shrink(updated)), bound - float(self.unit.log().sum())

    def fused_round(self, normals: Normals, dtype: torch.dtype) -> tuple[Normals, float] | None:
        """A round as two passes of attention; None where even float64 cancels.

        First old components are queries and new ones keys: log-sum-exps over j. Then new ones are
        queries and old ones keys, with log weight less log-sum-exp as an offset: the log-sum-exps
        are log π_j, and the mean values the moments.
        """
        dim = len(self.unit)
        key = keys(normals.mean, normals.scale, constants(normals.scale, normals.log_weight))
        error = float(self.largest @ key.abs().amax(0))
        limit = LOOSE if dtype == torch.float32 else TIGHT
        if not error * roundoff(2 * dim + 1, dtype) <= limit:
            dtype = torch.float64
        if not error * roundoff(2 * dim + 1, dtype) <= limit:
            return None
        query = torch.cat([key, torch.ones_like(key[:, :1])], -1)
        bound, offsets, found = 0.0, [], []
        for rows in self.parts():
            data = self.data(rows).to(dtype)
            total = block_log_sums(data, key.to(dtype).unsqueeze(0))[0].double()
            offsets.append((self.log_weight[rows] - total).unsqueeze(-1))
            found.append(self.match_moments(query, data, offsets[-1]))
            bound += float(self.log_weight[rows].exp() @ total)
        mass, mean, variance = _merge(found)
        narrow = is_narrow(mean.square() + variance.abs(), variance, dtype).nonzero().squeeze(-1)
        if len(narrow) and dtype != torch.float64:  # no others: it takes three times as long
            parts = zip(self.parts(), offsets, strict=True)
            exact = _merge([self.match_moments(query[narrow], self.data(r), o) for r, o in parts])
            for moment, exact_moment in zip((mass, mean, variance), exact, strict=True):
                moment[narrow] = exact_moment
        second = (mean.square() + variance.abs())[narrow]
        if bool(is_narrow(second, variance[narrow], torch.float64).any()):
            return None
        return Normals(mass.log_softmax(-1), mean, variance.sqrt()), bound

    def match_moments(
        self, query: Tensor, data: Tensor, offset: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log masses, and first and second moments, of new components from some old ones.

        Args:
            query: keys of the new components, and 1, shape ``(K, 2D + 2)``.
            data: of the old ones, shape ``(n, 2D + 1)``.
            offset: their log weights less their log-sum-exps, shape ``(n, 1)``.
        """
        dim = len(self.unit)
        values = torch.cat([data, offset.to(data.dtype)], -1)
        mass, mean = block_log_sum_exp(query.to(values.dtype), values.unsqueeze(0))
        second, first = mean[0, :, :dim].double(), mean[0, :, dim : 2 * dim].double()
        return mass[0].double(), first, second

    def data(self, rows: slice) -> Tensor:
        """(E[z²], E[z], 1) of some old components, shape ``(n, 2D + 1)``."""
        return self.held_data[rows] if self.held is not None else queries(*self.moments(rows))

    @cached_property
    def held_data(self) -> Tensor:
        """`data` of all old components."""
        return queries(*self.moments(slice(None)))

    @cached_property
    def largest(self) -> Tensor:
        """The largest magnitudes in `data`."""
        return torch.stack([self.data(rows).abs().amax(0) for rows in self.parts()]).amax(0)

    def pairwise_round(self, normals: Normals) -> tuple[Normals, float]:
        """A round from differences, over pairs of old and new components with a share."""
        scores, size = self.scorer(normals), len(normals.mean)
        step = max(1, CHUNK // (size * self.width))
        index, group, share, bound = [], [], [], 0.0
        for rows in torch.arange(len(self.log_weight), device=self.log_weight.device).split(step):
            total, part = shares(scores(rows))
            bound += float(self.log_weight[rows].exp() @ total)
            row, column = (part > NEGLIGIBLE).nonzero(as_tuple=True)
            index.append(rows[row])
            group.append(column)
            share.append(part[row, column].log() + self.log_weight[rows[row]])
        order = torch.cat(group).argsort(stable=True)
        counts = torch.cat(group).bincount(minlength=size).tolist()
        parts = (torch.cat(t)[order].split(counts) for t in (index, share))
        moments = [
            (log_share.logsumexp(0), *self.component_moments(rows, log_share.softmax(0)))
            for rows, log_share in zip(*parts, strict=True)
            if len(rows)
        ]
        log_mass, mean, scale = (torch.stack(t) for t in zip(*moments, strict=True))
        return Normals(log_mass.log_softmax(-1), mean, scale), bound

    @property
    def width(self) -> int:
        """Numbers that `scorer` needs for each pair."""
        return len(self.unit)

    def scorer(self, normals: Normals) -> Callable[[Tensor], Tensor]:
        """Expected log densities log π_j + E_{q_i}[log N_j] of some i, shape ``(n, K)``."""
        constant = constants(normals.scale, normals.log_weight)

        def scores(rows: Tensor) -> Tensor:
            mean, variance = self.moments(rows)
            return differences(mean, normals.mean, normals.scale, constant, variance)

        return scores

    def component_moments(self, rows: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale of one new component, the scale from differences to its mean."""
        means, variances = self.moments(rows)
        mean = share @ means
        return mean, (share @ (variances + (means - mean).square())).sqrt()

    def shrink(self, normals: Normals) -> Normals:
        """The same normals with covariances pulled towards their mean."""
        if not self.shrinkage:
            return normals
        weight = normals.log_weight.exp()
        own = self.count * weight / (self.count * weight + self.shrinkage)
        return Normals(
            normals.log_weight, normals.mean, self.shrink_scale(normals.scale, weight, own)
        )

    def shrink_scale(self, scale: Tensor, weight: Tensor, own: Tensor) -> Tensor:
        """Scales of the covariances own S_j + (1 − own) S̄."""
        common, own = weight @ scale.square(), own.unsqueeze(-1)
        return (own * scale.square() + (1 - own) * common).sqrt()

    def check(self, normals: Normals) -> Normals:
        """The same normals, unless one has shrunk to a point."""
        scale = normals.scale
        deviation = scale.diagonal(dim1=-2, dim2=-1) if scale.dim() == 3 else scale
        if not bool((deviation > LEAST).all()):
            unit = int((~(deviation > LEAST)).nonzero()[0, 1])
            raise InputError(
                "expected new components with a variance; got one that float64 can't tell from 0, "
                f"in unit {unit}. Ask for fewer components, or leave out old ones that are "
                "points or lie far away."
            )
        return normals

    def as_mixture(self, normals: Normals) -> Mixture:
        """The result in the units and the dtype of the original mixture."""
        exact_mean = normals.mean * self.unit + self.shift
        loc = exact_mean.to(self.dtype)
        rounding = (loc.double() - exact_mean) / self.unit  # variances are about the rounded means
        weights = dist.Categorical(logits=normals.log_weight.to(self.dtype))
        return Mixture(weights, self.distribution(loc, rounding, normals.scale))

    def distribution(self, loc: Tensor, rounding: Tensor, scale: Tensor) -> dist.Distribution:
        """Normals at rounded means, with the rounding added to their variances."""
        widened = (scale.square() + rounding.square()).sqrt() * self.unit
        return dist.Normal(loc, widened.to(self.dtype)).to_event(1)


def _merge(found: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Log masses, means and variances, from log masses and moments of several parts."""
    masses, firsts, seconds = (torch.stack(column) for column in zip(*found, strict=True))
    mass = masses.logsumexp(0)
    share = (masses - mass).exp().unsqueeze(-1)
    first, second = (share * firsts).sum(0), (share * seconds).sum(0)
    return mass, first, second - first.square()


def is_narrow(second: Tensor, variance: Tensor, dtype: torch.dtype) -> Tensor:
    """Whether rounding of a second moment matters to a variance, in any unit, shape ``(K,)``."""
    error = NARROW * torch.finfo(dtype).eps * second
    return ~(variance > error).all(-1)


def _draw(log_weight: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Component numbers drawn by weight without replacement, with unbiased log weights.

    These have the largest log w + Gumbel noise. Given the largest that is left out, t, each is
    included with probability 1 − exp(−w e^−t), by which its weight is divided (Kool et al. 2019).
    """
    if count >= len(log_weight):
        return torch.arange(len(log_weight), device=log_weight.device), log_weight
    best = _gumbel(log_weight).topk(count + 1)
    index, first_out = best.indices[:-1], best.values[-1]
    inclusion = -torch.expm1(-(log_weight[index] - first_out).exp())
    return index, log_weight[index] - inclusion.log()


def _spread(points: Tensor, log_weight: Tensor, count: int) -> tuple[list[int], Tensor]:
    """k-means++: centres drawn one by one, by weight times squared distance to the nearest."""
    chosen: list[int] = []
    distance = torch.full_like(log_weight, math.inf)
    log_distance = torch.zeros_like(log_weight)
    while len(chosen) < min(count, len(points)) and bool((distance > 0).any()):
        chosen.append(int(_gumbel(log_weight + log_distance).argmax()))
        distance = torch.minimum(distance, (points - points[chosen[-1]]).square().sum(-1))
        log_distance = distance.log()
    return chosen, distance


def _gumbel(log_weight: Tensor) -> Tensor:
    """Log weights plus Gumbel noise: the largest is a draw by weight, whatever their range."""
    return log_weight - torch.empty_like(log_weight).exponential_().log()
