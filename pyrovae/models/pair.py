"""Any Pyro model and guide, seen as the few functions that the measures need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.batches import Batch, as_batch, repeat_rows, take_rows
from pyrovae.errors import InputError
from pyrovae.mixture import families
from pyrovae.models.ancestral import Ancestral, code_at, density
from pyrovae.models.by_place import by_place
from pyrovae.models.scoring import Scorer, total
from pyrovae.models.sites import Reader, Reading
from pyrovae.models.state import PyroFunction, measuring, modules_of
from pyrovae.randomness import seeded

__all__ = ["Pair", "PyroFunction", "Weighted", "measuring", "modules_of"]

ROWS = 16_384  # rows that go through the model at once, at most
ROWS_BYTES = 1 << 24  # of data that go through the model at once; more is slow to allocate
COMPARED = 100  # rows over which a prior must be the same


@dataclass(frozen=True)
class Weighted:
    """Draws from the guide at some data points, with what their importance weights are made of.

    The weight of a draw is p(x|z) p(z) / q(z|x).

    Args:
        z: draws, shape ``(S, B, D)``.
        log_likelihood, log_prior, log_guide: log p(x|z), log p(z), log q(z|x), each ``(S, B)``. If
            the guide has more latent sites, their p/q is a factor of the likelihood.
    """

    z: Tensor
    log_likelihood: Tensor
    log_prior: Tensor
    log_guide: Tensor


@dataclass(frozen=True)
class Pair:
    """A Pyro ``model(*batch)`` and ``guide(*batch)`` with a latent site in a data plate.

    Every method runs one of the two functions under Pyro's own handlers and reads the sites, so a
    pair needs nothing but its ``pyro.sample`` statements. All log densities are those of the sites
    themselves: masks count, subsampling and ``poutine.scale`` do not. A batch is one tensor of
    rows, or a tuple of tensors, one for each argument.

    Args:
        model: generative function.
        guide: variational function; called with the same arguments.
        site: name of the latent site, or of several that are taken as one vector.
        observed: name of the observed site that is decoded, if there are several; log p(x | z) is
            that of all of them.
        data_plate: name of the plate over the data; by default the one with as many rows as a
            batch.
    """

    model: PyroFunction
    guide: PyroFunction
    site: str | tuple[str, ...] = "z"
    observed: str | None = None
    data_plate: str | None = None
    _known: dict[tuple[object, ...], bool] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def sites(self) -> tuple[str, ...]:
        """The latent sites."""
        return (self.site,) if isinstance(self.site, str) else tuple(self.site)

    @property
    def name(self) -> str:
        """What to call the code: the name of its site, or of all of them."""
        return "_".join(self.sites)

    def encode(self, x: Tensor | Batch) -> dist.Distribution:
        """q(z | x), batch shape ``(B,)``, event shape ``(D,)``, for rows ``x``, shape ``(B, ...)``.

        Several sites that are drawn given the data only, of one family, are of that family; all
        others an :class:`~pyrovae.models.ancestral.Ancestral`.

        Raises:
            InputError: if the guide has no such site, the site is in no data plate or is discrete,
                or its parameters depend on draws of sites that are not named.
        """
        batch = as_batch(x)
        readings = self._read_guide.read(batch)
        with torch.random.fork_rng():
            again = self._read_guide.read(batch)[0] if len(readings[0].latent) > 1 else readings[0]
        if self._given_all(readings[0], again):
            return families.concatenate([self._at_sites(reading) for reading in readings])
        if len(self.sites) > 1:
            joint = Ancestral.read(self._read_guide, batch, self.sites)
            if _settled(joint, self._codes(readings[0])):
                return joint
        others = [name for name in readings[0].latent if self.sites != (name,)]
        raise InputError(
            f"expected q({', '.join(self.sites)} | x) to depend on nothing but the data; got a "
            f"guide whose parameters there depend on the draws of {others}. Name the site that is "
            "drawn first with site=, or give those draws as data."
        )

    def log_joint(self, x: Tensor | Batch, z: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x | z) and log p(z) row by row, each of shape ``(B,)``.

        Discrete latent sites of a few values are summed over; continuous ones that the guide does
        not have are drawn from the model.

        Args:
            x: rows, shape ``(B, ...)``.
            z: one code for each row, shape ``(B, D)``.
        """
        batch = as_batch(x)
        return self._scorer.score(batch, codes=self._split(batch, z))

    def log_likelihood(self, x: Tensor | Batch, z: Tensor) -> Tensor:
        """log p(x | z) row by row, shape ``(B,)``, as the ELBO has it.

        If the guide has more latent sites u, this is log p(x, u | z) − log q(u | z, x) at a draw of
        them, whose mean is at most log p(x | z).
        """
        batch = as_batch(x)
        codes = self._split(batch, z)
        if self.joint(batch):
            return self._with_guide(batch, codes)[1]
        return self._scorer.score(batch, codes=codes)[0]

    def decode(self, x: Tensor | Batch, z: Tensor) -> dist.Distribution:
        """p(x | z), batch shape ``(B,)``: the distribution at the observed site for codes ``z``."""
        batch = as_batch(x)
        readings = self._read_model.read(batch, codes=self._split(batch, z))
        site = self._observed_site(readings[0])
        return families.concatenate([r.distribution(site, flatten=False) for r in readings])

    def observe(self, x: Tensor | Batch) -> Tensor:
        """The data at the observed site, one row each, shape ``(B, ...)``."""
        batch = as_batch(x)
        readings = self._read_model.read(batch)
        site = self._observed_site(readings[0])
        return torch.cat([reading.value(site) for reading in readings])

    def prior(self, x: Tensor | Batch) -> dist.Distribution:
        """p(z), batch shape ``(1,)``, which broadcasts against any number of codes.

        Args:
            x: at least two rows, on which the prior is checked not to depend.

        Raises:
            InputError: if p(z) differs between rows, so that there is no one prior to compare to.
        """
        batch = as_batch(x)
        if self.follows(batch):
            batch = take_rows(batch, slice(0, COMPARED))
        first, again = (self._read_model.read(batch, until=self.sites)[0] for _ in range(2))
        code = self._codes(first)[:1].expand(first.kept, -1)
        found: dist.Distribution | None = None
        if self._given_all(first, again):
            found = self._at_sites(first)
        elif len(self.sites) > 1:
            joint = Ancestral.read(self._read_model, batch, self.sites)
            found = joint if _settled(joint, code) else None
        if found is None or not _alike(found.log_prob(code)):
            others = [name for name in first.latent if name not in self.sites]
            raise InputError(
                f"expected one prior p({', '.join(self.sites)}) for all rows; got one that depends "
                f"on the data{f' or on the sites {others}' if others else ''}. Compare the "
                "aggregated posterior with a prior of your own by passing prior=."
            )
        try:
            return families.take(found, slice(0, 1))
        except ValueError:  # not made of parameter tensors: a mixture, a flow
            return self._at_sites(self._read_model.read(take_rows(batch, slice(0, 1)))[0])

    def weigh(
        self, x: Tensor | Batch, draws: int, *, proposal: dist.Distribution | None = None
    ) -> Weighted:
        """Draws for each row, with the terms of their importance weights.

        All latent sites of the guide are drawn together; those that only the model has are drawn
        from it, or summed over if they are discrete.

        Args:
            x: rows, shape ``(B, ...)``.
            draws: number S of draws for each row.
            proposal: where z is drawn from in the guide's place, batch shape ``(B,)``.
        """
        batch = as_batch(x)
        at_once = max(1, _rows_at_once(batch) // len(batch[0])) if self.follows(batch) else 1
        if proposal is None and self.joint(batch):
            columns = zip(
                *(
                    [c.unflatten(0, (len(part), -1)) for c in self._with_guide(repeated)]
                    for part in torch.arange(draws).split(at_once)
                    for repeated in [repeat_rows(batch, len(part))]
                ),
                strict=True,
            )
            return Weighted(*(torch.cat(column) for column in columns))
        with torch.random.fork_rng():
            source = self.encode(batch) if proposal is None else proposal
        z = source.sample(torch.Size([draws]))
        scored: list[list[Tensor]] = []
        repeated = repeat_rows(batch, min(at_once, draws))
        for part in z.split(at_once):
            rows = take_rows(repeated, slice(0, len(part) * len(batch[0])))
            with _unchecked() if scored else nullcontext():  # the data are those of the first part
                scores = self.log_joint(rows, part.flatten(0, 1))
            scored.append([score.view(part.shape[:2]) for score in scores])
        likelihood, prior = (torch.cat(parts) for parts in zip(*scored, strict=True))
        return Weighted(z, likelihood, prior, source.log_prob(z))

    def follows(self, x: Tensor | Batch) -> bool:
        """Whether model and guide take any rows, in any number; if not, always give all rows."""
        batch = as_batch(x)
        key = ("follows", *_kinds(batch))
        if key not in self._known:
            both = self._read_guide.follows(batch) and self._read_model.follows(batch)
            self._known[key] = both and not by_place(self._read_model, self._read_guide, batch)
        return self._known[key]

    def joint(self, x: Tensor | Batch) -> bool:
        """Whether the guide has other latent sites too, which are drawn with the one named."""
        batch = as_batch(x)
        key = ("joint", *_kinds(batch))
        if key not in self._known:
            with torch.random.fork_rng():
                reading = self._read_guide.read(batch)[0]
            self._known[key] = bool(set(reading.latent) - set(self.sites))
        return self._known[key]

    def blocks(self, x: Tensor, size: int) -> Sequence[Tensor]:
        """Blocks of ``size`` rows; all rows in one where the pair takes nothing else."""
        return x.split(size) if self.follows(x) else (x,)

    @cached_property
    def _read_model(self) -> Reader:
        return Reader(self.model, "model", self.data_plate)

    @cached_property
    def _read_guide(self) -> Reader:
        return Reader(self.guide, "guide", self.data_plate)

    @property
    def _scorer(self) -> Scorer:
        return Scorer(self._read_model, self._read_guide, self.sites)

    def _given_all(self, reading: Reading, again: Reading) -> bool:
        """Whether the sites are one vector of independent units, the same in two runs."""
        both = [[density(run, site) for site in self.sites] for run in (reading, again)]
        code = self._codes(reading)
        if len(self.sites) > 1 and not families.joinable(both[0]):
            return False
        values, other = (families.join(parts).log_prob(code) for parts in both)
        return _equal(values, other)

    def _at_sites(self, reading: Reading) -> dist.Distribution:
        """The distribution at the latent sites as one over vectors."""
        return families.join([density(reading, site) for site in self.sites])

    def _codes(self, reading: Reading) -> Tensor:
        return code_at(reading, self.sites)

    def _split(self, batch: Batch, z: Tensor) -> dict[str, Tensor]:
        """The part of a code that belongs to each site."""
        if len(self.sites) == 1:
            return {self.sites[0]: z}
        with torch.no_grad(), torch.random.fork_rng():
            reading = self._read_guide.read(batch)[0]
        sizes = [reading.code(site).shape[1] for site in self.sites]
        return dict(zip(self.sites, z.split(sizes, -1), strict=True))

    def _with_guide(
        self, batch: Batch, codes: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One draw of all of the guide's sites for each row, with the terms of its weight.

        Args:
            batch: rows.
            codes: what to put at the latent sites; drawn too if not given.

        Returns:
            codes, log p of all the rest over log q of it, log p and log q of the codes.
        """
        own = {name for site in self.sites for name in (site, f"{site}_unconstrained")}
        parts = []
        for reading in self._read_guide.read(batch, codes=codes):
            values = {name: reading.nodes[name]["value"] for name in reading.latent}
            joint, prior = self._scorer.score(batch, values=values, indices=reading.indices)
            rest = joint[: reading.kept] - total(reading, set(reading.latent) - own)
            guide = total(reading, set(reading.latent) & own)
            parts.append((self._codes(reading), rest, prior[: reading.kept], guide))
        z, rest, prior, guide = (torch.cat(column) for column in zip(*parts, strict=True))
        return z, rest, prior, guide

    def _observed_site(self, reading: Reading) -> str:
        names = [n for n in reading.observed if not isinstance(reading.nodes[n]["fn"], dist.Unit)]
        if self.observed is not None:
            for name in (self.observed, f"{self.observed}_observed"):
                if name in names:
                    return name
            raise InputError(
                f"expected an observed site {self.observed!r} in the model; got {names}. Name one "
                "of those with observed=."
            )
        if len(names) != 1:
            raise InputError(
                f"expected one observed site in the model; got {names}. Give the site obs=, or "
                "name the one that is meant with observed=."
            )
        return names[0]


def _rows_at_once(batch: Batch) -> int:
    size = max(array[:1].numel() * array.element_size() for array in batch)
    return max(1, min(ROWS, ROWS_BYTES // max(1, size)))


def _kinds(batch: Batch) -> list[object]:
    """What a pair's answers to a batch can depend on, but for the numbers in it."""
    return [(tuple(array.shape[1:]), array.dtype, array.device) for array in batch]


def _unchecked() -> AbstractContextManager[object]:
    """Without checks of arguments, which cost as much as a likelihood itself."""
    unchecked: AbstractContextManager[object] = pyro.settings.context(
        validate_distributions_pyro=False, validate_distributions_torch=False
    )
    return unchecked


def _settled(joint: Ancestral, code: Tensor) -> bool:
    """Whether a joint density is one of the rows and of nothing that is drawn on the way."""
    found = []
    for seed in range(2):
        with seeded(seed, "joint density"):
            found.append(joint.log_prob(code))
    return _equal(*found)


def _alike(values: Tensor) -> bool:
    return torch.allclose(values, values[:1].expand_as(values))


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, equal_nan=True)
