"""Rows that `pyrovae.fit` trains on a second in one process and in two or more, by torchrun.

The pair is the 784-300-300-40 Bernoulli VAE of `fit_step.py`, in minibatches of 1,000 rows whatever
the number of processes; each has one thread, and should have a core. The numbers of processes take
turns, so that a busy machine is busy for all of them; the fastest epoch, the least disturbed one,
makes the ratio, and the median stands beside it. An epoch's time is that of the process that takes
longest; the first one of each run, with its checks, doesn't count. Steps are replayed from the
second epoch on, as in a long run; `--capture off` leaves them to the pair. Beside that stands the
processor time that a process takes for a step, least of the runs: other work on the machine hardly
changes it, but what processes wait for each other is not in it.

Below stand as many processes that know nothing of each other, each with its share of the rows: what
two cores of this machine have to give, without a sum of gradients and anyone to wait for. What
processes that train together fall short of that is the library's; the rest is the machine's.

    python benchmarks/ranks.py --processes 1 2 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
from fit_step import LEARNING_RATE, PIXELS, vae
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pyrovae.training import captured
from pyrovae.training.fit import adam, fit

OPTIONS = ("batch", "steps", "epochs", "capture")


def train(options: argparse.Namespace) -> None:
    """Train in this process and those beside it, and write down the seconds of each epoch."""
    torch.manual_seed(0)
    captured.LEAST_STEPS = 1  # this is shorter than a run in which recording pays
    pair, x = vae(), torch.rand(options.batch * options.steps, PIXELS).round()
    settings = {name: getattr(options, name) for name in ("epochs", "capture")}
    settings |= {"batch_size": options.batch, "progress": False}
    begun: list[float] = []  # processor time where each step begins

    def transform(x: Tensor, _: torch.Generator) -> Tensor:
        begun.append(time.process_time())
        return x

    optimizer = adam(LEARNING_RATE)
    run = fit(pair.model, pair.guide, x, optimizer=optimizer, transform=transform, **settings)
    last = begun[-options.steps :]
    found = {
        "seconds": run.history.seconds[1:].tolist(),
        "processor": statistics.median(later - earlier for earlier, later in pairwise(last)),
    }
    (options.out / f"{os.environ['RANK']}.json").write_text(json.dumps(found), encoding="utf-8")


def measure(
    processes: int, options: argparse.Namespace, *, apart: bool = False
) -> tuple[list[float], float]:
    """Seconds of each epoch but the first, and of the processor for a step, in a run of its own."""
    with tempfile.TemporaryDirectory() as folder:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        own = {name: getattr(options, name) for name in OPTIONS}
        if apart:
            own["batch"] //= processes
        arguments = [f"--{name}={value}" for name, value in own.items()]
        command = [sys.executable, *([] if apart else torchrun), __file__, "--out", folder]
        started = [
            subprocess.Popen(
                [*command, *arguments],
                env={**os.environ, "OMP_NUM_THREADS": "1", "RANK": str(number)},
            )
            for number in range(processes if apart else 1)
        ]
        codes = [process.wait() for process in started]  # all, before the folder goes
        if any(codes):
            sys.exit("a process has failed")
        texts = [path.read_text(encoding="utf-8") for path in Path(folder).glob("*.json")]
    found = [json.loads(text) for text in texts]
    epochs = zip(*(theirs["seconds"] for theirs in found), strict=True)
    return [max(epoch) for epoch in epochs], max(theirs["processor"] for theirs in found)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="how many")
    parser.add_argument("--batch", type=int, default=1000, help="rows in a minibatch")
    parser.add_argument("--steps", type=int, default=20, help="steps in an epoch (default 20)")
    parser.add_argument("--epochs", type=int, default=4, help="epochs in a run (default 4)")
    parser.add_argument("--capture", choices=["auto", "off"], default="auto", help="as of fit")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each (default 3)")
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.out is not None:
        train(options)
        return
    ways = [(number, False) for number in options.processes]
    ways += [(number, True) for number in options.processes if number > 1]
    times: dict[tuple[int, bool], list[float]] = {way: [] for way in ways}
    processor = dict.fromkeys(ways, math.inf)
    for _ in range(options.rounds):
        for number, apart in ways:
            seconds, of_step = measure(number, options, apart=apart)
            times[number, apart] += seconds
            processor[number, apart] = min(processor[number, apart], of_step)
    rows = options.batch * options.steps
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    table = Table(title=f"training in minibatches of {options.batch}, one thread each; load {load}")
    speeds = ("fastest / (rows/s)", "median / (rows/s)", "ratio", "of medians")
    for column in ("processes", *speeds, "processor / (ms/step)", "ratio"):
        table.add_column(column, justify="right")
    base = times[ways[0]]
    for way, taken in times.items():
        number, apart = way
        fastest, median = min(taken), statistics.median(taken)
        ratios = (min(base) / fastest, statistics.median(base) / median)
        speeds = (f"{rows / fastest:,.0f}", f"{rows / median:,.0f}")
        own = f"{1e3 * processor[way]:.1f}"
        by_processor = processor[ways[0]] / processor[way]
        cells = (*speeds, *(f"{ratio:.2f}" for ratio in ratios), own, f"{by_processor:.2f}")
        table.add_row(f"{number} apart" if apart else str(number), *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
