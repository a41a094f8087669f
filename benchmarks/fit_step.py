"""Time of one training step of a 784-300-300-40 Bernoulli VAE, in several ways.

A loop written by hand in PyTorch (with Adam as torch makes it, with its fused kernel, and where a
C++ compiler is found with its loss through `torch.compile`), `pyrovae.fit` with replayed steps and
without, and Pyro's `SVI.step`. The ways take turns, so that a busy machine is busy for all of them;
the fastest round, the least disturbed one, makes the ratio, and the median stands beside it. A
round of `fit` is its third epoch: argument checks run in the first and steps are recorded in the
second. Data are random bits: no step depends on them.

    python benchmarks/fit_step.py --batch 100 1000 --rounds 7

`--numpyro PYTHON` takes NumPyro's SVI beside them, its epoch a jitted scan, in a process of its own
(`numpyro_step.py`) by an interpreter that has it. JAX takes all processors that it may have, so
hold both to as many as torch has threads: `taskset -c 0 python benchmarks/fit_step.py` to one.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pyro
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

from pyrovae.models.networks import mlp_decoder, mlp_encoder
from pyrovae.models.priors import StandardNormal
from pyrovae.models.vae import VAE
from pyrovae.training import captured
from pyrovae.training.captured import Capture
from pyrovae.training.fit import adam, fit

PIXELS, HIDDEN, LATENT = 784, (300, 300), 40
LEARNING_RATE = 1e-3
BY_HAND = "by hand, fused Adam"


def vae() -> VAE:
    """The pair that ``pyrovae.fit`` and ``SVI`` train."""
    return VAE(
        mlp_encoder((PIXELS,), LATENT, hidden=HIDDEN),
        mlp_decoder(LATENT, (PIXELS,), likelihood="bernoulli", hidden=HIDDEN),
        StandardNormal(LATENT),
    )


def mlp(*sizes: int) -> nn.Sequential:
    """The same network for the loop by hand."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def by_hand(
    x: Tensor, batch: int, *, fused: bool | None = None, compiled: bool = False
) -> Callable[[], float]:
    """The textbook loop: ELBO with the analytic KL divergence, one Adam, one ``item`` a step."""
    encoder, decoder = mlp(PIXELS, *HIDDEN, 2 * LATENT), mlp(LATENT, *HIDDEN, PIXELS)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=fused)

    def loss_of(part: Tensor) -> Tensor:
        mean, raw = encoder(part).chunk(2, -1)
        scale = functional.softplus(raw)
        logits = decoder(mean + scale * torch.randn_like(scale))
        distortion = functional.binary_cross_entropy_with_logits(logits, part, reduction="sum")
        rate = 0.5 * (mean.square() + scale.square() - 1).sum() - scale.log().sum()
        return (distortion + rate) / len(part)

    if compiled:
        loss_of = torch.compile(loss_of)

    def epoch() -> float:
        start, total = time.perf_counter(), 0.0
        for rows in torch.randperm(len(x)).split(batch):
            loss = loss_of(x[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        return time.perf_counter() - start

    return epoch


def by_fit(x: Tensor, batch: int, capture: Capture) -> Callable[[], float]:
    """``pyrovae.fit``."""
    pair = vae()

    def epoch() -> float:
        run = fit(
            pair.model,
            pair.guide,
            x,
            epochs=3,
            batch_size=batch,
            optimizer=adam(LEARNING_RATE),
            progress=False,
            capture=capture,
        )
        return float(run.history.seconds[2])

    return epoch


def by_svi(x: Tensor, batch: int) -> Callable[[], float]:
    """Pyro as it comes: ``SVI.step`` with its Adam, argument checks on."""
    pair = vae()
    svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": LEARNING_RATE}), TraceMeanField_ELBO())

    def epoch() -> float:
        start = time.perf_counter()
        for rows in torch.randperm(len(x)).split(batch):
            svi.step(x[rows])
        return time.perf_counter() - start

    return epoch


def by_numpyro(python: str, batch: int, steps: int) -> Callable[[], float] | None:
    """NumPyro, in a process of another interpreter; none, with a word, if that doesn't have it."""
    numbers = (LEARNING_RATE, batch, steps, LATENT, PIXELS, *HIDDEN)
    script = Path(__file__).with_name("numpyro_step.py")
    process = subprocess.Popen(
        [python, str(script), *map(str, numbers)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    if process.stdout.readline() != "ready\n":
        print(f"NumPyro is left out: {python} does not have it")
        return None

    def epoch() -> float:
        print("round", file=process.stdin, flush=True)
        return float(process.stdout.readline())

    return epoch


def milliseconds(
    batch: int, steps: int, rounds: int, numpyro: str | None = None
) -> dict[str, tuple[float, float]]:
    """Fastest and median time of a step in each way, the ways taking turns."""
    x = torch.rand(batch * steps, PIXELS).round()
    ways = {
        BY_HAND: by_hand(x, batch, fused=True),
        "by hand, Adam": by_hand(x, batch),
        "pyrovae.fit": by_fit(x, batch, "auto"),
        'pyrovae.fit, capture="off"': by_fit(x, batch, "off"),
        "Pyro SVI.step": by_svi(x, batch),
    }
    if shutil.which("g++") or shutil.which("clang++"):
        ways[f"{BY_HAND}, torch.compile"] = by_hand(x, batch, fused=True, compiled=True)
    if numpyro and (way := by_numpyro(numpyro, batch, steps)):
        ways["NumPyro, jitted scan"] = way
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(way())
    per_step = 1e3 / steps
    return {n: (per_step * min(s), per_step * statistics.median(s)) for n, s in seconds.items()}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[100, 1000], help="batch sizes")
    parser.add_argument("--steps", type=int, default=60, help="steps in a round (default 60)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds (default 7)")
    parser.add_argument("--numpyro", metavar="PYTHON", help="an interpreter that has NumPyro")
    options = parser.parse_args()
    captured.LEAST_STEPS = 1  # a round is shorter than a run in which recording pays
    table = Table(title=f"one training step, {torch.get_num_threads()} threads")
    for column in ("batch", "way", "fastest / ms", "median / ms", f"ratio to {BY_HAND}"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for batch in options.batch:
        pyro.clear_param_store()
        times = milliseconds(batch, options.steps, options.rounds, options.numpyro)
        for name, (fastest, median) in times.items():
            ratio = fastest / times[BY_HAND][0]
            table.add_row(str(batch), name, f"{fastest:.2f}", f"{median:.2f}", f"{ratio:.2f}")
        table.add_section()
    Console().print(table)


if __name__ == "__main__":
    main()
