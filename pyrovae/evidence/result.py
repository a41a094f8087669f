"""What is known of log p(x), datum by datum, and how far it can be trusted."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from pyrovae.display import Result
from pyrovae.errors import InputError
from pyrovae.estimates import TOO_FEW, Bound, Estimate, mean_estimate, name_rows
from pyrovae.evidence.pareto_k import FEWEST, k_limit, smooth

STUCK = 0.1  # share of accepted moves below which a datum's chains hardly moved
OF_EACH = ("values", "standard_error", "pareto_k", "smoothed", "acceptance", "cost", "stopped")
GUIDE_ALONE = "All draws are from the guide"  # begins the note on a pair that can't be refined


@dataclass(frozen=True, repr=False)
class Evidence(Result):
    """log p(x) for each data point, in nats.

    Args:
        values: estimates, shape ``(N,)``.
        standard_error: Monte Carlo standard error of each, shape ``(N,)``; infinite where no draw
            had any weight.
        pareto_k: k̂ of each data point's importance weights, shape ``(N,)``; above ``k_limit``
            estimate and standard error cannot be trusted; infinite where there were too few draws
            to tell.
        draws: weights of each data point, one for each importance draw or annealed chain; of
            ``"auto"`` some are means of 4 or 16.
        bound: the side on which the expectation of ``values`` errs.
        smoothed: estimates from Pareto-smoothed weights, shape ``(N,)``: less noise where
            0.5 < k̂ < 0.7, and no bound; ``None`` if the weights do not average to p(x).
        acceptance: share of accepted Hamiltonian moves, shape ``(N,)``, if there were any.
        rows: number of each data point in the data set it comes from, shape ``(N,)``, counted from
            0; by default they are all of them, in order.
        needed: how many data points it takes to tell a mean difference to another density; with
            fewer, the rare ones that decide it need not be among them.
        notes: what else a reader has to know, in sentences.
        rungs: where the weights of each data point come from: draws from the ``"guide"``, from a
            ``"refined"`` proposal of its own, or chains that are ``"annealed"`` from there;
            ``None`` where the method leaves no choice.
        cost: what each data point took, shape ``(N,)``, in evaluations of log p(x, z) at one code;
            one with its gradient counts as three.
        stopped: data points at which the cap on the cost ended the search for better weights, shape
            ``(N,)``, if there is one; they are unresolved, and no mean takes them in.

    >>> import pyrovae as pv
    >>> from pyrovae.testing import linear_gaussian_vae
    >>> exact = linear_gaussian_vae()
    >>> vae, x = exact.vae(), exact.sample(30)
    >>> found = pv.log_evidence(vae.model, vae.guide, x, draws=10)
    >>> found.mean().bound, found.mean().size
    ('lower', 30)
    """

    values: Tensor
    standard_error: Tensor
    pareto_k: Tensor
    draws: int
    bound: Bound | None = "lower"
    smoothed: Tensor | None = None
    acceptance: Tensor | None = None
    notes: tuple[str, ...] = ()
    rows: Tensor | None = None
    needed: float = 0.0
    rungs: tuple[str, ...] | None = None
    cost: Tensor | None = None
    stopped: Tensor | None = None

    @property
    def k_limit(self) -> float:
        """The k̂ up to which so many draws are enough; see :func:`k_limit`."""
        return k_limit(self.draws)

    @property
    def unresolved(self) -> Tensor:
        """The data points whose k̂ is above the limit or not known, or stopped, ``(N,)``."""
        rejected = ~(self.pareto_k <= self.k_limit)
        return rejected | ~self._counted

    def subset(self, chosen: Tensor) -> Evidence:
        """The same for some of the data points, numbers of shape ``(n,)``."""
        parts: dict[str, Any] = {
            name: part[chosen] for name in OF_EACH if (part := getattr(self, name)) is not None
        }
        rows = torch.arange(len(self.values), device=self.values.device)
        rows = (rows if self.rows is None else self.rows)[chosen]
        rungs = self.rungs and tuple(self.rungs[number] for number in chosen.tolist())
        return replace(self, **parts, rows=rows, rungs=rungs)

    def mean(self) -> Estimate:
        """Mean over the data points; its standard error is over data and draws together.

        Those whose k̂ is above ``k_limit`` count too, and ``concerns`` says how many they are. It
        can't be told where log p(x) of a data point is infinite. Where the cap on the cost stopped
        some, it is that of the others.
        """
        return self._mean_of(self.values, self.bound, self._counted)

    def minus(self, other: Evidence) -> Estimate:
        """Mean of the paired differences to ``other``, over the data points that both speak of.

        It can't be told where log p(x) of a data point is infinite in one of the two, or the data
        points are fewer than one of the two needs.

        Raises:
            InputError: if the two have no data points in common, or different numbers of them and
                one doesn't know its ``rows``.
        """
        one, two = paired(self, other)
        change = one._mean_of(one.values - two.values, None, one._counted & two._counted)
        if change.size >= max(self.needed, other.needed) or change.unresolved:
            return change
        return change.unresolve(TOO_FEW["data"])

    @property
    def _counted(self) -> Tensor:
        """The data points that means are over, shape ``(N,)``."""
        none = torch.zeros_like(self.values, dtype=torch.bool)
        return ~(none if self.stopped is None else self.stopped.bool())

    def _mean_of(self, values: Tensor, bound: Bound | None, counted: Tensor) -> Estimate:
        broken = ~values.isfinite() & counted
        values = values[counted]
        if len(values) < 2 and not counted.all():
            return Estimate(math.nan, math.inf, len(values), "data", bound).unresolve(
                f"the cap on the cost left {len(values)} of {len(counted)} data points"
            )
        if not broken.any():
            return mean_estimate(values, over="data", bound=bound)
        estimate = Estimate(float(values.mean()), math.inf, len(values), "data", bound)
        return estimate.unresolve(f"log p(x) is infinite in {name_rows(broken, self.rows)}")

    @property
    def concerns(self) -> tuple[str, ...]:
        """Why some of the values should not be believed, in sentences; empty if none is known."""
        n = len(self.values)
        impossible, improper = self.values == -math.inf, self.values == math.inf
        unknown = self.pareto_k.isinf() & self.values.isfinite()
        rejected = (self.pareto_k > self.k_limit) & self.pareto_k.isfinite()
        stopped = ~self._counted
        unknown, rejected = unknown & ~stopped, rejected & ~stopped
        more = "draws" if self.acceptance is None else "chains"
        sentences = []
        if impossible.any():
            sentences.append(
                f"For {int(impossible.sum())} of {n} data points no draw has any weight, in "
                f"{name_rows(impossible, self.rows)}: the guide's support misses the posterior, or "
                "the model gives these data no density. Widen the guide or check the likelihood."
            )
        if improper.any():
            sentences.append(
                f"For {int(improper.sum())} of {n} data points log p(x) is +∞, in "
                f"{name_rows(improper, self.rows)}: the likelihood has a density without bound "
                "there. Give its scale a floor."
            )
        if unknown.any():
            sentences.append(
                f"For {int(unknown.sum())} of {n} data points k̂ is not known, as fewer than "
                f"{FEWEST} {more} have any weight: nothing tells whether estimate and standard "
                f"error hold. Take more {more}."
            )
        if rejected.any():
            side = "lower" if self.bound == "upper" else "higher"
            sentences.append(
                f"For {int(rejected.sum())} of {n} data points k̂ > {self.k_limit:.2g}, which is "
                f"too much for {self.draws} {more}: the few largest weights "
                f"decide, log p(x) is probably {side} than estimated and the standard errors are "
                f"too small. Take {self._remedy}."
            )
        if stopped.any():
            sentences.append(
                f"For {int(stopped.sum())} of {n} data points, in {name_rows(stopped, self.rows)}, "
                "the cap on the cost was reached before their weights were even enough: log p(x) "
                "is probably higher than estimated there, and means leave them out. Raise it: "
                "max_cost= of log_evidence, evidence_cost= of an Effort, for raw q_agg its "
                "q_agg_rows=."
            )
        if self.acceptance is not None and (stuck := int((self.acceptance < STUCK).sum())):
            sentences.append(
                f"For {stuck} of {n} data points fewer than {STUCK:.0%} of the Hamiltonian moves "
                "were accepted: their chains hardly moved, and the bound is loose. Take more "
                "temperatures, or check the model for jumps in z."
            )
        return (*sentences, *self.notes)

    @property
    def _remedy(self) -> str:
        """What to take where k̂ is above its limit."""
        if self.acceptance is not None:
            return "more temperatures or chains"
        if self.rungs is None:
            return "more draws, a wider guide, or method='refined'"
        alone = any(note.startswith(GUIDE_ALONE) for note in self.notes)
        return "more draws or a wider guide" if alone else "more draws, or method='annealed'"

    def __repr__(self) -> str:
        rejected = int(self.unresolved.sum())
        return (
            f"Evidence({self.mean()} nats over {len(self.values)} data points, "
            f"k̂ > {self.k_limit:.2g} or unknown at {rejected})"
        )

    def __str__(self) -> str:
        return "\n".join(
            [f"{self.mean()} over {len(self.values)} data points", *self._effort, *self.concerns]
        )

    @property
    def _effort(self) -> list[str]:
        """From where the weights are, and what they cost, in a line."""
        if self.rungs is None or self.cost is None:
            return []
        numbers = [f"{name} at {number}" for name, number in Counter(self.rungs).items()]
        average = round(float(self.cost.double().mean()))
        return [f"Weights: {', '.join(numbers)}; {average:,} evaluations of log p(x, z) at each."]


def paired(one: Evidence, other: Evidence) -> tuple[Evidence, Evidence]:
    """Two results at the data points that both have, by their row numbers where these are known.

    Raises:
        InputError: if there are none, or the numbers differ and ``rows`` of one are not known.
    """
    if one.rows is None or other.rows is None:
        if one.values.shape != other.values.shape:
            raise InputError(
                f"expected two results on the same data; got {len(one.values)} and "
                f"{len(other.values)} data points. Estimate both on the same rows."
            )
        return one, other
    if torch.equal(one.rows, other.rows):
        return one, other
    places = {row: place for place, row in enumerate(other.rows.tolist())}
    here = [place for place, row in enumerate(one.rows.tolist()) if row in places]
    if not here:
        raise InputError(
            "expected two results with rows in common; got none. Estimate both on the same rows."
        )
    first = one.subset(torch.tensor(here))
    there = [places[row] for row in cast(Tensor, first.rows).tolist()]
    return first, other.subset(torch.tensor(there))


def summarise(log_weights: Tensor, *, first: int = 0) -> Evidence:
    r"""log of the mean weight of each data point, with the delta method's standard error.

    .. math:: \log \hat p = \log \tfrac1K \sum_k w_k, \quad se = s(w / \bar w) / \sqrt K

    Args:
        log_weights: shape ``(N, K)`` with K ≥ 2; −inf where a draw has no weight.
        first: number of the first data point in its data set, for the error.

    Raises:
        InputError: if a weight is not a number.
    """
    log_weights = log_weights.double()
    broken = log_weights.isnan().any(1) | (log_weights == math.inf).any(1)
    if broken.any():
        row = first + int(broken.nonzero()[0])
        raise InputError(
            f"expected a log density at every draw; got NaN or +inf in row {row} (counted from 0). "
            "Check what model and guide give there: a scale of 0, say, or a density without bound."
        )
    k = log_weights.shape[1]
    values = log_weights.logsumexp(1) - math.log(k)
    relative = (log_weights - values[:, None]).exp()  # mean 1 in each row
    error = torch.where(values == -math.inf, math.inf, relative.std(1) / math.sqrt(k))
    smoothed, pareto_k = smooth(log_weights)
    return Evidence(values, error, pareto_k, k, smoothed=smoothed)


def join(parts: list[Evidence]) -> Evidence:
    """One result over the data points of several, in order."""
    first = parts[0]
    fields = [name for name in (*OF_EACH, "rows") if getattr(first, name) is not None]
    joined: dict[str, Any] = {
        name: torch.cat([getattr(part, name) for part in parts]) for name in fields
    }
    notes = tuple(dict.fromkeys(note for part in parts for note in part.notes))
    rungs = first.rungs and tuple(rung for part in parts for rung in part.rungs or ())
    return replace(first, **joined, notes=notes, rungs=rungs)
