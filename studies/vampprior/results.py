"""The figures of all models: one table, a row for each model and set of images it was measured on.

Standard errors stand in the column named ``…_error`` beside their figure; a cell is empty where
something was not measured, or not noted at the time.
"""

from __future__ import annotations

import csv
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.csv")
PRIORS = ("own", "q_agg", "ex_post")  # that each model is measured under
WAYS = ("importance", "auto")  # of measuring the same images, the first ones, by as many draws

# What tells rows apart.
KEY = (
    "program", "data", "layers", "prior", "seed", "rate", "weights", "changes",
    "most_epochs", "averaged_epochs", "images_with_all_draws",
)  # fmt: skip
COLUMNS = (
    *KEY,
    "epochs", "warmup_epochs", "best_epoch", "stopped_by", "matmul", "validation_elbo", "chosen",
    "test_images", "draws",
    *(f"log_p_{name}{error}" for name in PRIORS for error in ("", "_error")),
    *(f"gain_{name}{error}" for name in PRIORS[1:] for error in ("", "_error")),
    *(f"error_if_images_are_given_{name}" for name in PRIORS),
    *(f"error_of_draws_{name}" for name in PRIORS),
    *(f"share_k_above_0.7_{name}" for name in PRIORS),
    "compared_images",
    *(f"{way}_log_p_{name}{error}" for way in WAYS for name in PRIORS for error in ("", "_error")),
    *(
        f"{way}_gain_{name}{error}"
        for way in WAYS for name in PRIORS[1:] for error in ("", "_error")
    ),
    *(f"auto_minus_importance_{name}{error}" for name in PRIORS for error in ("", "_error")),
    *(f"{way}_share_k_above_0.7_{name}" for way in WAYS for name in PRIORS),
    "importance_seconds", *(f"auto_seconds_{name}" for name in PRIORS),
    "annealed_images", "annealing_temperatures",
    *(f"annealing_gain_{name}{error}" for name in ("own", "ex_post") for error in ("", "_error")),
    "refit_batches", "refit_gain", "refit_gain_error",
    "training_seconds", "measuring_seconds", "seconds_in_all",
    "hardware", "pyrovae", "torch", "pyro-ppl",
)  # fmt: skip
TEXT = {"rate", "hardware", "pyrovae", "torch", "pyro-ppl"}  # whatever it looks like
CANDIDATE = "validation_log_density: "  # and its error; a candidate for the ex-post prior follows

Result = dict[str, Any]


def read(path: Path = RESULTS) -> list[Result]:
    """All rows; numbers as numbers, but learning rates as they were given; ``None`` if empty."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {name: _value(name, text) for name, text in row.items()} for row in csv.DictReader(file)
        ]


def find(key: Mapping[str, Any], path: Path = RESULTS) -> Result | None:
    """The row with these values in the columns of ``KEY``, if there is one."""
    wanted = _key(key)
    return next((row for row in read(path) if _key(row) == wanted), None)


def add(result: Result, path: Path = RESULTS) -> None:
    """Write a row into the table, in the place of one with the same key; several programs may.

    Args:
        result: values by column; of candidates by ``CANDIDATE`` and their names.
        path: the table.

    Raises:
        ValueError: if there is no such column.
    """
    unknown = [name for name in result if name not in COLUMNS and not name.startswith(CANDIDATE)]
    if unknown:
        raise ValueError(f"expected columns of the table of results; got {unknown}.")
    with _alone(path):
        rows = [row for row in read(path) if _key(row) != _key(result)]
        write([*rows, result], path)


def write(rows: Sequence[Result], path: Path = RESULTS) -> None:
    """The whole table, in the order of its key."""
    candidates = {name: None for row in rows for name in row if name.startswith(CANDIDATE)}
    partial = path.with_suffix(".part")
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, (*COLUMNS, *candidates), restval="", lineterminator="\n")
        writer.writeheader()
        for row in sorted(rows, key=_key):
            writer.writerow({name: _text(value) for name, value in row.items()})
    partial.replace(path)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """While no other program writes the table."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(_text(row.get(name)) for name in KEY)


def _text(value: object) -> str:
    """A cell: numbers to eight digits, which is more than any was measured to."""
    return "" if value is None else f"{value:.8g}" if isinstance(value, float) else str(value)


def _value(name: str, text: str) -> Any:
    if text == "":
        return None
    if name in TEXT:
        return text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
