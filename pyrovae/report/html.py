"""The page of the report: everything that a diagnosis measured, in one HTML document."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from pyrovae import plots
from pyrovae.diagnostics import Diagnosis
from pyrovae.extras import needed_for
from pyrovae.report import answers, findings, glossary, guide_words, numbers, tables
from pyrovae.report.alternatives import alternative
from pyrovae.report.sampling import guidance
from pyrovae.saving import replace
from pyrovae.training import Fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CONCERNS = 3  # on the first screen
RESOLUTION = 170  # dots per inch of the parts of a vector image that are pixels


class Picture(NamedTuple):
    """An image in the page: data URIs with all its content, and its alternative text."""

    light: str
    dark: str
    alt: str


def render(  # noqa: PLR0913 - what a page is made of, each with a default
    diagnosis: Diagnosis,
    *,
    facts: Mapping[str, str],
    run: Fit | None = None,
    netcdf: str = "diagnosis.nc",
    how: str = "",
    wording: Callable[[str], str] = str,
    columns: Sequence[str] = (),
    categories: Mapping[str, Sequence[str]] = MappingProxyType({}),
    labels: Any = None,
    explorer: str = "",
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
        categories: what the categories of its columns of texts are called, by the column's name.
        labels: what colours the codes, one for each training row, shape ``(N,)``.
        explorer: the file beside the page that shows the codes, if there is one.

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
    environment.filters["linked"] = glossary.linked
    concerns = [wording(concern) for concern in findings.concerns(diagnosis, run)]
    return environment.get_template("page.html.jinja").render(
        diagnosis=diagnosis,
        guidance=guidance(diagnosis),
        how=how,
        concerns=concerns[:MOST_CONCERNS],
        notes=[*concerns[MOST_CONCERNS:], *map(wording, findings.notes(diagnosis))],
        columns=columns,
        categories=categories,
        findings=findings,
        facts=dict(facts),
        run=run,
        netcdf=netcdf,
        explorer=explorer,
        site=None
        if diagnosis.exported is None
        else next(iter(diagnosis.exported.groups["posterior"])),
        answers=answers.answers(diagnosis),
        active_units=answers.active_units(diagnosis),
        reliability=answers.reliability(diagnosis),
        tables=tables,
        guide_words=guide_words,
        glossary=glossary,
        pictures=_pictures(diagnosis, run, columns, categories, labels),
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


def _pictures(
    diagnosis: Diagnosis,
    run: Fit | None,
    columns: Sequence[str],
    categories: Mapping[str, Sequence[str]],
    labels: Any,
) -> dict[str, Picture]:
    with plots.off_screen():
        drawn: dict[str, Axes | list[Axes]] = {
            "map": plots.latent_map(diagnosis, colour=labels),
            "activity": plots.unit_activity(diagnosis),
            "densities": plots.held_out_densities(diagnosis),
            "candidates": plots.ex_post_candidates(diagnosis),
        }
        if len(diagnosis.collapse.active) > 1:  # for a single unit the map shows the same
            drawn["marginals"] = plots.unit_marginals(diagnosis)
        if diagnosis.evidence:
            drawn |= {"evidence": plots.evidence(diagnosis), "pareto": plots.pareto_k(diagnosis)}
            found = diagnosis.baselines
            gains = {} if found is None else found.gains(diagnosis.evidence["prior"])
            if not all(gain.unresolved for gain in gains.values()):
                drawn["baselines"] = plots.baselines(diagnosis)
        drawn |= _data_figures(diagnosis, columns, categories) | _guide_figures(diagnosis)
        if run is not None:
            drawn["training"] = plots.training_curve(run)
    checked = findings.predictive(diagnosis, columns, categories)
    return {
        name: Picture(*_uris(figure_of(axes)), alternative(name, diagnosis, run, checked))
        for name, axes in drawn.items()
    }


def figure_of(axes: Axes | list[Axes]) -> Figure:
    """The figure that axes are in."""
    first = axes[0] if isinstance(axes, list) else axes
    return cast("Figure", first.get_figure())  # no plot has subfigures


def _data_figures(
    diagnosis: Diagnosis, columns: Sequence[str], categories: Mapping[str, Sequence[str]]
) -> dict[str, Axes | list[Axes]]:
    """Data beside decoded samples and reconstructions, if there are any."""
    pictures = diagnosis.pictures
    drawn: dict[str, Axes | list[Axes]] = {}
    if pictures is not None:
        drawn["sheets"] = plots.sample_sheets(diagnosis, columns=4, names=columns)
        drawn["narrow"] = plots.sample_sheets(diagnosis, columns=2, names=columns)
        if pictures.pseudo_inputs is not None:
            drawn["pseudo"] = plots.pseudo_inputs(diagnosis, names=columns)
    found = diagnosis.attributions
    if found is not None and plots.is_image(tuple(found.samples.shape[1:])):
        drawn["attributions"] = plots.attributions(diagnosis)
    if diagnosis.exported is not None:
        named: dict[str, Any] = {"names": columns, "categories": categories}
        drawn["reconstructions"] = plots.reconstructions(diagnosis, **named)
        drawn["predictive"] = plots.predictive_check(diagnosis, **named)
        if pictures is None or not plots.is_image(tuple(pictures.data.shape[1:])):
            drawn["features"] = plots.feature_marginals(diagnosis, **named)
    return drawn


def _guide_figures(diagnosis: Diagnosis) -> dict[str, Axes | list[Axes]]:
    check = diagnosis.guide_check
    drawn: dict[str, Axes | list[Axes]] = {}
    if check.calibration is not None:
        drawn["calibration"] = plots.calibration(diagnosis)
    if check.gaps is not None:
        drawn["gaps"] = plots.gaps(diagnosis)
    if check.beside is not None:
        drawn["beside"] = plots.beside(diagnosis)
    return drawn


def _uris(figure: Figure) -> tuple[str, str]:
    """A figure as vector images in data URIs, for a light and a dark page; the same each time."""
    import matplotlib

    with matplotlib.rc_context(plots.STYLE):
        light = _uri(figure)
        figure.set_layout_engine("none")  # all has its place, which colours don't change
        plots.darken(figure)
        return light, _uri(figure)


def _uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", dpi=RESOLUTION, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
