"""Discrete latent sites that model and guide draw for each row, beside the code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.data import Batch, as_batch, repeat_rows
from pyrovae.pairs.joint_sites import code_at
from pyrovae.pairs.pair import Pair
from pyrovae.pairs.site_scores import imputed, masked_sites
from pyrovae.pairs.trace_reader import Reading, innermost, is_discrete


@dataclass(frozen=True)
class DiscreteSites:
    """The discrete sites of a pair whose values are draws of both functions, row by row.

    Values of them are a mapping by name, each of shape ``(..., units)``, in the model's dtype.

    Args:
        pair: model and guide.
        classes: by name of a site, how many classes a one-hot vector has there; 0 for other values.
        units: by name, how many numbers each row is ranked by.
        dtypes: by name, the dtypes of values in model and guide.
        refused: name of a site that is in both and can't be drawn with the code → why.
    """

    pair: Pair
    classes: Mapping[str, int]
    units: Mapping[str, int]
    dtypes: Mapping[str, tuple[torch.dtype, torch.dtype]]
    refused: Mapping[str, str]

    @classmethod
    def beside(cls, pair: Pair, x: Tensor | Batch) -> DiscreteSites:
        """Those of a pair that takes any number of rows.

        Args:
            pair: model and guide.
            x: rows, shape ``(N, ...)``, all that are to be drawn for.
        """
        batch = as_batch(x)
        with torch.no_grad(), torch.random.fork_rng():
            models, guides = (r.read(batch) for r in (pair.model_reader, pair.guide_reader))
        model, guide = models[0], guides[0]
        drawn = [
            name
            for name in discrete_sites(model, pair.sites)
            if name in guide.latent and name not in guide.shared
        ]
        continuous = [name for name in drawn if not is_discrete(guide.nodes[name]["fn"])]
        refused = dict.fromkeys(continuous, "the guide has no discrete distribution there.")
        masked = {name for reading in (*models, *guides) for name in masked_sites(reading)}
        reason = ""
        if masked & {*pair.sites, *drawn}:
            reason = "a mask leaves out a part of a latent site."
        elif pair.traits.draws_for_all(batch):
            reason = "the pair draws another site once for all rows."
        if reason:
            refused |= dict.fromkeys(drawn, reason)
        names = [name for name in drawn if name not in refused]
        classes = {name: _classes(model, name) for name in names}
        return cls(
            pair,
            classes,
            {n: model.code(n).shape[1] // (classes[n] or 1) for n in names},
            {n: (model.code(n).dtype, guide.code(n).dtype) for n in names},
            refused,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The sites."""
        return tuple(self.classes)

    @property
    def labels(self) -> tuple[str, ...]:
        """A name for each unit: the site's, with a place if it has more than one."""
        return tuple(
            name if count == 1 else f"{name}[{unit}]"
            for name, count in self.units.items()
            for unit in range(count)
        )

    def draw(self, x: Batch, draws: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Codes and values that the guide draws together, each ``(S, B, ...)``.

        Args:
            x: rows, of number B.
            draws: S, of each row.
        """
        readings = self.pair.guide_reader.read(repeat_rows(x, draws))
        codes = torch.cat([code_at(reading, self.pair.sites) for reading in readings])
        values = {name: _values(readings, name).to(self.dtypes[name][0]) for name in self.names}
        by_draw = {name: value.unflatten(0, (draws, -1)) for name, value in values.items()}
        return codes.unflatten(0, (draws, -1)), by_draw

    def log_guide(self, x: Batch, z: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """log q(z, u | x) of the guide's own sites, shape ``(B,)``.

        Args:
            x: rows, of number B.
            z: a code for each, shape ``(B, D)``.
            values: of the discrete sites u, each ``(B, units)``.

        Raises:
            InputError: if the guide has a point at a site of the code.
        """
        given = {name: value.to(self.dtypes[name][1]) for name, value in values.items()}
        codes = {**self.pair.by_site(x, z), **given}
        return torch.cat(
            [
                torch.stack(
                    [
                        *(r.density(site).log_prob(r.code(site)) for site in self.pair.sites),
                        *(r.log_density(name) for name in self.names),
                    ]
                ).sum(0)
                for r in self.pair.guide_reader.read(x, codes=codes)
            ]
        )

    def log_joint(self, x: Batch, z: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """log p(x, z, u), shape ``(B,)``.

        Args:
            x, z, values: as `log_guide` has them.

        Raises:
            InputError: as :meth:`~pyrovae.pairs.pair.Pair.log_joint`.
        """
        likelihood, prior = self.pair.log_joint(x, z, others=values)
        return likelihood + prior

    def as_numbers(self, values: Mapping[str, Tensor]) -> Tensor:
        """What rows are ranked by, shape ``(..., K)``: a one-hot vector is the number of its class.

        Args:
            values: of the sites, each ``(..., units)``.
        """
        parts = [
            values[name].unflatten(-1, (-1, classes)).argmax(-1) if classes else values[name]
            for name, classes in self.classes.items()
        ]
        return torch.cat([part.double() for part in parts], -1)


def discrete_sites(model: Reading, code: Sequence[str]) -> list[str]:
    """Names of the discrete latent sites of each row in a run of a model, those of the code aside.

    Values that ``obs_mask=`` leaves out of the data are none.
    """
    return [
        name
        for name in model.latent
        if name not in (*code, *model.shared)
        and is_discrete(model.nodes[name]["fn"])
        and not imputed(model, name)
    ]


def _values(readings: Sequence[Reading], name: str) -> Tensor:
    return torch.cat([reading.code(name) for reading in readings])


def _classes(model: Reading, name: str) -> int:
    """How many classes a one-hot vector at a site has; 0 where values aren't one-hot."""
    family = innermost(model.nodes[name]["fn"])
    one_hot = isinstance(family, torch.distributions.OneHotCategorical)
    return int(family.event_shape[0]) if one_hot else 0
