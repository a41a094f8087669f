"""The density of a code in a model or guide, where it is one of the rows and of nothing drawn."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.data import Batch
from pyrovae.errors import InputError
from pyrovae.mixture import families
from pyrovae.mixture.families import has_inverse, share
from pyrovae.pairs.joint_sites import Ancestral, code_at, density, is_discrete
from pyrovae.pairs.site_scores import supports, total
from pyrovae.pairs.trace_reader import Reader, Reading, innermost
from pyrovae.randomness import seeded

TRIES = 20  # runs for a discrete site to be drawn otherwise


@dataclass(frozen=True)
class SiteDensity:
    """The density at some latent sites of one function, taken as one vector.

    Args:
        reader: how to run the function.
        sites: names of the sites.
    """

    reader: Reader
    sites: tuple[str, ...]

    def find(self, batch: Batch, parts: int | None = None) -> dist.Distribution | None:
        """The density at the sites in a function, if it is one of the rows alone; else None.

        Args:
            batch: the rows.
            parts: how many are read, where a plate takes a part of the rows at a time.
        """
        readings, again = self._twice(batch, {})
        labels = supports(readings[0], self._above(readings[0]))
        if labels:
            found = self._over_labels(batch, labels, parts)
        else:
            same = self._given_all(readings[0], again)
            found = self._rows(readings[:parts]) if same else None
        if found is None and len(self.sites) > 1:
            joint = Ancestral.read(self.reader, batch, self.sites)
            given = [joint.condition(values) for values in _assignments(labels)]
            if settled([joint, *given], self.codes(readings[0])):
                return joint
        return found

    def _over_labels(
        self, batch: Batch, labels: Mapping[str, Sequence[Tensor]], parts: int | None
    ) -> dist.Distribution | None:
        """The mixture of the densities given each value of some discrete sites, if there is one."""
        found, log_weights, known = [], [], True
        for fixed in _assignments(labels):
            readings, again = self._twice(batch, fixed)
            if not self._given_all(readings[0], again):
                return None
            known = known and _equal(total(readings[0], labels), total(again, labels))
            log_weights.append(torch.cat([total(reading, labels) for reading in readings[:parts]]))
            found.append(self._rows(readings[:parts]))
        code = self.codes(readings[0])[:1].expand(*found[0].batch_shape, -1)
        first, *others = (density.log_prob(code) for density in found)
        if all(_equal(first, other) for other in others):
            return found[0]  # it does not depend on them
        return families.stack(found, torch.stack(log_weights, -1)) if known else None

    def _twice(self, batch: Batch, values: Mapping[str, Tensor]) -> tuple[list[Reading], Reading]:
        """A run of a function, and another where sites are drawn before the last of the named.

        Discrete draws may be the same by chance: in the second run some of each site differ, unless
        they hardly ever do.
        """
        readings = self.reader.read(batch, values=values)
        first = readings[0]
        above = [name for name in self._above(first) if name not in values]
        if not above and len(self.sites) == 1:
            return readings, first
        with torch.random.fork_rng():
            for _ in range(TRIES):
                again = self.reader.read(batch, values=values, until=self.sites)[0]
                if not any(_same_draws(first, again, name) for name in above):
                    break
        return readings, again

    def _above(self, reading: Reading) -> list[str]:
        """The other latent sites that are drawn before the last of the named."""
        last = max((reading.latent.index(s) for s in self.sites if s in reading.latent), default=0)
        return [name for name in reading.latent[:last] if name not in self.sites]

    def _rows(self, readings: Sequence[Reading]) -> dist.Distribution:
        return families.concatenate([self.at_sites(reading) for reading in readings])

    def undetermined(self, batch: Batch) -> InputError:
        """What to do about a guide whose density at the sites is not one of the rows alone."""
        with torch.no_grad(), torch.random.fork_rng():
            reading = self.reader.read(batch)[0]
        others = self._above(reading)
        whole = [name for name in others if name in reading.shared]
        discrete = [n for n in others if n not in whole and is_discrete(reading.nodes[n]["fn"])]
        above = [name for name in others if name not in (*whole, *discrete)]
        remedies = []
        if above:
            joint = tuple(name for name in reading.latent if name in (*above, *self.sites))
            remedies.append(
                f"Name the site that is drawn first, site={above[0]!r}, or all of them as one, "
                f"site={joint}."
            )
        if discrete:
            data = ", ".join(f'"{name}": {name}' for name in discrete)
            remedies.append(
                f"Give the draws of {discrete} as data, in model and guide alike: lambda x, "
                f"{', '.join(discrete)}: pyro.poutine.condition(guide, {{{data}}})(x)."
            )
        if whole:
            remedies.append(fixing(self.reader.role, whole))
        return InputError(
            f"expected q({', '.join(self.sites)} | x) to depend on nothing but the data; got a "
            f"guide whose parameters there depend on the draws of {others}. {' '.join(remedies)}"
        )

    def _given_all(self, reading: Reading, again: Reading) -> bool:
        """Whether the sites are one vector of independent units, the same in two runs."""
        both = [[share(density(run, site)) for site in self.sites] for run in (reading, again)]
        code = self.codes(reading)
        if len(self.sites) > 1 and not families.joinable(both[0]):
            return False
        values, other = (families.join(parts).log_prob(code) for parts in both)
        return _equal(values, other)

    def at_sites(self, reading: Reading) -> dist.Distribution:
        """The distribution at the latent sites as one over vectors."""
        return families.join([share(density(reading, site)) for site in self.sites])

    def codes(self, reading: Reading) -> Tensor:
        """The values at the sites as one vector a row, shape ``(B, D)``."""
        return code_at(reading, self.sites)


def fixing(function: str, sites: Sequence[str]) -> str:
    """How to make sites that are one for all rows constants of the pair."""
    values = ", ".join(f'"{name}": {name}_value' for name in sites)
    return (
        f"Fix what is one for all rows in model and guide alike: pyro.poutine.condition({function},"
        f" {{{values}}})."
    )


def at_own_draws(distribution: dist.Distribution) -> bool:
    """Whether the density at a site is known at its own draws only."""
    fn = innermost(distribution)
    pushed = type(fn) is dist.TransformedDistribution
    return pushed and not has_inverse(fn.transforms, fn.base_dist)


def _assignments(labels: Mapping[str, Sequence[Tensor]]) -> Iterator[dict[str, Tensor]]:
    """All ways to give values to some discrete sites."""
    for values in itertools.product(*labels.values()) if labels else ():
        yield dict(zip(labels, values, strict=True))


def _same_draws(one: Reading, other: Reading, site: str) -> bool:
    """Whether discrete draws at a site are the same in two runs."""
    node = one.nodes[site]
    return is_discrete(node["fn"]) and torch.equal(node["value"], other.nodes[site]["value"])


def settled(joints: Sequence[Ancestral], code: Tensor) -> bool:
    """Whether a joint density is one of the rows and of nothing that is drawn on the way."""
    found = []
    for joint in joints:
        for run in range(2):
            with seeded(0, "settled", run):
                found.append(joint.log_prob(code))
    return all(_equal(found[0], other) for other in found[1:])


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, equal_nan=True)
