"""Whether the aggregated posterior knows the data to come, or only the data it is made of."""

from __future__ import annotations

from dataclasses import dataclass

import pyro.distributions as dist
from torch import Tensor

from pyrovae.diagnostics.codes import Codes
from pyrovae.estimates import Estimate, mean_estimate, two_stage_mean
from pyrovae.mixture.mixture import Mixture


@dataclass(frozen=True)
class Memorisation:
    """Mean log densities of codes under densities over z, in nats.

    Args:
        training: name of the density → mean log density of codes of the training data; standard
            errors over draws, since the densities were made from these data.
        held_out: the same for codes of data not seen; standard errors over data.
        advantage: mean of log q_agg − log p at the held-out codes, paired.
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
) -> Memorisation:
    """Mean log density of training and held-out codes under several densities.

    Args:
        training: codes of the data that the densities were made from.
        held_out: codes of other data.
        densities: by name; ``"prior"`` and ``"q_agg"`` must be among them.
        aggregated: q_agg of the training data.
    """
    seen = {
        name: two_stage_mean(density.log_prob(training.z), population=training.population)
        for name, density in densities.items()
    }
    unseen = {name: density.log_prob(held_out.z).mean(1) for name, density in densities.items()}
    return Memorisation(
        training=seen,
        held_out={name: mean_estimate(values) for name, values in unseen.items()},
        advantage=mean_estimate(unseen["q_agg"] - unseen["prior"]),
        log_aggregated=unseen["q_agg"],
        log_prior=unseen["prior"],
        components={
            "training": two_stage_mean(
                aggregated.effective_components(training.z), population=training.population
            ),
            "held-out": mean_estimate(aggregated.effective_components(held_out.z).mean(1)),
        },
    )
