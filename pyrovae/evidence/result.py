"""What is known of log p(x), datum by datum, and how far it can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.arviz_adapter import psis
from pyrovae.errors import InputError
from pyrovae.estimates import Bound, Estimate, mean_estimate

UNRELIABLE = 0.7  # k̂ above which the estimate and its error can't be trusted (Vehtari et al. 2024)
STUCK = 0.1  # share of accepted moves below which a datum's chains hardly moved
EQUAL = 1e-3  # log weights that all lie this close together, in nats, have no tail


@dataclass(frozen=True)
class Evidence:
    """log p(x) for each data point, in nats.

    Args:
        values: estimates, shape ``(N,)``.
        standard_error: Monte Carlo standard error of each, shape ``(N,)``; infinite where no draw
            had any weight.
        pareto_k: k̂ of each data point's importance weights, shape ``(N,)``; above 0.7 estimate and
            standard error cannot be trusted (Vehtari et al. 2024); infinite where there were too
            few draws to tell.
        draws: importance draws, or annealed chains, for each data point.
        bound: the side on which the expectation of ``values`` errs.
        smoothed: estimates from Pareto-smoothed weights, shape ``(N,)``: less noise where
            0.5 < k̂ < 0.7, and no bound; ``None`` if the weights do not average to p(x).
        acceptance: share of accepted Hamiltonian moves, shape ``(N,)``, if there were any.
        notes: what else a reader has to know, in sentences.
    """

    values: Tensor
    standard_error: Tensor
    pareto_k: Tensor
    draws: int
    bound: Bound | None = "lower"
    smoothed: Tensor | None = None
    acceptance: Tensor | None = None
    notes: tuple[str, ...] = ()

    def mean(self) -> Estimate:
        """Mean over the data points; its standard error is over data and draws together."""
        if self.values.isinf().any():
            return Estimate(
                float(self.values.mean()), math.inf, len(self.values), "data", self.bound
            )
        return mean_estimate(self.values, over="data", bound=self.bound)

    def minus(self, other: Evidence) -> Estimate:
        """Mean of the paired differences to ``other``, computed on the same data points.

        Raises:
            InputError: if the two speak of different numbers of data points.
        """
        if self.values.shape != other.values.shape:
            raise InputError(
                f"expected two results on the same data; got {len(self.values)} and "
                f"{len(other.values)} data points."
            )
        return mean_estimate(self.values - other.values, over="data")

    def concerns(self) -> tuple[str, ...]:
        """Why some of the values should not be believed, in sentences; empty if none is known."""
        n = len(self.values)
        empty = int((self.values == -math.inf).sum())
        unreliable = int(((self.pareto_k > UNRELIABLE) & self.pareto_k.isfinite()).sum())
        found = []
        if empty:
            found.append(
                f"For {empty} of {n} data points no draw has any weight: the guide's support "
                "misses the posterior, or the model gives these data no density. Widen the guide "
                "or check the likelihood."
            )
        if unreliable:
            side = "lower" if self.bound == "upper" else "higher"
            remedy = (
                "more draws, a wider guide, or method='annealed'"
                if self.acceptance is None
                else "more temperatures or chains"
            )
            found.append(
                f"For {unreliable} of {n} data points k̂ > {UNRELIABLE}: the few largest weights "
                f"decide, log p(x) is probably {side} than estimated and the standard errors are "
                f"too small. Take {remedy}."
            )
        if self.acceptance is not None and (stuck := int((self.acceptance < STUCK).sum())):
            found.append(
                f"For {stuck} of {n} data points fewer than {STUCK:.0%} of the Hamiltonian moves "
                "were accepted: their chains hardly moved, and the bound is loose. Take more "
                "temperatures, or check the model for jumps in z."
            )
        return (*found, *self.notes)

    def __str__(self) -> str:
        return "\n".join([f"{self.mean()} over {len(self.values)} data points", *self.concerns()])


def summarise(log_weights: Tensor) -> Evidence:
    r"""log of the mean weight of each data point, with the delta method's standard error.

    .. math:: \log \hat p = \log \tfrac1K \sum_k w_k, \quad se = s(w / \bar w) / \sqrt K

    Args:
        log_weights: shape ``(N, K)`` with K ≥ 2; −inf where a draw has no weight.

    Raises:
        InputError: if a weight is not a number.
    """
    log_weights = log_weights.double()
    broken = log_weights.isnan().any(1) | (log_weights == math.inf).any(1)
    if broken.any():
        raise InputError(
            f"expected a log density at every draw; got NaN or +inf for {int(broken.sum())} of "
            f"{len(broken)} data points, the first in row {int(broken.nonzero()[0])}. Check the "
            "model and the guide there."
        )
    k = log_weights.shape[1]
    values = log_weights.logsumexp(1) - math.log(k)
    relative = (log_weights - values[:, None]).exp()  # mean 1 in each row
    error = torch.where(values == -math.inf, math.inf, relative.std(1) / math.sqrt(k))
    smoothed, pareto_k = smooth(log_weights)
    return Evidence(values, error, pareto_k, k, smoothed=smoothed)


def smooth(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """log of the mean of the Pareto-smoothed weights, and k̂, of each data point separately.

    Smoothing leaves the bulk of the weights as it was, so what normalised and raw log weights
    differ by at the smallest weight is the log of the smoothed weights' sum (Vehtari et al. 2024).

    Args:
        log_weights: shape ``(N, K)`` in float64.

    Returns:
        smoothed log mean weights and k̂, each ``(N,)``; k̂ is 0 where all weights agree to 1e-3, and
        infinite where no weight, or too few draws, are there to tell.
    """
    k = log_weights.shape[1]
    raw = log_weights.logsumexp(1) - math.log(k)
    usable = raw.isfinite()
    finite = torch.where(usable[:, None], log_weights, 0.0)
    normalised, pareto_k = (torch.as_tensor(a).to(raw) for a in psis(finite.cpu().numpy()))
    smallest = torch.where(finite == -math.inf, math.inf, finite).argmin(1, keepdim=True)
    offset = (finite.gather(1, smallest) - normalised.gather(1, smallest)).squeeze(1)
    spread = finite.amax(1) - finite.amin(1)
    pareto_k = torch.where(spread < EQUAL, 0.0, pareto_k)
    pareto_k = torch.where(usable, pareto_k, math.inf)
    smoothed = torch.where(usable & (pareto_k != 0), offset - math.log(k), raw)
    return torch.where(smoothed.isnan(), raw, smoothed), pareto_k


def join(parts: list[Evidence]) -> Evidence:
    """One result over the data points of several, in order."""
    first = parts[0]

    def cat(field: str) -> Tensor:
        return torch.cat([getattr(part, field) for part in parts])

    return Evidence(
        cat("values"),
        cat("standard_error"),
        cat("pareto_k"),
        first.draws,
        first.bound,
        smoothed=None if first.smoothed is None else cat("smoothed"),
        acceptance=None if first.acceptance is None else cat("acceptance"),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )
