"""log p at the sites of a model: which are summed over, which are drawn, which must be given."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.data import Batch
from pyrovae.errors import InputError
from pyrovae.pairs.masks import elements
from pyrovae.pairs.trace_reader import Part, Reader, Reading

ASSIGNMENTS = 256  # combinations of values of discrete latent sites to sum over, at most


@dataclass(frozen=True)
class Scorer:
    """The log density of a model, site by site.

    Args:
        model, guide: readers of the two.
        sites: the latent sites that make up a code.
    """

    model: Reader
    guide: Reader
    sites: tuple[str, ...]

    def score(
        self,
        batch: Batch,
        *,
        codes: Mapping[str, Tensor] | None = None,
        values: Mapping[str, Tensor] | None = None,
        indices: Tensor | None = None,
        points: Collection[str] = (),
    ) -> tuple[Tensor, Tensor]:
        """log p at all other sites, and log p at the latent sites, which counts masked parts too.

        Args:
            batch: rows.
            codes, values, indices: as :meth:`Reader.read` takes them.
            points: sites whose values are taken as given: their own density is left out.
        """
        known = {**(codes or {}), **(values or {})}
        readings = self.model.read(batch, codes=codes, values=values, indices=indices)
        self._check_masks(readings, known, batch, indices)
        sums = self._sums(readings[0], set(known), batch)
        terms = []
        for assignment in itertools.product(*sums.values()):
            if sums:
                assigned = {**(values or {}), **dict(zip(sums, assignment, strict=True))}
                readings = self.model.read(batch, codes=codes, values=assigned, indices=indices)
            terms.append(self._terms(readings, {*known, *sums} - {*points}, set(sums)))
        if not sums:
            return terms[0]
        rest, prior = (torch.stack(column) for column in zip(*terms, strict=True))
        joint, prior = (rest + prior).logsumexp(0), prior.logsumexp(0)
        return joint - prior, prior

    def fill(
        self,
        reading: Reading,
        batch: Batch,
        values: Mapping[str, Tensor],
        *,
        redraw: Collection[str] = (),
        until: Collection[str] = (),
    ) -> Reading:
        """A run of the model at the guide's draws; what a mask leaves out is drawn by the model.

        Args:
            reading: a run of the guide.
            batch: its rows.
            values: its draws, by site.
            redraw, until: as :meth:`Reader.read` takes them.

        Raises:
            InputError: if masks leave out different parts in model and guide.
        """
        (filled,) = self.model.read(
            batch, values=values, indices=reading.indices, redraw=redraw, until=until
        )
        masked = masked_sites(reading)
        check_masks([filled], [reading], [name for name in masked if name in filled.nodes])
        return filled

    def _check_masks(
        self,
        readings: Sequence[Reading],
        known: Collection[str],
        batch: Batch,
        indices: Tensor | None,
    ) -> None:
        """Raise unless model and guide leave out the same of known latent sites."""
        masked = {name for reading in readings for name in masked_sites(reading) if name in known}
        if masked:
            with torch.no_grad(), torch.random.fork_rng():
                check_masks(readings, self.guide.read(batch, indices=indices), masked)

    def _terms(
        self, readings: Sequence[Reading], known: set[str], summed: set[str]
    ) -> tuple[Tensor, Tensor]:
        """log p at observed and other known sites, and log p at the codes' and summed sites."""
        prior_sites = {*self.sites, *summed}
        rest, prior = [], []
        for reading in readings:
            observed = [name for name in reading.observed if name not in reading.shared]
            if not observed:
                raise InputError(
                    "expected an observed site in the model; got none. Give a site obs=, and the "
                    "data as an argument; observed= names one of several."
                )
            for site in self.sites:
                reading.node(site)
            others = [name for name in reading.latent if name in known - prior_sites]
            rest.append(total(reading, [*observed, *others]))
            latent = [name for name in reading.latent if name in prior_sites]
            prior.append(total(reading, latent, part="all"))
        return torch.cat(rest), torch.cat(prior)

    def _sums(self, reading: Reading, known: set[str], batch: Batch) -> dict[str, list[Tensor]]:
        """Values to sum over at latent sites of the model that have no value yet."""
        shared = reading.shared
        others = [n for n in reading.latent if n not in {*known, *self.sites, *shared}]
        if not others:
            return {}
        sums = supports(reading, others)
        rest = [name for name in others if name not in sums and not imputed(reading, name)]
        if rest:
            with torch.no_grad(), torch.random.fork_rng():
                guide = self.guide.read(batch)[0]
            in_guide = [name for name in rest if name in guide.latent]
            points = [n for n in in_guide if isinstance(elements(guide.nodes[n])[0], dist.Delta)]
            if points:
                raise InputError(
                    f"expected {list(self.sites)} to be all of the model's latent sites; got also "
                    f"{points}, at which the guide has a point. Use log_evidence with "
                    "method='importance', which takes its value from the guide."
                )
            if in_guide:
                raise InputError(
                    f"expected {list(self.sites)} to be all of the model's latent sites; got also "
                    f"{in_guide}, which can't be summed over. Name all of them as one: "
                    f"site={(*self.sites, *in_guide)}."
                )
        return sums


def supports(reading: Reading, names: Iterable[str]) -> dict[str, list[Tensor]]:
    """All values of those latent sites that are discrete and can be summed over together.

    Args:
        reading: a run of the model or the guide.
        names: of latent sites.

    Returns:
        the values by name, each of the shape that the site has for all rows; other sites are left
        out, and so are those that would make more than ``ASSIGNMENTS`` combinations.
    """
    values: dict[str, list[Tensor]] = {}
    count = 1
    for name in names:
        support = _support(reading, name)
        if support and count * len(support) <= ASSIGNMENTS:
            count *= len(support)
            values[name] = support
    return values


def total(reading: Reading, names: Iterable[str], part: Part = "present") -> Tensor:
    """Sum of each row's log densities at some sites, in the order of the run, shape ``(B,)``.

    Sites that are one for all rows belong to no row and are left out.
    """
    by_row = {*names}.difference(reading.shared)
    terms = [reading.log_density(name, part) for name in reading.nodes if name in by_row]
    return torch.stack(terms).sum(0) if terms else torch.zeros(())


def check_masks(model: Sequence[Reading], guide: Sequence[Reading], names: Iterable[str]) -> None:
    """Raise unless masks of model and guide leave out the same at some latent sites.

    Raises:
        InputError: naming the site and what to do.
    """
    for name in names:
        in_model, in_guide = units_present(model, name), units_present(guide, name)
        if not torch.equal(in_model, in_guide):
            left_out = [int((~units).sum()) for units in (in_model, in_guide)]
            raise InputError(
                f"expected masks that leave out the same of the latent site {name!r} in model and "
                f"guide; got {left_out[0]} numbers left out in the model and {left_out[1]} in the "
                f"guide, of {in_model.numel()}. Put the same mask around the site in both, or none:"
                " a mask around the observed sites is enough."
            )


def masked_sites(reading: Reading) -> list[str]:
    """The latent sites in the data plate at which a mask leaves something out."""
    shared = reading.shared
    return [n for n in reading.latent if n not in shared and reading.present(n) is not None]


def units_present(readings: Sequence[Reading], name: str) -> Tensor:
    """Which units of each row are left in by masks at a latent site, shape ``(B, D)``."""
    parts = []
    for reading in readings:
        reading.node(name)
        present = reading.present(name)
        everything = torch.ones_like(reading.code(name), dtype=torch.bool)
        parts.append(everything if present is None else present.to(everything.device))
    return torch.cat(parts)


def imputed(reading: Reading, name: str) -> bool:
    """Whether a site holds the values that ``obs_mask=`` leaves out of an observed one.

    Pyro draws them there; no density depends on them.
    """
    stem = name.removesuffix("_unobserved")
    return stem != name and f"{stem}_observed" in reading.observed


def _support(reading: Reading, name: str) -> list[Tensor]:
    """All values of a discrete latent with one value for each row; empty for any other site."""
    node = reading.nodes[name]
    fn = node["fn"]
    wrapped = isinstance(fn, dist.Independent | dist.MaskedDistribution)
    if wrapped or node["mask"] is not None or not getattr(fn, "has_enumerate_support", False):
        return []
    if fn.batch_shape.numel() != reading.rows:
        return []
    return list(fn.enumerate_support(expand=True))
