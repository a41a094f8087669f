"""An aggregated posterior whose components are evaluated a part at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.errors import InputError
from pyrovae.mixture import AggregatedPosterior, Mixture, families
from pyrovae.mixture.kernel import DiagonalNormals, NormalsInParts
from pyrovae.scale.ranks import Ranks
from pyrovae.scale.rounding import RoundedNormal, diagonal_normals


def _nothing() -> None:
    """Lets go of nothing: the components are in memory."""


class ShardedPosterior(AggregatedPosterior):
    r"""q_agg of encodings that need not fit into memory: its density, a part at a time.

    .. math:: \log q(z) = \log \sum_s \exp \Big( \log \sum_{n ∈ s} w_n q_n(z) \Big)

    It is an :class:`AggregatedPosterior` like any other, of diagonal normals. Every part s is laid
    out for the fused pass, evaluated at all points and let go; sums, scores and the largest
    responsibilities are merged. So give it many points at a time: each call goes through all
    components, and laying these out takes as long as a thousand points do.

    Of means and scales one part is in memory at a time. Weights are there as a whole: 4 bytes a
    component, 20 while they are opened, up to 60 in `leave_one_out_log_prob` and in a reduction.
    Inflating all components, bounds on their entropy and ``to`` make a mixture in memory.

    In an initialised process group of torch, each process takes its own parts, and what they found
    is merged by all-reduce: all of them have to ask for the same points, in the same order. Draws
    and reductions are each process's own; name a seed to have the same ones.

    Args:
        encoding: diagonal normals, batch shape ``(N,)``, which have been found finite.
        parts: the ranges of components that are evaluated one after the other, together all N.
        weights: one per data point, shape ``(N,)``; equal by default.
        done: called after each part, to let go of what was read for it.
        alone: whether this process takes all parts, whatever group there is, as where one process
            measures while the others have nothing to do.

    Raises:
        InputError: as :class:`AggregatedPosterior`, except that the encoding is not checked.

    >>> encoding = dist.Normal(torch.zeros(5, 2), torch.ones(5, 2)).to_event(1)
    >>> sharded = ShardedPosterior(encoding, [slice(0, 3), slice(3, 5)])
    >>> whole = AggregatedPosterior(encoding)
    >>> z = torch.zeros(1, 2)
    >>> torch.allclose(sharded.log_prob(z), whole.log_prob(z))
    True
    """

    def __init__(
        self,
        encoding: dist.Distribution,
        parts: Sequence[slice],
        weights: Tensor | Sequence[float] | None = None,
        *,
        done: Callable[[], object] = _nothing,
        alone: bool = False,
    ) -> None:
        super().__init__(encoding, weights)
        self._parts = tuple(parts)
        self._done, self._alone = done, alone
        self._normal()

    def _check_numbers(self, encoding: dist.Distribution, weights: Tensor) -> None:
        """They were checked when they were written; it would take reading all of them."""

    def __getstate__(self) -> dict[str, Any]:
        """A copy has its components in memory, and nothing to let go of."""
        return {**super().__getstate__(), "_done": _nothing}

    @property
    def stored_dtype(self) -> torch.dtype:
        """Of means and scales where they lie; they are computed with in float32 at least."""
        return self._normal()[0].dtype

    @property
    def mean(self) -> Tensor:
        """E[z], batch shape + event shape."""
        return self._unit_average(lambda loc, _: loc).expand(self.shape())

    @property
    def variance(self) -> Tensor:
        """Var[z] per unit, the mean variance of the components plus the variance of their means."""
        within = self._unit_average(lambda _, scale: scale.square())
        return (within + self.mean_variance).expand(self.shape())

    @property
    def mean_variance(self) -> Tensor:
        """Var_n[μ_n] per unit, the variance of the component means; event shape."""
        centre = self._unit_average(lambda loc, _: loc, torch.float64)
        return self._unit_average(lambda loc, _: (loc - centre.flatten()).square())

    def _unit_average(
        self, of: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype | None = None
    ) -> Tensor:
        """Σ_n w_n f(μ_n, σ_n) of a function in float64, a part at a time; event shape."""
        (loc, scale), log_weights = self._normal(), self.log_weights
        total, mass = torch.zeros(loc.shape[1], dtype=torch.float64, device=loc.device), 0.0
        for rows in self.in_parts():
            weights = log_weights[rows].double().exp()
            values = of(loc[rows].double(), scale[rows].double())
            total = total + weights @ torch.where(weights.unsqueeze(1) > 0, values, 0.0)
            mass += float(weights.sum())
        dtype = dtype or families.floating_parameter(self.encoding).dtype
        return (total / mass).to(dtype).reshape(self.event_shape)

    def marginal(self, units: int | Sequence[int]) -> ShardedPosterior:
        """The mixture of some units, also in parts.

        One unit, two in rising order and more at equal distances are read where they lie; others
        are copied into memory.
        """
        columns = _equal_steps(units, *self.event_shape) if len(self.event_shape) == 1 else None
        if columns is None:
            encoding = families.marginal(self.encoding, units)
        else:
            encoding = diagonal_normals(*(tensor[:, columns] for tensor in self._normal()))
        marginal = ShardedPosterior.__new__(ShardedPosterior)
        marginal.__dict__.update(self.__dict__)
        Mixture.__init__(marginal, self.mixture_distribution, encoding, self._validate_args)
        return marginal

    def diagonal_normals(self) -> DiagonalNormals:
        """All components, laid out for evaluation in memory: what the bounds on entropies take."""
        encoding = families.take(self.encoding, slice(None))
        return DiagonalNormals(*_diagonal(encoding), self.log_weights)

    def in_parts(self) -> Iterator[slice]:
        """Ranges of components, each let go of when the next is asked for."""
        for rows in self._parts:
            yield rows
            self._done()

    def _diagonal(self, normal: tuple[Tensor, Tensor]) -> NormalsInParts:
        ranks = None if self._alone else Ranks.of_group()
        parts = self._parts if ranks is None else ranks.own(self._parts)
        return NormalsInParts(
            *normal,
            self.log_weights,
            parts,
            done=self._done,
            processes=ranks,
            check=_check_components,
        )

    def _cached_normals(self, normal: tuple[Tensor, Tensor]) -> NormalsInParts:
        return self._diagonal(normal)

    def _weighted_components(self) -> tuple[dist.Distribution, Tensor]:
        """All components: to leave some out would copy the others."""
        return self.component_distribution, self.log_weights

    def _normal(self) -> tuple[Tensor, Tensor]:
        """Locations and scales, each ``(N, D)``, as they lie in files or in memory."""
        base = families.innermost(self.component_distribution)
        if isinstance(base, RoundedNormal):
            loc, scale = (tensor.reshape(self.size, -1) for tensor in base.rounded)
            return loc, scale
        return _diagonal(self.component_distribution)

    def _source_tensors(self) -> tuple[Tensor, ...]:
        return *self._normal(), self.mixture_distribution._param


def _diagonal(encoding: dist.Distribution) -> tuple[Tensor, Tensor]:
    normal = families.diagonal_normal(encoding)
    if normal is None:
        raise InputError(
            "expected encodings that are diagonal normals, to be evaluated in parts; got "
            f"{families.family(encoding)}. Use AggregatedPosterior."
        )
    return normal


def _check_components(first: int, loc: Tensor, scale: Tensor) -> None:
    """Raise unless these can be normals: files may have been written into since they were made.

    Args:
        first: number of the first component.
        loc, scale: of this one and those that follow.
    """
    whole = (loc.sum() + scale.sum()).isfinite() & (scale.min() > 0)
    if bool(whole):
        return
    wrong = ~(loc.isfinite() & scale.isfinite() & (scale > 0))
    if bool(wrong.any()):
        row, unit = wrong.nonzero()[0].tolist()
        raise InputError(
            "expected finite means and positive scales, as encode_to writes them; got "
            f"{loc[row, unit]:.6g} and {scale[row, unit]:.6g} in row {first + row}, unit {unit} "
            "(counted from 0). Open the folder with verify=True, which says how to mend it."
        )


def _equal_steps(units: int | Sequence[int], count: int) -> slice | int | None:
    """One unit as its number, others in rising order at equal distances as a slice; else None."""
    index = families.unit_numbers(units, count)
    if index.dim() != 1:
        return int(index)
    step = int(index[1] - index[0]) if len(index) > 1 else 1
    if step < 1 or bool((index.diff() != step).any()):
        return None
    return slice(int(index[0]), int(index[-1]) + 1, step)
