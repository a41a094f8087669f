"""Evaluation of a large set of diagonal normals: screened in fast arithmetic, finished in exact.

`pyrovae.mixture.logdensity` derives the expanded form and its error bound η. One pass of the fused
kernel gives the log-sum-exp of every block of components for every query. Where a block has the
share r of a query's density, an error of η in the block moves the total by at most r (e^η − 1); the
few (block, query) pairs for which that exceeds the tolerance are evaluated again in float64, and
from differences where even that cancels. Codes are concentrated, so the pairs are few.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pyrovae.mixture.attention import block_log_sum_exp
from pyrovae.mixture.logdensity import constants, differences, keys, queries, roundoff

#: What `DiagonalNormals.evaluate` may add to the error of float64 brute force, in nats, by the
#: dtype of the result.
TOLERANCE = {torch.float32: 5e-5, torch.float64: 1e-9}
#: Components in one block: at most, and at most if there are few of them.
BLOCK, SMALL_BLOCK = 1024, 256
#: Bytes that one chunk of the work may hold.
CHUNK_BYTES = 1 << 27
#: Bytes of keys that are kept from call to call in float64.
CACHE_BYTES = 1 << 26
#: An error of more nats than this makes the value of a block unusable even as a guide.
UNUSABLE = 20.0


@dataclass(frozen=True)
class Evaluation:
    """What one pass over the components tells about B queries; everything in float64.

    Args:
        log_prob: log Σ_n w_n N(z; μ_n, σ_n²), shape ``(B,)``.
        score: its gradient in z, shape ``(B, D)``.
        expected: Σ_n r_n log w_n N(z; μ_n, σ_n²) under the responsibilities r, shape ``(B,)``.
    """

    log_prob: Tensor
    score: Tensor
    expected: Tensor


class DiagonalNormals:
    """A weighted set of diagonal normals as an evaluator: holds the keys, knows its accuracy.

    Args:
        loc: shape ``(N, D)``.
        scale: shape ``(N, D)``.
        log_weight: normalised log weights, shape ``(N,)``; −inf leaves the component out.
    """

    def __init__(self, loc: Tensor, scale: Tensor, log_weight: Tensor) -> None:
        kept = log_weight > -math.inf
        self.index = None if bool(kept.all()) else kept.nonzero().squeeze(-1)
        if self.index is not None:
            loc, scale, log_weight = (t[self.index] for t in (loc, scale, log_weight))
        self.loc, self.scale, self.log_weight = loc.detach(), scale.detach(), log_weight.detach()
        self.size, self.dim = loc.shape
        self.centre = self.loc.sum(0, dtype=torch.float64) / max(1, self.size)
        self.features = 2 * self.dim + 1
        self.block = max(1, min(BLOCK, self.size, max(SMALL_BLOCK, self.size // 40)))
        self.blocks = -(-self.size // self.block)
        self._keys: dict[torch.dtype, Tensor] = {}

    def rows(self) -> Iterator[slice]:
        """The blocks of components."""
        return (self.block_rows(block) for block in range(self.blocks))

    def block_rows(self, block: int) -> slice:
        """The components of a block."""
        return slice(block * self.block, min((block + 1) * self.block, self.size))

    def keys(self, rows: slice) -> Tensor:
        """Keys of some components in float64, relative to the centre, shape ``(n, F)``."""
        rows = slice(*rows.indices(self.size))
        if torch.float64 in self._keys:
            return self._keys[torch.float64].flatten(0, 1)[rows]
        loc, scale, constant = self.exact(rows)
        return keys(loc - self.centre, scale, constant)

    def block_keys(self, dtype: torch.dtype, first: int, last: int) -> Tensor:
        """Keys of blocks first … last − 1, ``(last − first, M, F)``; the end padded by e^−∞."""
        rows = slice(first * self.block, min(last * self.block, self.size))
        found = self.keys(rows).to(dtype)
        missing = (last - first) * self.block - len(found)
        if missing:
            padding = found.new_zeros(missing, self.features)
            padding[:, -1] = -1e30
            found = torch.cat([found, padding])
        return found.view(last - first, self.block, self.features)

    def cached_keys(self, dtype: torch.dtype) -> Tensor | None:
        """All keys in one tensor ``(H, M, F)``, or None in float64 beyond `CACHE_BYTES`."""
        bytes_needed = 8 * self.blocks * self.block * self.features
        if dtype not in self._keys:
            if dtype == torch.float64 and bytes_needed > CACHE_BYTES:
                return None
            step = self.blocks_per_chunk
            starts = range(0, self.blocks, step)
            chunks = (self.block_keys(dtype, i, min(i + step, self.blocks)) for i in starts)
            kept = self.loc.new_empty(self.blocks, self.block, self.features, dtype=dtype)
            for start, chunk in zip(starts, chunks, strict=True):
                kept[start : start + step] = chunk
            self._keys[dtype] = kept
        return self._keys[dtype]

    @property
    def blocks_per_chunk(self) -> int:
        """Blocks whose float64 keys fit a chunk of the work with room for intermediate results."""
        return max(1, CHUNK_BYTES // (4 * 8 * self.block * self.features))

    @cached_property
    def largest(self) -> Tensor:
        """max_n |k_nf| in every block, shape ``(H, F)``: what the error bound needs to know."""
        held = self.cached_keys(torch.promote_types(self.loc.dtype, torch.float32))
        if held is None:
            return torch.stack([self.keys(rows).abs().amax(0) for rows in self.rows()])
        valid = held.flatten(0, 1)[: self.size]
        found = torch.stack([valid[rows].abs().amax(0) for rows in self.rows()])
        return found.double() * (1 + torch.finfo(held.dtype).eps)  # they are rounded

    @cached_property
    def exact_all(self) -> tuple[Tensor, Tensor, Tensor]:
        """`exact` of all components, kept with units first in memory: for small sets."""
        loc, scale, constant = self.exact(slice(None))
        return loc.mT.contiguous().mT, scale.mT.contiguous().mT, constant

    @cached_property
    def largest_of_all(self) -> Tensor:
        """max_n |k_nf| over all components, shape ``(F,)``."""
        return self.largest.amax(0)

    def all_keys(self) -> Tensor:
        """Keys of all components in float64, kept if they are few, shape ``(N, F)``."""
        held = self.cached_keys(torch.float64)
        return self.keys(slice(None)) if held is None else held.flatten(0, 1)[: self.size]

    def scores(self, z: Tensor, rows: slice) -> Tensor:
        """log w_n + log N(z; μ_n, σ_n²) of some components in float64, shape ``(B, n)``."""
        query = queries(z.double() - self.centre)
        error = query.abs() @ self.largest_of_all * roundoff(self.features, torch.float64)
        if bool((error <= TOLERANCE[torch.float64]).all()):
            return query @ self.keys(rows).mT
        given = self.exact(rows)
        step = max(1, CHUNK_BYTES // (4 * 8 * given[0].numel()))
        return torch.cat([differences(part, *given) for part in z.double().split(step)])

    def exact(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Location, scale and constant of some components in float64, for `differences`."""
        return self.loc[rows].double(), self.scale[rows].double(), self.constant[rows]

    @cached_property
    def constant(self) -> Tensor:
        """`constants` of all components in float64, shape ``(N,)``."""
        found = torch.empty(self.size, dtype=torch.float64, device=self.loc.device)
        for rows in self.rows():
            found[rows] = constants(self.scale[rows].double(), self.log_weight[rows].double())
        return found

    def log_prob(
        self, z: Tensor, *, variance: Tensor | None = None, exclude: Tensor | None = None
    ) -> Tensor:
        """log Σ_n w_n N(z; μ_n, σ_n²) in float64, within `TOLERANCE`, shape ``(B,)``.

        Args:
            z: points, shape ``(B, D)``.
            variance: with it, the log density of component n is replaced by its expectation under
                N(z, variance), shape ``(B, D)``.
            exclude: for each point a component to leave out, as an index into this set, ``(B,)``.
        """
        passes = self._passes(z, variance, exclude, moments=False)
        return torch.cat([part.lse.logsumexp(0) for part in passes])

    def evaluate(self, z: Tensor) -> Evaluation:
        """Log density, score and expected component log density, within `TOLERANCE`.

        Args:
            z: points, shape ``(B, D)``.
        """
        parts = [part.merge() for part in self._passes(z, None, None, moments=True)]
        columns = zip(*((p.log_prob, p.score, p.expected) for p in parts), strict=True)
        return Evaluation(*(torch.cat(column) for column in columns))

    def _passes(
        self, z: Tensor, variance: Tensor | None, exclude: Tensor | None, *, moments: bool
    ) -> Iterator[_Pass]:
        bytes_per_query = self.blocks * (64 + 8 * self.features * moments) + 64 * self.features
        step = max(1, CHUNK_BYTES // bytes_per_query)
        for start in range(0, max(len(z), 1), step):
            rows = slice(start, start + step)
            given = (t if t is None else t[rows].detach() for t in (variance, exclude))
            part = _Pass(self, z[rows].detach(), *given, moments=moments)
            part.run()
            yield part


#: Log-sum-exps, error bounds and, if asked for, scores and expected log densities of some queries.
_Values = tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]


@dataclass(frozen=True)
class _Refined:
    """Values of one block for some queries, valid where ``level`` is still the pair's level."""

    level: int
    block: int
    queries: Tensor
    score: Tensor
    expected: Tensor


class _Pass:
    """One chunk of queries against all blocks: log-sum-exps, error bounds, what was refined."""

    def __init__(
        self,
        normals: DiagonalNormals,
        z: Tensor,
        variance: Tensor | None,
        exclude: Tensor | None,
        *,
        moments: bool,
    ) -> None:
        self.normals, self.z, self.variance, self.exclude = normals, z, variance, exclude
        self.moments = moments
        self.dtype = torch.promote_types(
            torch.promote_types(z.dtype, normals.loc.dtype), torch.float32
        )
        self.centred = z.double() - normals.centre
        self.query = queries(self.centred, None if variance is None else variance.double())
        self.magnitude = self.query.abs() @ normals.largest.mT
        self.refined: list[_Refined] = []

    def run(self) -> None:
        """Screen, and refine what matters."""
        tolerance = TOLERANCE[self.dtype] / 4
        if self.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest":
            self.screen(torch.float32)
            chosen = self.matters(tolerance)
            if int(chosen.sum()) > chosen.numel() // 4:
                self.screen(torch.float64)
            else:
                self.refine(chosen, self.expanded)
        else:
            self.screen(torch.float64)
        self.refine(self.matters(tolerance), self.difference)

    def screen(self, dtype: torch.dtype) -> None:
        """The fused pass over all blocks, with a bound on the error of each."""
        normals, query = self.normals, self.query.to(dtype)
        held = normals.cached_keys(dtype)
        step = max(1, CHUNK_BYTES // (query.element_size() * max(1, query.numel())))
        if held is None:
            step = min(step, normals.blocks_per_chunk)
        log_sums, means = [], []
        for first in range(0, normals.blocks, step):
            last = min(first + step, normals.blocks)
            key = held[first:last] if held is not None else normals.block_keys(dtype, first, last)
            log_sum, mean = block_log_sum_exp(query, key)
            log_sums.append(log_sum)
            if self.moments:
                means.append(mean)
        self.lse, self.means = torch.cat(log_sums).double(), means
        self.error = self.magnitude.mT * roundoff(normals.features, dtype)
        self.error = self.error + (128 + normals.block / 128) * torch.finfo(dtype).eps
        self.level = torch.zeros_like(self.lse, dtype=torch.int8)
        self.rounds, self.refined = 0, []
        self.overflow = not bool(self.lse.isfinite().all() and self.error.isfinite().all())
        if self.exclude is not None:
            blocks = torch.arange(normals.blocks, device=self.z.device).unsqueeze(-1)
            self.refine(blocks == self.exclude // normals.block, self.expanded)

    def matters(self, tolerance: float) -> Tensor:
        """Pairs (block, query) whose error may move the query's result by too much, ``(H, B)``.

        The share of a block is at most exp(lse + η) over the total of all exp(lse − η).
        """
        unusable = ~(self.error <= UNUSABLE) | self.lse.isnan() | (self.lse == math.inf)
        total = torch.where(unusable, -math.inf, self.lse - self.error).logsumexp(0)
        cost = self.lse + self.error + self.error.expm1().log() - total
        return unusable | ~(cost <= math.log(tolerance / len(self.lse))) & (self.error > 0)

    def refine(self, chosen: Tensor, method: Callable[[int, Tensor], _Values]) -> None:
        """Evaluate the chosen pairs again by ``method``; record its values and error bound."""
        self.rounds += 1
        size = self.normals.block * (self.normals.dim if method == self.difference else 4)
        step = max(1, CHUNK_BYTES // (4 * 8 * size))
        for block in chosen.any(1).nonzero().flatten().tolist():
            for rows in chosen[block].nonzero().flatten().split(step):
                self.lse[block, rows], self.error[block, rows], moments = method(block, rows)
                self.level[block, rows] = self.rounds
                if moments is not None:
                    self.refined.append(_Refined(self.rounds, block, rows, *moments))

    def expanded(self, block: int, rows: Tensor) -> _Values:
        """A block in float64 by the expanded form."""
        key, query = self.normals.keys(self.normals.block_rows(block)), self.query[rows]
        scores = self._without_excluded(query @ key.mT, block, rows)
        error = self.magnitude[rows, block] * roundoff(self.normals.features, torch.float64)
        if not self.moments:
            return scores.logsumexp(-1), error, None
        mean = self._share(scores) @ key
        return scores.logsumexp(-1), error, _moments(mean, self.centred[rows], query)

    def difference(self, block: int, rows: Tensor) -> _Values:
        """A block in float64 from differences, which do not cancel."""
        loc, scale, constant = self.normals.exact(self.normals.block_rows(block))
        z = self.z[rows].double()
        variance = None if self.variance is None else self.variance[rows].double()
        scores = differences(z, loc, scale, constant, variance)
        scores = self._without_excluded(scores, block, rows)
        lse = scores.logsumexp(-1)
        if not self.moments:
            return lse, torch.zeros_like(lse), None
        share = self._share(scores)
        pull = (loc - z.unsqueeze(1)) / scale.square()
        score = (share.unsqueeze(1) @ pull).squeeze(1)
        expected = torch.where(share > 0, share * scores, 0.0).sum(-1)
        return lse, torch.zeros_like(lse), (score, expected)

    def _without_excluded(self, scores: Tensor, block: int, rows: Tensor) -> Tensor:
        if self.exclude is None:
            return scores
        inside = self.normals.block_rows(block)
        component = torch.arange(inside.start, inside.stop, device=scores.device)
        return scores.masked_fill(component == self.exclude[rows].unsqueeze(-1), -math.inf)

    def _share(self, scores: Tensor) -> Tensor:
        empty = scores.amax(-1, keepdim=True) == -math.inf
        return scores.softmax(-1).masked_fill(empty, 0.0)

    def merge(self) -> Evaluation:
        """Blocks merged by their shares."""
        total = self.lse.logsumexp(0)
        share = (self.lse - total).exp()
        weight = torch.where(self.level == 0, share, 0.0)
        mean = torch.zeros_like(self.query)
        for part, given in zip(weight.split([len(m) for m in self.means]), self.means, strict=True):
            if self.overflow:
                given = torch.where(part.unsqueeze(-1) > 0, given, 0.0)
            mean += torch.einsum("hb,hbf->bf", part.to(given.dtype), given)
        score, expected = _moments(mean, self.centred, self.query)
        for found in self.refined:
            rows = found.queries
            valid = (self.level[found.block, rows] == found.level) & (share[found.block, rows] > 0)
            weight = torch.where(valid, share[found.block, rows], 0.0)
            score[rows] += weight.unsqueeze(-1) * found.score
            expected[rows] += torch.where(valid, weight * found.expected, 0.0)
        return Evaluation(total, score, expected)


def _moments(mean: Tensor, z: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Score E_r[pμ] − z E_r[p] and expected log density from the mean key."""
    dim = z.shape[-1]
    return mean[:, dim : 2 * dim] + 2 * z * mean[:, :dim], (mean * query).sum(-1)
