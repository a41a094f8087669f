"""One sentence: where to draw z from, and why."""

from __future__ import annotations

from collections.abc import Mapping

from pyrovae.evidence.result import Evidence

# Nats that a difference must exceed, beside being beyond doubt: differences are skewed, since a
# density with light tails gains a little at most data points and loses much at few, which a small
# sample may not contain.
RELEVANT = 0.1
PREFERENCE = ("prior", "ex_post", "q_agg")  # among densities that the data do not tell apart


def advise(evidence: Mapping[str, Evidence], names: Mapping[str, str]) -> str:
    """Where to sample from, by held-out log p(x) under each density in the prior's place.

    Args:
        evidence: held-out log p(x) by density; ``"prior"`` is the model's own.
        names: how each density is called in a sentence.
    """
    best = max(evidence, key=lambda name: evidence[name].mean().value)
    choice = next(name for name in PREFERENCE if not _beaten(evidence[name], evidence[best]))
    changes = {
        name: result.minus(evidence["prior"])
        for name, result in evidence.items()
        if name != "prior"
    }
    said = {
        name: f"{names[name]} changes it by {change.value:+.2f} ± {change.standard_error:.2f}"
        if not change.unresolved
        else f"what {names[name]} changes can't be told: {change.unresolved}"
        for name, change in changes.items()
    }
    if choice == "prior":
        reason = (
            f"no density raises held-out log p(x) beyond doubt and by more than {RELEVANT} nats"
        )
    else:
        gain = changes[choice]
        reason = (
            f"held-out log p(x) is {gain.value:.2f} ± {gain.standard_error:.2f} nats higher than "
            f"under {names['prior']}"
        )
    rest = "; ".join(sentence for name, sentence in said.items() if name != choice)
    return f"Sample from {names[choice]}: {reason} ({rest}).".replace("by -", "by −")


def _beaten(one: Evidence, best: Evidence) -> bool:
    """Whether ``best`` is better by more than the paired differences leave in doubt."""
    if one is best:
        return False
    lead = best.minus(one)
    return lead.value > RELEVANT and lead.excludes(0.0)
