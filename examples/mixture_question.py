"""Is the latent distribution of a VAE a mixture of N Gaussians? Four objects, with numbers.

python examples/mixture_question.py            # half a minute
python examples/mixture_question.py --epochs 5 # a look at what it prints
"""

import argparse
import math

import torch

import pyrovae as pv
from pyrovae.data.datasets import load, split


def main() -> None:
    """Train a VAE on handwritten digits and ask the question of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=200, help="passes over the data at most")
    parser.add_argument("--latent", type=int, default=8, help="latent units D")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    train, validation, test = (part.values.round() for part in split(load("digits")))
    n, d = len(train), arguments.latent
    vae = pv.VAE(pv.mlp_encoder((8, 8), d), pv.mlp_decoder(d, (8, 8)), pv.StandardNormal(d))
    run = pv.fit(
        vae.model,
        vae.guide,
        train,
        validation=validation,
        epochs=arguments.epochs,
        patience=None if arguments.epochs < 30 else 30,
    )
    print(f"Trained on {n:,} binary images of 8×8 pixels: {run}.\n")

    print("1. q(z|x), the guide: one Gaussian for each x.")
    agg = pv.aggregate(vae.guide, train)
    z = agg.component(0).sample()
    print(f"   At a draw from component 0, its own log q is {agg.component(0).log_prob(z):.2f};")
    print(f"   all {n:,} components together give {agg.log_prob(z):.2f}.")
    print("   To write q(z|x) as a mixture over n that selects x's own component gains nothing.\n")

    print(f"2. q_agg(z), the aggregated posterior: a mixture of exactly N = {n:,} Gaussians.")
    effort = pv.Effort() if arguments.epochs > 10 else pv.Effort.quick()
    measured = pv.diagnose(
        vae.model, vae.guide, train, held_out=test, validation=validation, effort=effort
    )
    terms = measured.training
    print(
        f"   A code says {terms.index_code_mi} nats about which component it came from, of at most"
    )
    print(f"   log N = {math.log(n):.3f}; q_agg is {terms.marginal_kl} nats from the prior.")
    of = measured.memorisation.held_out
    print(f"   Codes of new images: log q_agg {of['q_agg']}, log p {of['prior']}.\n")

    print("3. p(x) = ∫ p(x|z) p(z) dz, the generative side: an infinite mixture over z.")
    for name, result in measured.evidence.items():
        print(f"   log p(x) of new images with {name:7s} over z: {result.mean()}")
    print(f"   {measured.advice}\n")

    print(f"4. One code as D = {d} independent Gaussian units: D is chosen, whatever N is.")
    active = int(measured.collapse.active_units.value)
    print(f"   {active} of {d} units are active. Given x they are independent; over all x they are")
    print(f"   not: total correlation {terms.total_correlation} nats.")


if __name__ == "__main__":
    main()
