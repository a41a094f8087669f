"""Any Pyro model and guide as the four questions that the measures ask of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.data import Batch, as_batch, take_rows
from pyrovae.errors import InputError
from pyrovae.mixture import families
from pyrovae.mixture.families import share
from pyrovae.pairs.guide_density import GuideDensity
from pyrovae.pairs.model_prior import prior_for_all
from pyrovae.pairs.restore import PyroFunction
from pyrovae.pairs.shared_draws import together
from pyrovae.pairs.site_scores import Scorer
from pyrovae.pairs.trace_reader import Reader
from pyrovae.pairs.traits import Traits

COMPARED = 100  # rows on which a prior is checked to be the same


@dataclass(frozen=True)
class Pair:
    """A Pyro ``model(*batch)`` and ``guide(*batch)`` with a latent site in a data plate.

    One method for each question: `encode` is q(z | x), `prior` p(z), `decode` p(x | z), and
    `log_joint` log p(x | z) and log p(z) at given codes. What kind of pair it is, `traits` says.

    Every method runs one of the two functions under Pyro's own handlers and reads the sites, so a
    pair needs nothing but its ``pyro.sample`` statements. All log densities are those of the sites
    themselves: masks count, subsampling and ``poutine.scale`` do not. What a mask leaves out of a
    latent site, in model and guide alike, has its prior as posterior; it counts the same in
    log q(z | x) and in log p(z). A batch is one tensor of rows, or a tuple of tensors, one for each
    argument.

    A site in no plate over the data is one for all rows, and part of the model as a parameter is:
    it is drawn from the guide, or from the model if the guide lacks it, and neither its density
    nor the value of such a ``pyro.factor`` belongs to any row. Discrete sites with a few values are
    summed over, in the guide too if it draws no other site.

    Args:
        model: generative function.
        guide: variational function; called with the same arguments.
        site: name of the latent site, or of several that are taken as one vector.
        observed: name of the observed site to decode, if there are several; log p(x | z) counts
            all of them.
        data_plate: name of the plate over the data; by default the one with as many rows as a
            batch.
    """

    model: PyroFunction
    guide: PyroFunction
    site: str | tuple[str, ...] = "z"
    observed: str | None = None
    data_plate: str | None = None

    def __post_init__(self) -> None:
        names = (self.site,) if isinstance(self.site, str) else self.site
        several = isinstance(names, tuple | list) and len(names) > 0
        if not several or not all(isinstance(name, str) and name for name in names):
            raise InputError(
                "expected as site= the name of a latent site, or a tuple of several; got "
                f"{self.site!r}. Give one such as site='z'."
            )
        if len(set(names)) < len(names):
            raise InputError(
                f"expected every latent site once in site=; got {self.site!r}. Name each once."
            )

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """The latent sites."""
        return (self.site,) if isinstance(self.site, str) else tuple(self.site)

    @property
    def name(self) -> str:
        """What to call the code: the name of its site, or of all its sites."""
        return "_".join(self.sites)

    def encode(self, x: Tensor | Batch) -> dist.Distribution:
        """q(z | x), batch shape ``(B,)``, event shape ``(D,)``, for rows ``x``, shape ``(B, ...)``.

        Several sites of one family that depend on the data only give a distribution of that family.
        A site that depends on discrete ones with a few values gives a mixture over these. Sites
        that depend on each other give an :class:`~pyrovae.pairs.joint_sites.Ancestral`, and so does
        a family that can't be split by row. What a mask leaves out gets the model's prior.

        Raises:
            InputError: if the guide has no such site, the site is in no data plate or is discrete,
                its density is known at its own draws only, or its parameters depend on draws of
                sites that are not named.
        """
        return self.guide_density.of(as_batch(x))

    def log_joint(
        self, x: Tensor | Batch, z: Tensor, *, others: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """log p(x | z) and log p(z) row by row, each of shape ``(B,)``.

        Discrete latent sites with a few values are summed over; continuous ones that the guide
        lacks are drawn from the model.

        Args:
            x: rows, shape ``(B, ...)``.
            z: one code for each row, shape ``(B, D)``.
            others: codes at other latent sites by name, each ``(B, units)``, whose log density is
                then a part of log p(x | z).
        """
        batch = as_batch(x)
        by_site = {**self.by_site(batch, z), **(others or {})}
        scores = [
            self.scorer.score(rows, codes=codes, values=values)
            for rows, codes, values in together(self.traits, batch, by_site)
        ]
        if len(scores) == 1:
            return scores[0]
        likelihood, prior = (torch.cat(column) for column in zip(*scores, strict=True))
        return likelihood, prior

    def decode(self, x: Tensor | Batch, z: Tensor) -> dist.Distribution:
        """p(x | z), batch shape ``(B,)``: the distribution at the observed site for codes ``z``.

        What a mask leaves out of the data there is a part of it, too.
        """
        parts, batch = [], as_batch(x)
        for rows, codes, values in together(self.traits, batch, self.by_site(batch, z)):
            for reading in self.model_reader.read(rows, codes=codes, values=values):
                site = reading.observed_site(self.observed)
                parts.append(share(reading.distribution(site, flatten=False)))
        return families.concatenate(parts)

    def prior(self, x: Tensor | Batch) -> dist.Distribution:
        """p(z), batch shape ``(1,)``, which broadcasts against any number of codes.

        Args:
            x: at least two rows, on which the prior is checked not to depend.

        Raises:
            InputError: if p(z) differs between rows, so that there is no one prior to compare with.
        """
        batch = as_batch(x)
        if self.traits.takes_any_number_of_rows(batch):
            batch = take_rows(batch, slice(0, COMPARED))
        return prior_for_all(self.model_reader, self.sites, batch)

    @cached_property
    def model_reader(self) -> Reader:
        """Runs the model."""
        return Reader(self.model, "model", self.data_plate)

    @cached_property
    def guide_reader(self) -> Reader:
        """Runs the guide."""
        return Reader(self.guide, "guide", self.data_plate)

    @cached_property
    def traits(self) -> Traits:
        """What kind of pair it is."""
        return Traits(self.model_reader, self.guide_reader, self.sites)

    @cached_property
    def scorer(self) -> Scorer:
        """The model's log densities."""
        return Scorer(self.model_reader, self.guide_reader, self.sites)

    @cached_property
    def guide_density(self) -> GuideDensity:
        """The guide's density of codes."""
        return GuideDensity(self.scorer)

    def by_site(self, batch: Batch, z: Tensor) -> dict[str, Tensor]:
        """The part of a code that belongs to each site."""
        if len(self.sites) == 1:
            return {self.sites[0]: z}
        return dict(zip(self.sites, z.split(self.traits.units(batch), -1), strict=True))
