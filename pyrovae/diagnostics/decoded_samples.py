"""Data beside what is decoded from draws of each density over z."""

from __future__ import annotations

from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.data import as_batch
from pyrovae.display import Result
from pyrovae.models import MixedColumns, VampPrior
from pyrovae.pairs import Pair, modules_of, observe
from pyrovae.randomness import seeded

DRAWS = 101  # from which a mean without a closed form is estimated


@dataclass(frozen=True, repr=False)
class Pictures(Result):
    """Rows of data beside the means of p(x | z) for z from each density.

    A mean without a closed form is estimated from draws; where there is no mean, as for a Cauchy
    distribution, their median takes its place. Of a column of categories it is the most probable
    one.

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
    pair: Pair, x: Tensor, densities: dict[str, dist.Distribution], *, seed: int
) -> Pictures:
    """Data beside what is decoded from as many draws of each density.

    Args:
        pair: model and guide, called with rows alone.
        x: rows, shape ``(n, ...)``.
        densities: over z.
        seed: names the draws.
    """
    samples = {}
    for number, (name, density) in enumerate(densities.items()):
        with seeded(seed, "decoded draws", number):
            z = density.sample(torch.Size([len(x)])).view(len(x), -1)
            samples[name] = expected(pair.decode(x, z))
    return Pictures(observe(pair, x)[1], samples, _pseudo_inputs(pair, x, seed))


def _pseudo_inputs(pair: Pair, x: Tensor, seed: int) -> Tensor | None:
    """Those of the model's one VampPrior, unless another prior has taken its place."""
    modules = dict.fromkeys(
        module for owner in modules_of(pair.model) for module in owner.modules()
    )
    priors = [module for module in modules if isinstance(module, VampPrior)]
    if len(priors) != 1:
        return None
    with seeded(seed, "pseudo-inputs in force"):
        reading = pair.model_reader.read(as_batch(x))[0]
    density = priors[0]()
    for site in reading.latent:
        z = reading.code(site)
        if z.shape[1:] == density.event_shape:
            log_prior = reading.distribution(site).log_prob(z)
            if torch.allclose(log_prior, density.log_prob(z)):
                return priors[0].inputs[: len(x)]
    return None


def expected(distribution: dist.Distribution) -> Tensor:
    """E[x] of a likelihood, from draws if it has no ``mean``; their median if there is no E[x].

    Of a column of categories, whose numbers have no mean, it is the most probable one.
    """
    base = distribution
    while isinstance(base, torch.distributions.Independent | dist.MaskedDistribution):
        base = base.base_dist
    if isinstance(base, torch.distributions.Categorical):
        return (base.probs * torch.arange(base.probs.shape[-1], device=base.probs.device)).sum(-1)
    try:
        mean: Tensor = distribution.mean
    except NotImplementedError:
        return distribution.sample(torch.Size([DRAWS])).mean(0)
    if mean.isfinite().all():
        return mean
    if isinstance(base, MixedColumns):
        return torch.where(mean.isfinite(), mean, base.mode)
    return torch.where(mean.isfinite(), mean, distribution.sample(torch.Size([DRAWS])).median(0)[0])
