"""Points in a guide: latent sites with a value and no density, as a MAP estimate has."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch

from pyrovae.data import Batch
from pyrovae.mixture.families import declared
from pyrovae.pairs.joint_sites import carrier
from pyrovae.pairs.masks import elements
from pyrovae.pairs.trace_reader import Node, Reader, Reading


def points_at(model: Reader, guide: Reader, batch: Batch, sites: Sequence[str]) -> tuple[str, ...]:
    """Latent sites at which the guide has a point where the model has a density.

    A density at a point is a number with a unit, which has no place in log p(x): what is at a point
    is taken as given. A discrete value has a probability, and is a draw like any other.

    Args:
        model, guide: how to run them.
        batch: rows.
        sites: the latent sites that the codes are at.

    Raises:
        InputError: if one of ``sites`` is such a point.
    """
    with torch.no_grad(), torch.random.fork_rng():
        reading, again = (guide.read(batch)[0] for _ in range(2))
        names = _deltas(reading, again)
        nodes = model.read(batch)[0].nodes if names else {}
    for site in sites:
        if site in names:
            carrier(reading, site)
    return tuple(name for name in names if name in nodes and _has_density(nodes[name]))


def _deltas(reading: Reading, again: Reading) -> list[str]:
    """Latent sites with a value and no density, of two runs of a guide.

    An autoguide's own draws vary from run to run and are at sites that only the guide has.
    """
    nodes = reading.nodes
    inner = {f"{name}_unconstrained" for name in nodes}
    names = [
        name
        for name in reading.latent
        if name not in reading.shared
        and isinstance(elements(nodes[name])[0], dist.Delta)
        and f"{name}_unconstrained" not in nodes
    ]
    if any(nodes[name]["infer"].get("is_auxiliary") for name in {*reading.latent} - inner):
        values = [(name, nodes[name]["value"], again.nodes[name]["value"]) for name in names]
        names = [name for name, one, other in values if torch.equal(one, other)]
    return names


def _has_density(node: Node) -> bool:
    base, _ = elements(node)
    latent = not node["is_observed"]
    return latent and not isinstance(base, dist.Delta) and not declared(base).support.is_discrete
