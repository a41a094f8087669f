"""What each picture of the report shows, for those who can't see it: the result in words."""

from __future__ import annotations

from collections.abc import Callable

from pyrovae.diagnostics import Diagnosis, change_from
from pyrovae.report import findings, guide_words
from pyrovae.report.answers import active_units
from pyrovae.report.numbers import count, plain, show
from pyrovae.report.tables import density_name
from pyrovae.training import Fit


def alternative(name: str, diagnosis: Diagnosis, run: Fit | None, checked: str) -> str:
    """The text for a picture, by its name in the report.

    Args:
        name: of the picture.
        diagnosis, run: what it is of.
        checked: which features of draws differ from those of the data, as a sentence.
    """
    if name in CHECKS:
        return f"{CHECKS[name]}{checked}"
    return run_text(run) if name == "training" and run is not None else TEXTS[name](diagnosis)


def run_text(run: Fit) -> str:
    """How training went, for its curve."""
    return f"Training objective and validation ELBO by epoch: {run}"


def _evidence(diagnosis: Diagnosis) -> str:
    means = [f"{density_name(n)} {show(e.mean())}" for n, e in diagnosis.evidence.items()]
    base = diagnosis.evidence["prior"]
    gains = [
        f"{density_name(name)} {show(change_from(base, result), signed=True)}"
        for name, result in diagnosis.evidence.items()
        if name != "prior"
    ]
    return f"Mean log p(x): {'; '.join(means)}. Difference from the prior: {'; '.join(gains)}."


def _densities(diagnosis: Diagnosis) -> str:
    memory = diagnosis.memorisation
    above = float((memory.log_aggregated > memory.log_prior).double().mean())
    return (
        f"log q_agg against log p at held-out codes: {plain(100 * above, '.0f')} % of them have a "
        "higher density under q_agg."
    )


def _pareto(diagnosis: Diagnosis) -> str:
    parts = [
        f"{count(int(e.unresolved.sum()))} of {count(len(e.values))} above the limit under "
        f"{density_name(name)}"
        for name, e in diagnosis.evidence.items()
    ]
    return f"Histogram of Pareto k̂: {'; '.join(parts)}."


def _candidates(diagnosis: Diagnosis) -> str:
    best = next(r for r in diagnosis.ex_post.table if r.name == diagnosis.ex_post.choice)
    return (
        f"Held-out log density of {len(diagnosis.ex_post.table)} candidates for the ex-post prior; "
        f"chosen: {diagnosis.ex_post.choice}, {show(best.held_out)} nats."
    )


def _sheets(diagnosis: Diagnosis) -> str:
    pictures = diagnosis.pictures
    names = [] if pictures is None else [density_name(name) for name in pictures.samples]
    return f"Data beside rows decoded from draws of {', '.join(names)}."


def _gaps(diagnosis: Diagnosis) -> str:
    gaps = diagnosis.guide_check.gaps
    return "" if gaps is None else guide_words.gaps(gaps)


def _beside(diagnosis: Diagnosis) -> str:
    nuts = diagnosis.guide_check.beside
    return "" if nuts is None else guide_words.beside(nuts)


def _attributions(diagnosis: Diagnosis) -> str:
    found = diagnosis.attributions
    if found is None:
        return ""
    shares = ", ".join(f"{plain(100 * float(w), '.0f')} %" for w in found.weight[:, 0])
    return (
        f"Samples of the {density_name(found.density)} beside the training rows that carry them; "
        f"the first of these has {shares} of the responsibility."
    )


CHECKS = {"predictive": "", "features": "Histograms of features, data and draws. "}
TEXTS: dict[str, Callable[[Diagnosis], str]] = {
    "baselines": findings.fit_in_words,
    "reconstructions": lambda d: "Held-out data beside what is decoded from their own codes.",
    "map": lambda d: f"Map of the codes of two units, with q_agg and prior. {active_units(d)}",
    "activity": lambda d: f"Rate, marginal KL and variance of means by unit. {active_units(d)}",
    "densities": _densities,
    "sheets": _sheets,
    "narrow": _sheets,
    "attributions": _attributions,
    "evidence": _evidence,
    "pareto": _pareto,
    "candidates": _candidates,
    "marginals": lambda d: f"Marginals of q_agg and of the prior by unit. {findings.two_sample(d)}",
    "pseudo": lambda d: "Data beside the pseudo-inputs that the prior has learned.",
    "calibration": guide_words.calibration,
    "gaps": _gaps,
    "beside": _beside,
}
