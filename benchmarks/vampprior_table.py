"""Tomczak & Welling's table of test log p(x), and the same models under an ex-post prior.

Trains the paper's one-layer VAE (gated 300-300, 40 units) with a standard normal prior and with a
VampPrior of 500 pseudo-inputs, by its protocol: batches of 100, KL warm-up over 100 epochs, early
stopping with patience 50, learning rate 5e-4 with each parameter's gradient divided by its norm
before Adam, log-variances limited to [-6, 2], He-normal initial weights. Then chooses an ex-post
prior on validation codes and estimates log p(x) of the test set under each prior by the same draws.

A row is data, prior and seed; each is a file in benchmarks/results/vampprior, and is resumed where
it stopped.

    python benchmarks/vampprior_table.py --data DIR --rows caltech:standard:0 caltech:vamp:0
    python benchmarks/vampprior_table.py --render docs/vampprior.md
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.estimates import Estimate
from pyrovae.evidence.importance import compare_priors
from pyrovae.models.likelihoods import BernoulliDecoder
from pyrovae.models.networks import gated_mlp
from pyrovae.models.pair import Pair, measuring
from pyrovae.randomness import seeded

RESULTS = Path(__file__).parent / "results" / "vampprior"
PIXELS, HIDDEN, LATENT, PSEUDO_INPUTS = 784, 300, 40, 500
PAPER = {("caltech", "standard"): -123.43, ("caltech", "vamp"): -114.55,
         ("static-mnist", "standard"): -88.56, ("static-mnist", "vamp"): -85.57}  # fmt: skip
FILES = {"caltech": "caltech101_silhouettes.npz", "static-mnist": "static_mnist.npz"}


class PaperEncoder(nn.Module):
    """q(z|x) with a linear mean and a log-variance limited to [-6, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), gated_mlp((PIXELS, HIDDEN, HIDDEN, 2 * LATENT)))

    def forward(self, x: Tensor) -> dist.Distribution:
        loc, log_variance = self.network(x).chunk(2, -1)
        return dist.Normal(loc, (0.5 * nn.functional.hardtanh(log_variance, -6, 2)).exp()).to_event(
            1
        )


class NormalizedAdam(torch.optim.Adam):
    """Adam on gradients divided by their norm, parameter by parameter."""

    @torch.no_grad()
    def step(self, closure: object = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad /= parameter.grad.norm() + 1e-10
        super().step()


@dataclass(frozen=True)
class Row:
    """One model: its data, its prior in training and its seed."""

    data: str
    prior: str
    seed: int

    @classmethod
    def parse(cls, text: str) -> Row:
        """``caltech:vamp:0`` as a row."""
        data, prior, seed = text.split(":")
        if data not in FILES or prior not in ("standard", "vamp"):
            raise argparse.ArgumentTypeError(
                f"expected DATA:PRIOR:SEED with DATA in {', '.join(FILES)} and PRIOR standard or "
                f"vamp; got {text!r}"
            )
        return cls(data, prior, int(seed))

    def path(self, suffix: str) -> Path:
        """The row's file with this suffix."""
        return RESULTS / f"{self.data}-{self.prior}-{self.seed}{suffix}"


def build(row: Row, train: Tensor) -> pv.VAE:
    """The paper's network with He-normal weights."""
    encoder = PaperEncoder()
    decoder = BernoulliDecoder(gated_mlp((LATENT, HIDDEN, HIDDEN, PIXELS)), torch.Size([28, 28]))
    for module in [*encoder.modules(), *decoder.modules()]:
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            nn.init.zeros_(module.bias)
    prior: nn.Module = pv.StandardNormal(LATENT)
    if row.prior == "vamp":
        prior = pv.VampPrior.from_data(
            encoder, train, PSEUDO_INPUTS, bounds=(0.0, 1.0), seed=row.seed
        )
    return pv.VAE(encoder, decoder, prior)


def run(row: Row, arguments: argparse.Namespace) -> dict[str, object]:
    """Train a row, or go on with it, and measure it."""
    with np.load(arguments.data / FILES[row.data]) as arrays:
        train, validation, test = (
            torch.as_tensor(arrays[name]).float() for name in ("x_train", "x_val", "x_test")
        )
    test = test[torch.randperm(len(test), generator=torch.Generator().manual_seed(0))]
    test = test[: arguments.test]
    with seeded(row.seed):
        vae = build(row, train)
    started = time.perf_counter()
    fitted = pv.fit(
        vae.model,
        vae.guide,
        train,
        validation=validation,
        epochs=arguments.epochs,
        optimizer=lambda parameters: NormalizedAdam(parameters, lr=5e-4),
        kl_warmup=100,
        patience=50,
        seed=row.seed,
        checkpoint=row.path(".pt"),
        resume=True,
    )
    trained = time.perf_counter()
    agg = pv.aggregate(vae.guide, train)
    ex_post = pv.fit_ex_post_prior(agg, held_out=pv.encode(vae.guide, validation))
    priors = {"own": None, "q_agg": agg, "ex_post": ex_post.distribution}
    with measuring(vae.model, vae.guide):
        found = compare_priors(
            Pair(vae.model, vae.guide), test, priors, draws=arguments.draws, seed=row.seed
        )
    return {
        **asdict(row),
        "epochs": fitted.epochs,
        "best_epoch": fitted.best_epoch,
        "stopped": fitted.stopped,
        "validation_elbo": fitted.validation,
        "choice": ex_post.choice,
        "test_rows": len(test),
        "draws": arguments.draws,
        "log_p": {name: asdict(result.mean()) for name, result in found.items()},
        "gain": {name: asdict(found[name].minus(found["own"])) for name in ("q_agg", "ex_post")},
        "k_above_0.7": {
            name: float((result.pareto_k > 0.7).double().mean()) for name, result in found.items()
        },
        "training_seconds": trained - started,
        "measuring_seconds": time.perf_counter() - trained,
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads",
        "versions": {name: version(name) for name in ("pyrovae", "torch", "pyro-ppl")},
    }


def render(path: Path) -> None:
    """Write the table of all results there are."""
    results = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))]
    lines = [
        "| data | prior in training | seeds | paper | own prior | raw q_agg | ex-post prior | gain "
        "ex post | chosen |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for key in sorted({(r["data"], r["prior"]) for r in results}):
        rows = [r for r in results if (r["data"], r["prior"]) == key]
        columns = [_spread([r["log_p"][name]["value"] for r in rows])
                   for name in ("own", "q_agg", "ex_post")]  # fmt: skip
        gain = rows[0]["gain"]["ex_post"]
        shown = (
            _spread([r["gain"]["ex_post"]["value"] for r in rows])
            if len(rows) > 1
            else str(Estimate(gain["value"], gain["standard_error"], gain["size"]))
        )
        chosen = "; ".join(sorted({r["choice"] for r in rows}))
        cells = [*key, str(len(rows)), f"{PAPER[key]:.2f}", *columns, shown, chosen]
        lines.append(f"| {' | '.join(cells)} |")
    text = path.read_text().split("<!-- table -->")
    path.write_text(f"{text[0]}<!-- table -->\n" + "\n".join(lines) + f"\n<!-- table -->{text[2]}")


def _spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.2f} ± {error:.2f}"


def main() -> None:
    """Run rows or render the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with the .npz files")
    parser.add_argument("--rows", type=Row.parse, nargs="*", default=[], metavar="DATA:PRIOR:SEED")
    parser.add_argument("--epochs", type=int, default=2000, help="at most (default 2000)")
    parser.add_argument("--draws", type=int, default=5000, help="importance draws (default 5000)")
    parser.add_argument("--test", type=int, help="test images at most (default all)")
    parser.add_argument(
        "--render", type=Path, metavar="FILE", help="write the table between its marks"
    )
    arguments = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for row in arguments.rows:
        if arguments.data is None or not (arguments.data / FILES[row.data]).exists():
            sys.exit(f"expected --data with {FILES[row.data]}; got {arguments.data}.")
        if not row.path(".json").exists():
            result = run(row, arguments)
            row.path(".json").write_text(json.dumps(result, indent=1))
            row.path(".pt").unlink()
        print(row.path(".json").read_text())
    if arguments.render:
        render(arguments.render)


if __name__ == "__main__":
    main()
