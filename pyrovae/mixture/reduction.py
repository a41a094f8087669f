"""Reduce a large mixture to one of few components, by EM on the components themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Literal, Self

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.display import Result
from pyrovae.errors import InputError
from pyrovae.estimates import Estimate, mean_estimate
from pyrovae.mixture.conversion import as_mixture
from pyrovae.mixture.families import (
    CORRELATED_NORMALS,
    factorised,
    family,
    floating_parameter,
    take,
)
from pyrovae.mixture.kernel.attention import block_log_sum_exp, block_log_sums, shares
from pyrovae.mixture.kernel.error_bound import roundoff
from pyrovae.mixture.kernel.scalar_product import constants, differences, full_keys, keys, queries
from pyrovae.mixture.mixture import Mixture
from pyrovae.randomness import check_seed, seeded

#: The largest number of rounds over a part or over all, and the gain below which one is the last.
ROUNDS, TOLERANCE = 60, 2e-3
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
#: Components whose second moments are in memory at once; few enough to stay in the cache.
ROWS = 2048
#: Numbers in the products of a round from which on pairs with a share are told from others, ...
LARGE = 1 << 27
#: ... which is a share above this, ...
NEAR = 1e-8
#: ... and the share of all pairs, for each feature, up to which rounds over these alone pay.
SPARSE = 3e-5


@dataclass(frozen=True, repr=False)
class Reduction(Result):
    """What `reduce` returns.

    Args:
        mixture: the mixture of K normal components.
        divergence: KL(original ‖ reduced) by Monte Carlo over draws from the original.
        bounds: after every round, the lower bound on E[log reduced] that the rounds increase.
        converged: whether the last round gained less than the tolerance; if not, allow more rounds.
    """

    mixture: Mixture
    divergence: Estimate
    bounds: tuple[float, ...]
    converged: bool


def reduce(
    mixture: torch.distributions.MixtureSameFamily,
    components: int,
    *,
    covariance: Literal["diagonal", "full"] = "diagonal",
    shrinkage: float = 0.0,
    rounds: int = ROUNDS,
    tolerance: float = TOLERANCE,
    draws: int = 4096,
    seed: int = 0,
) -> Reduction:
    r"""The mixture of K normals closest to a large mixture in KL(original ‖ reduced).

    EM takes the *components* as data, each by its exact mean and variance instead of draws: for
    component i = (w_i, μ_i, Σ_i), with soft assignments,

    .. math:: r_{ij} ∝ π_j e^{E_{q_i}[\log N_j]}, \quad
              π_j = \sum_i w_i r_{ij}, \quad m_j = \sum_i \frac{w_i r_{ij}}{π_j} μ_i, \quad
              S_j = \sum_i \frac{w_i r_{ij}}{π_j} (Σ_i + μ_i μ_i^T) - m_j m_j^T

    Every round increases Σ_i w_i log Σ_j π_j exp E_{q_i}[log N_j] ≤ E[log reduced]. The start is
    k-means++ on means and standard deviations of components drawn by weight, in units of those of
    the mixture. Rounds conserve the mean of the mixture and its variances, "full" its covariance.

    If new components rest on few old ones each, the covariances fitted to them do not generalise.
    Shrinkage pulls each towards the mean covariance, the more the fewer it rests on,

    .. math:: S_j ← \frac{N π_j S_j + ν \bar S}{N π_j + ν}, \qquad \bar S = \sum_j π_j S_j

    with N = 1/Σ w_i² the effective number of components; the bound may then decrease, and only the
    mean is conserved.

    Of many components a random part, drawn by weight, is taken first: 200 for each new one, at
    least 10,000, then four times as many, and so on. So only the last few rounds are over all, and
    these alone count. Rounds with full covariances over many components alternate with cheaper ones
    over the pairs with a share in the last complete round, which climb the same bound.

    Rounds are two passes of attention in float32 or, for full covariances, matrix products in the
    mixture's dtype. Where rounding might move a score by half a nat, or would affect variances,
    they are computed again in float64, or from the differences (μ_i − m_j)/S_j^½, which do not
    cancel but take longer. For a float64 mixture the last round is in float64. The result has the
    mixture's dtype: float32 cannot represent means that lie 10⁷ standard deviations from 0.

    Args:
        mixture: a `Mixture` or torch's or Pyro's own ``MixtureSameFamily`` over vectors, whose
            components have a mean and a variance; for full covariances, independent units or
            normals.
        components: K, from 1 to N. The result may have fewer: old components with the same means
            and variances count as one, those of weight zero as none, and a new one to which nothing
            is assigned is left out.
        covariance: "diagonal", or "full" for ``MultivariateNormal`` components.
        shrinkage: ν ≥ 0, how many old components the mean covariance counts as in a new one.
        rounds: the largest number of rounds, over a part or over all.
        tolerance: the gain of a round, in nats, below which it is the last.
        draws: number of draws that estimate the divergence.
        seed: seed of the start and of these draws.

    Raises:
        InputError: if K is not in 1 … N, ν is negative, ``rounds`` is below 1 or the covariance has
            another name; if the mixture is no mixture, a batch of several or not over vectors; if
            means or variances are unknown or not finite, or a new variance is 0.

    Goldberger & Roweis 2004; Vasconcelos & Lippman 1998; Runnalls 2007; Hershey & Olsen 2007; for
    rounds over few pairs Neal & Hinton 1998, "A view of the EM algorithm that justifies
    incremental, sparse, and other variants".

    >>> import torch, pyrovae as pv, pyro.distributions as dist
    >>> means = torch.linspace(-2, 2, 200).view(200, 1)
    >>> encoding = dist.Normal(means, 0.5).to_event(1)
    >>> pv.reduce(pv.AggregatedPosterior(encoding), 3).mixture
    Mixture(components=3, event_shape=(1,), family=Normal)
    """
    check_seed(seed)
    mixture = as_mixture(mixture)
    reduced, bounds, converged = _climb(
        mixture, components, covariance, shrinkage, rounds, tolerance, seed
    )
    with torch.no_grad(), seeded(seed, "divergence of a reduction"):
        z = mixture.sample((draws,))
        difference = mixture.log_prob(z).double() - reduced.log_prob(z).double()
    divergence = mean_estimate(difference, over="draws")
    return Reduction(reduced, divergence, bounds, converged)


def fewer_components(
    mixture: Mixture,
    components: int,
    *,
    covariance: Literal["diagonal", "full"] = "diagonal",
    shrinkage: float = 0.0,
    seed: int = 0,
) -> Mixture:
    """The mixture that `reduce` finds, without its divergence.

    The divergence takes the log density of all components, however few its draws.

    Args:
        mixture, components, covariance, shrinkage, seed: as for `reduce`.

    Raises:
        InputError: as `reduce` does.

    >>> import torch, pyrovae as pv, pyro.distributions as dist
    >>> encoding = dist.Normal(torch.linspace(-2, 2, 200).view(200, 1), 0.5).to_event(1)
    >>> fewer_components(pv.AggregatedPosterior(encoding), 3)
    Mixture(components=3, event_shape=(1,), family=Normal)
    """
    check_seed(seed)
    mixture = as_mixture(mixture)
    return _climb(mixture, components, covariance, shrinkage, ROUNDS, TOLERANCE, seed)[0]


def _climb(
    mixture: Mixture,
    components: int,
    covariance: str,
    shrinkage: float,
    rounds: int,
    tolerance: float,
    seed: int,
) -> tuple[Mixture, tuple[float, ...], bool]:
    """The mixture, the bounds and whether the rounds converged, as in `Reduction`."""
    _check(mixture, components, covariance, shrinkage, rounds)
    with torch.no_grad():
        problem = (FullRounds if covariance == "full" else DiagonalRounds)(mixture, shrinkage)
        normals = problem.start(components, seed)
        for stage in chain(problem.stages(components, seed), [problem]):
            before, normals, bounds, converged = stage.climb(normals, rounds, tolerance)
        if torch.finfo(problem.dtype).eps < torch.finfo(problem.lowest_dtype).eps:
            normals, bounds[-1] = problem.round(before, problem.dtype)
        return problem.as_mixture(normals), tuple(bounds), converged


def _check(
    mixture: Mixture, components: int, covariance: str, shrinkage: float, rounds: int
) -> None:
    """Check the arguments of `reduce`."""
    if covariance not in ("diagonal", "full"):
        raise InputError(
            f"expected covariance 'diagonal' or 'full'; got {covariance!r}. For a covariance "
            "that all nearly share, take 'full' with a large shrinkage."
        )
    if mixture.batch_shape:
        raise InputError(
            f"expected one mixture; got batch shape {tuple(mixture.batch_shape)}. Reduce it before "
            "it is expanded."
        )
    if not 1 <= components <= mixture.size:
        raise InputError(f"expected 1 to {mixture.size} components; got {components}.")
    if not shrinkage >= 0:
        raise InputError(f"expected a shrinkage of at least 0; got {shrinkage}.")
    if rounds < 1:
        raise InputError(f"expected at least 1 round; got {rounds}.")
    if len(mixture.event_shape) != 1:
        raise InputError(f"expected a mixture over vectors; got events {mixture.event_shape}.")
    distribution = mixture.component_distribution
    if covariance == "full" and not (
        factorised(distribution) or isinstance(distribution, CORRELATED_NORMALS)
    ):
        raise InputError(
            "expected independent units or normals, whose covariances are known; got "
            f"{family(distribution)}. Take covariance='diagonal'."
        )


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
        narrow = _narrow(mean.square() + variance.abs(), variance, dtype).nonzero().squeeze(-1)
        if len(narrow) and dtype != torch.float64:  # no others: it takes three times as long
            parts = zip(self.parts(), offsets, strict=True)
            exact = _merge([self.match_moments(query[narrow], self.data(r), o) for r, o in parts])
            for moment, exact_moment in zip((mass, mean, variance), exact, strict=True):
                moment[narrow] = exact_moment
        second = (mean.square() + variance.abs())[narrow]
        if bool(_narrow(second, variance[narrow], torch.float64).any()):
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
        cancels = failed.any() | _narrow(second, conditional_variance, dtype).any()
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


def _merge(found: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Log masses, means and variances, from log masses and moments of several parts."""
    masses, firsts, seconds = (torch.stack(column) for column in zip(*found, strict=True))
    mass = masses.logsumexp(0)
    share = (masses - mass).exp().unsqueeze(-1)
    first, second = (share * firsts).sum(0), (share * seconds).sum(0)
    return mass, first, second - first.square()


def _triangular_root(rows: Tensor) -> Tensor:
    """Lower triangular L with L Lᵀ = BᵀB; in the product itself rounding would drown thin axes."""
    upper = torch.linalg.qr(rows, mode="r").R
    return (upper * upper.diagonal(dim1=-2, dim2=-1).sgn().unsqueeze(-1)).mT


def _narrow(second: Tensor, variance: Tensor, dtype: torch.dtype) -> Tensor:
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
