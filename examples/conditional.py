"""A conditional VAE whose prior depends on the label, and what to compare its codes with.

p(z | y) is one Gaussian for each label, so there is no one p(z) for all rows. The marginal
Σ_y p(y) p(z | y) is one: a mixture of ten Gaussians, and it is passed as ``prior=``.

python examples/conditional.py --epochs 5
"""

import argparse

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot, softplus

import pyrovae as pv
from pyrovae.data.datasets import load, split

LATENT, HIDDEN, PIXELS, LABELS = 4, 64, 64, 10


class Conditional(nn.Module):
    """p(z | y) p(x | z) and q(z | x, y)."""

    def __init__(self) -> None:
        super().__init__()
        self.prior_loc = nn.Parameter(torch.randn(LABELS, LATENT))
        self.prior_scale = nn.Parameter(torch.zeros(LABELS, LATENT))
        self.encoder = nn.Sequential(
            nn.Linear(PIXELS + LABELS, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, 2 * LATENT)
        )
        self.decoder = nn.Sequential(
            nn.Linear(LATENT, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, PIXELS)
        )

    def priors(self) -> dist.Distribution:
        """p(z | y) for all labels, batch shape ``(LABELS,)``."""
        return dist.Normal(self.prior_loc, softplus(self.prior_scale)).to_event(1)

    def model(self, x: Tensor, y: Tensor) -> None:
        """The label chooses where z lies; the image is made from z alone."""
        pyro.module("conditional", self)
        with pyro.plate("data", len(x)):
            loc, scale = y @ self.prior_loc, y @ softplus(self.prior_scale)
            z = pyro.sample("z", dist.Normal(loc, scale).to_event(1))
            pixels = dist.Bernoulli(logits=self.decoder(z)).to_event(1)
            pyro.sample("x", pixels, obs=x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        """A Gaussian for each image and label."""
        pyro.module("conditional", self)
        with pyro.plate("data", len(x)):
            loc, scale = self.encoder(torch.cat([x, y], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, softplus(scale)).to_event(1))


def main() -> None:
    """Train, then measure against the marginal prior."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=60, help="passes over the data at most")
    epochs = parser.parse_args().epochs

    torch.manual_seed(0)
    train, validation, test = (
        (part.values.round().flatten(1), one_hot(part.labels, LABELS).to(part.values))
        for part in split(load("digits"))
    )
    vae = Conditional()
    run = pv.fit(
        vae.model,
        vae.guide,
        train,
        validation=validation,
        epochs=epochs,
        patience=10 if epochs > 10 else None,
        optimizer=pv.adam(3e-3),
    )
    print(f"Trained on {len(train[0]):,} images with labels: {run}.\n")

    with torch.no_grad():
        shares = dist.Categorical(train[1].mean(0))
        marginal = dist.MixtureSameFamily(shares, vae.priors())
    found = pv.diagnose(
        vae.model,
        vae.guide,
        train,
        held_out=test,
        validation=validation,
        prior=marginal,
        effort=pv.Effort() if epochs > 10 else pv.Effort.quick(),
    )
    print(found.summary().to_string(index=False))
    print("\nlog p(x | y) of new images, the label known:", found.evidence["prior"].mean())
    new = test if epochs > 10 else tuple(array[:40] for array in test)
    alone = pv.log_evidence(vae.model, vae.guide, new, prior=marginal, draws=500)
    print("log p(x), the label not known:            ", alone.mean())


if __name__ == "__main__":
    main()
