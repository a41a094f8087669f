"""Tomczak & Welling's table of test log p(x), and the same models under an ex-post prior.

Trains the paper's VAE (gated 300-300, 40 units) and its HVAE of two latent layers with a standard
normal prior and with a VampPrior of 500 pseudo-inputs, by its protocol: batches of 100, KL warm-up
over 100 epochs, early stopping with patience 50, learning rate 5e-4 with each parameter's gradient
divided by its norm before Adam, log-variances limited to [-6, 2], He-normal initial weights. Then
chooses an ex-post prior on validation codes and estimates log p(x) of the test set under each prior
by the same draws.

A row is data, latent layers, prior and seed, and learning rate and initial weights where they are
others (glorot: as in the first version of the paper's published code). Its figures are a row of
results.csv beside this file, and its training is resumed where it stopped.

    python -m studies.vampprior --data DIR --rows caltech:1:standard:0 caltech:1:vamp:0
    python -m studies.vampprior --render studies/vampprior/README.md
    python -m studies.vampprior --data DIR --picture docs/explanations/vampprior.png \\
        --rows caltech:1:standard:0:1e-4 caltech:1:vamp:0:1e-4
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from torch import Tensor

import pyrovae as pv
from studies.vampprior.data import SOURCES
from studies.vampprior.experiments import both_ways, refit
from studies.vampprior.picture import draw
from studies.vampprior.results import add
from studies.vampprior.rows import (
    FEW,
    WIDER,
    Row,
    Settings,
    error_of_part,
    ex_post_prior,
    over_all,
    run,
    train,
)
from studies.vampprior.table import render


def main() -> None:
    """Run rows, render the table or draw the picture."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.vampprior",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="folder with the .npz files")
    parser.add_argument(
        "--rows",
        type=Row.parse,
        nargs="*",
        default=[],
        metavar="DATA:LAYERS:PRIOR:SEED[:RATE[:WEIGHTS]]",
    )
    parser.add_argument("--epochs", type=int, default=2000, help="at most (default 2000)")
    parser.add_argument("--warmup", type=int, default=100, help="epochs (default 100)")
    parser.add_argument(
        "--average",
        type=int,
        default=0,
        metavar="EPOCHS",
        help="train each row's model on from its best epoch, and take the mean of its weights over "
        "all steps of so many epochs, unless that has a lower validation ELBO (default: not)",
    )
    parser.add_argument(
        "--matmul",
        choices=("highest", "high", "medium"),
        default="highest",
        help="precision that torch may give to matrix products in training: by medium it takes "
        "oneDNN's, which on some CPUs are as exact and three tenths faster (default highest)",
    )
    parser.add_argument("--draws", type=int, default=5000, help="importance draws (default 5000)")
    parser.add_argument(
        "--test",
        type=int,
        help=f"test images that get all the draws; the others get {FEW}, and each figure is of the "
        "mean over all (default all)",
    )
    parser.add_argument(
        "--compared",
        type=int,
        default=200,
        help="test images to measure by proposals of their own as well (default 200)",
    )
    parser.add_argument(
        "--annealed", type=int, default=50, help="test images to check by annealing (default 50)"
    )
    parser.add_argument(
        "--temperatures",
        type=int,
        default=300,
        help="steps of that annealing (default 300); more of them err less, in as much more time",
    )
    parser.add_argument(
        "--checkpoints", type=Path, default=Path("vampprior-checkpoints"), help="folder of models"
    )
    parser.add_argument("--train-only", action="store_true", help="measure another time")
    parser.add_argument(
        "--wider", action="store_true", help="only print what more ex-post candidates are worth"
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="only print log p(x) of the --annealed images in each row's model, by importance "
        "sampling and by annealing, how far each is above the first row's and the one above the "
        "other, and the mean of all test images",
    )
    parser.add_argument(
        "--refit",
        type=int,
        metavar="EPOCHS",
        help="only print what log p(x) of the --test images gains when each row's encoder alone is "
        "trained on, with images drawn from its model",
    )
    parser.add_argument("--render", type=Path, metavar="PAGE", help="write the tables into a page")
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="draw samples of two rows, standard and vamp"
    )
    arguments = parser.parse_args()
    names = [field for field in Settings.__dataclass_fields__ if hasattr(arguments, field)]
    settings = Settings(**{name: getattr(arguments, name) for name in names})
    first: dict[str, Tensor] = {}
    for row in arguments.rows:
        file = SOURCES[row.data].file
        if arguments.data is None or not (arguments.data / file).exists():
            sys.exit(f"expected --data with {file}; got {arguments.data}.")
        if arguments.train_only:
            for fitted in train(row, settings)[1]:
                print(settings.model(row), fitted, flush=True)
        elif arguments.wider:
            pair, _, images = train(row, settings)
            for candidate in ex_post_prior(row, pair, images, WIDER)[1].table:
                print(f"{candidate.name:60} {candidate.held_out}", flush=True)
        elif arguments.refit:
            gain = refit(row, settings, arguments.refit)
            print(f"{settings.model(row):40} refit {arguments.refit} epochs: {gain}", flush=True)
        elif arguments.compare:
            both, few = both_ways(row, settings)
            first = first or both
            for way, values in both.items():
                above = pv.mean_estimate(values - first[way])
                mean = pv.mean_estimate(values)
                every, error = over_all(values, few), error_of_part(values, few)
                print(
                    f"{settings.model(row):40} {way:10} {mean}; above {above}; all test images "
                    f"{every}, ± {error:.2f} with these given",
                    flush=True,
                )
            more = pv.mean_estimate(both["annealing"] - both["importance"])
            print(f"{settings.model(row):40} annealing finds {more} more", flush=True)
        elif not arguments.picture:
            if settings.result(row) is None:
                add(run(row, settings))
            for column, value in (settings.result(row) or {}).items():
                print(f"{column}: {value}", flush=True)
    if arguments.render:
        render(arguments.render)
    if arguments.picture:
        draw(*arguments.rows, settings, arguments.picture)


if __name__ == "__main__":
    main()
