"""One sentence: where to draw z from, and why."""

from __future__ import annotations

from collections.abc import Mapping

from pyrovae.evidence.result import Evidence

RESOLVED = 2.0  # standard errors that a difference must exceed to count


def advise(evidence: Mapping[str, Evidence], names: Mapping[str, str]) -> str:
    """Where to sample from, by held-out log p(x) under each density in the prior's place.

    Args:
        evidence: held-out log p(x) by density; ``"prior"`` is the model's own.
        names: how each density is called in a sentence.
    """
    gains = {
        name: result.minus(evidence["prior"])
        for name, result in evidence.items()
        if name != "prior"
    }
    best = max(gains, key=lambda name: gains[name].value)
    gain = gains[best]
    if gain.value > RESOLVED * gain.standard_error:
        choice = (
            f"Sample from {names[best]}: held-out log p(x) is {gain.value:.2f} ± "
            f"{gain.standard_error:.2f} nats higher than under {names['prior']}"
        )
        rest = [name for name in gains if name != best]
    else:
        choice = f"Sample from {names['prior']}: no density raises held-out log p(x) measurably"
        rest = list(gains)
    compared = "; ".join(
        f"{names[name]} changes it by {gains[name].value:+.2f} ± {gains[name].standard_error:.2f}"
        for name in rest
    )
    return f"{choice} ({compared})." if compared else f"{choice}."
