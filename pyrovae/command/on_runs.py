"""The subcommands on a finished run: draw, encode, score, compare, write report or explorer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovae.command.analysis import how_to_sample
from pyrovae.command.run_checks import only_run
from pyrovae.command.terminal import encodable
from pyrovae.command.wording import for_command
from pyrovae.diagnostics import LABELS
from pyrovae.errors import InputError
from pyrovae.explorer import NAME
from pyrovae.explorer import explore as write_explorer
from pyrovae.extras import check_packages
from pyrovae.report import render, show, show_measure, write
from pyrovae.runs import (
    Comparison,
    Run,
    as_in_file,
    codes_table,
    colouring,
    load_run,
    named_rows,
    write_array,
)
from pyrovae.runs import compare as compare_runs
from pyrovae.saving import check_folder, replace

if TYPE_CHECKING:
    import pandas as pd

SIZE = 1000  # rows to draw, by default
TABLES = (".csv", ".parquet")


def sample(options: dict[str, Any]) -> None:
    """Write new rows in the data's own units."""
    run = _run(options)
    default = "samples.csv" if run.columns is not None else "samples.npy"
    out = _output(options, default, (*TABLES, ".npy"))
    source = options.get("source", run.drawn_from)
    rows = run.sample(
        options.get("n", SIZE),
        source,
        mean=options.get("mean", False),
        seed=options.get("seed", 0),
    )
    if out.suffix.lower() == ".npy":
        write_array(out, as_in_file(rows.numpy(), run))
    else:
        flat = rows.reshape(len(rows), -1)
        names = [f"x_{number}" for number in range(flat.shape[1])]
        columns = run.as_table(rows) if run.columns else dict(zip(names, flat.T, strict=True))
        _write_table(out, columns)
    _say(f"{len(rows):,} new rows from {source}: {out}")


def encode(options: dict[str, Any]) -> None:
    """Write mean and scale of the code of each row."""
    run, out = _run(options), _output(options, "codes.csv", TABLES)
    data = run.read(options["new"])
    columns, size = codes_table(run.encode(data)), len(data)
    _write_table(out, {"row": np.arange(size), **named_rows(data), **columns})
    _say(f"codes of {size:,} rows: {out}")


def score(options: dict[str, Any]) -> None:
    """Write log p(x) and the p-value of each row."""
    run, out = _run(options), _output(options, "scores.csv", TABLES)
    source = options.get("source", "prior")
    data = run.read(options["new"])
    scores = run.score(data, source, seed=options.get("seed", 0))
    evidence = scores.evidence
    columns = {
        "log_p_x": evidence.values,
        "standard_error": evidence.standard_error,
        "pareto_k": evidence.pareto_k,
        "p_value": scores.p_value,
    }
    numbers = {name: values.cpu().numpy() for name, values in columns.items()}
    _write_table(out, {"row": np.arange(len(data)), **named_rows(data), **numbers})
    _say(
        f"log p(x) of {len(scores.p_value):,} rows, ranked among {scores.calibrated_on:,} held-out "
        f"ones: {out}"
    )


def compare(options: dict[str, Any]) -> None:
    """Show the measures of runs side by side."""
    out = _output(options, None, (".csv",)) if "out" in options else None
    found = compare_runs([load_run(folder) for folder in options["run"]])
    _show(found)
    if out is not None:
        table = found.table()
        replace(out, lambda draft: table.to_csv(draft, index=False))
        _say(f"all numbers: {out}")


def report(options: dict[str, Any]) -> None:
    """Write the report of a run again."""
    _say(f"report: {_write_report(load_run(options['run']))}")


def _write_report(run: Run) -> Path:
    """The report, with a link to the explorer if there is one beside it."""
    diagnosis = run.diagnosis
    with only_run(run.folder):
        how = how_to_sample(run.folder, run.recommended)
        page = render(
            diagnosis,
            run=run.fit,
            facts=run.facts,
            how=how,
            wording=for_command,
            columns=run.columns or (),
            categories={} if run.table is None else run.table.categories,
            labels=colouring(run.classes, run.label_names),
            explorer=NAME if (run.folder / NAME).exists() else "",
        )
        return write(run.folder / "report.html", page)


def explore(options: dict[str, Any]) -> None:
    """Write the explorer of a run, and, beside its report, a link to it there."""
    run = _run(options)
    named = "out" in options
    out = _output(options, None, (".html",)) if named else run.folder / NAME
    path = write_explorer(run, out, rows=not options.get("no_rows", False))
    if not named:
        _write_report(run)
    _say(f"explorer, {path.stat().st_size / 1e6:.1f} MB: {path}")


COMMANDS: dict[str, Callable[[dict[str, Any]], None]] = {
    "sample": sample,
    "encode": encode,
    "score": score,
    "compare": compare,
    "report": report,
    "explore": explore,
}


def _run(options: dict[str, Any]) -> Run:
    return load_run(options["run"], pair=options.get("pair"), data=options.get("data"))


def _output(options: dict[str, Any], default: str | None, kinds: tuple[str, ...]) -> Path:
    """The file to write: the one that is named, or the first of the default's that is free.

    Raises:
        InputError: before any work, if it can't be written or is there already.
    """
    out = options.get("out")
    if out is None:
        first = Path(str(default))
        names = (first.with_stem(f"{first.stem}-{number}") for number in range(2, 10_000))
        return next(path for path in (first, *names) if not path.exists())
    if out.suffix.lower() not in kinds:
        either = " or ".join(filter(None, (", ".join(kinds[:-1]), kinds[-1])))
        raise InputError(
            f"expected a file ending in {either} as --out; got {str(out)!r}. Give it such an "
            "ending."
        )
    check_folder(out.parent)
    if out.suffix.lower() == ".parquet":
        check_packages("pyarrow", purpose=f"writing {str(out)!r}")
    if out.exists() and not options.get("force", False):
        raise InputError(
            f"expected no file at {str(out)!r}; got one. Name another, or write over it with "
            "--force."
        )
    path: Path = out
    return path


def _write_table(path: Path, columns: Any) -> None:
    import pandas as pd

    table: pd.DataFrame = pd.DataFrame(columns)
    if path.suffix.lower() == ".parquet":
        replace(path, lambda draft: table.to_parquet(draft, engine="pyarrow", index=False))
    else:
        replace(path, lambda draft: table.to_csv(draft, index=False))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _show(found: Comparison) -> None:
    """The measures as a table with a column for each run, and below it the differences."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)

    def spelled(text: str) -> str:
        return encodable(text, console.encoding)

    table = Table(title="Runs side by side (nats, unless it says bits)", title_justify="left")
    for name in ("measure", "data", *found.names):
        table.add_column(spelled(name), overflow="fold")
    for (data, measure), row in found.estimates.items():
        texts = ["" if e is None else show_measure(measure, e) for e in row]
        table.add_row(spelled(LABELS[measure]), data, *map(spelled, texts))
    for measure, row in found.differences.items():
        texts = ["" if e is None else show(e, signed=True) for e in row]
        label = f"{LABELS[measure]}, paired difference to the first"
        table.add_row(spelled(label), "held-out", *map(spelled, texts))
    console.print(table)
    for name, reason in found.reasons.items():
        line = f"{name} can't be paired with the first: {reason}."
        console.print(spelled(line), markup=False, soft_wrap=True)
