"""log p at the sites of a model: what is summed over, what is drawn, what has to be given."""

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

ASSIGNMENTS = 256  # of discrete latent sites, at most, that are summed over


@dataclass(frozen=True)
class Scorer:
    """The log density of a model, site by site.

    Args:
        model, guide: how to run them.
        sites: the latent sites that the codes are at.
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
        """log p of all but the latent sites, and log p of these: whole rows, whatever is masked.

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
                fixed = {**(values or {}), **dict(zip(sums, assignment, strict=True))}
                readings = self.model.read(batch, codes=codes, values=fixed, indices=indices)
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
        """The model at the guide's draws, but for what a mask leaves out: it draws that itself.

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
        """Raise unless what the model leaves out of known latent sites the guide does too."""
        masked = {name for reading in readings for name in masked_sites(reading) if name in known}
        if masked:
            with torch.no_grad(), torch.random.fork_rng():
                check_masks(readings, self.guide.read(batch, indices=indices), masked)

    def _terms(
        self, readings: Sequence[Reading], known: set[str], summed: set[str]
    ) -> tuple[Tensor, Tensor]:
        """log p at observed and other known sites, and log p at the latent and summed ones."""
        own = {*self.sites, *summed}
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
            others = [name for name in reading.latent if name in known - own]
            rest.append(total(reading, [*observed, *others]))
            latent = [name for name in reading.latent if name in own]
            prior.append(total(reading, latent, part="all"))
        return torch.cat(rest), torch.cat(prior)

    def _sums(self, reading: Reading, known: set[str], batch: Batch) -> dict[str, list[Tensor]]:
        """Values to sum over at latent sites of the model that nothing is known of."""
        shared = reading.shared
        others = [n for n in reading.latent if n not in {*known, *self.sites, *shared}]
        found = supports(reading, others)
        rest = [name for name in others if name not in found and not _imputed(reading, name)]
        if rest:
            with torch.no_grad(), torch.random.fork_rng():
                guide = self.guide.read(batch)[0]
            wanted = [name for name in rest if name in guide.latent]
            points = [n for n in wanted if isinstance(elements(guide.nodes[n])[0], dist.Delta)]
            if points:
                raise InputError(
                    f"expected {list(self.sites)} to be all of the model's latent sites; got also "
                    f"{points}, at which the guide has a point. Use log_evidence with "
                    "method='importance', which takes its value from the guide."
                )
            if wanted:
                raise InputError(
                    f"expected {list(self.sites)} to be all of the model's latent sites; got also "
                    f"{wanted}, which can't be summed over. Name all of them as one: "
                    f"site={(*self.sites, *wanted)}."
                )
        return found


def supports(reading: Reading, names: Iterable[str]) -> dict[str, list[Tensor]]:
    """All values at those of some discrete sites that can be summed over together.

    Args:
        reading: of the model or the guide.
        names: of latent sites.

    Returns:
        the values by name, each of the shape that the site has for all rows; other sites are left
        out, and so are those beyond ``ASSIGNMENTS`` combinations.
    """
    found: dict[str, list[Tensor]] = {}
    count = 1
    for name in names:
        support = _support(reading, name)
        if support and count * len(support) <= ASSIGNMENTS:
            count *= len(support)
            found[name] = support
    return found


def total(reading: Reading, names: Iterable[str], part: Part = "present") -> Tensor:
    """Sum of each row's log densities at some sites, in the order of the run, shape ``(B,)``.

    Sites that are one for all rows are no row's, and are left out.
    """
    wanted = {*names}.difference(reading.shared)
    chosen = [reading.log_density(name, part) for name in reading.nodes if name in wanted]
    return torch.stack(chosen).sum(0) if chosen else torch.zeros(())


def check_masks(model: Sequence[Reading], guide: Sequence[Reading], names: Iterable[str]) -> None:
    """Raise unless model and guide leave the same out of the rows at some latent sites.

    Raises:
        InputError: naming the site and what to do.
    """
    for name in names:
        ours, theirs = units_present(model, name), units_present(guide, name)
        if not torch.equal(ours, theirs):
            left_out = [int((~units).sum()) for units in (ours, theirs)]
            raise InputError(
                f"expected masks that leave out the same of the latent site {name!r} in model and "
                f"guide; got {left_out[0]} numbers left out in the model and {left_out[1]} in the "
                f"guide, of {ours.numel()}. Put the same mask around the site in both, or none: a "
                "mask around the observed sites is enough."
            )


def masked_sites(reading: Reading) -> list[str]:
    """The latent sites with a part in each row of which a mask leaves something out."""
    shared = reading.shared
    return [n for n in reading.latent if n not in shared and reading.present(n) is not None]


def units_present(readings: Sequence[Reading], name: str) -> Tensor:
    """Which units of each row masks leave in at a latent site, shape ``(B, D)``."""
    parts = []
    for reading in readings:
        reading.node(name)
        present = reading.present(name)
        whole = torch.ones_like(reading.code(name), dtype=torch.bool)
        parts.append(whole if present is None else present.to(whole.device))
    return torch.cat(parts)


def _imputed(reading: Reading, name: str) -> bool:
    """Whether a site holds what ``obs_mask=`` leaves out of an observed one; no site needs it."""
    stem = name.removesuffix("_unobserved")
    return stem != name and f"{stem}_observed" in reading.observed


def _support(reading: Reading, name: str) -> list[Tensor]:
    """All values of a discrete latent that has one value a row; empty for any other site."""
    node = reading.nodes[name]
    fn = node["fn"]
    whole = isinstance(fn, dist.Independent | dist.MaskedDistribution)
    if whole or node["mask"] is not None or not getattr(fn, "has_enumerate_support", False):
        return []
    if fn.batch_shape.numel() != reading.rows:
        return []
    return list(fn.enumerate_support(expand=True))
