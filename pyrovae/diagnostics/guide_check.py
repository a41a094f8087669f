"""Checks of the guide: its gaps, its comparison with NUTS, its calibration on simulations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from pyrovae.calibration import Calibration, calibrate_pair
from pyrovae.data import Batch, take_rows
from pyrovae.diagnostics.gaps import Gaps, gaps_of_pair
from pyrovae.diagnostics.nuts import NutsComparison, beside_nuts
from pyrovae.display import Result
from pyrovae.errors import InputError
from pyrovae.estimates import Estimate
from pyrovae.pairs import Encoded, Pair, over_rows

T = TypeVar("T")

GAP_EFFORT: dict[str, Any] = {"steps": 100, "draws": 500}  # which go most of the way
NUTS_DRAWS, NUTS_WARMUP, NUTS_CHAINS = 300, 200, 4


@dataclass(frozen=True, repr=False)
class GuideCheck(Result):
    """Results of checks of the guide; ``None`` for a check not requested, or not possible.

    Args:
        calibration: ranks of the codes of simulated data among the guide's draws.
        gaps: where the ELBO of a few data points is lost.
        beside: the guide compared with NUTS at a few data points.
        refused: name of a check that was not possible → why.
    """

    calibration: Calibration | None
    gaps: Gaps | None
    beside: NutsComparison | None
    refused: dict[str, str]

    @property
    def concerns(self) -> tuple[str, ...]:
        """Sentences on which checks were not possible, and what not to trust in the others."""
        missing = [
            f"{name[0].upper()}{name[1:]} could not be computed: {reason}"
            for name, reason in self.refused.items()
        ]
        gaps = () if self.gaps is None else self.gaps.concerns
        beside = () if self.beside is None else self.beside.concerns
        return (
            *missing,
            *(f"Gaps: {lower_first(concern)}" for concern in gaps),
            *(f"Guide beside NUTS: {lower_first(concern)}" for concern in beside),
        )

    def estimates(self) -> Iterator[tuple[str, Estimate]]:
        """Measures and their estimates over the data points that were checked."""
        if self.gaps is not None:
            yield "gaps.amortization", self.gaps.amortization()
            yield "gaps.approximation", self.gaps.approximation()
            if (beyond := self.gaps.beyond_gaussian()) is not None:
                yield "gaps.beyond_gaussian", beyond
        if self.beside is not None:
            kl, size = self.beside.kl, len(self.beside.kl)
            # over the draws at these few data points, not over new data
            error = float(self.beside.kl_error.square().sum().sqrt()) / size
            yield "nuts.kl", Estimate(float(kl.mean()), error, size, "draws")
        if self.calibration is not None:
            calibrated = float(self.calibration.passed[: self.calibration.units].sum())
            size = len(self.calibration.ranks)
            yield "calibration.calibrated_units", Estimate(calibrated, 0.0, size, "draws")


def check_guide(
    pair: Pair,
    batch: Batch,
    encoded: Encoded,
    *,
    simulations: int,
    gap_rows: int,
    nuts_rows: int,
    seed: int = 0,
    progress: bool | None = None,
) -> GuideCheck:
    """Check a guide on held-out rows; a check that the pair does not allow says why.

    Args:
        pair: model and guide.
        batch: held-out rows.
        encoded: q(z | x) of them.
        simulations: data points to simulate for calibration, at least 100; 0 for none.
        gap_rows: data points whose gaps are measured; 0 for none.
        nuts_rows: data points that NUTS is run for; 0 for none.
        seed: names the draws.
        progress: show progress bars; by default if stderr is a terminal.
    """
    sites: dict[str, Any] = {
        "site": pair.site, "observed": pair.observed, "data_plate": pair.data_plate,
    }  # fmt: skip
    refused: dict[str, str] = {}

    def attempt(name: str, size: int, check: Callable[[], T]) -> T | None:
        if not size:
            return None
        try:
            with torch.enable_grad():
                return check()
        except InputError as error:
            refused[name] = str(error)
        except NotImplementedError as error:  # a distribution that can't be drawn from
            refused[name] = f"a distribution of the pair lacks a method: {error or 'sample'}"
        return None

    def measure_gaps() -> Gaps:
        some = slice(0, gap_rows)
        by_row, (x,) = over_rows(pair, take_rows(batch, some))
        known = encoded.take(some)
        return gaps_of_pair(by_row, x, known, seed=seed, progress=progress, **GAP_EFFORT)

    calibration = attempt(
        "simulation-based calibration",
        simulations,
        lambda: calibrate_pair(pair, batch, simulations=simulations, seed=seed, progress=progress),
    )
    gaps = attempt("gaps of the ELBO", gap_rows, measure_gaps)
    beside = attempt(
        "comparison with NUTS",
        nuts_rows,
        lambda: beside_nuts(
            pair.model,
            pair.guide,
            take_rows(batch, slice(0, nuts_rows)),
            draws=NUTS_DRAWS,
            warmup=NUTS_WARMUP,
            chains=NUTS_CHAINS,
            seed=seed,
            progress=progress,
            **sites,
        ),
    )
    return GuideCheck(calibration, gaps, beside, refused)


def lower_first(sentence: str) -> str:
    """The sentence without its capital, to stand after a colon."""
    return sentence[0].lower() + sentence[1:]
