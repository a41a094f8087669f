"""Sentences for the report: what to be careful about, and what the measures of q_agg mean."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pyrovae.diagnostics import Diagnosis
from pyrovae.estimates import Estimate
from pyrovae.report.numbers import plain, show
from pyrovae.training import Fit

ABOUT_DENSITY = re.compile(r"log p\(x\) under (?P<density>[^:]+): (?P<rest>.+)", re.DOTALL)
ABOUT_POINTS = re.compile(r"for (?P<some>\d+) of (?P<all>\d+) data points (?P<rest>.+)", re.DOTALL)


def concerns(diagnosis: Diagnosis, run: Fit | None = None) -> list[str]:
    """All concerns, each once, with the names of all densities that it applies to."""
    of_training = [run.concern] if run is not None and run.concern else []
    return [*of_training, *grouped(diagnosis.concerns)]


def grouped(sentences: Sequence[str]) -> list[str]:
    """Concerns about log p(x) under several densities merged if only their numbers differ.

    >>> grouped(["log p(x) under p: for 2 of 9 data points it fails.",
    ...          "log p(x) under q_agg: for 3 of 9 data points it fails."])
    ['log p(x): for 2 (p) and 3 (q_agg) of 9 data points it fails.']
    """
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for sentence in sentences:
        density = ABOUT_DENSITY.fullmatch(sentence)
        if density is None:
            groups.setdefault((sentence, ""), [])
            continue
        points = ABOUT_POINTS.fullmatch(density["rest"])
        key = (density["rest"], "") if points is None else (points["rest"], points["all"])
        some = "" if points is None else points["some"]
        groups.setdefault(key, []).append((density["density"], some))
    return [_merged(rest, size, members) for (rest, size), members in groups.items()]


def _merged(rest: str, size: str, members: list[tuple[str, str]]) -> str:
    """One sentence for all its members, each a density's name and its number of data points."""
    if not members:
        return rest
    names = [name for name, _ in members]
    if not size:
        return f"log p(x) under {_listed(names)}: {rest}"
    if len({some for _, some in members}) == 1:
        return f"log p(x) under {_listed(names)}: for {members[0][1]} of {size} data points {rest}"
    numbers = _listed([f"{some} ({name})" for name, some in members])
    return f"log p(x): for {numbers} of {size} data points {rest}"


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


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
        f"unit{'s' if len(units) > 1 else ''} {_listed(units)}."
    )


def _percent(share: Estimate) -> str:
    """A share in percent with its 95 % interval, which is not symmetric near 0 and 1."""
    places = 0 if share.standard_error >= 0.01 else 1
    value, low, high = (
        plain(100 * number, f".{places}f") for number in (share.value, *share.interval)
    )
    return f"{value} % (95 %: {low} to {high})"
