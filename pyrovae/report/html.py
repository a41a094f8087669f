"""The page of the report: everything that a diagnosis measured, in one HTML document."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pyrovae import plots
from pyrovae.diagnostics import Diagnosis, GuideCheck
from pyrovae.extras import needed_for
from pyrovae.report import answers, findings, glossary, guide_words, numbers, tables
from pyrovae.saving import replace
from pyrovae.training import Fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESOLUTION = 170  # dots per inch of the parts of a vector image that are pixels
ALTERNATIVES = {
    "map": "Map of codes with contours of q_agg and of the prior",
    "activity": "Rate, marginal KL and variance of means of each unit",
    "densities": "log q_agg against log p at held-out codes",
    "sheets": "Data beside samples from each density",
    "narrow": "Data beside samples from each density",
    "evidence": "log p(x) under each density, and paired differences",
    "pareto": "Histogram of Pareto k̂ under each density",
    "candidates": "Held-out log density of each candidate for the ex-post prior",
    "marginals": "Marginals of q_agg and of the prior",
    "features": "Histograms of features, data and draws",
    "pseudo": "Data beside the pseudo-inputs of the prior",
    "calibration": "Ranks of true codes among guide draws, less uniform ones, by unit",
    "gaps": "Amortization and approximation gap of each data point",
    "beside": "Means and standard deviations by NUTS and by the guide",
    "training": "Training objective and validation ELBO by epoch",
}


class Picture(NamedTuple):
    """An image in the page: a data URI with all its content, and its alternative text."""

    uri: str
    alt: str


def render(
    diagnosis: Diagnosis,
    *,
    facts: Mapping[str, str],
    run: Fit | None = None,
    netcdf: str = "diagnosis.nc",
    how: str = "",
    wording: Callable[[str], str] = str,
    columns: Sequence[str] = (),
) -> str:
    """The report as one HTML document that needs no other file and no network.

    Args:
        diagnosis: the measures.
        facts: what was run, as names and values in the order of the page; ``"data"``, if there,
            goes into the title. All of it is escaped.
        run: how training went; without it the section on training is left out.
        netcdf: name of the file with the draws for ArviZ.
        how: what to run to follow the advice.
        wording: puts a concern into other words, such as those of the command line.
        columns: names of the data's columns, for a table that has them.

    Raises:
        InputError: if jinja2 or matplotlib is not installed.
    """
    with needed_for("a report"):
        import jinja2
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pyrovae.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = _unbroken
    return environment.get_template("page.html.jinja").render(
        diagnosis=diagnosis,
        advice=diagnosis.advice,
        how=how,
        concerns=[wording(concern) for concern in findings.concerns(diagnosis, run)],
        findings=findings,
        facts=dict(facts),
        run=run,
        netcdf=netcdf,
        site=None
        if diagnosis.exported is None
        else next(iter(diagnosis.exported.groups["posterior"])),
        answers=answers.answers(diagnosis),
        active_units=answers.active_units(diagnosis),
        reliability=answers.reliability(diagnosis),
        tables=tables,
        guide_words=guide_words,
        glossary=glossary,
        pictures=_pictures(diagnosis, run, columns),
        count=numbers.count,
        signed=partial(numbers.show, signed=True),
        sentence=_sentence,
        netcdf_literal=repr(netcdf),
    )


def write(path: str | os.PathLike[str], html: str) -> Path:
    """Write a page so that ``path`` holds either its old content or all of the page.

    Raises:
        InputError: if the folder doesn't exist, or the disk has no room.
    """
    # A file name in the page may have bytes that are no text.
    page = html.encode("utf-8", "backslashreplace")
    return replace(Path(path), lambda draft: draft.write_bytes(page))


def _unbroken(text: str) -> str:
    """The text with no line break between a number and its sign or standard error."""
    text = text.replace("log N = ", "log\u00a0N\u00a0=\u00a0").replace(" %", "\u00a0%")
    return text.replace(" ± ", "\u00a0±\u00a0").replace("≥ ", "≥\u00a0").replace("≤ ", "≤\u00a0")


def _sentence(run: Fit) -> str:
    """How training went, as a sentence."""
    ending = {
        "epochs": f"All {run.epochs} epochs were run",
        "patience": f"Training stopped after {run.epochs} epochs, as validation no longer improved",
    }[run.stopped]
    choice = f"the parameters of epoch {run.best_epoch} were kept"
    objective = f"Its training objective is {numbers.plain(run.train, '.2f')} nats per data point"
    if not math.isnan(run.validation):
        objective += f", its validation ELBO {numbers.plain(run.validation, '.2f')}"
    return f"{ending}; {choice}. {objective}."


def _pictures(diagnosis: Diagnosis, run: Fit | None, columns: Sequence[str]) -> dict[str, Picture]:
    figures = {
        "map": plots.latent_map(diagnosis),
        "activity": plots.unit_activity(diagnosis),
        "densities": plots.held_out_densities(diagnosis),
        "candidates": plots.ex_post_candidates(diagnosis),
    }
    if len(diagnosis.collapse.active) > 1:  # for a single unit the map shows the same
        figures["marginals"] = plots.unit_marginals(diagnosis)
    if diagnosis.evidence:
        figures |= {"evidence": plots.evidence(diagnosis), "pareto": plots.pareto_k(diagnosis)}
    figures |= _data_figures(diagnosis, columns) | _guide_figures(diagnosis.guide_check)
    if run is not None:
        figures["training"] = plots.training_curve(run)
    return {name: Picture(_uri(figure), ALTERNATIVES[name]) for name, figure in figures.items()}


def _data_figures(diagnosis: Diagnosis, columns: Sequence[str]) -> dict[str, Figure]:
    """Data beside decoded samples, if there are any."""
    pictures = diagnosis.pictures
    if pictures is None:
        return {}
    figures = {
        "sheets": plots.sample_sheets(diagnosis, columns=4),
        "narrow": plots.sample_sheets(diagnosis, columns=2),
    }
    if diagnosis.exported is not None and not plots.is_image(tuple(pictures.data.shape[1:])):
        figures["features"] = plots.feature_marginals(diagnosis, names=columns)
    if pictures.pseudo_inputs is not None:
        figures["pseudo"] = plots.pseudo_inputs(diagnosis)
    return figures


def _guide_figures(check: GuideCheck) -> dict[str, Figure]:
    figures = {}
    if check.calibration is not None:
        figures["calibration"] = plots.calibration(check.calibration)
    if check.gaps is not None:
        figures["gaps"] = plots.gaps(check.gaps)
    if check.beside is not None:
        figures["beside"] = plots.beside(check.beside)
    return figures


def _uri(figure: Figure) -> str:
    """A figure as a vector image in a data URI; the same bytes each time."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context(plots.STYLE):
        figure.savefig(buffer, format="svg", dpi=RESOLUTION, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
