"""A weighted set of diagonal normals, laid out for evaluation: groups of neighbours, their keys.

`pyrovae.mixture.kernel.scalar_product` derives the keys, `pyrovae.mixture.kernel.search` evaluates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from pyrovae.mixture.kernel.cache import leave_inference_mode
from pyrovae.mixture.kernel.error_bound import roundoff
from pyrovae.mixture.kernel.ordering import locality_order
from pyrovae.mixture.kernel.scalar_product import constants, differences, keys, queries

#: What evaluation may add to the error of float64 brute force, in nats, by the dtype of the result.
TOLERANCE = {torch.float32: 5e-5, torch.float64: 1e-9}
#: Components in one group, which is evaluated as a whole or not at all.
GROUP = 128
#: Sets of fewer groups than this are not reordered.
SORTED_GROUPS = 16
#: Components in one block of a pass over all.
BLOCK = 1024
#: Bytes that one chunk of work may take.
CHUNK_BYTES = 1 << 27
#: Bytes of float64 keys that may stay in memory between calls.
CACHE_BYTES = 1 << 26
#: Log density of the padding of the last group: below that of any component, but finite, so that
#: nothing becomes NaN.
PADDING = {dtype: torch.finfo(dtype).min for dtype in (torch.float32, torch.float64)}


class DiagonalNormals:
    """A weighted set of diagonal normals in groups, with their keys and error bounds.

    Components without weight are left out and the others may be reordered: ``index`` holds their
    original numbers, or None if these are still 0 … N − 1.

    Args:
        loc: shape ``(N, D)``.
        scale: shape ``(N, D)``.
        log_weight: normalised log weights, shape ``(N,)``; −inf leaves the component out.
        ordered: whether to reorder large sets, which pays if they are evaluated often.
    """

    def __init__(
        self, loc: Tensor, scale: Tensor, log_weight: Tensor, *, ordered: bool = True
    ) -> None:
        loc, scale, log_weight = (
            leave_inference_mode(t.detach()) for t in (loc, scale, log_weight)
        )
        weighted = log_weight != -math.inf  # NaN does not count as a weight of zero
        self.index = None if bool(weighted.all()) else weighted.nonzero().squeeze(-1)
        if self.index is not None:
            loc, scale, log_weight = (t[self.index] for t in (loc, scale, log_weight))
        self.size, self.dim = loc.shape
        self.centre = loc.sum(0, dtype=torch.float64) / max(1, self.size)
        if ordered and self.size >= SORTED_GROUPS * GROUP and bool(self.centre.isfinite().all()):
            order = locality_order(loc, scale, GROUP)
            self.index = order if self.index is None else self.index[order]
            loc, scale, log_weight = (t.index_select(0, order) for t in (loc, scale, log_weight))
        self.loc, self.scale, self.log_weight = loc, scale, log_weight
        self.features = 2 * self.dim + 1
        self.group = max(1, min(GROUP, self.size))
        self.groups = -(-self.size // self.group)
        self.points = max(1, CHUNK_BYTES // (8 * 4 * BLOCK))
        self._keys: dict[torch.dtype, Tensor] = {}

    def rows(self) -> Iterator[slice]:
        """The components in blocks."""
        for start in range(0, self.size, BLOCK):
            yield slice(start, min(start + BLOCK, self.size))

    def keys(self, rows: slice) -> Tensor:
        """Keys of some components in float64, relative to the centre, shape ``(n, F)``."""
        rows = slice(*rows.indices(self.size))
        if torch.float64 in self._keys:
            return self._keys[torch.float64].flatten(0, 1)[rows]
        loc, scale, constant = self.exact(rows)
        return keys(loc - self.centre, scale, constant)

    def group_keys(self, dtype: torch.dtype, first: int, last: int) -> Tensor:
        """Keys of groups first … last − 1, shape ``(last − first, M, F)``; the end is padded."""
        cached = self.cached_keys(dtype)
        if cached is not None:
            return cached[first:last]
        return self._compute_keys(dtype, first, min(last, self.groups))

    def _compute_keys(self, dtype: torch.dtype, first: int, last: int) -> Tensor:
        key = self.keys(slice(first * self.group, min(last * self.group, self.size))).to(dtype)
        missing = (last - first) * self.group - len(key)
        if missing:
            padding = key.new_zeros(missing, self.features)
            padding[:, -1] = PADDING[dtype]
            key = torch.cat([key, padding])
        return key.view(last - first, self.group, self.features)

    def cached_keys(self, dtype: torch.dtype) -> Tensor | None:
        """All keys in one tensor ``(G, M, F)``, or None if in float64 they exceed `CACHE_BYTES`."""
        bytes_needed = 8 * self.groups * self.group * self.features
        if dtype not in self._keys:
            if dtype == torch.float64 and bytes_needed > CACHE_BYTES:
                return None
            step = max(1, CHUNK_BYTES // (4 * 8 * self.group * self.features))
            shape = (self.groups, self.group, self.features)
            all_keys = torch.empty(shape, dtype=dtype, device=self.loc.device)
            for start in range(0, self.groups, step):
                end = min(start + step, self.groups)
                all_keys[start:end] = self._compute_keys(dtype, start, end)
            self._keys[dtype] = all_keys
        return self._keys[dtype]

    @cached_property
    def largest(self) -> Tensor:
        """max_n |k_nf| in every group, float64, shape ``(G, F)``: what the error bound needs."""
        dtype = torch.promote_types(self.loc.dtype, torch.float32)
        step = max(1, CHUNK_BYTES // (4 * 8 * self.group * self.features))
        maxima = []
        for start in range(0, self.groups, step):
            key = self.group_keys(dtype, start, min(start + step, self.groups))
            least, most = key.aminmax(dim=1)
            maxima.append(torch.maximum(-least, most).double())
        if padding := self.groups * self.group - self.size:
            last = self.group_keys(dtype, self.groups - 1, self.groups)[:, :-padding]
            maxima[-1][-1:] = last.abs().amax(1).double()
        return torch.cat(maxima) * (1 + torch.finfo(dtype).eps)  # for the rounding of the keys

    @cached_property
    def exact_all(self) -> tuple[Tensor, Tensor, Tensor]:
        """`exact` of all components, with units first in memory: fast for small sets."""
        loc, scale, constant = self.exact(slice(None))
        return loc.mT.contiguous().mT, scale.mT.contiguous().mT, constant

    @cached_property
    def largest_of_all(self) -> Tensor:
        """max_n |k_nf| over all components, shape ``(F,)``."""
        return self.largest.amax(0)

    def all_keys(self) -> Tensor:
        """Keys of all components in float64, shape ``(N, F)``; cached if they are few."""
        cached = self.cached_keys(torch.float64)
        return self.keys(slice(None)) if cached is None else cached.flatten(0, 1)[: self.size]

    def scores(self, z: Tensor, rows: slice) -> Tensor:
        """log w_n + log N(z; μ_n, σ_n²) of some components in float64, shape ``(B, n)``."""
        query = queries(z.double() - self.centre)
        error = query.abs() @ self.largest_of_all * roundoff(self.features, torch.float64)
        if bool((error <= TOLERANCE[torch.float64]).all()):
            return query @ self.keys(rows).mT
        parameters = self.exact(rows)
        step = max(1, CHUNK_BYTES // (4 * 8 * parameters[0].numel()))
        return torch.cat([differences(part, *parameters) for part in z.double().split(step)])

    def exact(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Location, scale and constant of some components in float64, for `differences`."""
        return self.loc[rows].double(), self.scale[rows].double(), self.constant[rows]

    def exact_groups(self, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`exact` of whole groups, shapes ``(e, M, D)`` and ``(e, M)``; padding has weight 0."""
        number = groups.unsqueeze(-1) * self.group + torch.arange(self.group, device=groups.device)
        inside = number < self.size
        number = number.clamp(max=self.size - 1)
        constant = torch.where(inside, self.constant[number], -math.inf)
        return self.loc[number].double(), self.scale[number].double(), constant

    def keys_of_groups(self, groups: Tensor) -> Tensor:
        """float64 keys of some groups, by their numbers, shape ``(e, M, F)``."""
        cached = self.cached_keys(torch.float64)
        if cached is not None:
            return cached[groups]
        loc, scale, constant = self.exact_groups(groups)
        constant = constant.clamp(min=PADDING[torch.float64])
        key = keys((loc - self.centre).flatten(0, 1), scale.flatten(0, 1), constant.flatten())
        return key.view(*constant.shape, self.features)

    @cached_property
    def constant(self) -> Tensor:
        """`constants` of all components in float64, shape ``(N,)``."""
        constant = torch.empty(self.size, dtype=torch.float64, device=self.loc.device)
        for rows in self.rows():
            constant[rows] = constants(self.scale[rows].double(), self.log_weight[rows].double())
        return constant

    @cached_property
    def largest_constant(self) -> float:
        """The largest of the constants: the log density is at most that, and log N more."""
        return float(self.constant.max())

    @cached_property
    def single_columns(self) -> tuple[Tensor, Tensor, Tensor]:
        """μ and 1 / (√2 σ), ``(D, N)``, and constants less the largest, ``(N,)``, in float32."""
        factor = self.scale.double().reciprocal() * math.sqrt(0.5)
        constant = (self.constant - self.largest_constant).float()
        return self.loc.mT.float().contiguous(), factor.mT.float().contiguous(), constant
