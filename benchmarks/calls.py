"""How far a call travels: calls of our own functions, how deep, and hops from file to file.

Counts do not depend on the machine. A hop is a call or a return that goes from one file of the
package to another. Comprehensions and generators are part of the function that they stand in. Each
task runs once before it is counted, as what is kept is made then.

    python benchmarks/calls.py
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pyro.distributions as dist
import torch

import pyrovae as pv

PACKAGE = str(Path(pv.__file__).parent)
INNER = {"<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>"}


@dataclass
class Trip:
    """What is counted on the way of one call."""

    calls: int = 0
    deepest: int = 0
    hops: int = 0
    files: list[str] = field(default_factory=list)
    functions: Counter[str] = field(default_factory=Counter)

    def note(self, frame: FrameType, event: str, _: object) -> None:
        """What ``sys.setprofile`` calls at every call and return."""
        path = frame.f_code.co_filename
        inner = frame.f_code.co_name in INNER
        if event not in ("call", "return") or inner or not path.startswith(PACKAGE):
            return
        if event == "call":
            self.calls += 1
            self.functions[f"{path[len(PACKAGE) + 1 :]}:{frame.f_code.co_qualname}"] += 1
            self.hops += bool(self.files) and self.files[-1] != path
            self.files.append(path)
            self.deepest = max(self.deepest, len(self.files))
        elif self.files:
            self.files.pop()
            self.hops += bool(self.files) and self.files[-1] != path


def travel(task: Callable[[], object]) -> Trip:
    """Run a task twice and count what the second run does."""
    task()
    trip = Trip()
    sys.setprofile(trip.note)
    try:
        task()
    finally:
        sys.setprofile(None)
    return trip


def tasks() -> dict[str, Callable[[], Any]]:
    """What is counted, by name: small data, as the counts of a batch do not depend on its size."""
    torch.manual_seed(0)
    data = torch.rand(100, 20).round()
    vae = pv.VAE(pv.mlp_encoder((20,), 4), pv.mlp_decoder(4, (20,)), pv.StandardNormal(4))
    large = pv.AggregatedPosterior(
        dist.Normal(torch.randn(20_000, 10), 0.1 + torch.rand(20_000, 10)).to_event(1)
    )
    z = torch.randn(64, 10)
    effort = pv.Effort(
        codes=50, evidence_rows=20, evidence_draws=50, export_rows=0, pictures=4, two_sample=100
    )
    return {
        "encode, one batch": lambda: pv.encode(vae.guide, data),
        "aggregate, one batch": lambda: pv.aggregate(vae.guide, data),
        "log_prob, N = 20,000": lambda: large.log_prob(z),
        "log p(x) by the guide": lambda: pv.log_evidence(
            vae.model, vae.guide, data[:20], method="importance", draws=50
        ),
        "log p(x), auto": lambda: pv.log_evidence(vae.model, vae.guide, data[:20], draws=50),
        "diagnose, quick": lambda: pv.diagnose(
            vae.model, vae.guide, data[:60], held_out=data[60:], effort=effort, progress=False
        ),
    }


def main() -> None:
    """Print the counts."""
    print(f"{'task':24} {'calls':>8} {'depth':>6} {'hops':>8}   most called")
    for name, task in tasks().items():
        trip = travel(task)
        most = ", ".join(f"{key} {n}" for key, n in trip.functions.most_common(2))
        print(f"{name:24} {trip.calls:8,} {trip.deepest:6} {trip.hops:8,}   {most}")


if __name__ == "__main__":
    main()
