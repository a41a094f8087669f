"""One sentence: where to draw z from, and why; or why that can't be told."""

from __future__ import annotations

from collections.abc import Mapping

from pyrovae.estimates import Estimate
from pyrovae.evidence import Evidence

# Nats that a difference must exceed besides being clear: differences are skewed, since a
# density with light tails gains a little at most data points and loses a lot at a few, which a
# small sample may not contain.
RELEVANT = 0.1
TOLERATED = 0.05  # largest share of data points with a rejected k̂ where the change is still stated
PREFERENCE = ("prior", "ex_post", "q_agg")  # among densities that the data do not tell apart


def advise(evidence: Mapping[str, Evidence], names: Mapping[str, str]) -> str:
    """Where to sample from, by held-out log p(x) under each density in the prior's place.

    What a density changes can't be told where k̂ rejects log p(x), under it or under the prior, at
    more than 5 % of the data points. If no change can be told, the sentence says only that.

    Args:
        evidence: held-out log p(x) by density; ``"prior"`` is the model's own.
        names: what each density is called in a sentence.
    """
    changes = {
        name: change_from(evidence["prior"], result)
        for name, result in evidence.items()
        if name != "prior"
    }
    resolved = [name for name, change in changes.items() if not change.unresolved]
    sentences = {
        name: f"{names[name]} changes it by {change.value:+.2f} ± {change.standard_error:.2f}"
        if name in resolved
        else f"what {names[name]} changes can't be told: {change.unresolved}"
        for name, change in changes.items()
    }
    if not resolved:
        return f"Where to sample from can't be told by log p(x) ({'; '.join(sentences.values())})."
    candidates = [name for name in PREFERENCE if name == "prior" or name in resolved]
    best = max(["prior", *resolved], key=lambda n: changes[n].value if n in resolved else 0.0)
    choice = next(name for name in candidates if not _is_beaten(evidence[name], evidence[best]))
    if choice == "prior":
        reason = f"no density raises held-out log p(x) clearly and by more than {RELEVANT} nats"
    else:
        gain = changes[choice]
        reason = (
            f"held-out log p(x) is {gain.value:.2f} ± {gain.standard_error:.2f} nats higher than "
            f"under {names['prior']}"
        )
    rest = "; ".join(sentence for name, sentence in sentences.items() if name != choice)
    return f"Sample from {names[choice]}: {reason} ({rest}).".replace("by -", "by −")


def change_from(prior: Evidence, other: Evidence) -> Estimate:
    """Mean change of log p(x) from the prior to another density; unresolved where k̂ rejects it."""
    rejected = prior.unresolved | other.unresolved
    change = other.minus(prior)
    if change.unresolved or float(rejected.double().mean()) <= TOLERATED:
        return change
    return change.unresolve(f"k̂ rejects {int(rejected.sum())} of {len(rejected)} data points")


def _is_beaten(candidate: Evidence, best: Evidence) -> bool:
    """Whether ``best`` is better by a relevant amount, beyond the doubt of paired differences."""
    if candidate is best:
        return False
    lead = best.minus(candidate)
    return lead.value > RELEVANT and lead.excludes(0.0)
