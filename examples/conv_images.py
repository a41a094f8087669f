"""A convolutional image VAE, written for Pyro alone, and its diagnosis.

python examples/conv_images.py             # half a minute
python examples/conv_images.py --epochs 5  # a look at what it prints
"""

import argparse

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.data.datasets import load, split

LATENT, CHANNELS = 6, 16


class Images(nn.Module):
    """Model and guide for images of 8×8 pixels, one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, CHANNELS, 3, stride=2, padding=1),  # 4×4
            nn.SiLU(),
            nn.Conv2d(CHANNELS, 2 * CHANNELS, 3, stride=2, padding=1),  # 2×2
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(8 * CHANNELS, 2 * LATENT),
        )
        self.decoder = nn.Sequential(
            nn.Linear(LATENT, 8 * CHANNELS),
            nn.SiLU(),
            nn.Unflatten(1, (2 * CHANNELS, 2, 2)),
            nn.ConvTranspose2d(2 * CHANNELS, CHANNELS, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.ConvTranspose2d(CHANNELS, 1, 4, stride=2, padding=1),
        )

    def model(self, images: Tensor) -> None:
        """z, then pixels: three event dimensions, as a convolution has them."""
        pyro.module("images", self)
        with pyro.plate("data", len(images)):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            pixels = dist.Bernoulli(logits=self.decoder(z)).to_event(3)
            pyro.sample("image", pixels, obs=images)

    def guide(self, images: Tensor) -> None:
        """A diagonal Gaussian for each image."""
        pyro.module("images", self)
        with pyro.plate("data", len(images)):
            loc, log_scale = self.encoder(images).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def main() -> None:
    """Train on handwritten digits, then measure what the latent space holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=60, help="passes over the data at most")
    epochs = parser.parse_args().epochs

    torch.manual_seed(0)
    parts = split(load("digits"))
    train, validation, test = (part.values.round().unsqueeze(1) for part in parts)
    vae = Images()
    run = pv.fit(
        vae.model,
        vae.guide,
        train,
        validation=validation,
        epochs=epochs,
        patience=10 if epochs > 10 else None,
        optimizer=pv.adam(3e-3),
    )
    print(f"Trained on {len(train):,} images: {run}.\n")
    effort = pv.Effort() if epochs > 10 else pv.Effort.quick()
    found = pv.diagnose(
        vae.model, vae.guide, train, held_out=test, validation=validation, effort=effort
    )
    print(found.summary().to_string(index=False))
    print(f"\n{found.advice}")


if __name__ == "__main__":
    main()
