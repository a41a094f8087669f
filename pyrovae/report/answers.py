"""Is the latent distribution a mixture of N Gaussians? The answer, with one data set's numbers."""

from __future__ import annotations

import math
from typing import NamedTuple

from pyrovae.diagnostics import Diagnosis
from pyrovae.evidence import Evidence
from pyrovae.mixture import families
from pyrovae.report.numbers import count, number, plain, show
from pyrovae.report.tables import density_name


class Answer(NamedTuple):
    """One of the objects that the question can mean, and what the numbers say about it."""

    object: str
    verdict: str
    text: str


def answers(diagnosis: Diagnosis) -> list[Answer]:
    """The four objects in the question, each with this data's numbers."""
    return [
        _guide(diagnosis),
        _aggregated(diagnosis),
        _generative(diagnosis),
        _units(diagnosis),
    ]


def _guide(diagnosis: Diagnosis) -> Answer:
    scale = diagnosis.collapse.mean_scale
    n = count(diagnosis.aggregated.size)
    kind = _kind(diagnosis)
    low, high = plain(float(scale.min()), ".2g"), plain(float(scale.max()), ".2g")
    scales = f"is {low}" if low == high else f"runs from {low} to {high} over the units"
    return Answer(
        "q(z | x), the guide",
        f"One {kind} for each x.",
        f"The guide gives each of the {n} training points one {kind} of its own, whose standard "
        f"deviation, averaged over the data, {scales}. Written as a sum over n it is only a "
        f"look-up that selects component n; for one x it is not a mixture.",
    )


def _aggregated(diagnosis: Diagnosis) -> Answer:
    terms = diagnosis.training
    overlapping = math.exp(max(terms.log_n - terms.index_code_mi.value, 0.0))
    if terms.index_code_mi.unresolved:
        reading = "how close it comes to that limit can't be told"
    elif terms.saturated:
        reading = (
            "within 5 % of that limit: the components hardly overlap, so q_agg is a kernel density "
            "estimate that remembers its training points one by one"
        )
    else:
        gap = number(terms.log_n - terms.index_code_mi.value, terms.index_code_mi.standard_error)
        reading = (
            f"{gap} nats below that limit: as if each code were shared by about "
            f"{_rounded(overlapping)} data points"
        )
    n = count(diagnosis.aggregated.size)
    return Answer(
        "q_agg(z) = 1/N Σ q(z | xₙ), the aggregated posterior",
        f"Yes: a mixture of exactly N = {n} {_kind(diagnosis)}s.",
        f"It is a finite mixture with N = {n} components, one for each training point. Its "
        f"index-code mutual information is {show(terms.index_code_mi)} nats, at most log N = "
        f"{terms.log_n:.3f}, and {reading}.",
    )


def _generative(diagnosis: Diagnosis) -> Answer:
    base = diagnosis.evidence.get("prior")
    means = {
        name: show(result.mean())
        + ("" if base is None or len(result.values) == len(base.values) else _over(result))
        for name, result in diagnosis.evidence.items()
    }
    others = ", ".join(
        f"{text} with {density_name(name)}" for name, text in means.items() if name != "prior"
    )
    object_, verdict = (
        "p(x) = ∫ p(x | z) p(z) dz, the generative side",
        "An infinite mixture: one component for every z.",
    )
    reason = "The decoder is mixed over all z, so the number of components is unrelated to N."
    if not means:
        return Answer(object_, verdict, f"{reason} Its log p(x) was not estimated.")
    size = count(len(diagnosis.evidence["prior"].values))
    bits = f", {show(diagnosis.bits['prior'])} bits per dimension" if diagnosis.bits else ""
    return Answer(
        object_,
        verdict,
        f"{reason} On {size} held-out data points its mean log p(x) is {means['prior']} nats{bits}"
        + (f"; with another density in the prior's place it is {others}." if others else "."),
    )


def _over(result: Evidence) -> str:
    return f" (on {count(len(result.values))} of them)"


def _units(diagnosis: Diagnosis) -> Answer:
    units = len(diagnosis.collapse.active)
    correlation = diagnosis.training.total_correlation
    if units == 1:
        reading = "A single unit has no other to depend on."
    elif correlation is None:
        return Answer(
            "One latent as D independent Gaussian “particles”",
            f"No: D = {units} units, of which some depend on others given x.",
            "The guide makes them depend on each other, by several latent sites or a flow, so the "
            "densities of single units have no closed form: total correlation and the divergence "
            "of each unit are left out. D was chosen by hand and is unrelated to N. "
            f"{active_units(diagnosis)}",
        )
    elif correlation.unresolved:
        reading = f"Whether they depend on each other in q_agg as a whole: {correlation}."
    elif correlation.excludes(0.0):
        reading = (
            f"Within a component of q_agg the units are independent, in q_agg as a whole they "
            f"are not: their total correlation is {show(correlation)} nats."
        )
    else:
        reading = (
            f"In q_agg as a whole, too, no dependence between units was found: their total "
            f"correlation is {show(correlation)} nats."
        )
    return Answer(
        "One latent as D independent Gaussian “particles”",
        f"A product of D = {units}, not a mixture of N.",
        f"A diagonal covariance makes every component a product of D = {units} one-dimensional "
        f"densities; D was chosen by hand and is unrelated to N. "
        f"{active_units(diagnosis)} {reading}",
    )


def active_units(diagnosis: Diagnosis) -> str:
    """How many of the latent units are active, as a sentence."""
    unit_count, active_count = len(diagnosis.collapse.active), int(diagnosis.collapse.active.sum())
    if unit_count == 1:
        return "The unit is active." if active_count else "The unit has collapsed."
    if active_count == unit_count:
        return f"All {unit_count} units are active."
    verb = "is" if active_count == 1 else "are"
    return f"{active_count} of the {unit_count} units {verb} active."


def _rounded(size: float) -> str:
    return f"{size:.1f}" if size < 10 else count(round(size))


def _kind(diagnosis: Diagnosis) -> str:
    if diagnosis.training.total_correlation is None:
        return "joint distribution"  # its units depend on each other
    name = families.family(diagnosis.aggregated.component_distribution)
    return "Gaussian" if name.endswith("Normal") and name != "LogNormal" else f"{name} distribution"


def reliability(diagnosis: Diagnosis) -> list[str]:
    """How far the estimate of log p(x) under each density can be trusted, in sentences."""
    return [_reliability(name, result) for name, result in diagnosis.evidence.items()]


def _reliability(name: str, result: Evidence) -> str:
    k_values = result.pareto_k[result.pareto_k.isfinite()]
    unknown_count = len(result.pareto_k) - len(k_values)
    text = f"Under {density_name(name)}, {count(result.draws)} draws for each data point: "
    text += f"the largest k̂ is {plain(float(k_values.max()), '.2f')}." if len(k_values) else ""
    if unknown_count:
        text += f" For {count(unknown_count)} there are too few draws to tell."
    if not result.concerns:
        return f"{text} Means and standard errors hold."
    if rejected_count := int((k_values > result.k_limit).sum()):
        limit = plain(result.k_limit, ".2f")
        text += f" For {count(rejected_count)} of {count(len(result.pareto_k))} it exceeds {limit}."
    return text
