"""What to be careful about, and what the measures of the whole latent space say, in sentences."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pyrovae.diagnostics import Diagnosis
from pyrovae.estimates import Estimate
from pyrovae.report.numbers import plain, show

OF_DENSITY = re.compile(r"log p\(x\) under (?P<density>[^:]+): (?P<rest>.+)", re.DOTALL)
OF_POINTS = re.compile(r"for (?P<some>\d+) of (?P<all>\d+) data points (?P<rest>.+)", re.DOTALL)


def concerns(diagnosis: Diagnosis) -> list[str]:
    """``diagnosis.concerns``, those that several densities share said once, with their names."""
    return grouped(diagnosis.concerns)


def grouped(sentences: Sequence[str]) -> list[str]:
    """Concerns on log p(x) under different densities as one, if they differ in numbers only.

    >>> grouped(["log p(x) under p: for 2 of 9 data points it fails.",
    ...          "log p(x) under q_agg: for 3 of 9 data points it fails."])
    ['log p(x): for 2 (p) and 3 (q_agg) of 9 data points it fails.']
    """
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for sentence in sentences:
        density = OF_DENSITY.fullmatch(sentence)
        if density is None:
            groups.setdefault((sentence, ""), [])
            continue
        points = OF_POINTS.fullmatch(density["rest"])
        key = (density["rest"], "") if points is None else (points["rest"], points["all"])
        some = "" if points is None else points["some"]
        groups.setdefault(key, []).append((density["density"], some))
    return [_joint(rest, size, members) for (rest, size), members in groups.items()]


def _joint(rest: str, size: str, members: list[tuple[str, str]]) -> str:
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
    found = diagnosis.memorisation.components
    return (
        f"At a code of the training data {show(found['training'])} components of q_agg are "
        f"effective, at a held-out code {show(found['held-out'])}. One would mean that every code "
        "belongs to a single training point; the more, the smoother q_agg."
    )


def holes(diagnosis: Diagnosis) -> list[str]:
    """What the shares of draws outside of the other density mean, in sentences."""
    found = diagnosis.holes
    prior, codes = found.prior_outside, found.aggregated_outside
    return [
        _outside(
            prior,
            found.level,
            "of prior draws fall where q_agg has next to no mass",
            "holes, from which the decoder was never trained to decode, so that samples from there "
            "may look like no data",
            "no clear sign of holes",
        ),
        _outside(
            codes,
            found.level,
            "of held-out codes lie where the prior has next to no mass",
            "sampling from the prior hardly ever makes data like these",
            "no clear sign of data that the prior leaves out",
        ),
    ]


def _outside(share: Estimate, level: float, where: str, found: str, none: str) -> str:
    """What a share of draws outside of the other density means."""
    if share.unresolved:
        return f"How many {where}: {share.unresolved}."
    alike = f"beyond doubt more than the {100 * level:g} % of equal densities"
    return f"{_percent(share)} {where}, " + (
        f"{alike}: {found}." if share.interval[0] > level else f"not {alike}: {none}."
    )


def two_sample(diagnosis: Diagnosis) -> str:
    """Whether a classifier tells codes from draws of the prior, as a sentence."""
    found = diagnosis.two_sample
    if found.accuracy.unresolved:
        return f"Whether a classifier tells codes from prior draws: {found.accuracy.unresolved}."
    right = f"{_percent(found.accuracy)} of points"
    if found.differ:
        return (
            f"A classifier assigns {right} to the right side, more than the half of guessing: "
            "codes and prior draws differ. A better classifier would tell apart at least as many."
        )
    return (
        f"A classifier assigns {right} to the right side, not more beyond doubt than the half of "
        "guessing: it cannot tell codes from prior draws. A better one might."
    )


def activity_by_rate(diagnosis: Diagnosis) -> str:
    """How many units are active by their KL, and which are on one side only, as a sentence."""
    active, by_rate = diagnosis.collapse.active.cpu(), diagnosis.collapse.active_by_rate
    if by_rate is None:
        return "The KL of single units is not known, since the marginals of this prior are not."
    differing = [str(unit) for unit in (active != by_rate).nonzero().flatten().tolist()]
    if not differing:
        return (
            "Counted by KL(q(z_d|x)‖p(z_d)), above 0.01 nats on average, they are the same units."
        )
    return (
        f"Counted by KL(q(z_d|x)‖p(z_d)), above 0.01 nats on average, {int(by_rate.sum())} of "
        f"{len(active)} are; the two criteria differ for unit{'s' if len(differing) > 1 else ''} "
        f"{_listed(differing)}."
    )


def _percent(share: Estimate) -> str:
    """A share with its interval, which is not symmetric near 0 and 1."""
    places = 0 if share.standard_error >= 0.01 else 1
    value, low, high = (
        plain(100 * number, f".{places}f") for number in (share.value, *share.interval)
    )
    return f"{value} % (95 %: {low} to {high})"
