"""Whether the aggregated posterior fits new data, or has only memorised the data it is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.diagnostics.draws import Codes
from pyrovae.display import Result
from pyrovae.estimates import TOO_FEW, Estimate, mean_estimate, skewness, two_stage_mean
from pyrovae.mixture import Mixture
from pyrovae.randomness import seeded

ENOUGH = 4.0  # rows per squared skewness: intervals of fewer miss the mean too often
DRAWS = 8192  # from which the skewness is estimated


@dataclass(frozen=True, repr=False)
class Memorisation(Result):
    """Mean log densities of codes under densities over z, in nats.

    Args:
        training: name of the density → mean log density of codes of the training data; standard
            errors over draws, since the densities were made from these data.
        held_out: the same for codes of data not seen in training; standard errors over data.
        advantage: mean of log q_agg − log p at the held-out codes, paired; it can't be told where
            most of it would come from codes so rare that so few rows may not contain one.
        components: effective number of components of q_agg at a code, exp of the entropy of its
            responsibilities, for ``"training"`` and ``"held-out"`` codes: 1 where each code belongs
            to one data point alone.
        needed: how many rows such a mean takes; see `rows_needed`.
        log_aggregated, log_prior: their values at the held-out codes, each ``(m,)``, means over the
            draws of a data point.
    """

    training: dict[str, Estimate]
    held_out: dict[str, Estimate]
    advantage: Estimate
    log_aggregated: Tensor
    log_prior: Tensor
    components: dict[str, Estimate]
    needed: float = 0.0


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
        fitted: a density fitted to codes, such as the ex-post prior; see `rows_needed`.
        seed: names its draws.
    """
    needed = 0.0
    if fitted is not None:
        needed = rows_needed(densities["q_agg"], densities["prior"], fitted, seed=seed)
    training_means = {
        name: two_stage_mean(
            density.log_prob(training.z), population=training.population, rows=training.rows
        )
        for name, density in densities.items()
    }
    held_out_values = {
        name: density.log_prob(held_out.z).mean(1) for name, density in densities.items()
    }
    return Memorisation(
        training=training_means,
        held_out={
            name: mean_estimate(values, rows=held_out.rows)
            for name, values in held_out_values.items()
        },
        advantage=_mean_if_enough(
            held_out_values["q_agg"] - held_out_values["prior"], needed, held_out.rows
        ),
        needed=needed,
        log_aggregated=held_out_values["q_agg"],
        log_prior=held_out_values["prior"],
        components={
            "training": two_stage_mean(
                aggregated.effective_components(training.z), population=training.population
            ),
            "held-out": mean_estimate(aggregated.effective_components(held_out.z).mean(1)),
        },
    )


def rows_needed(
    aggregated: dist.Distribution,
    prior: dist.Distribution,
    fitted: dist.Distribution,
    *,
    seed: int = 0,
) -> float:
    """How many rows it takes to tell the mean of log q_agg − log p over codes of new data: 4γ².

    γ is the skewness of this difference over draws of a density fitted to codes, or over draws of
    the prior, whichever is greater: away from its data q_agg falls without bound, and a few codes
    may not include one of the rare ones that decide the mean. With fewer than 4γ² rows its
    intervals miss the mean up to 24 % of the time, with more at most 10 %.

    Args:
        aggregated, prior: q_agg and p(z).
        fitted: a density over codes that is wider than q_agg, such as the ex-post prior.
        seed: names the draws.

    Returns:
        the number of rows; infinite if q_agg or the prior has no density at some of the draws.
    """
    skewnesses = []
    for number, source in enumerate((fitted, prior)):
        with seeded(seed, "codes beyond the held-out ones", number):
            z = source.sample(torch.Size([DRAWS])).reshape(DRAWS, -1)
        skewnesses.append(abs(skewness(aggregated.log_prob(z) - prior.log_prob(z))))
    needed = ENOUGH * max(skewnesses) ** 2
    return needed if math.isfinite(sum(skewnesses)) else math.inf


def _mean_if_enough(values: Tensor, needed: float, rows: Tensor | None) -> Estimate:
    """The mean of the values, which can't be told if they are too few."""
    estimate = mean_estimate(values, rows=rows)
    enough = len(values) >= needed
    return estimate if enough or estimate.unresolved else estimate.unresolve(TOO_FEW["data"])
