"""What one model has learned as the prior of another: aggregated posterior → NUTS → ArviZ.

A VAE is trained on whole images. Then only the upper half of a new image is seen: a second model,
written from scratch, puts the ex-post prior over z and conditions on these pixels. NUTS draws from
its posterior, and the decoder fills in the lower half.

python examples/prior_for_new_model.py --epochs 5
"""

import argparse
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

import pyrovae as pv
from pyrovae.data.datasets import load, split

warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing", FutureWarning)
LATENT, SEEN = 4, 4  # latent units; rows of pixels that are seen


def main() -> None:
    """Train, keep the density, use it in another model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=60, help="passes over the data at most")
    epochs = parser.parse_args().epochs

    torch.manual_seed(0)
    train, validation, test = (part.values.round() for part in split(load("digits")))
    vae = pv.VAE(
        pv.mlp_encoder((8, 8), LATENT), pv.mlp_decoder(LATENT, (8, 8)), pv.StandardNormal(LATENT)
    )
    run = pv.fit(
        vae.model,
        vae.guide,
        train,
        validation=validation,
        epochs=epochs,
        patience=10 if epochs > 10 else None,
    )
    print(f"Trained: {run}.")

    agg = pv.aggregate(vae.guide, train)
    smooth = pv.fit_ex_post_prior(agg, held_out=pv.encode(vae.guide, validation))
    print(f"Prior for the new model: {smooth.choice}, {smooth.distribution.size} components.")
    with TemporaryDirectory() as folder:  # a file that is read without the VAE's code
        pv.save(smooth, Path(folder) / "prior.pt")
        kept = pv.load(Path(folder) / "prior.pt").distribution
    print(f"Kept: {kept}.")

    decoder = vae.decoder.eval().requires_grad_(False)

    def half_seen(upper: Tensor) -> None:
        """A model of its own: one code, and the pixels that are seen."""
        z = pyro.sample("z", kept)
        pixels = decoder(z.unsqueeze(0)).base_dist.logits[0]
        pyro.sample("upper", dist.Bernoulli(logits=pixels[:SEEN]).to_event(2), obs=upper)

    import arviz as az

    image, few = test[0], epochs < 10
    chains = []
    for seed in (0, 1):
        pyro.set_rng_seed(seed)
        chain = MCMC(
            NUTS(half_seen, max_tree_depth=5),
            num_samples=20 if few else 200,
            warmup_steps=20 if few else 200,
            disable_progbar=True,
        )
        chain.run(image[:SEEN])
        chains.append(chain)
    draws = torch.stack([chain.get_samples()["z"] for chain in chains])
    print(az.summary({"z": draws.numpy()}).to_string())
    codes = draws.flatten(0, 1)
    filled = decoder(codes).mean.mean(0)
    right = float((filled[SEEN:].round() == image[SEEN:]).double().mean())
    blind = float((train.mean(0)[SEEN:].round() == image[SEEN:]).double().mean())
    print(f"Of the pixels not seen {right:.0%} are filled in right; the mean image: {blind:.0%}.")


if __name__ == "__main__":
    main()
