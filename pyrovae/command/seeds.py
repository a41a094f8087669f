"""Several trainings that differ by their seed alone, and the spread of every number over them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from pyrovae.command.analysis import AnalysisOptions, analyze, settled
from pyrovae.command.run_checks import SEEDS, check_no_run, is_done
from pyrovae.command.terminal import encodable
from pyrovae.data import Dataset
from pyrovae.diagnostics import LABELS
from pyrovae.runs import compare, digest_of_data, load_run
from pyrovae.saving import replace as written

if TYPE_CHECKING:
    import pandas as pd


def analyze_seeds(
    data: Dataset, options: AnalysisOptions, seeds: int, *, say: Callable[[str], object]
) -> None:
    """Analyze data once for each seed, into folders of their own, and show the spread.

    A seed fixes the split of the data, initial weights, minibatches and draws, so that the spread
    has all of these in it.

    Args:
        data: the data set.
        options: those of the first, whose ``out`` gets a folder for each seed.
        seeds: how many.
        say: takes a line for each run.
    """
    if not options.resume:
        check_no_run(options.out, resume=False, force=options.force)
    folders = []
    for seed in range(options.seed, options.seed + seeds):
        one = replace(options, seed=seed, out=options.out / f"seed-{seed}")
        by_name, digest = settled(data, one).by_name(), digest_of_data(data)
        if one.force or not one.resume or not is_done(one.out, by_name, digest):
            analyze(data, one)
        say(f"seed {seed}: {one.out / 'report.html'}")
        folders.append(one.out)
    spread = compare([load_run(folder) for folder in folders]).spread()
    path = written(options.out / SEEDS, lambda draft: spread.to_csv(draft, index=False))
    _show(spread, seeds)
    say(f"the spread over seeds: {path}")


def _show(spread: pd.DataFrame, seeds: int) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(title=f"Over {seeds} seeds (nats, unless it says bits)", title_justify="left")
    table.add_column("measure")
    table.add_column("data")
    for title in ("mean", "sd over seeds", "standard error"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in spread.itertuples():
        numbers = (f"{value:.4g}".replace("-", "−") for value in (row.mean, row.sd, row.error))
        cells = (LABELS[str(row.measure)], str(row.data), *numbers)
        table.add_row(*(encodable(cell, console.encoding) for cell in cells))
    console.print(table)
    sys.stdout.flush()
