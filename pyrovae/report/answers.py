"""Is the latent distribution a mixture of N Gaussians? Answered with one data set's numbers."""

from __future__ import annotations

import math
from typing import NamedTuple

from pyrovae.diagnostics import Diagnosis
from pyrovae.evidence import Evidence
from pyrovae.mixture import families
from pyrovae.report.numbers import count, number, plain, show
from pyrovae.report.tables import density_name


class Answer(NamedTuple):
    """One of the objects that the question can mean, and what is known of it here."""

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
    spread = f"is {low}" if low == high else f"runs from {low} to {high} over the units"
    return Answer(
        "q(z | x), the guide",
        f"One {kind} for each x.",
        f"The guide gives each of the {n} training points one {kind} of its own, whose standard "
        f"deviation, averaged over the data, {spread}. Written as a sum over n it is only a "
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
    found = {name: show(result.mean()) for name, result in diagnosis.evidence.items()}
    others = ", ".join(
        f"{text} with {density_name(name)}" for name, text in found.items() if name != "prior"
    )
    object_, verdict = (
        "p(x) = ∫ p(x | z) p(z) dz, the generative side",
        "An infinite mixture: one component for every z.",
    )
    mixed = "The decoder is mixed over all z, so the number of components has nothing to do with N."
    if not found:
        return Answer(object_, verdict, f"{mixed} Its log p(x) was not estimated.")
    size = count(len(diagnosis.evidence["prior"].values))
    bits = f", {show(diagnosis.bits['prior'])} bits per dimension" if diagnosis.bits else ""
    return Answer(
        object_,
        verdict,
        f"{mixed} On {size} held-out data points its mean log p(x) is {found['prior']} nats{bits}"
        + (f"; with another density in the prior's place it is {others}." if others else "."),
    )


def _units(diagnosis: Diagnosis) -> Answer:
    units = len(diagnosis.collapse.active)
    correlation = diagnosis.training.total_correlation
    if units == 1:
        reading = "With a single unit there is nothing else for it to depend on."
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
        reading = f"Whether they depend on each other in the whole of q_agg: {correlation}."
    elif correlation.excludes(0.0):
        reading = (
            f"Within a component of q_agg the units are independent, in the whole of q_agg they "
            f"are not: their total correlation is {show(correlation)} nats."
        )
    else:
        reading = (
            f"Also in the whole of q_agg no dependence between units was found: their total "
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
    units, active = len(diagnosis.collapse.active), int(diagnosis.collapse.active.sum())
    if units == 1:
        return "The unit is active." if active else "The unit has collapsed."
    if active == units:
        return f"All {units} units are active."
    return f"{active} of the {units} units {'is' if active == 1 else 'are'} active."


def _rounded(size: float) -> str:
    return f"{size:.1f}" if size < 10 else count(round(size))


def _kind(diagnosis: Diagnosis) -> str:
    if diagnosis.training.total_correlation is None:
        return "joint distribution"  # of units that depend on each other
    name = families.family(diagnosis.aggregated.component_distribution)
    return "Gaussian" if name.endswith("Normal") and name != "LogNormal" else f"{name} distribution"


def reliability(diagnosis: Diagnosis) -> list[str]:
    """How far the estimate of log p(x) under each density can be trusted, in sentences."""
    return [_reliability(name, result) for name, result in diagnosis.evidence.items()]


def _reliability(name: str, result: Evidence) -> str:
    known = result.pareto_k[result.pareto_k.isfinite()]
    start = f"Under {density_name(name)}, {count(result.draws)} draws for each data point: "
    start += f"the largest k̂ is {plain(float(known.max()), '.2f')}." if len(known) else ""
    if len(known) < len(result.pareto_k):
        start += f" For {count(len(result.pareto_k) - len(known))} there are too few draws to tell."
    if not result.concerns():
        return f"{start} Means and standard errors hold."
    if over := int((known > result.k_limit).sum()):
        limit = plain(result.k_limit, ".2f")
        start += f" For {count(over)} of {count(len(result.pareto_k))} it exceeds {limit}."
    return start
