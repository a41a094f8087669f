"""Points in a guide: latent sites that have a value but no density, as in a MAP estimate."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch

from pyrovae.data import Batch
from pyrovae.mixture.families import declared
from pyrovae.pairs.masks import elements
from pyrovae.pairs.trace_reader import Node, Reader, Reading


def points_at(model: Reader, guide: Reader, batch: Batch, sites: Sequence[str]) -> tuple[str, ...]:
    """Latent sites at which the guide has a point and the model a density.

    The model's density at such a point depends on the units of the site, so it has no place in
    log p(x): the value counts as given. A discrete value has a probability, and is a draw like any
    other.

    Args:
        model, guide: readers of the two.
        batch: rows.
        sites: the latent sites that make up a code.

    Raises:
        InputError: if one of ``sites`` is such a point.
    """
    with torch.no_grad(), torch.random.fork_rng():
        reading, second = (guide.read(batch)[0] for _ in range(2))
        names = _deltas(reading, second)
        nodes = model.read(batch)[0].nodes if names else {}
    for site in sites:
        if site in names:
            reading.carrier(site)
    return tuple(name for name in names if name in nodes and _has_density(nodes[name]))


def _deltas(reading: Reading, second: Reading) -> list[str]:
    """Latent sites with a value but no density, told by two runs of a guide.

    Deltas of an autoguide may be functions of its own draws, which are at sites that only the guide
    has: those values differ from run to run, and are no points.
    """
    nodes = reading.nodes
    unconstrained = {f"{name}_unconstrained" for name in nodes}
    names = [
        name
        for name in reading.latent
        if name not in reading.shared
        and isinstance(elements(nodes[name])[0], dist.Delta)
        and f"{name}_unconstrained" not in nodes
    ]
    if any(nodes[name]["infer"].get("is_auxiliary") for name in {*reading.latent} - unconstrained):
        values = [(name, nodes[name]["value"], second.nodes[name]["value"]) for name in names]
        names = [name for name, value, other in values if torch.equal(value, other)]
    return names


def _has_density(node: Node) -> bool:
    base, _ = elements(node)
    latent = not node["is_observed"]
    return latent and not isinstance(base, dist.Delta) and not declared(base).support.is_discrete
