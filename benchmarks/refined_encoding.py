"""What refined encodings do to held-out codes, to the choice of the ex-post prior and its gain.

A VAE is trained on scikit-learn's digits, or on Caltech-101 silhouettes. Its training, validation
and test images are encoded as the encoder has them; then the held-out ones are refined by some
steps on each image's own ELBO, and then all. Printed are the mean log density of test codes under
raw q_agg and under the ex-post prior that is then chosen, what was chosen, and how far log p(x) of
test images under it lies above that under the model's prior.

    python benchmarks/refined_encoding.py
    python benchmarks/refined_encoding.py --data DIR --rows 60 --steps 50
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import torch
from evidence import digits, silhouettes
from torch import Tensor

import pyrovae as pv
from pyrovae.data import load, split
from pyrovae.estimates import Estimate, mean_estimate
from pyrovae.pairs import Pair, elbo_draws, measuring

WAYS = {"encoder": (False, False), "held-out refined": (False, True), "all refined": (True, True)}


def images(path: Path | None) -> list[Tensor]:
    """Training, validation and test images, of the digits or of the silhouettes."""
    if path is None:
        return [part.values for part in split(load("digits").single(), seed=0)]
    with np.load(path / "caltech101_silhouettes.npz") as content:
        names = ("x_train", "x_val", "x_test")
        return [torch.tensor(content[name], dtype=torch.float32).flatten(1) for name in names]


def log_density(prior: dist.Distribution, codes: dist.Distribution) -> Estimate:
    """Mean log density of two draws from the encoding of each image."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return mean_estimate(prior.log_prob(codes.sample(torch.Size([2]))).mean(0))


def encode(vae: pv.VAE, x: Tensor, steps: int) -> dist.Distribution:
    """q(z | x) of some images, improved by so many steps, with the time that it takes."""
    start = time.process_time()
    encoding = pv.encode(vae.guide, x, model=vae.model, refine=steps)
    seconds = (time.process_time() - start) / len(x)
    print(f"{len(x)} images in {steps} steps: {1000 * seconds:.1f} ms an image", flush=True)
    return encoding


def mean_elbo(vae: pv.VAE, x: Tensor, encoding: dist.Distribution) -> Estimate:
    """Mean ELBO of some images, by ten draws from the encoding of each."""
    pair = Pair(vae.model, vae.guide)
    with torch.no_grad(), measuring(vae.model, vae.guide):
        return mean_estimate(elbo_draws(pair, (x,), encoding, 10).mean(0))


def main() -> None:
    """Train, encode, choose, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of caltech101_silhouettes.npz")
    parser.add_argument("--rows", type=int, default=100, help="test images for log p(x)")
    parser.add_argument("--steps", type=int, default=100, help="of refinement")
    parser.add_argument("--draws", type=int, default=1000, help="for log p(x) of each image")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    vae, _ = digits() if options.data is None else silhouettes(options.data)
    parts = images(options.data)
    plain = [encode(vae, x, 0) for x in parts]
    refined = [encode(vae, x, options.steps) for x in parts]
    elbos = [mean_elbo(vae, parts[2], encodings[2]) for encodings in (plain, refined)]
    print(f"ELBO of test images: {elbos[0]:.2f}, refined {elbos[1]:.2f}", flush=True)
    order = torch.randperm(len(parts[2]), generator=torch.Generator().manual_seed(0))
    rows = parts[2][order[: options.rows]]

    def evidence(prior: pv.ExPostPrior | None) -> pv.Evidence:
        with warnings.catch_warnings(action="ignore"):  # k̂ is printed
            return pv.log_evidence(vae.model, vae.guide, rows, prior=prior, draws=options.draws)

    own = evidence(None)
    print(f"log p(x), the model's prior: {own.mean():.2f}; k̂ rejects {int(own.unresolved.sum())}")
    first = None
    for way, (train_refined, held_out_refined) in WAYS.items():
        aggregated = pv.AggregatedPosterior((refined if train_refined else plain)[0])
        _, validation, test = refined if held_out_refined else plain
        ex_post = pv.fit_ex_post_prior(aggregated, held_out=validation, progress=False)
        result = evidence(ex_post)
        first = first or result
        print(f"{way}: log q_agg of test codes {log_density(aggregated, test):.2f}")
        print(f"  ex-post {ex_post.choice}: {log_density(ex_post.distribution, test):.2f}")
        print(f"  log p(x) above the model's prior by {result.minus(own):.2f}")
        print(f"  above the encoder's ex-post prior by {result.minus(first):.2f}")
        print(f"  k̂ rejects {int(result.unresolved.sum())} of {len(rows)}", flush=True)


if __name__ == "__main__":
    main()
