"""One sentence: where to draw z from, and why; or why that can't be told."""

from __future__ import annotations

from collections.abc import Mapping

from pyrovae.estimates import Estimate
from pyrovae.evidence import Evidence

# Nats that a difference must exceed, beside being beyond doubt: differences are skewed, since a
# density with light tails gains a little at most data points and loses much at few, which a small
# sample may not contain.
RELEVANT = 0.1
TOLERATED = 0.05  # share of data points whose k̂ may be rejected before nothing is built on the rest
PREFERENCE = ("prior", "ex_post", "q_agg")  # among densities that the data do not tell apart


def advise(evidence: Mapping[str, Evidence], names: Mapping[str, str]) -> str:
    """Where to sample from, by held-out log p(x) under each density in the prior's place.

    What a density changes can't be told where k̂ rejects log p(x), under it or under the prior, at
    more than 5 % of the data points. If nothing can be told, the sentence says that and no more.

    Args:
        evidence: held-out log p(x) by density; ``"prior"`` is the model's own.
        names: how each density is called in a sentence.
    """
    changes = {
        name: change_from(evidence["prior"], result)
        for name, result in evidence.items()
        if name != "prior"
    }
    told = [name for name, change in changes.items() if not change.unresolved]
    said = {
        name: f"{names[name]} changes it by {change.value:+.2f} ± {change.standard_error:.2f}"
        if name in told
        else f"what {names[name]} changes can't be told: {change.unresolved}"
        for name, change in changes.items()
    }
    if not told:
        return f"Where to sample from can't be told by log p(x) ({'; '.join(said.values())})."
    best = max(["prior", *told], key=lambda name: changes[name].value if name in told else 0.0)
    candidates = (name for name in PREFERENCE if name == "prior" or name in told)
    choice = next(name for name in candidates if not _beaten(evidence[name], evidence[best]))
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


def change_from(prior: Evidence, other: Evidence) -> Estimate:
    """Mean change of log p(x) from the prior to another density, if k̂ lets it be told."""
    rejected = prior.unresolved | other.unresolved
    change = other.minus(prior)
    if change.unresolved or float(rejected.double().mean()) <= TOLERATED:
        return change
    return change.unresolve(f"k̂ rejects {int(rejected.sum())} of {len(rejected)} data points")


def _beaten(one: Evidence, best: Evidence) -> bool:
    """Whether ``best`` is better by more than the paired differences leave in doubt."""
    if one is best:
        return False
    lead = best.minus(one)
    return lead.value > RELEVANT and lead.excludes(0.0)
