"""Two or more runs side by side, with paired differences where they measured the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from pyrovae.diagnostics import change_from
from pyrovae.display import Result
from pyrovae.errors import InputError
from pyrovae.estimates import Estimate
from pyrovae.evidence import Evidence
from pyrovae.runs.run import Run

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "run", "data", "measure", "value", "standard_error", "size", "low", "high", "unresolved",
)  # fmt: skip
FEWEST = 2  # rows in common, or runs that can tell a number


@dataclass(frozen=True, repr=False)
class Comparison(Result):
    """The measures of several runs.

    Args:
        names: of the runs, in their order.
        estimates: by data and key of the measure, the estimate of each run, or ``None`` where a run
            has none.
        differences: by key of log p(x), what each run after the first has more than that, paired
            by the rows that both measured; ``None`` for the first.
        reasons: why a run can't be paired with the first, by its name.
    """

    names: tuple[str, ...]
    estimates: dict[tuple[str, str], tuple[Estimate | None, ...]]
    differences: dict[str, tuple[Estimate | None, ...]]
    reasons: dict[str, str]

    def table(self) -> pd.DataFrame:
        """A row for each measure of each run; columns as in ``Diagnosis.summary``."""
        import pandas as pd

        found = [
            (name, data, measure, estimate)
            for (data, measure), row in self.estimates.items()
            for name, estimate in zip(self.names, row, strict=True)
            if estimate is not None
        ] + [
            (name, "held-out", f"{measure} minus {self.names[0]}", estimate)
            for measure, row in self.differences.items()
            for name, estimate in zip(self.names, row, strict=True)
            if estimate is not None
        ]
        rows = [
            (run, data, measure, e.value, e.standard_error, e.size, *e.interval, e.unresolved)
            for run, data, measure, e in found
        ]
        columns = [
            "run",
            "data",
            "measure",
            "value",
            "standard_error",
            "size",
            "low",
            "high",
            "unresolved",
        ]
        return pd.DataFrame(rows, columns=columns)

    def spread(self) -> pd.DataFrame:
        """How far every number varies over the runs, as over several seeds.

        Columns: data, measure, mean, sd, the standard deviation over the runs, error, the root mean
        square of the standard errors that the runs state, and runs, how many could tell it. A
        spread well above the error says that another training would give another number.
        """
        import pandas as pd

        rows = []
        for (data, measure), row in self.estimates.items():
            told = [e for e in row if e is not None and not e.unresolved]
            if len(told) < FEWEST:
                continue
            values = torch.tensor([e.value for e in told], dtype=torch.float64)
            errors = torch.tensor([e.standard_error for e in told], dtype=torch.float64)
            error = float(errors.square().mean().sqrt())
            rows.append(
                (data, measure, float(values.mean()), float(values.std()), error, len(told))
            )
        return pd.DataFrame(rows, columns=["data", "measure", "mean", "sd", "error", "runs"])


def compare(runs: Sequence[Run]) -> Comparison:
    """All measures of two or more runs, and paired differences of log p(x) to the first.

    Differences are over the held-out rows whose log p(x) both runs have estimated. They are left
    out, with the reason, where the runs are of different data or likelihoods, whose log p(x) are in
    different units, or have drawn grey values differently.

    Args:
        runs: at least two.

    Raises:
        InputError: for fewer than two runs, or one without measures.
    """
    if len(runs) < 2:
        raise InputError(f"expected at least two runs to compare; got {len(runs)}. Name more.")
    names = tuple(str(run.folder) for run in runs)
    found = [{(d, m): e for d, m, e in run.diagnosis.estimates()} for run in runs]
    keys = [(data, measure) for measures in found for data, measure in measures]
    first, *others = runs
    reasons = {str(run.folder): reason for run in others if (reason := unlike(first, run))}
    differences: dict[str, tuple[Estimate | None, ...]] = {}
    for density in first.diagnosis.evidence:
        row = [
            None if str(run.folder) in reasons else _paired(first, run, density) for run in others
        ]
        if any(row):
            differences[f"log_p_x.{density}"] = (None, *row)
    return Comparison(
        names,
        {key: tuple(measures.get(key) for measures in found) for key in dict.fromkeys(keys)},
        differences,
        reasons,
    )


def unlike(first: Run, other: Run) -> str:
    """Why log p(x) of two runs can't be subtracted row by row; empty if it can."""
    (data, model), (data2, model2) = (
        (run.about["data"], run.about["model"]) for run in (first, other)
    )
    if data["digest"] != data2["digest"]:
        return "its data are others"
    if model["kind"] != model2["kind"] or model.get("likelihood") != model2.get("likelihood"):
        return "its likelihood is another"
    if model.get("factory") != model2.get("factory"):
        return "its factory is another, which may have other units"
    if model.get("grey") and model["seed"] != model2["seed"]:
        return "its grey values were drawn as other zeros and ones, by another seed"
    if (
        not all(run.diagnosis.evidence for run in (first, other))
        or _common(_by_row(first, "prior"), _by_row(other, "prior")) < FEWEST
    ):
        return "it measured other rows"
    return ""


def _by_row(run: Run, density: str) -> Evidence:
    """log p(x) under a density, with the numbers that its rows have in the data."""
    evidence = run.diagnosis.evidence[density]
    rows = torch.arange(len(evidence.values)) if evidence.rows is None else evidence.rows
    return replace(evidence, rows=run.rows["held_out"][rows])


def _common(one: Evidence, other: Evidence) -> int:
    """How many rows of the data are in both."""
    rows, others = (set(cast(Tensor, result.rows).tolist()) for result in (one, other))
    return len(rows & others)


def _paired(first: Run, other: Run, density: str) -> Estimate | None:
    if density not in other.diagnosis.evidence:
        return None
    before, after = _by_row(first, density), _by_row(other, density)
    return change_from(before, after) if _common(before, after) >= FEWEST else None
