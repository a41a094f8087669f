"""log p(x) of a VAE by four estimators, and from both sides on data of the model's own making.

python examples/evidence_from_both_sides.py             # two minutes
python examples/evidence_from_both_sides.py --epochs 5  # a look at what it prints
"""

import argparse
import warnings

import torch

import pyrovae as pv
from pyrovae.data.datasets import load, split


def main() -> None:
    """Train a VAE on handwritten digits and estimate its log p(x)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=200, help="passes over the data at most")
    parser.add_argument("--rows", type=int, default=20, help="images whose log p(x) is estimated")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # what they say is printed below

    torch.manual_seed(0)
    train, validation, test = (part.values.round() for part in split(load("digits")))
    vae = pv.VAE(pv.mlp_encoder((8, 8), 8), pv.mlp_decoder(8, (8, 8)), pv.StandardNormal(8))
    patience = None if arguments.epochs < 30 else 30
    run = pv.fit(
        vae.model, vae.guide, train,
        validation=validation, epochs=arguments.epochs, patience=patience,
    )  # fmt: skip
    print(f"Trained: {run}.\n")

    x = test[: arguments.rows]
    print("Held-out images. All of these err low, so the highest is the best:")
    for method, draws in (("prior", 2000), ("importance", 20), ("importance", 2000)):
        result = pv.log_evidence(vae.model, vae.guide, x, method=method, draws=draws)
        print(f"  {method:10s} {draws:5,d} draws: {result}")
    annealing = pv.Annealing(temperatures=100 if arguments.epochs >= 30 else 20, leapfrog=4)
    result = pv.log_evidence(vae.model, vae.guide, x, method=annealing, draws=16)
    print(f"  annealed      16 chains: {result}")
    print(f"  {float(result.acceptance.mean()):.0%} of the Hamiltonian moves were accepted.\n")

    print("How far below log p(x) is that? On data that the model simulates, from both sides:")
    both = pv.sandwich(vae.model, vae.guide, like=x, annealing=annealing, chains=16)
    print(f"  {both}")


if __name__ == "__main__":
    main()
