"""log p at the sites of a model: what is summed over, what is drawn, what has to be given."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.batches import Batch
from pyrovae.errors import InputError
from pyrovae.models.sites import Reader, Reading

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
    ) -> tuple[Tensor, Tensor]:
        """log p of all but the latent sites, and log p of these."""
        known = {**(codes or {}), **(values or {})}
        readings = self.model.read(batch, codes=codes, values=values, indices=indices)
        sums = self._sums(readings[0], set(known), batch)
        terms = []
        for assignment in itertools.product(*sums.values()):
            if sums:
                fixed = {**(values or {}), **dict(zip(sums, assignment, strict=True))}
                readings = self.model.read(batch, codes=codes, values=fixed, indices=indices)
            terms.append(self._terms(readings, {*known, *sums}, set(sums)))
        if not sums:
            return terms[0]
        rest, prior = (torch.stack(column) for column in zip(*terms, strict=True))
        joint, prior = (rest + prior).logsumexp(0), prior.logsumexp(0)
        return joint - prior, prior

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
            prior.append(total(reading, [name for name in reading.latent if name in own]))
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
            if wanted := [name for name in rest if name in guide.latent]:
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


def total(reading: Reading, names: Iterable[str]) -> Tensor:
    """Sum of each row's log densities at some sites, in the order of the run, shape ``(kept,)``.

    Sites that are one for all rows are no row's, and are left out.
    """
    wanted = {*names}.difference(reading.shared)
    chosen = [reading.log_density(name) for name in reading.nodes if name in wanted]
    return torch.stack(chosen).sum(0) if chosen else torch.zeros(())


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
