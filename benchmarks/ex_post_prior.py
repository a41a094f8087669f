"""Time and memory of choosing an ex-post prior for many data points, stage by stage.

Codes are synthetic but of the shape that an encoder's have: means on a curved set of few
dimensions, scales from 0.05 to 1 that vary along it, and a fifth of the units switched off. Times
are processor seconds; the peak is that of the whole process.
"""

from __future__ import annotations

import argparse
import resource
import time

import pyro.distributions as dist
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import pyrovae as pv
from pyrovae.randomness import seeded

GROUPS = 10
INTRINSIC = 8  # dimensions of the set that the means lie on
WIDTH = 64  # of the map that bends it
OFF = 0.2  # share of units that are switched off: mean about 0, scale about 1


def codes(rows: int, units: int, *, seed: int, part: int) -> dist.Distribution:
    """The encoding of a part of the data, whose parts lie on the same curved set."""
    with seeded(seed, "the curved set"):
        centres = 1.5 * torch.randn(GROUPS, INTRINSIC)
        first = torch.randn(INTRINSIC, WIDTH) / INTRINSIC**0.5
        means, scales = torch.randn(2, WIDTH, units) / WIDTH**0.5
        active = (torch.arange(units) < round(units * (1 - OFF))).float()
    with seeded(seed, "data", part):
        place = centres[torch.randint(GROUPS, (rows,))] + 0.7 * torch.randn(rows, INTRINSIC)
    hidden: Tensor = (place @ first).tanh()
    loc = active * 2.5 * (hidden @ means)
    own = (1.5 * hidden @ scales).sigmoid()  # from 0 to 1
    log_scale = active * (own - 1) * -torch.tensor(0.05).log()
    return dist.Normal(loc, (-log_scale.abs()).exp()).to_event(1)


def main() -> None:
    """Print the choice, what was tried and what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--units", type=int, default=50)
    parser.add_argument("--held-out", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train, new, test = (
        codes(rows, options.units, seed=options.seed, part=part)
        for part, rows in enumerate((options.rows, options.held_out, options.held_out))
    )
    processor, wall = time.process_time(), time.perf_counter()
    chosen = pv.fit_ex_post_prior(pv.AggregatedPosterior(train), held_out=new, seed=options.seed)
    processor, wall = time.process_time() - processor, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    shown = Table(title=f"{options.rows:,} components, {options.units} units")
    for title in ("candidate", "on a part of", "held out", "difference"):
        shown.add_column(title, justify="right", no_wrap=True)
    for row in chosen.table:
        part = f"{row.part:,}" if row.part else "all"
        shown.add_row(row.name, part, str(row.held_out), str(row.difference))
    console = Console(width=140)
    console.print(shown)
    with torch.no_grad(), seeded(options.seed, "test codes"):
        z = test.sample()
    fresh = chosen.distribution.log_prob(z).double()
    error = float(fresh.std() / len(fresh) ** 0.5)
    console.print(f"chosen: {chosen.choice}; test codes: {float(fresh.mean()):.3f} ± {error:.3f}")
    console.print(f"{processor:.0f} processor seconds, {wall:.0f} s, peak {peak:.2f} GB")


if __name__ == "__main__":
    main()
