"""Several latent sites as one vector, where some of them depend on the draws of others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from pyrovae.data import Batch, take_rows
from pyrovae.errors import InputError
from pyrovae.mixture.families import Edit, PositiveDensity
from pyrovae.pairs.restore import PyroFunction, apart, measuring
from pyrovae.pairs.site_scores import Scorer, total
from pyrovae.pairs.trace_reader import Reader, Reading
from pyrovae.randomness import seeded

ROWS = 16_384  # rows that go through the function at once


class Ancestral(dist.TorchDistribution):
    r"""The joint density of some latent sites of a model or guide, for each row of its data.

    .. math:: q(u, v | x) = q(u | x) \, q(v | x, u)

    It is the function itself, run up to the last of the sites: `sample` reads what is drawn at the
    sites, `log_prob` puts the parts of a code there and adds up their log densities. So it is exact
    for any number of sites of any families, in any order; moments and the marginals of single units
    have no closed form. It changes with the function, for instance when that is trained further.
    The aggregated posterior of N data points at M codes sends N·M rows through the function. What a
    mask leaves out of a guide's sites has the model's density, given what comes before it there.

    Args:
        reader: runs the function.
        batch: its arguments, each of shape ``(*batch_shape, ...)``.
        sites: names of the latent sites, in the order in which they make up a code.
        sizes: number of units at each site.
        like: a tensor of the dtype of codes, on their device.
        support: of a code; where the density is positive, if none is declared.
        batch_shape: that of the distribution.
        scorer: the pair's, for a guide; none for a model, in which masks don't count.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True

    def __init__(
        self,
        reader: Reader,
        batch: Batch,
        sites: tuple[str, ...],
        *,
        sizes: tuple[int, ...],
        like: Tensor,
        support: constraints.Constraint | None,
        batch_shape: Sequence[int],
        scorer: Scorer | None = None,
    ) -> None:
        self.reader, self.batch, self.sites, self.scorer = reader, batch, sites, scorer
        self.sizes, self.like, self._support = sizes, like, support
        super().__init__(torch.Size(batch_shape), torch.Size([sum(sizes)]), validate_args=False)

    @classmethod
    def read(
        cls,
        reader: Reader,
        batch: Batch,
        sites: tuple[str, ...],
        scorer: Scorer | None = None,
        *,
        reading: Reading | None = None,
    ) -> Ancestral:
        """The density at some sites of a function, for the rows of ``batch``.

        Args:
            reader: runs the function.
            batch: rows.
            sites: names of the latent sites.
            scorer: the pair's, for a guide.
            reading: a run for some of these rows; a new one if not given.

        Raises:
            InputError: if the function takes a fixed number of rows only, or a site is discrete, in
                no data plate or of a support that is not the same for all units.
        """
        if not reader.takes_any_number_of_rows(batch):
            with torch.no_grad(), torch.random.fork_rng():
                order = reader.read(batch, until=sites)[0].latent
            raise InputError(
                f"expected a {reader.role} that takes any number of rows, to be run for each pair "
                f"of row and code at {', '.join(sites)}; got one with a plate or parameters of "
                'fixed size. Write pyro.plate("data", len(x)), or name the site that is drawn '
                f"first: site={min(sites, key=order.index)!r}."
            )
        if reading is None:
            with torch.no_grad(), torch.random.fork_rng():
                reading = reader.read(take_rows(batch, slice(0, 2)), until=sites)[0]
        densities = [reading.density(site) for site in sites]
        sizes = tuple(at_site.event_shape[0] for at_site in densities)
        return cls(
            reader,
            batch,
            sites,
            sizes=sizes,
            like=reading.code(sites[0]).new_zeros(()),
            support=_joint_support([at_site.support for at_site in densities], sizes),
            batch_shape=batch[0].shape[:1],
            scorer=scorer,
        )

    def condition(self, values: Mapping[str, Tensor]) -> Ancestral:
        """The same density given the values of other sites, each in its shape for all rows."""
        function = poutine.condition(self.reader.function, data=dict(values))
        return self._copy(self.batch, self.batch_shape, replace(self.reader, function=function))

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        """The support of a code."""
        return self._support or PositiveDensity(self)

    @property
    def mean(self) -> Tensor:
        """Not known in closed form."""
        raise NotImplementedError(
            f"expected moments in closed form; got the sites {', '.join(self.sites)}, of which one "
            "depends on another. Average draws instead."
        )

    variance = mean

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Ancestral:
        """The same densities for more rows; no tensor is copied."""
        rank, shape = len(self.batch_shape), torch.Size(batch_shape)
        return self._copy(tuple(a.expand(shape + a.shape[rank:]) for a in self.batch), shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """log density of codes, differentiable in them.

        Args:
            value: codes, shape ``(..., D)``, broadcast against the batch shape. If they require no
                gradient there is none, even if the function's parameters do.

        Returns:
            shape ``(...)``.
        """
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        codes = value.to(self.like.dtype).expand(shape + self.event_shape)
        codes = codes.reshape(-1, *self.event_shape)
        log_densities = [codes.new_zeros(0)]
        differentiable = torch.is_grad_enabled() and value.requires_grad
        with torch.set_grad_enabled(differentiable), apart(), measuring(*self._functions):
            for rows, block in self._blocks(shape):
                by_site = dict(zip(self.sites, codes[block].split(self.sizes, -1), strict=True))
                for reading in self.reader.read(rows, codes=by_site, until=self.sites):
                    log_densities.append(self._log_density(reading, rows))
        dtype = torch.promote_types(value.dtype, self.like.dtype)
        return torch.cat(log_densities).to(dtype).reshape(shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws, shape ``sample_shape + batch_shape + (D,)``, without gradient."""
        shape = torch.Size(sample_shape) + self.batch_shape
        # `measuring` restores the random state, which has to move on from draw to draw.
        seed = int(torch.randint(1 << 62, ()))
        codes = [self.like.new_zeros(0, *self.event_shape)]
        with torch.no_grad(), apart(), measuring(*self._functions), seeded(seed, "ancestral"):
            for rows, _ in self._blocks(shape):
                codes += [self._code(r, rows) for r in self.reader.read(rows, until=self.sites)]
        return torch.cat(codes).reshape(shape + self.event_shape)

    def rebuild(self, parts: Sequence[Ancestral], edit: Edit) -> Ancestral:
        """The same for edited rows; see `pyrovae.mixture.families.Editable`.

        Raises:
            InputError: if the parts belong to different functions, or to different sites.
        """
        if any((part.reader, part.sites) != (self.reader, self.sites) for part in parts):
            raise InputError(
                "expected parts that belong to one function and to the same sites of it; got "
                "different ones. Encode all data by one guide."
            )
        columns = list(zip(*(part.batch for part in parts), strict=True))
        # The rows go through the function: they keep their dtype when parameters are cast.
        batch = tuple(edit(column).to(column[0].dtype) for column in columns)
        event_rank = self.batch[0].dim() - len(self.batch_shape)
        return self._copy(batch, batch[0].shape[: batch[0].dim() - event_rank])

    def _copy(
        self, batch: Batch, batch_shape: torch.Size, reader: Reader | None = None
    ) -> Ancestral:
        return Ancestral(
            reader or self.reader,
            batch,
            self.sites,
            sizes=self.sizes,
            like=self.like,
            support=self._support,
            batch_shape=batch_shape,
            scorer=self.scorer,
        )

    @property
    def _functions(self) -> tuple[PyroFunction, ...]:
        """The functions that are run."""
        model = () if self.scorer is None else (self.scorer.model.function,)
        return (self.reader.function, *model)

    def _log_density(self, reading: Reading, rows: Batch) -> Tensor:
        """The log density of the codes that were put into a run, shape ``(B,)``."""
        masked = self._masked(reading)
        terms = [
            reading.log_density(reading.carrier(site))
            if site in masked
            else reading.density(site).log_prob(reading.code(site))
            for site in self.sites
        ]
        if self.scorer is not None and masked:
            values = {site: reading.nodes[site]["value"] for site in self.sites}
            filled = self.scorer.fill(reading, rows, values, until=self.sites)
            terms += [filled.log_density(site, "absent") for site in masked]
        return torch.stack(terms).sum(0)

    def _code(self, reading: Reading, rows: Batch) -> Tensor:
        """The codes that were drawn in a run, shape ``(B, D)``."""
        masked = self._masked(reading)
        if self.scorer is None or not masked:
            return code_at(reading, self.sites)
        values = {site: reading.nodes[site]["value"] for site in self.sites}
        filled = self.scorer.fill(reading, rows, values, redraw=masked, until=self.sites)
        codes = {site: filled.code(site) for site in self.sites}
        (with_redrawn,) = self.reader.read(rows, codes=codes, until=self.sites)
        carriers = [reading.carrier(site) for site in self.sites]
        before, after = (total(run, carriers) for run in (reading, with_redrawn))
        if not torch.allclose(before, after):
            raise InputError(
                f"expected what a mask leaves out of {', '.join(masked)} to have no effect on what "
                "it leaves in; got a guide where other sites depend on it. Use log_evidence with "
                "a single site, which draws all others too."
            )
        return code_at(filled, self.sites)

    def _masked(self, reading: Reading) -> list[str]:
        """The sites of a guide at which a mask leaves something out."""
        if self.scorer is None:
            return []
        return [site for site in self.sites if reading.present(site) is not None]

    def _blocks(self, shape: torch.Size) -> Iterator[tuple[Batch, slice]]:
        """Codes of a shape in blocks: the rows of each block, and which codes are in it."""
        rank = len(self.batch_shape)
        rows = tuple(a.reshape(-1, *a.shape[rank:]) for a in self.batch)
        number = torch.arange(math.prod(self.batch_shape), device=rows[0].device)
        index = number.view(self.batch_shape).expand(shape).reshape(-1)
        for start in range(0, len(index), ROWS):
            block = slice(start, start + ROWS)
            yield take_rows(rows, index[block]), block


def code_at(reading: Reading, sites: Sequence[str]) -> Tensor:
    """The values at some sites as one vector for each row, shape ``(B, D)``."""
    return torch.cat([reading.code(site) for site in sites], -1)


def _joint_support(
    supports: Sequence[constraints.Constraint], sizes: Sequence[int]
) -> constraints.Constraint | None:
    """The support of several vectors laid end to end; none if one of them declares none."""
    units = []
    for support in supports:
        unit = support
        while isinstance(unit, constraints.independent):
            unit = unit.base_constraint
        if isinstance(unit, PositiveDensity):
            return None
        if unit.event_dim or any(isinstance(bound, Tensor) for bound in vars(unit).values()):
            raise InputError(
                "expected sites at which all units have the same support, each by itself; got "
                f"{support}. Take the sites one by one."
            )
        units.append(unit)
    if all(unit is units[0] for unit in units):
        return constraints.independent(units[0], 1)
    return constraints.independent(constraints.cat(units, -1, list(sizes)), 1)
