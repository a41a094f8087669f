"""log p(x) of held-out images by draws from the guide and by refined proposals: k̂ and time.

A VAE is trained on scikit-learn's digits, or on the images of a file. The share of images whose k̂
is above 0.7, the mean log p(x) and the processor time of an image are printed for each method.

    python benchmarks/evidence.py
    python benchmarks/evidence.py --data caltech101_silhouettes.npz --rows 64 --draws 2000
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.command.analysis import AnalysisOptions, build
from pyrovae.data import default_likelihood, load, split

METHODS = ("importance", "auto", "refined")


def digits() -> tuple[pv.VAE, Tensor]:
    """The VAE that ``pyrovae analyze digits`` trains, and held-out images."""
    data = load("digits").single()
    train, validation, test = (part.values for part in split(data, seed=0))
    vae = build(data, train, default_likelihood(data), AnalysisOptions())
    pv.fit(vae.model, vae.guide, train, validation=validation, epochs=120, patience=30)
    return vae, test


def binary_images(path: Path) -> tuple[pv.VAE, Tensor]:
    """A VAE of 40 units trained on the arrays x_train and x_val of a file, and those of x_test."""
    with np.load(path) as content:
        train, validation, test = (
            torch.tensor(content[name], dtype=torch.float32).flatten(1)
            for name in ("x_train", "x_val", "x_test")
        )
    pixels = train.shape[1:]
    vae = pv.VAE(
        pv.mlp_encoder(pixels, 40, hidden=(300, 300)),
        pv.mlp_decoder(40, pixels, "bernoulli", hidden=(300, 300)),
        pv.StandardNormal(40),
    )
    pv.fit(vae.model, vae.guide, train, validation=validation[:500], epochs=30, patience=30)
    return vae, test


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="an .npz file with x_train, x_val and x_test")
    parser.add_argument("--rows", type=int, default=359, help="held-out images, at most")
    parser.add_argument("--draws", type=int, default=1000, help="for each image")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    vae, test = digits() if options.data is None else binary_images(options.data)
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    rows = test[order[: options.rows]]
    print(f"{'method':12} {'mean log p(x)':>20} {'k̂ > 0.7':>9} {'seconds an image':>17}")
    for method in METHODS:
        start = time.process_time()
        with warnings.catch_warnings(action="ignore"):  # they say what the table shows
            result = pv.log_evidence(vae.model, vae.guide, rows, method=method, draws=options.draws)
        seconds = (time.process_time() - start) / len(rows)
        rejected = float((result.pareto_k > 0.7).double().mean())
        print(f"{method:12} {f'{result.mean():.2f}':>20} {rejected:>9.1%} {seconds:>17.3f}")


if __name__ == "__main__":
    main()
