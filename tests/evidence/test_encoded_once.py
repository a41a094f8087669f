"""Each row goes through the guide once, whatever is then asked of its encoding."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.pairs import Pair, drawn_from
from pyrovae.pairs.guide_density import Encoded
from pyrovae.testing import linear_gaussian_vae

TRIED = 4  # rows, at most, of the runs that tell what kind of pair it is
EXACT = linear_gaussian_vae()


class Counted:
    """A VAE with a poor guide that notes which rows go through it in runs of more than a few."""

    def __init__(self, x: Tensor) -> None:
        self.vae = EXACT.vae(scale=0.4)
        self.number = {row: n for n, row in enumerate(map(tuple, x.tolist()))}
        self.runs: Counter[int] = Counter()

    def model(self, x: Tensor) -> Any:
        return self.vae.model(x)

    def guide(self, x: Tensor) -> Any:
        if len(x) > TRIED:
            numbers = [self.number.get(row, -1) for row in map(tuple, x.tolist())]
            self.runs.update(n for n in numbers if n >= 0)
        return self.vae.guide(x)


@pytest.mark.parametrize("method", ["importance", "auto", "refined", "annealed"])
def test_log_evidence_encodes_each_row_once(method: Any) -> None:
    x = EXACT.sample(90)  # in blocks of 16 or 64
    counted = Counted(x)
    settings = pv.Annealing(temperatures=2) if method == "annealed" else method
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*k̂", UserWarning)
        pv.log_evidence(counted.model, counted.guide, x, method=settings, draws=30)
    assert counted.runs == dict.fromkeys(range(len(x)), 1)


def test_a_diagnosis_encodes_each_row_once() -> None:
    x = EXACT.sample(100)
    counted = Counted(x)
    effort = pv.Effort(
        codes=50, evidence_rows=12, evidence_draws=30, export_rows=6, export_draws=30, pictures=0,
        two_sample=50, samples=0, simulations=0, gap_rows=6, nuts_rows=0,
    )  # fmt: skip
    pv.diagnose(
        counted.model, counted.guide, x[:60], held_out=x[60:], effort=effort, progress=False
    )
    assert counted.runs == dict.fromkeys(range(len(x)), 1)


@pytest.mark.parametrize("method", ["importance", "auto", "refined"])
def test_a_handed_on_encoding_gives_the_same_numbers(method: str) -> None:
    from pyrovae.evidence import automatic_evidence, compare_priors, refined_evidence

    vae, x = EXACT.vae(scale=0.4), EXACT.sample(70)
    pair = Pair(vae.model, vae.guide)
    estimates: dict[str, Callable[..., Any]] = {
        "importance": lambda **known: compare_priors(pair, x, {"": None}, draws=40, **known)[""],
        "auto": lambda **known: automatic_evidence(pair, x, draws=40, **known),
        "refined": lambda **known: refined_evidence(pair, x, draws=40, **known),
    }
    with torch.no_grad():
        encoded = pair.guide_density.encode((x,))
        alone, handed = estimates[method](), estimates[method](encoded=encoded)
    torch.testing.assert_close(handed.values, alone.values, rtol=1e-9, atol=1e-9)
    assert handed.rungs == alone.rungs


def test_some_of_the_rows_are_those_of_all() -> None:
    vae, x = EXACT.vae(), EXACT.sample(20)
    pair = Pair(vae.model, vae.guide)
    chosen = torch.tensor([7, 3, 12])
    some = pair.guide_density.encode((x,)).take(chosen)
    torch.testing.assert_close(some.density.mean, pair.encode(x[chosen]).mean)
    assert drawn_from(pair, x[chosen], some) is some.density
    assert drawn_from(pair, x[chosen], Encoded(some.density, masked=True)) is None
