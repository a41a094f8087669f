"""How much of a row's figures is the encoder's, the learning rate's and the model's."""

from __future__ import annotations

import pyro
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.estimates import Estimate, mean_estimate
from pyrovae.training.fit import adam
from vampprior.rows import Row, Settings, by_annealing, fit, products, train


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


def settle(row: Row, settings: Settings, rate: float) -> tuple[pv.Fit, dict[str, Estimate]]:
    """What log p(x) gains when the model is trained on in smaller steps, until stopped again.

    It starts from the best epoch of the row, so that what it gains at once is what the larger
    steps, not the epochs, had left undone. Both gains are over importance sampling in the row's
    model; that by annealing, of the first ``annealed`` images, is the steps' and the encoder's.
    """
    pair, _, images = train(row, settings)
    x = images.test[: settings.test]
    few = x[: settings.annealed]
    before = _by_importance(row, settings, pair, x)
    name = f"{settings.model(row)}-settled-{rate:g}.pt"
    fitted = fit(
        row, settings, pair, images, rate, checkpoint=settings.checkpoints / name, resume=True
    )
    gains = {"importance": mean_estimate(_by_importance(row, settings, pair, x) - before)}
    if len(few):
        annealed = by_annealing(row, settings, pair, few).values
        gains["annealing"] = mean_estimate(annealed - before[: len(few)])
    return fitted, gains


def _by_importance(
    row: Row, settings: Settings, pair: pv.VAE | pv.HierarchicalVAE, x: Tensor
) -> Tensor:
    return pv.log_evidence(
        pair.model, pair.guide, x, draws=settings.draws, site=row.latents, seed=row.seed
    ).values
