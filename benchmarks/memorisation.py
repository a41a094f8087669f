"""Which training rows are memorised: planted twins and one-of-a-kind rows among digits, ranked.

Twenty rows are copies of others with two pixels changed, twenty are digits with their pixels in an
order of their own. Refits rank one-of-a-kind rows first; twins only if both are held out together.
The screen, without refits, ranks both.

    python benchmarks/memorisation.py --method refined --checkpoint refits.pt
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.data import load
from pyrovae.randomness import seeded

PLANTED, CHANGED, UNITS = 20, 1, 10


@dataclass(frozen=True)
class Planted:
    """Rows with what was planted: for each the row that it is a copy of, or its own number."""

    rows: Tensor
    source: Tensor
    unique: Tensor

    @property
    def twin(self) -> Tensor:
        """Rows with a near-duplicate, both of them."""
        return torch.bincount(self.source, minlength=len(self.rows))[self.source] > 1


def planted(count: int, seed: int = 0) -> Planted:
    """Binary digits with near-duplicates and one-of-a-kind rows at the end."""
    digits = (load("digits").values.flatten(1) >= 0.5).float()
    with seeded(seed, "planted rows"):
        order = torch.randperm(len(digits))
        digits, others = digits[order[:count]], digits[order[count : count + PLANTED]]
        copies = digits[:PLANTED].clone()
        for row in copies:
            pixel = torch.randperm(row.numel())[:CHANGED]
            row[pixel] = 1 - row[pixel]
        unique = torch.stack([row[torch.randperm(row.numel())] for row in others])
    rows = torch.cat([digits, copies, unique])
    source = torch.arange(len(rows))
    source[count : count + PLANTED] = torch.arange(PLANTED)
    return Planted(rows, source, torch.arange(len(rows)) >= count + PLANTED)


def factory() -> pv.VAE:
    """A new pair."""
    return pv.VAE(
        pv.mlp_encoder((64,), UNITS, hidden=(128,)),
        pv.mlp_decoder(UNITS, (64,), "bernoulli", hidden=(128,)),
        pv.StandardNormal(UNITS),
    )


def show(score: Tensor, of: Planted) -> None:
    """Print how well a score ranks what was planted."""
    plain = ~of.twin & ~of.unique
    print(f"  AUROC, one-of-a-kind above all: {pv.auroc(score[of.unique], score[~of.unique])}")
    print(f"  one-of-a-kind above twins: {pv.auroc(score[of.unique], score[of.twin])}")
    print(f"  twins above other digits: {pv.auroc(score[of.twin], score[plain])}")


def main() -> None:
    """Plant, refit, screen, and print how well each measure ranks what was planted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--method", default="auto", help="of log p(x) under the refits")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--checkpoint", help="beginning of the names of two files to go on from")
    arguments = parser.parse_args()
    of = planted(arguments.rows)
    plain = ~of.twin & ~of.unique
    settings = {"epochs": arguments.epochs, "optimizer": pv.adam(2e-3)}

    for name, groups in (("rows held out one by one", None), ("twins together", of.source)):
        start = time.perf_counter()
        found = pv.memorisation(
            factory,
            of.rows,
            folds=arguments.folds,
            repeats=arguments.repeats,
            groups=groups,
            fit=settings,
            evidence={"method": arguments.method, "draws": arguments.draws},
            checkpoint=arguments.checkpoint and f"{arguments.checkpoint}.{groups is None}",
        )
        print(f"refits, {name}: mean gain {found.mean} nats, {time.perf_counter() - start:.0f} s")
        show(found.gain, of)
        for kind, rows in (("one-of-a-kind", of.unique), ("twins", of.twin), ("digits", plain)):
            gain, error = found.gain[rows].mean(), found.standard_error[rows].mean()
            rejected = int(found.rejected[rows].sum())
            print(f"  {kind}: {gain:.2f} nats, error of a row {error:.2f}, k̂ rejects {rejected}")

    vae = factory()
    pv.fit(vae.model, vae.guide, of.rows, seed=1, **settings)
    agg = pv.aggregate(vae.guide, of.rows)
    start = time.perf_counter()
    screen = pv.memorisation_screen(agg, pair=(vae.model, vae.guide), train=of.rows)
    print(f"screen: {time.perf_counter() - start:.0f} s")
    low = {"log_density": -1, "components": -1}
    for name in ("log_density", "components", "gain", "likeness", "share"):
        print(f" {name}, {'low' if name in low else 'high'} first")
        show(low.get(name, 1) * getattr(screen, name), of)
    print("", *screen.concerns)
    apart = (of.rows[:, None] != of.rows).sum(-1).fill_diagonal_(of.rows.shape[1]).amin(1)
    print(" changed pixels to the nearest row, few first")
    show(-apart, of)


if __name__ == "__main__":
    main()
