"""Writing a run folder: file by file, each whole or not at all, and ``run.toml`` last."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from pyrovae.data import Dataset, all_rows, as_plain
from pyrovae.diagnostics import Diagnosis, moments
from pyrovae.errors import InputError
from pyrovae.runs import manifest as manifests
from pyrovae.runs.foreign_pair import OwnPair, PairOptions
from pyrovae.runs.recipe import Recipe, location_and_scale
from pyrovae.runs.run import (
    CODES,
    DATA,
    PARAMETERS,
    PARTS,
    RESULTS,
    ROWS,
    SAMPLE_TABLE,
    SAMPLES,
    SOURCES,
    Run,
)
from pyrovae.saving import replace, save
from pyrovae.training import Fit

SIZE = 1000  # samples in the folder
PACKAGES = ("pyrovae", "torch", "pyro-ppl", "arviz")
#: The files that a run folder has besides those for people to look at.
FILES = (
    PARAMETERS, ROWS, RESULTS, DATA, CODES, SAMPLES, SAMPLE_TABLE, manifests.NAME,
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What an analysis has at its end.

    Args:
        data: all rows, as they are in the file.
        source: ``"digits"`` or the path of the file; ``None`` for rows from no file, which the
            folder then holds.
        rows: numbers of the training, validation and held-out rows.
        recipe: how the VAE was built; ``None`` for a pair of the user's own.
        own: that pair, and how it was named.
        diagnosis, fit: what was measured, and how training went.
        facts: what the report says of the run.
        options: those of the command, by name.
        command: the command in words.
    """

    data: Dataset
    source: str | None
    rows: tuple[Tensor, Tensor, Tensor]
    recipe: Recipe | None
    own: tuple[OwnPair, PairOptions] | None
    diagnosis: Diagnosis
    fit: Fit | None
    facts: Mapping[str, str]
    options: Mapping[str, Any]
    command: str


def unfinish(folder: Path) -> None:
    """Let a folder no longer count as finished, before its files are written anew."""
    for name in (manifests.NAME, DATA, SAMPLE_TABLE):  # of these, some need not be written again
        (folder / name).unlink(missing_ok=True)


def finish(folder: Path, outcome: Outcome) -> Run:
    """Write what is missing in a folder that has the parameters and the report, ``run.toml`` last.

    Codes and samples are made from the files as they were written, so that a folder which can't be
    read again is never called finished.

    Raises:
        InputError: if a file can't be written.
    """
    _write_rows(folder, outcome)
    results, left_out = _write_results(folder, outcome)
    if outcome.source is None:
        data = outcome.data
        held = {
            "values": data.values, "columns": data.columns, "labels": data.labels,
            "obs_mask": data.obs_mask, "ids": data.ids,
        }  # fmt: skip
        save(held, folder / DATA)
    recommended = recommended_source(outcome.diagnosis)
    about = {
        "data": _about_data(outcome),
        "options": dict(outcome.options),
        "model": _about_model(outcome),
        "samples": {"source": recommended or "ex-post", "recommended": recommended or ""},
        "left_out": left_out,
        "files": {},
        "versions": {name: version(name) for name in PACKAGES},
    }
    own = None if outcome.own is None else outcome.own[0]
    as_read = tomllib.loads(manifests.to_toml(outcome.command, about))
    run = Run(folder, as_read, pair=own, data=outcome.data, results=results)
    _write_codes(run, folder / CODES)
    samples = run.sample(SIZE, about["samples"]["source"], seed=outcome.options["seed"])
    write_array(folder / SAMPLES, as_in_file(samples.numpy(), run))
    if outcome.recipe is not None and run.columns is not None:
        table = run.as_table(samples)
        replace(folder / SAMPLE_TABLE, lambda draft: table.to_csv(draft, index=False))
    for name in FILES:
        with suppress(FileNotFoundError):
            about["files"][name] = manifests.digest_of_file(folder / name)
    text = manifests.to_toml(outcome.command, about)
    replace(folder / manifests.NAME, lambda draft: draft.write_text(text, encoding="utf-8"))
    return run


def recommended_source(diagnosis: Diagnosis) -> str | None:
    """The density to sample from, as ``Run.sample`` takes it; ``None`` if that can't be told."""
    return next((name for name, key in SOURCES.items() if key == diagnosis.recommended), None)


def as_in_file(rows: np.ndarray[Any, Any], run: Run) -> np.ndarray[Any, Any]:
    """Rows of a run with channels where its data had them."""
    return np.moveaxis(rows, 1, -1) if run.channels == "last" else rows


def write_array(path: Path, array: np.ndarray[Any, Any]) -> None:
    """Write a .npy file, whole or not at all, whatever the ending of its name."""

    def write(draft: Path) -> None:
        with draft.open("wb") as file:
            np.save(file, array, allow_pickle=False)

    replace(path, write)


def _write_rows(folder: Path, outcome: Outcome) -> None:
    held: dict[str, Any] = dict(zip(PARTS, outcome.rows, strict=True))
    data = outcome.data
    held |= {"columns": data.columns, "location": None, "scale": None}
    held |= {"labels": data.labels, "table": None if data.info is None else as_plain(data.info)}
    held["label_names"] = data.label_names
    if (recipe := outcome.recipe) is not None:
        part = data.rows(outcome.rows[0])
        train, *mask = all_rows(recipe.as_measured(part, 0))
        held["location"], held["scale"] = location_and_scale(recipe, train, *mask)
    save(held, folder / ROWS)


def _write_results(folder: Path, outcome: Outcome) -> tuple[dict[str, Any], dict[str, str]]:
    """Write the measures, as far as they can be; return all of them, and what was left out."""
    diagnosis = outcome.diagnosis
    others = {"fit": outcome.fit, "facts": dict(outcome.facts)}
    whole = {"diagnosis": diagnosis, **others}
    reason = ""
    for content in (whole, {"ex_post": diagnosis.ex_post, **others}, others):
        try:
            save(content, folder / RESULTS)
        except InputError as error:  # a density that runs the guide
            reason = reason or str(error)
            continue
        names = ("diagnosis", "ex_post")
        missing = names if content is others else names[:1] if content is not whole else ()
        return whole, dict.fromkeys(missing, reason)
    raise InputError(reason)


def _about_data(outcome: Outcome) -> dict[str, Any]:
    data, source = outcome.data, outcome.source
    return {
        "source": source,
        "name": data.name,
        "rows": len(data),
        "shape": list(data.event_shape),
        "digest": manifests.digest_of_data(data),
        "channels": data.channels,
    }


def _about_model(outcome: Outcome) -> dict[str, Any]:
    if outcome.recipe is not None:
        return {"kind": "vae", **asdict(outcome.recipe)}
    _, chosen = cast(tuple[OwnPair, PairOptions], outcome.own)
    return {
        "kind": "pair",
        "factory": chosen.name,
        "site": chosen.site,
        "observed": chosen.observed,
        "data_plate": chosen.data_plate,
    }


def _write_codes(run: Run, path: Path) -> None:
    """A table with a line for each row of the data: its number, id, part and label, and code."""
    import pandas as pd

    tables = []
    for part in PARTS:
        columns = codes_table(run.encode_part(part))
        numbers = run.rows[part].numpy()
        names = {"row": numbers, **named_rows(run.data, run.rows[part])}
        tables.append(pd.DataFrame({**names, "part": part.replace("_", "-"), **columns}))
    table = pd.concat(tables).sort_values("row")
    replace(path, lambda draft: table.to_csv(draft, index=False))


def named_rows(data: Dataset, rows: Tensor | None = None) -> dict[str, Any]:
    """Columns with the ids and the labels of rows, as far as they have any.

    Args:
        data: the data set.
        rows: numbers of the rows; by default all.
    """
    part, columns = data if rows is None else data.rows(rows), {}
    if part.ids is not None:
        columns["id"] = np.array(part.ids, object)
    if part.labels is not None:
        numbers = part.labels.numpy()
        names = np.array(data.label_names, object)
        columns["label"] = names[numbers] if len(names) else numbers
    return columns


def codes_table(encoding: Any) -> dict[str, Any]:
    """Columns with the mean and the standard deviation of each unit of some encodings."""
    with torch.no_grad():
        held = moments(encoding)
    columns = {}
    for name, values in (("mean", held.mean), ("scale", held.stddev)):
        for unit, column in enumerate(values.cpu().numpy().T):
            columns[f"{name}_{unit}"] = column
    return columns
