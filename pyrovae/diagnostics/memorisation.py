"""Whether the aggregated posterior knows the data to come, or only the data it is made of."""

from __future__ import annotations

from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.diagnostics.codes import Codes
from pyrovae.estimates import TOO_FEW, Estimate, mean_estimate, skewness, two_stage_mean
from pyrovae.mixture.mixture import Mixture
from pyrovae.randomness import seeded

ENOUGH = 4.0  # rows for each squared unit of skewness: fewer miss the mean too often
DRAWS = 8192  # that the skewness is taken from


@dataclass(frozen=True)
class Memorisation:
    """Mean log densities of codes under densities over z, in nats.

    Args:
        training: name of the density → mean log density of codes of the training data; standard
            errors over draws, since the densities were made from these data.
        held_out: the same for codes of data not seen; standard errors over data.
        advantage: mean of log q_agg − log p at the held-out codes, paired; it can't be told where
            most of it would come from codes so rare that so few rows need not hold one.
        components: effective number of components of q_agg at a code, exp of the entropy of its
            responsibilities, for ``"training"`` and ``"held-out"`` codes: 1 where each code belongs
            to one data point alone.
        log_aggregated, log_prior: their values at the held-out codes, each ``(m,)``, means over the
            draws of a data point.
    """

    training: dict[str, Estimate]
    held_out: dict[str, Estimate]
    advantage: Estimate
    log_aggregated: Tensor
    log_prior: Tensor
    components: dict[str, Estimate]


def memorisation(
    training: Codes,
    held_out: Codes,
    densities: dict[str, dist.Distribution],
    aggregated: Mixture,
    *,
    fitted: dist.Distribution | None = None,
    seed: int = 0,
) -> Memorisation:
    """Mean log density of training and held-out codes under several densities.

    Args:
        training: codes of the data that the densities were made from.
        held_out: codes of other data.
        densities: by name; ``"prior"`` and ``"q_agg"`` must be among them.
        aggregated: q_agg of the training data.
        fitted: a density over codes to come, as the ex-post prior is. Its draws say how skewed
            log q_agg − log p is, which few held-out codes do not show: with a skewness of γ, fewer
            than 4γ² rows are too few to tell its mean.
        seed: names these draws.
    """
    population = None if fitted is None else _skewness_of_advantage(densities, fitted, seed)
    seen = {
        name: two_stage_mean(
            density.log_prob(training.z), population=training.population, rows=training.rows
        )
        for name, density in densities.items()
    }
    unseen = {name: density.log_prob(held_out.z).mean(1) for name, density in densities.items()}
    return Memorisation(
        training=seen,
        held_out={
            name: mean_estimate(values, rows=held_out.rows) for name, values in unseen.items()
        },
        advantage=_advantage(unseen["q_agg"] - unseen["prior"], population, held_out.rows),
        log_aggregated=unseen["q_agg"],
        log_prior=unseen["prior"],
        components={
            "training": two_stage_mean(
                aggregated.effective_components(training.z), population=training.population
            ),
            "held-out": mean_estimate(aggregated.effective_components(held_out.z).mean(1)),
        },
    )


def _skewness_of_advantage(
    densities: dict[str, dist.Distribution], fitted: dist.Distribution, seed: int
) -> float:
    with seeded(seed, "skewness of log q_agg − log p"):
        z = fitted.sample(torch.Size([DRAWS])).reshape(DRAWS, -1)
    return skewness(densities["q_agg"].log_prob(z) - densities["prior"].log_prob(z))


def _advantage(values: Tensor, population: float | None, rows: Tensor) -> Estimate:
    estimate = mean_estimate(values, rows=rows)
    if estimate.unresolved:
        return estimate
    if population is None or len(values) >= ENOUGH * population**2:
        return estimate
    return estimate.unresolve(TOO_FEW["data"])  # also where the skewness is no number
