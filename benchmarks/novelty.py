"""Which score finds rows of another data set: AUROC of three scores on pairs of data sets.

A small VAE is trained on binary images; its scores of held-out rows stand beside those of others:
the same turned or mirrored, noise, nearly empty ones, and another data set. AUROC is the
probability that a held-out row scores higher than a row of the other set: 1/2 if the score sees no
difference, and below if it takes the others for more likely than the data.

    python benchmarks/novelty.py                       # scikit-learn's digits, 8 × 8
    python benchmarks/novelty.py --data DIR --rows 40  # MNIST and Caltech-101 silhouettes
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
from pyrovae.data import load
from pyrovae.randomness import seeded

VALIDATION = 150  # rows for early stopping, and to choose the ex-post prior
UNITS, EPOCHS, LARGEST = 10, 60, 4000


def digits() -> dict[str, tuple[Tensor, Tensor]]:
    """scikit-learn's digits, as training and as other rows, binary."""
    values = (load("digits").values.reshape(-1, 8, 8) >= 0.5).float()
    with seeded(0, "rows of a benchmark"):
        values = values[torch.randperm(len(values))]
    return {"digits": (values[:1200], values[1200:])}


def images(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """MNIST and silhouettes, as training and as other rows, binary."""
    found = {}
    names = {"MNIST": ("static_mnist.npz", "x_train", "x_test"),
             "silhouettes": ("caltech101_silhouettes.npz", "x_train", "x_test")}  # fmt: skip
    for name, (file, *parts) in names.items():
        if not (path / file).exists():
            raise SystemExit(f"expected {file} in {path}; got none. Name its folder with --data.")
        with np.load(path / file) as content, seeded(0, "rows of a benchmark"):
            both = [torch.from_numpy(content[part]).float() for part in parts]
            train, test = (rows[torch.randperm(len(rows))[:LARGEST]] for rows in both)
        found[name] = train, test
    return found


def others(name: str, sets: dict[str, tuple[Tensor, Tensor]], count: int) -> dict[str, Tensor]:
    """Rows that are unlike those of a data set, by what they are."""
    test = sets[name][1][-count:]
    share = test.mean()
    with seeded(0, "other rows of a benchmark"):
        noise = torch.bernoulli(torch.full_like(test, float(share)))
        level = 0.02 * torch.rand(len(test), 1, 1)  # next to nothing: simpler than any image
        flat = torch.bernoulli(level.expand_as(test))
    other = {other: rows[1][:count] for other, rows in sets.items() if other != name}
    return {
        "a quarter turn": test.rot90(1, (1, 2)),
        "a half turn": test.rot90(2, (1, 2)),
        "mirrored": test.flip(2),
        "flat": flat,
        "noise": noise,
        **other,
    }


def report(name: str, sets: dict[str, tuple[Tensor, Tensor]], count: int) -> None:
    """Train on one data set and print the AUROC of each score for each other set."""
    train, test = (rows.flatten(1) for rows in sets[name])
    pixels = train.shape[1]
    vae = pv.VAE(
        pv.mlp_encoder((pixels,), UNITS, hidden=(256,)),
        pv.mlp_decoder(UNITS, (pixels,), "bernoulli", hidden=(256,)),
        pv.StandardNormal(UNITS),
    )
    held_out, validation = test[:count], test[count : count + VALIDATION]
    start = time.perf_counter()
    pv.fit(vae.model, vae.guide, train, validation=validation, epochs=EPOCHS, patience=10)
    agg = pv.aggregate(vae.guide, train)
    density = pv.fit_ex_post_prior(agg, held_out=pv.encode(vae.guide, validation)).distribution
    pair = vae.model, vae.guide
    print(f"{name}: trained in {time.perf_counter() - start:.0f} s")
    different = {other: rows.flatten(1) for other, rows in others(name, sets, count).items()}
    new, sizes = torch.cat(list(different.values())), [len(rows) for rows in different.values()]
    for score in ("codes", "log_p_x", "regret"):
        start = time.perf_counter()
        with warnings.catch_warnings():  # k̂ of rows that are unlike all others
            warnings.simplefilter("ignore", UserWarning)
            if score == "codes":
                codes, known = (pv.encode(vae.guide, rows).mean for rows in (new, held_out))
                result = pv.novelty(density, codes, calibration=known)
            else:
                result = pv.novelty(pair, new, calibration=held_out, score=score, draws=200)
        print(f"  {score}, {time.perf_counter() - start:.0f} s", flush=True)
        for other, part in zip(different, result.scores.split(sizes), strict=True):
            print(f"    {other}: {pv.auroc(result.known, part)}", flush=True)


def main() -> None:
    """Score each data set beside the others."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of static_mnist.npz and silhouettes")
    parser.add_argument("--rows", type=int, default=150, help="of each set that are scored")
    arguments = parser.parse_args()
    sets = digits() if arguments.data is None else images(arguments.data)
    for name in sets:
        report(name, sets, arguments.rows)


if __name__ == "__main__":
    main()
