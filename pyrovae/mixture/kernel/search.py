r"""Evaluate a large set of diagonal normals: search in float32, sum in float64.

Codes are concentrated: at most points, most components contribute nothing. So the pass over all
pairs of point and component takes no exponentials, only the largest score \hat m of every group of
neighbouring components, in float32. With the error bound η of `error_bound.py`, a group of M
components contributes at most M e^{\hat m + η} to the density and the best one at least
e^{\hat m - η}. Groups whose bounds sum up to less than the tolerance are left out, and every other
one is evaluated in float64, from differences where even that cancels.

Where most groups matter, float64 goes over all of them with the fused kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.errors import InputError
from pyrovae.mixture.kernel import few_units
from pyrovae.mixture.kernel.attention import block_log_sum_exp, block_log_sums
from pyrovae.mixture.kernel.component_scores import largest_scores
from pyrovae.mixture.kernel.diagonal_normals import (
    BLOCK,
    CHUNK_BYTES,
    PADDING,
    TOLERANCE,
    DiagonalNormals,
)
from pyrovae.mixture.kernel.error_bound import roundoff
from pyrovae.mixture.kernel.group_sums import Moments, Sum, best_of_pairs, evaluate_pairs
from pyrovae.mixture.kernel.parts import NormalsInParts, position_in

#: Scores in memory at once, on a CPU (they fit its cache) and elsewhere.
TILE, LARGE_TILE = 1 << 17, 1 << 25
#: Points that are evaluated first, to see whether the search pays for the others.
PROBE = 32
#: The search pays unless it leaves more than this part of the (group, point) pairs to evaluate: a
#: pair that is picked out costs two to four times as much as one in a pass over all.
SPREAD = 0.3
#: With an error bound of more nats than this, the value of a block is no use even as a guide.
UNUSABLE = 20.0
#: The dtypes of the search, tried in this order; after them comes the pass over all blocks.
SEARCHES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Evaluation:
    """Results of one pass over the components for B points, in float64.

    Args:
        log_prob: log Σ_n w_n N(z; μ_n, σ_n²), shape ``(B,)``.
        score: its gradient in z, shape ``(B, D)``.
        entropy: −Σ_n r_n log r_n of the responsibilities r, shape ``(B,)``.
    """

    log_prob: Tensor
    score: Tensor
    entropy: Tensor


def log_prob(
    normals: DiagonalNormals | NormalsInParts,
    z: Tensor,
    *,
    variance: Tensor | None = None,
    exclude: Tensor | None = None,
) -> Tensor:
    """log Σ_n w_n N(z; μ_n, σ_n²) in float64, within `TOLERANCE`, shape ``(B,)``.

    Args:
        normals: the components.
        z: points, shape ``(B, D)``.
        variance: if given, the log density of component n is replaced by its expectation under
            N(z, variance), shape ``(B, D)``.
        exclude: for each point a component to leave out, as an index into ``normals`` or −1 for
            none, shape ``(B,)``.
    """
    plain = variance is None and exclude is None
    if plain and isinstance(normals, DiagonalNormals) and few_units.applies(normals, z):
        result, within = few_units.log_prob(normals, z)
        rest = (~within).nonzero().squeeze(-1)
        if len(rest):
            result[rest] = _sum(normals, z[rest], None, None, moments=False).result()[0]
        return result
    return _sum(normals, z, variance, exclude, moments=False).result()[0]


def evaluate(normals: DiagonalNormals | NormalsInParts, z: Tensor) -> Evaluation:
    """Log density, score and entropy of the responsibilities, within `TOLERANCE`.

    Args:
        normals: the components.
        z: points, shape ``(B, D)``.
    """
    return Evaluation(*_sum(normals, z, None, None, moments=True).result())


def top(normals: DiagonalNormals | NormalsInParts, z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k components with the largest responsibilities at each point.

    Args:
        normals: the components, at least k of them.
        z: points, shape ``(B, D)``.
        k: number of components.

    Returns:
        indices into ``normals`` and responsibilities in float64, largest first, shape ``(B, k)``;
        NaN where the density is 0.
    """
    if not isinstance(normals, NormalsInParts):
        index, score, total = _best(normals, z, k)
        return index, total.share(score)
    total = _checked_sum(normals, z, moments=False)
    index = torch.zeros(len(z), 0, dtype=torch.long, device=z.device)
    score = total.largest.new_zeros(len(z), 0)
    for first, part in normals.on(z.device):
        number, value, part_total = _best(part, z, min(k, part.size))
        number = first + (number if part.index is None else part.index[number])
        index, score = _largest(torch.cat([index, number], 1), torch.cat([score, value], 1), k)
        total.merge(part_total)
    if normals.processes is not None:
        index, score = _largest(*normals.processes.join(index, score), k)
        normals.processes.add_up(total)
    return index, total.share(score)


def _largest(index: Tensor, score: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each row and their numbers."""
    best = score.topk(min(k, score.shape[1]), 1)
    return index.gather(1, best.indices), best.values


def _best(normals: DiagonalNormals, z: Tensor, k: int) -> tuple[Tensor, Tensor, Sum]:
    """Numbers and scores of the k components of largest score, ``(B, k)``, and the sum over all."""
    few = k > normals.groups or not len(z)
    step = max(1, CHUNK_BYTES // (normals.groups * (64 + 16 * min(k, normals.group))))
    total = Sum(len(z), 0, moments=False, device=z.device)
    index: list[Tensor] = []
    scores: list[Tensor] = []
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        for rows in torch.arange(len(z), device=z.device).split(normals.points if few else step):
            points = z[rows].detach()
            if few:
                number, score, part = largest_scores(normals, points, k)
            else:
                chunk = _Pass(normals, points, None, None, moments=False)
                number, score = chunk.top(k)
                part = chunk.total
            index.append(number)
            scores.append(score)
            total.put(rows, part)
    return torch.cat(index), torch.cat(scores), total


def _checked_sum(normals: NormalsInParts, z: Tensor, *, moments: bool) -> Sum:
    """An empty sum for points that are the same in all processes."""
    if normals.processes is not None:
        normals.processes.check_points(z)
    return Sum(len(z), normals.dim, moments=moments, device=z.device)


def _sum(
    normals: DiagonalNormals | NormalsInParts,
    z: Tensor,
    variance: Tensor | None,
    exclude: Tensor | None,
    *,
    moments: bool,
) -> Sum:
    """The sums of all components, which may come in parts."""
    if not isinstance(normals, NormalsInParts):
        return _run_passes(normals, z, variance, exclude, moments=moments)
    total = _checked_sum(normals, z, moments=moments)
    for first, part in normals.on(z.device):
        own = None if exclude is None else position_in(part, first, exclude)
        total.merge(_run_passes(part, z, variance, own, moments=moments))
    if normals.processes is not None:
        normals.processes.add_up(total)
    return total


def _run_passes(
    normals: DiagonalNormals,
    z: Tensor,
    variance: Tensor | None,
    exclude: Tensor | None,
    *,
    moments: bool,
) -> Sum:
    """Evaluate a few spaced points first: they show which way is the fastest for the others."""
    spaced = torch.arange(PROBE, device=z.device) * (len(z) // PROBE)
    first = torch.zeros(len(z), dtype=torch.bool, device=z.device)
    first[spaced if len(z) > PROBE else slice(None)] = True
    order = torch.cat([first.nonzero(), (~first).nonzero()]).squeeze(-1)
    bytes_per_point = 64 * (normals.groups + normals.features)
    if moments:
        bytes_per_point += 8 * normals.features * -(-normals.size // BLOCK)
    level, start, step = 0, 0, PROBE
    total = Sum(len(z), normals.dim, moments=moments, device=z.device)
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        while start < len(z):
            rows = order[start : start + step]
            options = (t if t is None else t[rows].detach() for t in (variance, exclude))
            chunk = _Pass(normals, z[rows].detach(), *options, moments=moments)
            level = chunk.run(level)
            total.put(rows, chunk.total)
            start, step = start + step, max(1, CHUNK_BYTES // bytes_per_point)
    return total


class _Pass:
    """One chunk of points against all components."""

    def __init__(
        self,
        normals: DiagonalNormals,
        z: Tensor,
        variance: Tensor | None,
        exclude: Tensor | None,
        *,
        moments: bool,
    ) -> None:
        self.normals, self.exclude = normals, exclude
        dtype = torch.promote_types(torch.promote_types(z.dtype, normals.loc.dtype), torch.float32)
        self.tolerance = TOLERANCE[dtype] / 4
        self.loose = torch.get_float32_matmul_precision() != "highest"
        self.moments = Moments(normals, z.double(), variance, exclude, moments=moments)
        self.magnitude = normals.largest @ self.moments.query.abs().mT
        self.total = Sum(len(z), normals.dim, moments=moments, device=z.device)

    def run(self, level: int) -> int:
        """Evaluate in the first way, from number ``level`` on, that pays; return its number."""
        for number, dtype in enumerate(SEARCHES):
            if number < level or (dtype == torch.float32 and self.loose):
                continue
            chosen, _ = self.search(dtype)
            if int(chosen.sum()) <= SPREAD * chosen.numel():
                self.add(chosen)
                return number
        self.sum_all_blocks()
        return len(SEARCHES)

    def top(self, k: int) -> tuple[Tensor, Tensor]:
        """Numbers and scores of the k components of largest score, ``(B, k)``; fills the total."""
        for dtype in SEARCHES[self.loose :]:
            chosen, leading = self.search(dtype, k)
            if int(leading.sum()) <= SPREAD * leading.numel():
                break
        if int(chosen.sum()) <= SPREAD * chosen.numel():
            return best_of_pairs(self.moments, chosen | leading, k, self.cancels(), self.total)
        self.sum_all_blocks()
        return best_of_pairs(self.moments, leading, k, self.cancels(), None)

    def search(self, dtype: torch.dtype, k: int = 1) -> tuple[Tensor, Tensor]:
        """The pairs (group, point) that may matter, and those that may hold one of the k best.

        Pairs that don't matter add up to less than the tolerance, relative to a lower bound on the
        sum. Both results have shape ``(G, B)``.
        """
        best = group_maxima(self.normals, self.moments.query, dtype).double()
        error = self.magnitude * roundoff(self.normals.features, dtype)
        unusable = ~(error < math.inf) | ~best.isfinite()
        certain = torch.where(unusable, -math.inf, best - error)
        if self.exclude is not None:
            own = self.own_group
            rest_of_group = Sum(len(own[0]), self.normals.dim, moments=False, device=own.device)
            self.add(torch.zeros_like(unusable).scatter_(0, own, True), rest_of_group)
            certain.scatter_(0, own, rest_of_group.result()[0].unsqueeze(0) - self.tolerance)
            unusable.scatter_(0, own, True)
        possible = best + error + math.log(self.normals.group) - certain.amax(0)
        rest = torch.where(unusable, math.inf, possible.exp())
        cut = torch.full_like(rest[0], self.tolerance / len(rest))
        for part in (256.0, 64.0, 16.0, 4.0):
            limit = self.tolerance / part
            left_out = torch.where(rest <= limit, rest, 0.0).sum(0)
            cut = torch.where(left_out <= self.tolerance, cut.clamp(min=limit), cut)
        kth = certain.topk(min(k, len(certain)), 0).values[-1] if k > 1 else certain.amax(0)
        return ~(rest <= cut), unusable | ~(best + error < kth)

    @property
    def own_group(self) -> Tensor:
        """The group of the component that each point leaves out, ``(1, B)``; 0 if it is none."""
        if self.exclude is None:
            raise InputError("expected components to leave out; got none.")
        return (self.exclude // self.normals.group).clamp(min=0).unsqueeze(0)

    def add(self, chosen: Tensor, total: Sum | None = None) -> None:
        """Evaluate chosen pairs in float64, from differences where the expanded form cancels."""
        cancels = self.cancels()
        total = self.total if total is None else total
        evaluate_pairs(self.moments, chosen & ~cancels, total, differences=False)
        evaluate_pairs(self.moments, chosen & cancels, total, differences=True)

    def cancels(self) -> Tensor:
        """The pairs for which the expanded form is not precise enough, shape ``(G, B)``."""
        error = self.magnitude * roundoff(self.normals.features, torch.float64)
        return ~(error <= self.tolerance)

    def sum_all_blocks(self) -> None:
        """Evaluate all blocks by the fused kernel in float64, and again where its error matters."""
        normals, query = self.normals, self.moments.query
        span = max(1, BLOCK // normals.group)
        blocks = -(-normals.groups // span)
        parts: list[Tensor] = []
        mean_keys: list[Tensor] = []
        for key in self._blocks(span):
            if self.moments.with_moments:
                block_log_sum, mean = block_log_sum_exp(query, key)
                mean_keys.extend(mean)
            else:
                block_log_sum = block_log_sums(query, key)
            parts.append(block_log_sum)
        log_sums = torch.cat(parts)
        padding = (0, 0, 0, blocks * span - normals.groups)
        magnitude = torch.nn.functional.pad(self.magnitude, padding).view(blocks, span, -1).amax(1)
        error = magnitude * roundoff(normals.features, torch.float64)
        error = error + (128 + BLOCK / 128) * torch.finfo(torch.float64).eps
        chosen = self.blocks_that_matter(log_sums, error, span)
        if not mean_keys:
            block_numbers, points = (~chosen).nonzero(as_tuple=True)
            self.total.add(points, log_sums[block_numbers, points])
        for block, mean in enumerate(mean_keys):
            points = (~chosen[block]).nonzero().squeeze(-1)
            log_sum = log_sums[block, points]
            means = self.moments.means_from_keys(mean[points], points, log_sum)
            self.total.add(points, log_sum, means=means)
        self.add(chosen.repeat_interleave(span, 0)[: normals.groups])

    def blocks_that_matter(self, log_sums: Tensor, error: Tensor, span: int) -> Tensor:
        """Pairs (block, point) whose error may change the point's result too much, ``(H, B)``.

        The share of a block is at most exp(log sum + η) over the total of all exp(log sum − η).
        """
        unusable = ~(error <= UNUSABLE) | log_sums.isnan() | (log_sums == math.inf)
        if self.exclude is not None:
            unusable.scatter_(0, self.own_group // span, True)
        total = torch.where(unusable, -math.inf, log_sums - error).logsumexp(0)
        cost = log_sums + error + error.expm1().log() - total
        return unusable | ~(cost <= math.log(self.tolerance / len(log_sums)))

    def _blocks(self, span: int) -> Iterator[Tensor]:
        """float64 keys of some blocks of ``span`` groups at a time, ``(h, span · M, F)``."""
        normals = self.normals
        heads = CHUNK_BYTES // (8 * normals.features * max(len(self.magnitude[0]), 4 * BLOCK))
        step = max(1, heads) * span
        for first in range(0, normals.groups, step):
            key = normals.group_keys(torch.float64, first, min(first + step, normals.groups))
            if padding_groups := -len(key) % span:
                padding = key.new_zeros(padding_groups, *key.shape[1:])
                padding[..., -1] = PADDING[torch.float64]
                key = torch.cat([key, padding])
            yield key.reshape(-1, span * normals.group, normals.features)


def group_maxima(normals: DiagonalNormals, query: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest score of every group at every point, shape ``(G, B)``.

    Scores are computed and reduced in tiles that fit the processor's cache.
    """
    columns = query.to(dtype).mT.contiguous()
    points, tile = columns.shape[1], TILE if query.device.type == "cpu" else LARGE_TILE
    span = max(1, max(BLOCK, tile // max(1, points)) // normals.group)
    width = max(1, tile // (span * normals.group))
    maxima = columns.new_empty(normals.groups, points)
    for first in range(0, normals.groups, span):
        key = normals.group_keys(dtype, first, min(first + span, normals.groups))
        for start in range(0, points, width):
            part = slice(start, min(start + width, points))
            scores = key.flatten(0, 1) @ columns[:, part]
            torch.amax(
                scores.view(*key.shape[:2], -1), 1, out=maxima[first : first + len(key), part]
            )
    return maxima
