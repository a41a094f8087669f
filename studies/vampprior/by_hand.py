"""The VampPrior paper's rows for images in black and white in plain torch: a check of the table.

Networks, initial weights and biases, limits, optimiser and stopping rule are those of the paper's
published code; nothing here is this library's. Heads and gates are layers, and divide their
gradients by norms, of their own; biases start uniform; pseudo-inputs start near one grey and are
clipped to [0, 1]; probabilities of pixels are kept 1e-5 from 0 and 1.

    python -m studies.vampprior.by_hand --data DIR --layers 2 --prior standard --test 500
    python -m studies.vampprior.by_hand --data DIR --images static-mnist --rate 5e-4 \\
        --prior vamp-random

What else the protocol could have been, and what it is worth, is tried by --rate and by --change;
the first version of the published code had these, among others, but not torch's weights:

CHANGES

With --refit the encoder alone is trained on, decoder and p(z) as they are: on images drawn from
the model, half of them from codes of training images. Those never run out, so that it cannot learn
them by heart. What log p(x) then gains is the encoder's, not the model's.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from studies.vampprior.data import SOURCES, load
from studies.vampprior.results import Result, add

PIXELS, HIDDEN, LATENT, PSEUDO_INPUTS = 784, 300, 40, 500
BATCH, WARMUP, PATIENCE, BLOCK = 100, 100, 50, 1000
CHANGES = {
    "inverted": "images with 1 for the background",
    "glorot": "initial weights of variance 2 / (inputs + outputs), not 2 / inputs",
    "torch": "initial weights as torch draws them, of variance 1 / (3 · inputs)",
    "unlimited": "log variances without limits",
    "plain-adam": "gradients not divided by their norms",
    "unbounded": "pseudo-inputs of any value, started at noise near 0",
    "last": "the model of the last epoch, not of the best",
}

Normal = tuple[Tensor, Tensor]  # mean, log variance


class Gated(nn.Module):
    """A linear layer times a sigmoid of another."""

    def __init__(self, inputs: int, outputs: int = HIDDEN) -> None:
        super().__init__()
        self.linear, self.gate = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.gate(x).sigmoid()


class Head(nn.Module):
    """Mean and log variance of the latent units, the latter within limits."""

    def __init__(self, limits: tuple[float, float]) -> None:
        super().__init__()
        self.mean, self.log_variance = nn.Linear(HIDDEN, LATENT), nn.Linear(HIDDEN, LATENT)
        self.limits = limits

    def forward(self, h: Tensor) -> Normal:
        return self.mean(h), nn.functional.hardtanh(self.log_variance(h), *self.limits)


class Model(nn.Module):
    """The VAE of one or of two latent layers; its top latent is z, the other one y."""

    def __init__(self, layers: int, prior: str, grey: float, changes: Sequence[str] = ()) -> None:
        super().__init__()
        limits = (-math.inf, math.inf) if "unlimited" in changes else (-6.0, 2.0)
        self.q_z = nn.Sequential(Gated(PIXELS), Gated(HIDDEN), Head(limits))
        self.two = layers == 2
        self.p_x: nn.Module
        if self.two:
            self.q_y_x, self.q_y_z, self.q_y = Gated(PIXELS), Gated(LATENT), Gated(2 * HIDDEN)
            self.q_y_head = Head(limits)
            self.p_y = nn.Sequential(Gated(LATENT), Gated(HIDDEN), Head(limits))
            self.p_x_y, self.p_x_z, self.p_x = Gated(LATENT), Gated(LATENT), Gated(2 * HIDDEN)
        else:
            self.p_x = nn.Sequential(Gated(LATENT), Gated(HIDDEN))
        self.logits = nn.Linear(HIDDEN, PIXELS)
        for module in self.modules():
            if isinstance(module, nn.Linear) and "torch" not in changes:
                fans = module.in_features + module.out_features * ("glorot" in changes)
                nn.init.normal_(module.weight, std=math.sqrt(2 / fans))
        self.fixed: Normal | None = None
        self.pseudo_inputs = None
        self.bounds, start, spread = (0.0, 1.0), grey, 0.01
        if "unbounded" in changes:
            self.bounds, start = (-math.inf, math.inf), 0.0
            spread = math.sqrt(2 / (PSEUDO_INPUTS + PIXELS))
        if prior == "vamp-random":
            noise = torch.randn(PSEUDO_INPUTS, PIXELS)
            self.pseudo_inputs = nn.Parameter(start + spread * noise)

    def forward(self, x: Tensor, draws: int = 1) -> tuple[Tensor, Tensor]:
        """log p(x | z, y) and log q(z, y | x) − log p(z, y) at draws, shape ``(draws, B)``."""
        q_z = self.q_z(x)
        z = draw(q_z, draws)
        kl = log_normal(z, q_z) - self.log_prior(z)
        if self.two:
            seen = self.q_y_x(x).expand(draws, -1, -1)
            q_y = self.q_y_head(self.q_y(torch.cat([seen, self.q_y_z(z)], -1)))
            y = draw(q_y)
            kl = kl + log_normal(y, q_y) - log_normal(y, self.p_y(z))
            share = self.decode(z, y)
        else:
            share = self.decode(z)
        return (x * share.log() + (1 - x) * (1 - share).log()).sum(-1), kl

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Probabilities of pixels."""
        h = self.p_x(z) if y is None else self.p_x(torch.cat([self.p_x_y(y), self.p_x_z(z)], -1))
        share: Tensor = self.logits(h).sigmoid().clamp(1e-5, 1 - 1e-5)
        return share

    @torch.no_grad()
    def images(self, x: Tensor) -> Tensor:
        """As many images from the model: of the first half, z is a code of the images given."""
        first, second = x.chunk(2)
        mean, log_variance = self.prior()
        rows = torch.randint(len(mean), (len(second),))
        z = torch.cat([draw(self.q_z(first)), draw((mean[rows], log_variance[rows]))])
        return self.decode(z, draw(self.p_y(z)) if self.two else None).bernoulli()

    def prior(self) -> Normal:
        """The mixture p(z): of one standard normal component, or of the encoded pseudo-inputs."""
        if self.fixed is not None:
            return self.fixed
        if self.pseudo_inputs is None:
            return torch.zeros(1, LATENT), torch.zeros(1, LATENT)
        encoded: Normal = self.q_z(nn.functional.hardtanh(self.pseudo_inputs, *self.bounds))
        return encoded

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z)."""
        mean, log_variance = self.prior()
        precision = (-log_variance).exp()
        square = z.square() @ precision.T - 2 * z @ (mean * precision).T
        square = square + (mean.square() * precision + log_variance).sum(-1)
        constant = 0.5 * LATENT * math.log(2 * math.pi) + math.log(len(mean))
        return (-0.5 * square).logsumexp(-1) - constant


def draw(normal: Normal, draws: int | None = None) -> Tensor:
    """One draw, or several, shape ``(draws, B, D)``."""
    mean, log_variance = normal
    shape = mean.shape if draws is None else (draws, *mean.shape)
    return mean + (0.5 * log_variance).exp() * torch.randn(shape)


def log_normal(z: Tensor, normal: Normal) -> Tensor:
    """Log density, summed over units."""
    mean, log_variance = normal
    square = (z - mean).square() * (-log_variance).exp()
    return -0.5 * (square + log_variance + math.log(2 * math.pi)).sum(-1)


def train(
    model: Model,
    x: Tensor,
    validation: Tensor,
    *,
    rate: float,
    normalised: bool,
    last: bool,
) -> tuple[int, float]:
    """Train, leave the model as at its best (or last) epoch; return the best one and its loss."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    best, best_epoch, state, waited = math.inf, 0, model.state_dict(), 0
    for epoch in range(1, 2001):
        for rows in torch.randperm(len(x)).split(BATCH):
            fit, kl = model(x[rows])
            optimizer.zero_grad()
            (min(1.0, epoch / WARMUP) * kl - fit).mean().backward()
            for parameter in model.parameters() if normalised else ():
                gradient = cast(Tensor, parameter.grad)
                gradient /= gradient.norm() + 1e-7
            optimizer.step()
        with torch.no_grad():
            fit, kl = model(validation)
        loss = float((kl - fit).mean())
        if loss < best:
            best, best_epoch, state, waited = loss, epoch, copy.deepcopy(model.state_dict()), 0
        else:
            waited = waited + 1 if epoch >= WARMUP else 0
        if epoch % 10 == 0:
            print(f"epoch {epoch}: validation {-loss:.2f}, best {-best:.2f}", flush=True)
        if waited > PATIENCE:
            break
    if not last:
        model.load_state_dict(state)
    return best_epoch, best


def refit(model: Model, x: Tensor, steps: int, rate: float) -> None:
    """Train the encoder on images drawn from the model as it was, and nothing else."""
    with torch.no_grad():
        model.fixed = model.prior()
    start = copy.deepcopy(model)
    guide = [p for name, p in model.named_parameters() if name.startswith("q_")]
    optimizer = torch.optim.Adam(guide, lr=rate)
    for step in range(1, steps + 1):
        fit, kl = model(start.images(x[torch.randint(len(x), (BATCH,))]))
        optimizer.zero_grad()
        (kl - fit).mean().backward(inputs=guide)
        optimizer.step()
        if step % 1000 == 0:
            print(f"refit {step}: ELBO of images drawn {float((fit - kl).mean()):.2f}", flush=True)


@torch.no_grad()
def log_evidence(model: Model, x: Tensor, draws: int) -> Tensor:
    """Importance-weighted log p(x) of each row."""
    values = []
    for row in x.split(1):
        parts = [model(row, BLOCK) for _ in range(draws // BLOCK)]
        weights = torch.cat([fit - kl for fit, kl in parts]).double()
        values.append(weights.logsumexp(0) - math.log(len(weights)))
    return torch.cat(values)


def main() -> None:
    """Train and measure one model; write its figures into results.csv."""
    changes = "\n".join(f"  {name:12}{what}" for name, what in CHANGES.items())
    parser = argparse.ArgumentParser(
        description=__doc__.replace("CHANGES", changes),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the .npz file")
    parser.add_argument(
        "--images",
        choices=("caltech", "static-mnist"),
        default="caltech",
        help="data set (default caltech)",
    )
    parser.add_argument("--layers", type=int, choices=(1, 2), default=2)
    parser.add_argument("--prior", choices=("standard", "vamp-random"), default="standard")
    parser.add_argument("--rate", default="1e-4", help="learning rate (default 1e-4)")
    parser.add_argument(
        "--change", nargs="+", choices=CHANGES, default=[], metavar="NAME", help="of those above"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=5000, help="thousands (default 5000)")
    parser.add_argument("--test", type=int, help="test images at most (default all)")
    parser.add_argument(
        "--matmul",
        choices=("highest", "high", "medium"),
        default="highest",
        help="precision of matrix products in training, as torch names it (default highest)",
    )
    parser.add_argument("--refit", type=int, metavar="STEPS", help="train the encoder on, alone")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    change = sorted(arguments.change)
    images = load(arguments.images, arguments.data)
    x, validation, test = (
        part.flatten(1) for part in (images.train, images.validation, images.test)
    )
    if "inverted" in change:
        x, validation, test = 1 - x, 1 - validation, 1 - test
    model = Model(arguments.layers, arguments.prior, SOURCES[arguments.images].grey, change)
    started = time.perf_counter()
    torch.set_float32_matmul_precision(arguments.matmul)
    best_epoch, best = train(
        model,
        x,
        validation,
        rate=float(arguments.rate),
        normalised="plain-adam" not in change,
        last="last" in change,
    )
    torch.set_float32_matmul_precision("highest")
    test = test[: arguments.test]
    values = log_evidence(model, test, arguments.draws)
    result: Result = {
        "program": "by hand",
        "data": arguments.images,
        "layers": arguments.layers,
        "prior": arguments.prior,
        "seed": arguments.seed,
        "rate": arguments.rate,
        "changes": " ".join(change) or None,
        "images_with_all_draws": len(values),
        "best_epoch": best_epoch,
        "matmul": arguments.matmul,
        "validation_elbo": -best,
        "test_images": len(values),
        "draws": arguments.draws,
        "log_p_own": float(values.mean()),
        "log_p_own_error": float(values.std() / math.sqrt(len(values))),
        "seconds_in_all": time.perf_counter() - started,
        "torch": torch.__version__,
    }
    if arguments.refit:
        refit(model, x, arguments.refit, float(arguments.rate))
        gain = log_evidence(model, test, arguments.draws) - values
        result["refit_batches"] = arguments.refit
        result["refit_gain"] = float(gain.mean())
        result["refit_gain_error"] = float(gain.std() / math.sqrt(len(gain)))
    add(result)
    for column, value in result.items():
        print(f"{column}: {value}")


if __name__ == "__main__":
    main()
