"""Held-out cells of three tables of scikit-learn, filled by a VAE and by two plain ways.

A fifth of all cells is taken away at random. The error is that of the filled numbers, as root mean
square in standard deviations of their column, over tables from which other cells are taken, one for
each seed; ± is its standard error over these. A Gaussian's conditional mean is that of a full
covariance fitted to the cells that are there, by expectation and maximisation. ``within`` is the
share of true numbers that lie within two of the VAE's own deviations, of 95 % if it were right.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn import datasets

import pyrovae as pv
from pyrovae.data import split, with_obs_mask
from pyrovae.data.datasets import Dataset
from pyrovae.pairs import Pair, over_rows
from pyrovae.randomness import seeded
from pyrovae.runs import Recipe, build, table_recipe
from pyrovae.runs.imputation import impute

Array = NDArray[np.float64]
TABLES = ("wine", "breast_cancer", "diabetes")
MISSING = 0.2
STEPS = 200  # of expectation and maximisation, at most
SETTLED = 1e-4  # change of the filled numbers at which they end
RIDGE = 1e-6  # of the covariance, in squared standard deviations


def table(name: str, seed: int) -> tuple[Array, NDArray[np.bool_]]:
    """A table in standard deviations of its columns, and which cells are there."""
    values = np.asarray(getattr(datasets, f"load_{name}")().data, dtype=np.float64)
    values = (values - values.mean(0)) / values.std(0)
    there = np.random.default_rng(seed).random(values.shape) >= MISSING
    there[~there.any(1), 0] = True
    return values, there


def by_gaussian(values: Array, there: NDArray[np.bool_]) -> Array:
    """Missing cells by their conditional mean under the Gaussian of highest likelihood."""
    filled = np.where(there, values, 0.0)
    mean, covariance = filled.mean(0), np.cov(filled.T)
    size, known = len(mean), there[:, :, None] & there[:, None, :]
    gone = ~there[:, :, None] & ~there[:, None, :]
    for _ in range(STEPS):
        before = filled.copy()
        inner = np.where(known, covariance, 0.0) + np.eye(size) * ~there[:, :, None]
        to_known = np.where(there[:, None, :], covariance, 0.0)
        gain = np.linalg.solve(inner, to_known.swapaxes(1, 2)).swapaxes(1, 2)
        expected = mean + np.einsum("nij,nj->ni", gain, np.where(there, values - mean, 0.0))
        filled = np.where(there, values, expected)
        spread = np.where(gone, covariance - gain @ to_known.swapaxes(1, 2), 0.0).sum(0)
        mean = filled.mean(0)
        centred = filled - mean
        covariance = (centred.T @ centred + spread) / len(filled) + RIDGE * np.eye(size)
        if np.abs(filled - before).max() < SETTLED:
            break
    return filled


def by_vae(
    values: Array, there: NDArray[np.bool_], options: argparse.Namespace, seed: int
) -> tuple[Array, Array, float]:
    """The same by a VAE with the command's default options; and deviations, and k̂ above 0.7."""
    filled, mask = with_obs_mask(np.where(there, values, np.nan))
    data = Dataset("table", filled.double(), obs_mask=mask)
    recipe = Recipe("mixed", data.event_shape, options.latent, (256, 256), "standard", double=True)
    recipe = table_recipe(recipe, data)
    train, validation, _ = split(data, seed=seed)
    with seeded(seed, "initial weights"):
        vae = build(recipe, train.values, train.obs_mask)
    pv.fit(
        vae.model, vae.guide, recipe.as_measured(train, 0),
        validation=recipe.as_measured(validation, 1), epochs=options.epochs, batch_size=100,
        optimizer=pv.adam(1e-3), patience=30, seed=seed, progress=False,
    )  # fmt: skip
    pair, (rows,) = over_rows(Pair(vae.model, vae.guide), (data.values, mask))
    found = impute(pair, rows, vae.decode, data.values, mask, data.kinds, seed=seed)
    bad = float((found.pareto_k > 0.7).double().mean())
    return found.values.numpy(), found.deviation.numpy(), bad


def main() -> None:
    """Print the table of errors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", default=TABLES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--latent", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)
    shown = Table(title="error of filled cells, in standard deviations of the column")
    for title in ("table", "column mean", "Gaussian", "VAE", "Gaussian − VAE", "within", "k̂", "s"):
        shown.add_column(title, justify="right", no_wrap=True)
    for name in options.tables:
        errors, within, bad, start = [], [], [], time.perf_counter()
        for seed in range(options.seeds):
            values, there = table(name, seed)
            gone, means = ~there, np.nanmean(np.where(there, values, np.nan), 0)
            vae, deviation, rejected = by_vae(values, there, options, seed)
            ways = (np.broadcast_to(means, values.shape), by_gaussian(values, there), vae)
            errors.append([np.sqrt(np.mean((way - values)[gone] ** 2)) for way in ways])
            within.append(np.mean((np.abs(vae - values) <= 2 * deviation)[gone]))
            bad.append(rejected)
        found = np.array(errors)
        columns = [*found.T, found[:, 1] - found[:, 2]]
        cells = [f"{c.mean():.3f} ± {c.std(ddof=1) / len(c) ** 0.5:.3f}" for c in columns]
        seconds = f"{(time.perf_counter() - start) / options.seeds:.0f}"
        shown.add_row(name, *cells, f"{np.mean(within):.0%}", f"{np.mean(bad):.0%}", seconds)
    Console(width=120).print(shown)


if __name__ == "__main__":
    main()
