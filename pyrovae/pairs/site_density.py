"""The density of a code in a model or guide, where it depends on the rows only, not on draws."""

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
from pyrovae.pairs.joint_sites import Ancestral, code_at
from pyrovae.pairs.site_scores import supports, total
from pyrovae.pairs.trace_reader import Reader, Reading, innermost, is_discrete
from pyrovae.randomness import seeded

TRIES = 20  # runs, at most, until a discrete site has another value


@dataclass(frozen=True)
class SiteDensity:
    """The density at some latent sites of one function, taken as one vector.

    Args:
        reader: runs the function.
        sites: names of the sites.
    """

    reader: Reader
    sites: tuple[str, ...]

    def find(
        self, batch: Batch, readings: Sequence[Reading] | None = None, *, parts: int | None = None
    ) -> dist.Distribution | None:
        """The density at the sites, if it depends on the rows only; else ``None``.

        Args:
            batch: the rows.
            readings: a complete run for these rows; a new one if not given.
            parts: how many runs to use, if a plate takes a part of the rows at a time; all if not
                given.
        """
        if readings is None:
            readings = self.reader.read(batch)
        above = self._above(readings[0])
        if not above and len(self.sites) == 1:  # there is nothing that it could depend on
            return self._rows(readings[:parts])
        labels = supports(readings[0], above)
        distribution: dist.Distribution | None = None
        if labels:
            distribution = self._over_labels(batch, labels, parts)
        elif self._same_in_both(readings[0], self._second(batch, readings[0], {})):
            distribution = self._rows(readings[:parts])
        if distribution is None and len(self.sites) > 1:
            joint = Ancestral.read(self.reader, batch, self.sites, reading=readings[0])
            conditioned = [joint.condition(values) for values in _assignments(labels)]
            if settled([joint, *conditioned], self.codes(readings[0])):
                return joint
        return distribution

    def _over_labels(
        self, batch: Batch, labels: Mapping[str, Sequence[Tensor]], parts: int | None
    ) -> dist.Distribution | None:
        """The mixture of the densities given each value of some discrete sites, if there is one."""
        components, log_weights, same_weights = [], [], True
        for assignment in _assignments(labels):
            readings = self.reader.read(batch, values=assignment)
            second = self._second(batch, readings[0], assignment)
            if not self._same_in_both(readings[0], second):
                return None
            weights_of_two = (total(run, labels) for run in (readings[0], second))
            same_weights = same_weights and _equal(*weights_of_two)
            log_weights.append(torch.cat([total(reading, labels) for reading in readings[:parts]]))
            components.append(self._rows(readings[:parts]))
        code = self.codes(readings[0])[:1].expand(*components[0].batch_shape, -1)
        first, *others = (component.log_prob(code) for component in components)
        if all(_equal(first, other) for other in others):
            return components[0]  # it does not depend on them
        return families.stack(components, torch.stack(log_weights, -1)) if same_weights else None

    def _second(self, batch: Batch, first: Reading, values: Mapping[str, Tensor]) -> Reading:
        """A second run of the function, where others are drawn before the named sites.

        Discrete draws may be the same by chance: it is one in which each such site has other values
        for some rows than in the first, unless twenty runs don't show one.
        """
        above = [name for name in self._above(first) if name not in values]
        if not above and len(self.sites) == 1:
            return first
        with torch.random.fork_rng():
            for _ in range(TRIES):
                second = self.reader.read(batch, values=values, until=self.sites)[0]
                if not any(_same_draws(first, second, name) for name in above):
                    break
        return second

    def _above(self, reading: Reading) -> list[str]:
        """The other latent sites that are drawn before the last of the named ones."""
        last = max((reading.latent.index(s) for s in self.sites if s in reading.latent), default=0)
        return [name for name in reading.latent[:last] if name not in self.sites]

    def _rows(self, readings: Sequence[Reading]) -> dist.Distribution:
        parts = [self.at_sites(reading) for reading in readings]
        return parts[0] if len(parts) == 1 else families.concatenate(parts)

    def undetermined(self, batch: Batch) -> InputError:
        """The error for a guide whose density at the sites does not depend on the rows only."""
        with torch.no_grad(), torch.random.fork_rng():
            reading = self.reader.read(batch)[0]
        others = self._above(reading)
        shared = [name for name in others if name in reading.shared]
        discrete = [n for n in others if n not in shared and is_discrete(reading.nodes[n]["fn"])]
        above = [name for name in others if name not in (*shared, *discrete)]
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
        if shared:
            remedies.append(fixing(self.reader.role, shared))
        return InputError(
            f"expected q({', '.join(self.sites)} | x) to depend on nothing but the data; got a "
            f"guide whose parameters there depend on the draws of {others}. {' '.join(remedies)}"
        )

    def _same_in_both(self, first: Reading, second: Reading) -> bool:
        """Whether the sites can be joined to one vector, of the same density in two runs."""
        by_site = [[share(run.density(site)) for site in self.sites] for run in (first, second)]
        code = self.codes(first)
        if len(self.sites) > 1 and not families.joinable(by_site[0]):
            return False
        return _equal(*(families.join(parts).log_prob(code) for parts in by_site))

    def at_sites(self, reading: Reading) -> dist.Distribution:
        """The distribution at the latent sites, as one over vectors."""
        parts = [share(reading.density(site)) for site in self.sites]
        return parts[0] if len(parts) == 1 else families.join(parts)

    def codes(self, reading: Reading) -> Tensor:
        """The values at the sites as one vector for each row, shape ``(B, D)``."""
        return code_at(reading, self.sites)


def fixing(function: str, sites: Sequence[str]) -> str:
    """The advice to make constants of sites that are one for all rows."""
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


def _same_draws(first: Reading, second: Reading, site: str) -> bool:
    """Whether a site is discrete and its draws are the same in two runs."""
    node = first.nodes[site]
    return is_discrete(node["fn"]) and torch.equal(node["value"], second.nodes[site]["value"])


def settled(joints: Sequence[Ancestral], code: Tensor) -> bool:
    """Whether joint densities are all the same, and the same in each run: none depends on draws."""
    log_densities = []
    for joint in joints:
        for run in range(2):
            with seeded(0, "settled", run):
                log_densities.append(joint.log_prob(code))
    return all(_equal(log_densities[0], other) for other in log_densities[1:])


def _equal(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.allclose(first, second, equal_nan=True)
