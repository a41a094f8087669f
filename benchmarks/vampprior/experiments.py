"""How much of a row's figures is the encoder's, the optimiser's steps' and the model's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import pyro
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.estimates import Estimate, mean_estimate
from pyrovae.training.fit import adam
from vampprior.data import Images
from vampprior.networks import AveragedAdam
from vampprior.rows import (
    Row,
    Settings,
    by_annealing,
    error_of_part,
    fit,
    over_all,
    products,
    train,
)

DRAWS = 100  # for each of all test images, where the first ones have more or are annealed


def both_ways(row: Row, settings: Settings) -> dict[str, Tensor]:
    """log p(x) of the first ``annealed`` test images under the row's own prior, both ways."""
    pair, _, images = train(row, settings)
    x = images.test[: settings.annealed]
    return {
        "importance": _by_importance(row, settings, pair, x),
        "annealing": by_annealing(row, settings, pair, x).values,
    }


def refit(row: Row, settings: Settings, epochs: int) -> Estimate:
    """What log p(x) gains when the encoder alone is trained on, with images drawn from the model.

    Decoder and p(z) stay what they are, a VampPrior too, and so does the model: what importance
    sampling then finds above what it found is what the encoder had missed on the test images.
    """
    pair, _, images = train(row, settings)
    with torch.no_grad():
        pair = pair.with_prior(pair.prior())
    encoders = {"encoder", "inner_encoder"}
    for name, module in pair.named_children():
        module.requires_grad_(name in encoders)
    drawn = pyro.poutine.uncondition(pair.model)
    x = images.test[: settings.test]
    before = _by_importance(row, settings, pair, x)
    with products(settings.matmul):
        pv.fit(
            pair.model,
            pair.guide,
            images.train,
            epochs=epochs,
            optimizer=adam(lr=1e-4),
            transform=lambda batch, _: drawn(batch),
            seed=row.seed,
        )
    return mean_estimate(_by_importance(row, settings, pair, x) - before)


@dataclass(frozen=True)
class Averaged:
    """What a model of averaged weights has, by importance sampling or by annealing.

    Args:
        gain: over importance sampling in the model that it started from, on the same images.
        mean: log p(x), mean over all test images.
        error_of_part: error of that mean if the test images are what they are.
    """

    gain: Estimate
    mean: Estimate
    error_of_part: float

    def __str__(self) -> str:
        return (
            f"gains {self.gain}; all test images {self.mean}, "
            f"± {self.error_of_part:.2f} with the images given"
        )


def average(row: Row, settings: Settings, epochs: int) -> tuple[float, dict[str, Averaged]]:
    """What averaging the weights is worth: the validation ELBO after it, and log p(x).

    From the best epoch of the row it is trained on at its own rate, and the weights are averaged
    over all steps of these epochs (Polyak & Juditsky 1992; Izmailov et al. 2018), which takes out
    the noise of steps of this size. What annealing gains over importance sampling is the
    averaging's and the encoder's.
    """
    pair, _, images = train(row, settings)
    x = images.test[: settings.test]
    before = _by_importance(row, settings, pair, x)
    _train_averaged(row, settings, pair, images, epochs)
    with torch.no_grad():
        loss = pyro.infer.Trace_ELBO().loss(pair.model, pair.guide, images.validation)
    found = {"importance": _by_importance(row, settings, pair, x)}
    if settings.annealed:
        annealed = images.test[: settings.annealed]
        found["annealing"] = by_annealing(row, settings, pair, annealed).values
    few = _by_importance(row, replace(settings, draws=DRAWS), pair, images.test)
    return -loss / len(images.validation), {
        way: Averaged(
            mean_estimate(values[: len(x)] - before[: len(values)]),
            over_all(values, few),
            error_of_part(values, few),
        )
        for way, values in found.items()
    }


def _train_averaged(
    row: Row, settings: Settings, pair: pv.VAE | pv.HierarchicalVAE, images: Images, epochs: int
) -> None:
    """Leave a pair with the mean of its weights over so many more epochs."""
    made = []

    def optimizer(parameters: Iterable[Tensor]) -> AveragedAdam:
        made.append(AveragedAdam(parameters, lr=float(row.rate)))
        return made[-1]

    checkpoint = settings.checkpoints / f"{settings.model(row)}-averaged{epochs}.pt"
    more = replace(settings, epochs=epochs)
    options = {"checkpoint": checkpoint, "resume": True}
    fit(row, more, pair, images, optimizer, patience=epochs, **options)
    made[0].average()


def _by_importance(
    row: Row, settings: Settings, pair: pv.VAE | pv.HierarchicalVAE, x: Tensor
) -> Tensor:
    return pv.log_evidence(
        pair.model, pair.guide, x, draws=settings.draws, site=row.latents, seed=row.seed
    ).values
