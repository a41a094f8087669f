"""What each density over codes makes of the decoder: rows of images."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch

from studies.vampprior.rows import CANDIDATES, Row, Settings, ex_post_prior, train

COLUMNS = 14


def draw(standard: Row, vamp: Row, settings: Settings, path: Path) -> None:
    """Data, and what two trained one-layer models decode from draws of each density.

    Args:
        standard, vamp: rows whose models are trained, or were.
        settings: where their data and checkpoints are.
        path: the image file to write.
    """
    pair, _, images = train(standard, settings)
    learned, _, _ = train(vamp, settings)
    agg, ex_post = ex_post_prior(standard, pair, images, CANDIDATES)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        n = torch.Size([COLUMNS])
        rows = {
            "data": images.test[:COLUMNS],
            "standard normal prior": pair.decoder(pair.prior().sample(n)).mean,
            "raw q_agg": pair.decoder(agg.sample(n)).mean,
            "ex-post prior": pair.decoder(ex_post.distribution.sample(n)).mean,
            "VampPrior, trained with it": learned.decoder(learned.prior().sample(n)).mean,
        }
    figure, axes = plt.subplots(
        len(rows), 1, figsize=(9, 9 * len(rows) / COLUMNS + 1.2), layout="constrained"
    )
    for axis, (title, shown) in zip(axes, rows.items(), strict=True):
        axis.imshow(torch.cat(list(shown), -1), cmap="Greys", aspect="equal")
        axis.set_title(title, loc="left", fontsize=9)
        axis.axis("off")
    figure.savefig(path, dpi=140)
    plt.close(figure)
