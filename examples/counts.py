"""Counts with covariates and depths: a model of several arguments, on real images as counts.

Each pixel of a handwritten digit counts 0 to 16 inked points. The model knows the digit, which is a
covariate, and the depth, the total, as a model of genes knows a cell's batch and library size.

python examples/counts.py --epochs 5
"""

import argparse

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.nn.functional import one_hot, softplus

import pyrovae as pv
from pyrovae.data.datasets import load, split

LATENT, HIDDEN, COUNTED, LABELS = 5, 64, 64, 10


class Counts(nn.Module):
    """p(counts | label, depth) and q(z | counts, label)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(COUNTED + LABELS, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, 2 * LATENT)
        )
        self.decoder = nn.Sequential(
            nn.Linear(LATENT + LABELS, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, COUNTED)
        )

    def model(self, counts: Tensor, label: Tensor, depth: Tensor) -> None:
        """Shares of the depth come from z and the label; counts scatter more than a Poisson's."""
        pyro.module("counts", self)
        dispersion = pyro.param(
            "dispersion", lambda: torch.ones(COUNTED), constraint=constraints.positive
        )
        with pyro.plate("data", len(counts)):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            shares = self.decoder(torch.cat([z, label], -1)).log_softmax(-1)
            logits = depth.log().unsqueeze(-1) + shares - dispersion.log()
            counted = dist.NegativeBinomial(dispersion, logits=logits).to_event(1)
            pyro.sample("counts", counted, obs=counts)

    def guide(self, counts: Tensor, label: Tensor, depth: Tensor) -> None:
        """The depth is an argument of both functions, whether or not both need it."""
        pyro.module("counts", self)
        with pyro.plate("data", len(counts)):
            inputs = torch.cat([counts.log1p(), label], -1)
            loc, scale = self.encoder(inputs).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, softplus(scale)).to_event(1))


def arguments(part: object) -> tuple[Tensor, Tensor, Tensor]:
    """What model and guide are called with: one row of each tensor is one datum."""
    counts = (16 * part.values).round().flatten(1)
    return counts, one_hot(part.labels, LABELS).to(counts), counts.sum(1)


def main() -> None:
    """Train, measure, and see whether the code still holds what the label already says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=60, help="passes over the data at most")
    epochs = parser.parse_args().epochs

    torch.manual_seed(0)
    train, validation, test = (arguments(part) for part in split(load("digits")))
    vae = Counts()
    run = pv.fit(
        vae.model,
        vae.guide,
        train,  # a tuple: model(counts, label, depth)
        validation=validation,
        epochs=epochs,
        patience=10 if epochs > 10 else None,
        optimizer=pv.adam(3e-3),
    )
    print(f"Trained on {len(train[0]):,} rows of {COUNTED} counts: {run}.\n")
    effort = pv.Effort() if epochs > 10 else pv.Effort.quick()
    found = pv.diagnose(
        vae.model, vae.guide, train, held_out=test, validation=validation, effort=effort
    )
    print(found.summary().to_string(index=False))
    print(f"\n{found.advice}")

    agg = pv.aggregate(vae.guide, train)
    label = train[1].argmax(1)
    means = agg.component_distribution.mean
    between = torch.stack([means[label == k].mean(0) for k in range(LABELS)]).var(0)
    share = float((between / means.var(0)).mean())
    print(
        f"\nThe model is told the label, which explains {share:.0%} of the variance of the codes."
    )


if __name__ == "__main__":
    main()
