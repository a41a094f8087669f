"""One self-contained page that says what was found, for a person to read."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jinja2
import matplotlib
from matplotlib.figure import Figure

from pyrovae import plots
from pyrovae.diagnostics import Diagnosis, GuideCheck
from pyrovae.report import answers, findings, glossary, guide_words, numbers, tables
from pyrovae.saving import replace
from pyrovae.training import Fit

RESOLUTION = 170  # dots per inch of what is drawn as pixels within a vector image
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
    """An image as it stands in the page: address with all its content, words in its place."""

    uri: str
    alt: str


def render(
    diagnosis: Diagnosis,
    *,
    facts: Mapping[str, str],
    run: Fit | None = None,
    netcdf: str = "diagnosis.nc",
) -> str:
    """The report as one HTML document that needs no other file and no network.

    Args:
        diagnosis: what was measured.
        facts: what was run, as names and values in the order of the page; ``"data"``, if there,
            goes into the title. All of it is escaped.
        run: how training went; without it that section is left out.
        netcdf: name of the file with the draws for ArviZ.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pyrovae.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["together"] = _together
    return environment.get_template("page.html.jinja").render(
        diagnosis=diagnosis,
        advice=diagnosis.advice,
        concerns=findings.concerns(diagnosis),
        findings=findings,
        facts=dict(facts),
        run=run,
        netcdf=netcdf,
        site=None
        if diagnosis.labelled is None
        else next(iter(diagnosis.labelled.groups["posterior"])),
        answers=answers.answers(diagnosis),
        active_units=answers.active_units(diagnosis),
        reliability=answers.reliability(diagnosis),
        tables=tables,
        guide_words=guide_words,
        glossary=glossary,
        pictures=_pictures(diagnosis, run),
        count=numbers.count,
        signed=partial(numbers.show, signed=True),
        sentence=_sentence,
        netcdf_literal=repr(netcdf),
    )


def write(path: str | os.PathLike[str], html: str) -> Path:
    """Write a page so that ``path`` holds either what it held before or all of the page.

    Raises:
        InputError: if the folder does not exist, or has no room.
    """
    return replace(Path(path), lambda draft: draft.write_text(html, encoding="utf-8"))


def _together(text: str) -> str:
    """The text with numbers kept on one line with their signs and standard errors."""
    text = text.replace("log N = ", "log\u00a0N\u00a0=\u00a0").replace(" %", "\u00a0%")
    return text.replace(" ± ", "\u00a0±\u00a0").replace("≥ ", "≥\u00a0").replace("≤ ", "≤\u00a0")


def _sentence(run: Fit) -> str:
    """How training went, as a sentence."""
    ended = {
        "epochs": f"All {run.epochs} epochs were run",
        "patience": f"Training stopped after {run.epochs} epochs, as validation no longer improved",
    }[run.stopped]
    kept = f"the parameters of epoch {run.best_epoch} were kept"
    reached = f"Its training objective is {numbers.plain(run.train, '.2f')} nats per data point"
    if not math.isnan(run.validation):
        reached += f", its validation ELBO {numbers.plain(run.validation, '.2f')}"
    return f"{ended}; {kept}. {reached}."


def _pictures(diagnosis: Diagnosis, run: Fit | None) -> dict[str, Picture]:
    drawn = {
        "map": plots.latent_map(diagnosis),
        "activity": plots.unit_activity(diagnosis),
        "densities": plots.held_out_densities(diagnosis),
        "candidates": plots.ex_post_candidates(diagnosis),
    }
    if len(diagnosis.collapse.active) > 1:  # of a single unit the map shows the same
        drawn["marginals"] = plots.unit_marginals(diagnosis)
    if diagnosis.evidence:
        drawn |= {"evidence": plots.evidence(diagnosis), "pareto": plots.pareto_k(diagnosis)}
    drawn |= _of_data(diagnosis) | _of_guide(diagnosis.guide)
    if run is not None:
        drawn["training"] = plots.training_curve(run)
    return {name: Picture(_uri(figure), ALTERNATIVES[name]) for name, figure in drawn.items()}


def _of_data(diagnosis: Diagnosis) -> dict[str, Figure]:
    """Data beside what is decoded, if there is anything."""
    shown = diagnosis.pictures
    if shown is None:
        return {}
    drawn = {
        "sheets": plots.sample_sheets(diagnosis, columns=4),
        "narrow": plots.sample_sheets(diagnosis, columns=2),
    }
    if diagnosis.labelled is not None and not plots.is_image(tuple(shown.data.shape[1:])):
        drawn["features"] = plots.feature_marginals(diagnosis)
    if shown.pseudo_inputs is not None:
        drawn["pseudo"] = plots.pseudo_inputs(diagnosis)
    return drawn


def _of_guide(found: GuideCheck) -> dict[str, Figure]:
    drawn = {}
    if found.calibration is not None:
        drawn["calibration"] = plots.calibration(found.calibration)
    if found.gaps is not None:
        drawn["gaps"] = plots.gaps(found.gaps)
    if found.beside is not None:
        drawn["beside"] = plots.beside(found.beside)
    return drawn


def _uri(figure: Figure) -> str:
    """A figure as a vector image within an address; the same bytes each time."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(plots.STYLE):
        figure.savefig(buffer, format="svg", dpi=RESOLUTION, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
