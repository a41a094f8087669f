"""A semi-supervised VAE: a few labels observed, all others enumerated (Kingma et al. 2014).

Its model and guide take labels or none: ``model(x, y)`` or ``model(x)``. The guide draws z given x
and the label, so the aggregated posterior is over labelled rows; log p(x) needs no labels.

python examples/semi_supervised.py --epochs 5
"""

import argparse

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor, nn
from torch.nn.functional import one_hot, softplus

import pyrovae as pv
from pyrovae.data.datasets import load, split

LATENT, HIDDEN, PIXELS, CLASSES, LABELLED = 4, 64, 64, 10, 200


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    """One hidden layer."""
    return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, outputs))


def beside(one: Tensor, other: Tensor) -> Tensor:
    """Two inputs of a network as one, also where one of them is enumerated."""
    shape = torch.broadcast_shapes(one.shape[:-1], other.shape[:-1])
    return torch.cat([part.expand(*shape, part.shape[-1]) for part in (one, other)], -1)


class SemiSupervised(nn.Module):
    """p(y) p(z) p(x | z, y) and q(y | x) q(z | x, y)."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = mlp(PIXELS, CLASSES)
        self.encoder = mlp(PIXELS + CLASSES, 2 * LATENT)
        self.decoder = mlp(LATENT + CLASSES, PIXELS)

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        """Digit and style, then pixels."""
        pyro.module("semi", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(torch.ones(CLASSES)), obs=y)
            pixels = dist.Bernoulli(logits=self.decoder(beside(z, y))).to_event(1)
            pyro.sample("x", pixels, obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """Without a label, one is drawn from the classifier."""
        pyro.module("semi", self)
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", dist.OneHotCategorical(logits=self.classifier(x)))
            loc, scale = self.encoder(beside(x, y)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, softplus(scale)).to_event(1))


def main() -> None:
    """Train on labelled and unlabelled rows by turns, then measure both kinds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40, help="rounds of training")
    epochs = parser.parse_args().epochs

    torch.manual_seed(0)
    parts = split(load("digits"))
    train, _, test = (part.values.round().flatten(1) for part in parts)
    labels, _, test_labels = (one_hot(part.labels, CLASSES).to(train) for part in parts)

    vae = SemiSupervised()
    labelled = (train[:LABELLED], labels[:LABELLED])
    both_ways = TraceEnum_ELBO(max_plate_nesting=1)
    optimizer = torch.optim.Adam(vae.parameters(), lr=2e-3)
    for _ in range(epochs):
        for x in train[torch.randperm(len(train))].split(100):
            rows = torch.randperm(LABELLED)[:50]
            x_seen, y_seen = (array[rows] for array in labelled)
            enumerated = config_enumerate(vae.guide)
            loss = both_ways.differentiable_loss(vae.model, enumerated, x) / len(x)
            loss = loss + both_ways.differentiable_loss(vae.model, vae.guide, x_seen, y_seen) / 50
            guessed = vae.classifier(x_seen).log_softmax(-1)
            loss = loss - 10 * (guessed * y_seen).sum(-1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    right = vae.classifier(test).argmax(1) == test_labels.argmax(1)
    print(f"Of {len(test)} new digits {float(right.double().mean()):.0%} are classified right,")
    print(f"from {LABELLED} labels and {len(train):,} images.\n")
    found = pv.diagnose(
        vae.model,
        vae.guide,
        (train, labels),
        held_out=(test, test_labels),
        observed="x",
        effort=pv.Effort() if epochs > 10 else pv.Effort.quick(),
    )
    print("Labelled rows, z given image and label:")
    print(found.summary().to_string(index=False))
    print(f"\n{found.advice}")
    unlabelled = pv.log_evidence(vae.model, vae.guide, test[:100], draws=500)
    print(f"\nlog p(x) of images without their labels: {unlabelled.mean()}")


if __name__ == "__main__":
    main()
