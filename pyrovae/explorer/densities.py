"""A density over codes as a mixture of normals that a page can evaluate, exact or not."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.explorer.arrays import pack
from pyrovae.mixture import AggregatedPosterior, Mixture, families, fewer_components
from pyrovae.randomness import seeded

MOST, FEWER = 1000, 300  # normals of a density in the page; if it has more, it gets these
DRAWS = 4000  # that stand for a density which is no mixture of normals
WIDTH = 0.1  # of each, in standard deviations of the units


def as_normals(density: dist.Distribution, *, seed: int) -> dict[str, Any]:
    """Weights, means and covariances' roots of normals, and whether they are the density itself.

    A mixture of more than 1,000 normals is reduced to 300. What is no mixture of normals is taken
    for the mixture of 4,000 narrow normals at its draws, which is reduced likewise.

    Args:
        density: over codes, batch shape ``()`` or ``(1,)``, event shape ``(D,)``.
        seed: names the draws and the reduction.
    """
    found = _parts(density)
    words = ""
    if found is None:
        with torch.no_grad(), seeded(seed, "draws for the explorer"):
            z = density.sample(torch.Size([DRAWS])).reshape(DRAWS, -1)
        narrow = dist.Normal(z, (WIDTH * z.std(0)).expand_as(z)).to_event(1)
        found = _reduced(AggregatedPosterior(narrow), seed)
        words = f"approximated by {len(found[0])} normals, fitted to {DRAWS:,} draws"
    elif len(found[0]) > MOST:
        size = len(found[0])
        found = _reduced(density, seed)
        words = f"approximated by {len(found[0])} normals in place of {size:,}"
    log_weight, loc, root = found
    return {
        "log_weight": pack(log_weight.double().numpy()),
        "loc": pack(loc.numpy()),
        "root": pack(root.numpy()),
        "words": words,
    }


def _parts(density: dist.Distribution) -> tuple[Tensor, Tensor, Tensor] | None:
    """Log weights ``(K,)``, means ``(K, D)``, roots ``(K, D)`` or ``(K, D, D)``; or ``None``."""
    if isinstance(density, torch.distributions.MixtureSameFamily):
        components = density.component_distribution
        log_weight = density.mixture_distribution.logits.log_softmax(-1)
    else:
        batch = torch.Size([1])
        components = density.expand(batch) if density.batch_shape != batch else density
        log_weight = torch.zeros(1)
    if len(log_weight.shape) != 1 or len(components.event_shape) != 1:
        return None
    normal = families.diagonal_normal(components) or families.full_normal(components)
    if normal is None:
        return None
    return log_weight.detach(), normal[0].detach(), normal[1].detach()


def _reduced(mixture: Mixture, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    found = _parts(fewer_components(mixture, min(FEWER, mixture.size), seed=seed))
    if found is None or not math.isfinite(float(found[1].sum())):
        raise RuntimeError("a reduction without normals")  # it is always of normals
    return found
