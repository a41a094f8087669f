"""q(z | x) of some rows: the guide's density at the latent sites, whatever the guide is."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.data import Batch
from pyrovae.errors import InputError
from pyrovae.mixture import families
from pyrovae.pairs.joint_sites import Ancestral
from pyrovae.pairs.site_density import SiteDensity, settled
from pyrovae.pairs.site_scores import Scorer, check_masks, units_present
from pyrovae.pairs.trace_reader import Reading


@dataclass(frozen=True)
class Encoded:
    """q(z | x) of some rows, from one run of the guide, to be handed on to all that ask for it.

    Args:
        density: batch shape ``(B,)``, event shape ``(D,)``; what a mask leaves out has the model's
            prior.
        masked: whether a mask leaves something out of the latent sites.
    """

    density: dist.Distribution
    masked: bool

    def take(self, chosen: Tensor | slice) -> Encoded:
        """The same of some of the rows."""
        return replace(self, density=families.take(self.density, chosen))

    def advance(self) -> None:
        """Take from the random stream what a run of the guide takes.

        So a seed names the same draws whether the guide is run for them or q was handed on.
        """
        self.density.sample()


@dataclass(frozen=True)
class GuideDensity:
    """The guide's density at the latent sites, as a distribution over the rows of a batch.

    Args:
        scorer: of the model, whose prior stands for what a mask leaves out.
    """

    scorer: Scorer

    def encode(self, batch: Batch) -> Encoded:
        """q(z | x) of some rows, as it is handed on."""
        readings = self.scorer.guide.read(batch)
        return Encoded(self.of(batch, readings), self.leaves_out(readings))

    def of(
        self, batch: Batch, readings: Sequence[Reading] | None = None, *, filled: bool = True
    ) -> dist.Distribution:
        """q(z | x) of some rows, batch shape ``(B,)``, event shape ``(D,)``.

        Args:
            batch: rows.
            readings: a complete run of the guide for them; a new one if not given.
            filled: whether what a mask leaves out gets the model's prior, or stays as the guide
                has it.

        Raises:
            InputError: as :meth:`~pyrovae.pairs.pair.Pair.encode`.
        """
        if readings is None:
            readings = self.scorer.guide.read(batch)
        density = self._in_guide.find(batch, readings)
        if density is None:
            raise self._in_guide.undetermined(batch)
        if filled and self.leaves_out(readings):
            return self._filled(batch, density)
        if isinstance(density, Ancestral):
            return self.run(batch, reading=readings[0])
        if type(families.innermost(density)) is dist.Normal:
            return density
        try:
            families.take(density, slice(0, 1))
        except InputError:  # it can't be split by row
            if not self.scorer.guide.takes_any_number_of_rows(batch):
                raise
            return self.run(batch, reading=readings[0])
        return density

    def run(self, batch: Batch, *, reading: Reading | None = None) -> Ancestral:
        """q(z | x) of any family: the guide itself, run for each pair of row and code.

        Args:
            batch: rows.
            reading: a run of the guide for some of these rows; a new one if not given.
        """
        return Ancestral.read(
            self.scorer.guide, batch, self.scorer.sites, self.scorer, reading=reading
        )

    def leaves_out(self, readings: Sequence[Reading]) -> bool:
        """Whether a mask leaves something out of the latent sites in some runs of the guide."""
        return any(r.present(site) is not None for r in readings for site in self.scorer.sites)

    @cached_property
    def _in_guide(self) -> SiteDensity:
        return SiteDensity(self.scorer.guide, self.scorer.sites)

    @cached_property
    def _in_model(self) -> SiteDensity:
        return SiteDensity(self.scorer.model, self.scorer.sites)

    def _filled(self, batch: Batch, density: dist.Distribution) -> dist.Distribution:
        """The guide's density, with the prior for what masks leave out of the latent sites.

        Args:
            batch: rows.
            density: the guide's, with what it draws there itself.
        """
        sites = self.scorer.sites
        with torch.no_grad(), torch.random.fork_rng():
            readers = self.scorer.guide, self.scorer.model
            guide, model = (reader.read(batch, until=sites) for reader in readers)
        if missing := [site for site in sites if site not in model[0].latent]:
            raise InputError(
                f"expected a model that draws {', '.join(missing)} too, to get the prior of what "
                "a mask leaves out of the guide there; got none. Give the model with model=, or "
                "leave out the rows that are masked."
            )
        check_masks(model, guide, sites)
        prior = None if isinstance(density, Ancestral) else self._in_model.find(batch)
        if prior is not None:
            present = torch.cat([units_present(guide, site) for site in sites], -1)
            with suppress(InputError):  # guide and prior are of two families
                return families.where(present, density, prior)
        joint = self.run(batch, reading=guide[0])
        if not settled([joint], torch.cat([self._in_guide.codes(reading) for reading in guide])):
            raise InputError(
                f"expected densities of {', '.join(sites)} in model and guide that depend on "
                "nothing but the data, where a mask leaves something out; got others. Use "
                "log_evidence, which also draws what they depend on, or leave out the rows that "
                "are masked."
            )
        return joint
