"""One sentence: where to draw z from, and why; or why that can't be told."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from pyrovae.estimates import Estimate
from pyrovae.evidence import Evidence, paired

# Nats that a difference must exceed besides being clear: differences are skewed, since a
# density with light tails gains a little at most data points and loses a lot at a few, which a
# small sample may not contain.
RELEVANT = 0.1
TOLERATED = 0.05  # largest share of data points with a rejected k̂ where the change is still stated
PREFERENCE = ("prior", "ex_post", "q_agg")  # among densities that the data do not tell apart
RULE = (
    "of densities that these rows don't tell apart the model's own comes first, and raw q_agg, "
    "which copies its data, last"
)
STRICT = (4.0, 3.5)  # standard errors that end the measuring at a first and at a second look
TWO_SIDED = 1.96  # standard errors that a 95 % interval reaches to either side
NONE: Mapping[str, str] = MappingProxyType({})


def advise(
    evidence: Mapping[str, Evidence], names: Mapping[str, str], *, same: Mapping[str, str] = NONE
) -> str:
    """Where to sample from, by held-out log p(x) under each density in the prior's place.

    What a density changes can't be told where k̂ rejects log p(x), under it or under the prior, at
    more than 5 % of the data points. If no change can be told, the sentence says only that. Where
    a change has no sign yet, it says how many more draws or rows would show one of that size.

    Args:
        evidence: held-out log p(x) by density; ``"prior"`` is the model's own.
        names: what each density is called in a sentence.
        same: densities that are others of these by another name, by key: they are not compared.
    """
    prior = evidence["prior"]
    changes = _changes(evidence, same)
    resolved = [name for name, change in changes.items() if not change.unresolved]
    sentences = {
        name: _sentence(names[name], change, prior, evidence[name])
        for name, change in changes.items()
    }
    twins = [f"{names[one]} is {names[other]} by another name" for one, other in same.items()]
    if not resolved:
        reasons = "; ".join([*sentences.values(), *twins])
        return f"Where to sample from can't be told by log p(x) ({reasons})."
    choice, best = _choose(evidence, changes)
    rows = max(changes[name].size for name in resolved)
    if choice == "prior":
        reason = (
            f"over {rows} rows no density raises held-out log p(x) clearly and by more than "
            f"{RELEVANT} nats"
        )
    else:
        gain = changes[choice]
        reason = (
            f"over {rows} rows held-out log p(x) is {gain.value:.2f} ± {gain.standard_error:.2f} "
            f"nats higher than under {names['prior']}"
        )
    rest = [sentence for name, sentence in sentences.items() if name != choice]
    if choice != best:
        rest.append(RULE)
    return f"Sample from {names[choice]}: {reason} ({'; '.join([*rest, *twins])})."


def _sentence(name: str, change: Estimate, prior: Evidence, other: Evidence) -> str:
    """What a density changes, or why that can't be told and what would tell it."""
    if change.unresolved:
        return f"what {name} changes can't be told: {change.unresolved}"
    places = _places(change.standard_error)
    size = f"{change.value:+.{places}f}".replace("-", "−")
    text = f"{name} changes it by {size} ± {change.standard_error:.{places}f}"
    if change.size < len(prior.values):
        text += f" over {change.size} of them"
    return text if change.excludes(0.0) else f"{text}, {_what_would_tell(change, prior, other)}"


def _what_would_tell(change: Estimate, prior: Evidence, other: Evidence) -> str:
    """How many more draws or rows a change of this size takes to be told from none.

    Its squared error is that of the rows and that of the draws, of which each falls with its own
    number: draws are named where they are enough, and rows else.
    """
    if change.value == 0.0:
        return "which is none"
    wanted = (change.value / TWO_SIDED) ** 2
    prior, other = paired(prior, other)
    variance = prior.standard_error.square() + other.standard_error.square()
    by_draws = float(variance[variance.isfinite()].mean()) / change.size
    by_rows = max(0.0, change.standard_error**2 - by_draws)
    if by_rows < wanted / 2:
        more = math.ceil(other.draws * (by_draws / (wanted - by_rows) - 1))
        if more > 0:
            return f"which {_rounded(more)} more draws at each row would tell from none"
    more = math.ceil(change.size * (change.standard_error**2 / wanted - 1))
    return f"which {_rounded(max(1, more))} more rows would tell from none, if it stays as it is"


def _places(error: float) -> int:
    """Decimals of a difference: two, or as many as show its standard error.

    >>> _places(0.31), _places(0.0037), _places(0.0)
    (2, 3, 2)
    """
    return 2 if not 0.0 < error < 0.01 else min(-math.floor(math.log10(error)), 5)


def _rounded(number: int) -> str:
    """A number by its first digit, rounded up.

    >>> _rounded(1203), _rounded(7)
    ('2,000', '7')
    """
    power = 10 ** (len(str(number)) - 1)
    return f"{math.ceil(number / power) * power:,}"


def choose(evidence: Mapping[str, Evidence], same: Mapping[str, str] = NONE) -> str | None:
    """The density that held-out log p(x) is for; ``None`` if no change from the prior can be told.

    Args:
        evidence, same: as `advise` takes them; there may be no evidence.
    """
    changes = _changes(evidence, same)
    if all(change.unresolved for change in changes.values()):
        return None
    return _choose(evidence, changes)[0]


def _changes(evidence: Mapping[str, Evidence], same: Mapping[str, str]) -> dict[str, Estimate]:
    """What each density changes, but for those that are others by another name."""
    return {
        name: change_from(evidence["prior"], result)
        for name, result in evidence.items()
        if name != "prior" and name not in same
    }


def _choose(evidence: Mapping[str, Evidence], changes: Mapping[str, Estimate]) -> tuple[str, str]:
    """The density to sample from, and the one whose log p(x) is highest."""
    resolved = [name for name, change in changes.items() if not change.unresolved]
    candidates = [name for name in PREFERENCE if name == "prior" or name in resolved]
    best = _best({name: changes[name] for name in resolved})
    return next(n for n in candidates if not _is_beaten(evidence[n], evidence[best])), best


def _best(changes: Mapping[str, Estimate]) -> str:
    """The density whose log p(x) is highest, by what each changes."""
    return max(["prior", *changes], key=lambda n: changes[n].value if n in changes else 0.0)


def is_settled(evidence: Mapping[str, Evidence], names: Iterable[str], *, look: int = 0) -> bool:
    r"""Whether more rows would hardly change the advice, so that measuring can end early.

    .. math:: |Δ_n - 0.1| > c \, se(Δ_n)

    for what every density n is behind the best, c = 4 at a first look and 3.5 at a second: it is
    beaten by a relevant amount or is not, and so many standard errors tell which. So strict, looks
    at 100 and 200 rows add 7e-4 to the error rate of a comparison of normal differences, and 1e-2
    to that of lognormal ones (σ = 1) whose mean is right at the limit; else it is that of the last
    look (Haybittle 1971, "Repeated assessment of results in clinical trials of cancer treatment";
    Peto et al. 1976). A change that can't be told leaves all open.

    Args:
        evidence: held-out log p(x) by density; ``"prior"`` is the model's own.
        names: of the densities, beside the prior, that more rows could be measured under.
        look: 0 for the first, 1 for the second.
    """
    changes = {name: change_from(evidence["prior"], evidence[name]) for name in names}
    if any(change.unresolved for change in changes.values()):
        return False
    best = _best(changes)
    leads = [evidence[best].minus(evidence[n]) for n in ("prior", *changes) if n != best]
    limit = STRICT[look]
    return all(abs(lead.value - RELEVANT) > limit * lead.standard_error for lead in leads)


def change_from(prior: Evidence, other: Evidence) -> Estimate:
    """Mean change of log p(x) from the prior to another density; unresolved where k̂ rejects it."""
    other, prior = paired(other, prior)
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
