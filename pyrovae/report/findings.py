"""Sentences for the report: what to be careful about, and what the measures of q_agg mean."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from pyrovae.diagnostics import TOLERATED, Diagnosis, grouped, listed
from pyrovae.estimates import Estimate
from pyrovae.plots import CLEAR, predictive_errors
from pyrovae.report.numbers import plain, show
from pyrovae.training import Fit

#: How sentences begin about what no advice rests on, or what stands in a number's place anyway.
NOTES = (
    "Gaps:", "Simulation-based calibration could not", "training data:",
    "held-out data:", "simulated data:",
)  # fmt: skip
#: What a run's facts say of its normal likelihood where all entries of a row share one deviation.
SHARED_NOISE = "the same for all entries"
MOMENTS = ("mean", "standard deviation")
REJECTED = re.compile(r"for (\d+) of (\d+) data points k̂")


def concerns(diagnosis: Diagnosis, run: Fit | None = None) -> list[str]:
    """What is to be done something about, in order of consequence, each with what that is.

    A training that was cut off comes first, since it may change every number; then log p(x), on
    which the advice rests; then what could not be measured.
    """
    of_training = [run.concern] if run is not None and run.concern else []
    grave = [text for text in diagnosis.each_concern if not _is_note(text, diagnosis)]
    return [*of_training, *sorted(grouped(grave), key=_is_about_something_else)]


def notes(diagnosis: Diagnosis) -> list[str]:
    """What else is to be known of some numbers, and changes no advice.

    Such as k̂ that rejects log p(x) at no more than the 5 % of the data points at which the advice
    still holds, or numbers that so few rows don't tell.
    """
    return grouped([text for text in diagnosis.each_concern if _is_note(text, diagnosis)])


def _is_note(text: str, diagnosis: Diagnosis) -> bool:
    saturated = {diagnosis.training.statement, diagnosis.information.statement}
    if text in saturated or text.startswith(NOTES):
        return True
    rejected = REJECTED.search(text)
    return rejected is not None and int(rejected[1]) <= TOLERATED * int(rejected[2])


def _is_about_something_else(text: str) -> bool:
    return not text.startswith("log p(x)")


def fit_in_words(diagnosis: Diagnosis, facts: Mapping[str, str] = MappingProxyType({})) -> str:
    """Whether the model explains held-out rows better than simple densities, as a sentence.

    Args:
        diagnosis: the measures.
        facts: what was run; ``"noise"``, if it is `SHARED_NOISE`, is what to change.
    """
    found = diagnosis.baselines
    if found is None or not diagnosis.evidence or found.best is None:
        reason = diagnosis.baselines_refused or "no simple density was fitted"
        return f"Whether the model fits can't be told by a comparison: {reason}."
    gain, name = found.gains(diagnosis.evidence["prior"])[found.best], found.names[found.best]
    name = f"a {name}" if name.startswith(("Gaussian", "mixture")) else name
    if gain.unresolved:
        return f"Whether the model fits better than {name} can't be told: {gain.unresolved}."
    size = show(replace(gain, value=abs(gain.value), bound=None))
    rows = f"over {gain.size:,} held-out rows"
    if not gain.excludes(0.0):
        return (
            f"About as well as a simple density: log p(x) is {show(gain, signed=True)} nats from "
            f"that of {name}, {rows}, which is no clear difference."
        )
    if gain.value > 0:
        return (
            f"Better than every simple density tried: log p(x) of a row is {size} nats higher than "
            f"under the best of them, {name}, {rows}."
        )
    at_most = "at most " if gain.bound == "lower" else ""
    remedy = ""
    if facts.get("noise") == SHARED_NOISE:
        remedy = (
            " Much of it can lie in features that hardly vary: --noise each gives each feature "
            "a noise of its own."
        )
    return (
        f"Not as well as a simple density: {name}, fitted in seconds, gives a row {at_most}{size} "
        f"nats more, {rows}.{remedy}"
    )


def predictive(
    diagnosis: Diagnosis, columns: Sequence[str] = (),
    categories: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> str:  # fmt: skip
    """Which features of draws differ from those of held-out data, as a sentence.

    Args:
        diagnosis: the measures.
        columns: names of all features.
        categories: what the categories of features of texts are called, by the feature's name.
    """
    if diagnosis.exported is None:
        return ""
    found = []
    off_by = predictive_errors(diagnosis, names=columns, categories=categories)
    for measure, errors in zip(MOMENTS, off_by, strict=True):
        known = np.isfinite(errors)
        off = (known & (np.abs(errors) > CLEAR)).nonzero()[0]
        names = [repr(columns[i]) if len(columns) == len(errors) else str(i) for i in off[:5]]
        which = f": {listed(names)}{' and others' if len(off) > 5 else ''}" if len(off) else ""
        found.append(f"the {measure} of {len(off)} of {int(known.sum())} features{which}")
    return (
        f"Rows drawn from the model, z from the prior, differ from held-out rows by more than "
        f"{CLEAR:g} standard errors in {'; and in '.join(found)}."
    )


def components(diagnosis: Diagnosis) -> str:
    """How many components of q_agg share a code, and what that means."""
    effective = diagnosis.memorisation.components
    return (
        f"At a code of the training data {show(effective['training'])} components of q_agg are "
        f"effective, at a held-out code {show(effective['held-out'])}. One would mean that every "
        "code belongs to a single training point; the more, the smoother q_agg."
    )


def holes(diagnosis: Diagnosis) -> list[str]:
    """What it means that draws from one density fall outside the other, in sentences."""
    shares = diagnosis.holes
    return [
        _outside(
            shares.prior_outside,
            shares.level,
            "of prior draws fall where q_agg has next to no mass",
            "holes, from which the decoder was never trained to decode, so that samples from there "
            "may look unlike any data",
            "no clear sign of holes",
        ),
        _outside(
            shares.aggregated_outside,
            shares.level,
            "of held-out codes lie where the prior has next to no mass",
            "sampling from the prior hardly ever makes data like these",
            "no clear sign of data that the prior leaves out",
        ),
    ]


def _outside(share: Estimate, level: float, where: str, meaning: str, otherwise: str) -> str:
    """A share of draws outside the other density, and what it means if it is large or not."""
    if share.unresolved:
        return f"How many {where}: {share.unresolved}."
    excess = f"clearly more than the {100 * level:g} % of equal densities"
    return f"{_percent(share)} {where}, " + (
        f"{excess}: {meaning}." if share.interval[0] > level else f"not {excess}: {otherwise}."
    )


def two_sample(diagnosis: Diagnosis) -> str:
    """Whether a classifier tells codes from draws of the prior, as a sentence."""
    test = diagnosis.two_sample
    if test.accuracy.unresolved:
        return f"Whether a classifier tells codes from prior draws: {test.accuracy.unresolved}."
    correct = f"{_percent(test.accuracy)} of points"
    if test.differ:
        return (
            f"A classifier assigns {correct} to the right side, more than the half that guessing "
            "would: codes and prior draws differ. A better classifier would tell apart at least "
            "as many."
        )
    return (
        f"A classifier assigns {correct} to the right side, not clearly more than the half that "
        "guessing would: it cannot tell codes from prior draws. A better one might."
    )


def activity_by_rate(diagnosis: Diagnosis) -> str:
    """How many units are active by their KL, and for which the two criteria differ."""
    active, by_rate = diagnosis.collapse.active.cpu(), diagnosis.collapse.active_by_rate
    if by_rate is None:
        return "The KL of single units is not known, since the marginals of this prior are not."
    units = [str(unit) for unit in (active != by_rate).nonzero().flatten().tolist()]
    if not units:
        return (
            "Counted by KL(q(z_d|x)‖p(z_d)), above 0.01 nats on average, they are the same units."
        )
    return (
        f"Counted by KL(q(z_d|x)‖p(z_d)), above 0.01 nats on average, {int(by_rate.sum())} of "
        f"{len(active)} are active; the two criteria differ for "
        f"unit{'s' if len(units) > 1 else ''} {listed(units)}."
    )


def _percent(share: Estimate) -> str:
    """A share in percent with its 95 % interval, which is not symmetric near 0 and 1."""
    places = 0 if share.standard_error >= 0.01 else 1
    value, low, high = (
        plain(100 * number, f".{places}f") for number in (share.value, *share.interval)
    )
    return f"{value} % (95 %: {low} to {high})"
