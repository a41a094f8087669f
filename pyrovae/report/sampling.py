"""Where to draw new data from, in words that need no knowledge of densities over codes."""

from __future__ import annotations

import math

from pyrovae.diagnostics import Diagnosis, change_from
from pyrovae.report.numbers import count, plain, show

PLAIN = {
    "prior": "the model's own prior",
    "q_agg": "raw q_agg: the code of a training row picked at random, with the encoder's spread",
    "ex_post": "the ex-post prior: a density fitted to the codes of the training rows afterwards",
}
BRIEF = {"q_agg": "raw q_agg", "ex_post": "the ex-post prior"}
OPTION = {"prior": "prior", "q_agg": "q_agg", "ex_post": "ex-post"}


def guidance(diagnosis: Diagnosis) -> dict[str, str]:
    """What to draw from, how sure that is and what it costs, each a sentence or two by name."""
    choice = diagnosis.recommended
    if choice is None:
        return {"What to draw from": diagnosis.advice}
    parts = {"What to draw from": f"New rows are best drawn from {PLAIN[choice]}."}
    parts["How sure"] = _how_sure(diagnosis, choice)
    parts["What it costs"] = _cost(diagnosis, choice)
    return parts


def _how_sure(diagnosis: Diagnosis, choice: str) -> str:
    if choice == "prior":
        size = count(len(diagnosis.evidence["prior"].values))
        text = (
            f"No other density over codes that was tried makes {size} held-out rows clearly more "
            "probable, by more than 0.1 nats each."
        )
        for name, found in diagnosis.evidence.items():
            change = change_from(diagnosis.evidence["prior"], found)
            if name != "prior" and change.unresolved:
                text += f" What {BRIEF[name]} changes can't be told: {change.unresolved}."
        return text
    gain = change_from(diagnosis.evidence["prior"], diagnosis.evidence[choice])
    low, high = gain.interval
    factor = math.exp(min(gain.value, 50.0))
    return (
        f"It makes a held-out row {plain(factor, ',.3g')} times as probable as the model's own "
        f"prior does: {show(gain, signed=True)} nats, with 95 % certainty between "
        f"{plain(low, '+.2f')} and {plain(high, '+.2f')}, over {count(gain.size)} rows."
    )


def _cost(diagnosis: Diagnosis, choice: str) -> str:
    text = "Nothing is trained again, and 1,000 rows take seconds."
    quality = diagnosis.sample_quality
    share = None if quality is None else quality.densities[choice].nearer_to_training
    if share is not None and not share.unresolved:
        percent, low, high = (plain(100 * part, ".0f") for part in (share.value, *share.interval))
        copied = "copies among them" if share.interval[0] > 0.5 else "no clear sign of copies"
        text += (
            f" {percent} % (95 %: {low} to {high}) of its decoded samples lie nearer to a training "
            f"than to a held-out row, against 50 % if nothing is copied: {copied}."
        )
    if choice == "q_agg" and "ex_post" in diagnosis.evidence:
        loss = change_from(diagnosis.evidence["q_agg"], diagnosis.evidence["ex_post"])
        if not loss.unresolved:
            text += (
                " Each draw begins at one training row; where that must not be, the ex-post prior "
                f"(--from ex-post) changes log p(x) by {show(loss, signed=True)} nats."
            )
    return text
