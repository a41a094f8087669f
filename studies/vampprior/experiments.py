"""How much of a row's figures is the encoder's and how much the model's."""

from __future__ import annotations

from dataclasses import replace

import pyro
import torch
from torch import Tensor

import pyrovae as pv
from studies.vampprior.rows import Row, Settings, by_annealing, products, train

DRAWS = 100  # for each of all test images, where the first ones have more or are annealed


def both_ways(row: Row, settings: Settings) -> tuple[dict[str, Tensor], Tensor]:
    """log p(x) under the row's own prior of the first ``annealed`` test images, both ways.

    Returns:
        these, by way, and log p(x) of all test images by importance sampling with fewer draws.
    """
    pair, _, images = train(row, settings)
    x = images.test[: settings.annealed]
    first = {
        "importance": _by_importance(row, settings, pair, x),
        "annealing": by_annealing(row, settings, pair, x).values,
    }
    return first, _by_importance(row, replace(settings, draws=DRAWS), pair, images.test)


def refit(row: Row, settings: Settings, epochs: int) -> pv.Estimate:
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
            optimizer=pv.adam(lr=1e-4),
            transform=lambda batch, _: drawn(batch),
            seed=row.seed,
        )
    return pv.mean_estimate(_by_importance(row, settings, pair, x) - before)


def _by_importance(
    row: Row, settings: Settings, pair: pv.VAE | pv.HierarchicalVAE, x: Tensor
) -> Tensor:
    return pv.log_evidence(
        pair.model, pair.guide, x, draws=settings.draws, site=row.latents, seed=row.seed
    ).values
