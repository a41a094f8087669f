"""What is decoded from draws of each density over z, beside the data."""

from __future__ import annotations

from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.data import as_batch
from pyrovae.models import VampPrior
from pyrovae.pairs import Pair, Reader, modules_of
from pyrovae.randomness import seeded

DRAWS = 101  # from which a mean without a closed form is estimated


@dataclass(frozen=True)
class Pictures:
    """Rows of data beside the means of p(x | z) for z from each density.

    A mean that has no closed form is that of draws; where there is none, as a Cauchy
    distribution has none, their median stands in its place.

    Args:
        data: shape ``(n, ...)``.
        samples: name of the density → shape ``(n, ...)``.
        pseudo_inputs: those of a VampPrior, if the model draws its codes from one, shape
            ``(n, ...)``.
    """

    data: Tensor
    samples: dict[str, Tensor]
    pseudo_inputs: Tensor | None = None


def pictures(
    whole: Pair, pair: Pair, x: Tensor, densities: dict[str, dist.Distribution], *, seed: int
) -> Pictures:
    """Data beside what is decoded from as many draws of each density.

    Args:
        whole: model and guide as they were given, in whose modules a VampPrior is looked for.
        pair: the same as a pair of rows.
        x: rows, shape ``(n, ...)``.
        densities: over z.
        seed: names the draws.
    """
    samples = {}
    for number, (name, density) in enumerate(densities.items()):
        with seeded(seed, "decoded draws", number):
            z = density.sample(torch.Size([len(x)])).view(len(x), -1)
            samples[name] = expected(pair.decode(x, z))
    return Pictures(pair.observe(x), samples, _pseudo_inputs(whole, pair, x, seed))


def _pseudo_inputs(whole: Pair, pair: Pair, x: Tensor, seed: int) -> Tensor | None:
    """Those of the one VampPrior that the model draws from; another may stand in its place."""
    owned = dict.fromkeys(m for owner in modules_of(whole.model) for m in owner.modules())
    priors = [module for module in owned if isinstance(module, VampPrior)]
    if len(priors) != 1:
        return None
    with seeded(seed, "pseudo-inputs in force"):
        reading = Reader(pair.model, "model", pair.data_plate).read(as_batch(x))[0]
    density = priors[0]()
    for site in reading.latent:
        z = reading.code(site)
        if z.shape[1:] == density.event_shape:
            in_force = reading.distribution(site).log_prob(z)
            if torch.allclose(in_force, density.log_prob(z)):
                return priors[0].inputs[: len(x)]
    return None


def expected(distribution: dist.Distribution) -> Tensor:
    """E[x] of a likelihood, from draws where its family knows no ``mean``; else their median."""
    base = distribution
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
    if isinstance(base, torch.distributions.Categorical):
        return (base.probs * torch.arange(base.probs.shape[-1], device=base.probs.device)).sum(-1)
    try:
        mean: Tensor = distribution.mean
    except NotImplementedError:
        return distribution.sample(torch.Size([DRAWS])).mean(0)
    if mean.isfinite().all():
        return mean
    return torch.where(mean.isfinite(), mean, distribution.sample(torch.Size([DRAWS])).median(0)[0])
