"""Two groups of replicates, and the same with the replicates permuted between them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from scipy.stats import t as student_t
from torch import Tensor

from pyrovae.estimates import CONFIDENCE, Estimate
from pyrovae.randomness import seeded

ROWS = 4096  # codes whose ratios are computed together
ROUNDING = 1e-9  # relative; statistics closer than that are equal
FAR = 300.0  # nats: the squares of shares beyond it would be 0


@dataclass(frozen=True)
class Assignments:
    """Ways to assign replicates to two groups, the first of them the one that was observed.

    Args:
        first, second: weights of the replicates in each group, shape ``(R, P)``, each column with
            total 1.
    """

    first: Tensor
    second: Tensor

    @property
    def smallest_p_value(self) -> float:
        """The smallest that there can be: |λ| is the same with the two groups exchanged."""
        one, other = self.first[:, :1], self.second[:, :1]
        same = ((self.first == one) & (self.second == other)).all(0)
        exchanged = ((self.first == other) & (self.second == one)).all(0)
        return float((same | exchanged).double().mean())


def permuted(first: Tensor, second: Tensor, most: int, seed: int) -> Assignments:
    """All ways to exchange replicates between two groups, or ``most`` random ones.

    Args:
        first, second: weights of the replicates in each group, shape ``(R,)``.
        most: the largest number of ways, the observed one aside.
        seed: names the random ones.
    """
    if (ways := _all_ways(first, second, most)) is not None:
        return ways
    with seeded(seed, "replicates of groups"):
        order = torch.stack([torch.randperm(len(first)) for _ in range(most)], 1)
    order = torch.cat([torch.arange(len(first)).unsqueeze(1), order], 1)
    return Assignments(first[order], second[order])


def _all_ways(first: Tensor, second: Tensor, most: int) -> Assignments | None:
    """All assignments of replicates with equal weights, none in both groups, if they are few."""
    one, other = first > 0, second > 0
    total, size = len(first), int(one.sum())
    equal = bool((first[one] == first[one][0]).all() and (second[other] == second[other][0]).all())
    if bool((one == other).any()) or not equal or math.comb(total, size) > most + 1:
        return None
    observed = tuple(one.nonzero().flatten().tolist())
    ways = [observed, *(way for way in combinations(range(total), size) if way != observed)]
    member = torch.zeros(total, len(ways), dtype=torch.float64)
    for column, way in enumerate(ways):
        member[list(way), column] = 1.0
    return Assignments(member / size, (1 - member) / (total - size))


def ratios(log_densities: Tensor, ways: Assignments) -> tuple[Tensor, Tensor]:
    r"""The log ratio of two groups at some codes with its standard error over replicates.

    .. math:: λ = \log \sum_r a_r q_r - \log \sum_r b_r q_r = \log m_A - \log m_B, \quad
        \mathrm{Var}[λ] ≈ \sum_r \Big(c_A a_r \frac{q_r - m_A}{m_A}
        - c_B b_r \frac{q_r - m_B}{m_B}\Big)^2

    with c² = 1/(1 − Σ a²), which is R/(R − 1) for equal weights. The error is to first order of the
    logarithms, and unknown, NaN, where a group has a single replicate.

    Args:
        log_densities: log q_r(z), shape ``(B, R)``.
        ways: the weights a and b.

    Returns:
        λ and its standard error, shapes ``(B, P)``.
    """
    lowest, highest = log_densities.amin(1), log_densities.amax(1)
    far = highest - lowest > FAR  # as where a group has no density, −inf
    share = torch.where(far, 0.0, log_densities.T - highest).T.exp()
    one, other = ((weight, share @ weight) for weight in (ways.first, ways.second))
    ratio = one[1].log() - other[1].log()
    variance = _product(share, one, one) + _product(share, other, other)
    if bool((ways.first * ways.second).any()):
        variance = variance - 2 * _product(share, one, other)
    for row in far.nonzero().flatten().tolist():
        ratio[row], variance[row] = _ratio_of_far(log_densities[row], ways)
    return ratio, variance.clamp_min(0.0).sqrt()  # rounding may put it below 0


def _product(share: Tensor, one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """Σ_r c_A a_r (q_r − m_A)/m_A · c_B b_r (q_r − m_B)/m_B, shape ``(B, P)``."""
    (a, mean_a), (b, mean_b) = one, other
    weight = a * b
    total = share.square() @ weight / (mean_a * mean_b) + weight.sum(0)
    total = total - (share @ weight) * (1 / mean_a + 1 / mean_b)
    return total / ((1 - a.square().sum(0)) * (1 - b.square().sum(0))).sqrt()


def _ratio_of_far(log_density: Tensor, ways: Assignments) -> tuple[Tensor, Tensor]:
    """Log ratios and variances of one code, whose densities are too far apart to share a scale."""
    log_means, influences = [], []
    for weight in (ways.first, ways.second):
        within = torch.where(weight > 0, log_density.unsqueeze(-1), -math.inf)
        peak = within.amax(0)
        share = (within - torch.where(peak > -math.inf, peak, 0.0)).exp()
        mean = (share * weight).sum(0)
        # no density at all: nothing tells how much it would vary
        deviation = torch.where(mean > 0, share / mean - 1, 0.0)
        log_means.append(peak + mean.log())
        influences.append(weight * deviation / (1 - weight.square().sum(0)).sqrt())
    (one, other), (a, b) = log_means, influences
    return torch.where(one == other, 0.0, one - other), (a - b).square().sum(0)  # −∞ under both


@dataclass(frozen=True)
class Permuted:
    """How two groups differ, beside what permuted replicates give.

    Args:
        log_ratio, standard_error: of the observed groups, shape ``(N,)``.
        p_value: of each code, shape ``(N,)``.
        global_p_value: of the mean separation of the groups' own codes.
    """

    log_ratio: Tensor
    standard_error: Tensor
    p_value: Tensor
    global_p_value: float


class Means:
    """Means of the log ratios at each replicate's codes, shape ``(R, P)``, block by block.

    Args:
        replicate: number of each code's replicate, shape ``(N,)``; −1 for one that isn't counted.
        weight: of each code within its replicate, shape ``(N,)``, in any unit.
        replicates: R.
        ways: P.
    """

    def __init__(self, replicate: Tensor, weight: Tensor, replicates: int, ways: int) -> None:
        self.replicate, self.weight = replicate, weight
        own = replicate >= 0
        self.sizes = torch.zeros(replicates, dtype=torch.float64)
        self.sizes.index_add_(0, replicate[own], weight[own])
        self.totals = torch.zeros(replicates, ways, dtype=torch.float64)

    def add(self, block: slice, ratio: Tensor) -> None:
        """Add the log ratios at some rows' codes, shape ``(B, P)``."""
        replicate = self.replicate[block]
        own = replicate >= 0
        self.totals.index_add_(
            0, replicate[own], self.weight[block][own].unsqueeze(-1) * ratio[own]
        )

    def result(self) -> Tensor:
        """The means; each replicate has a code."""
        return self.totals / self.sizes.unsqueeze(-1)


def compare(
    log_densities: Tensor, replicate: Tensor, weight: Tensor, ways: Assignments
) -> Permuted:
    r"""Test each code, and all together, for a difference of two groups of replicates.

    A code's statistic is |λ| over its standard error, which keeps the test near its rate where one
    group spreads more than the other. That of all codes is E_A[λ] − E_B[λ], where each replicate
    counts by its weight: the symmetrised divergence of the groups.

    Args:
        log_densities: log q_r(z_n), shape ``(N, R)``.
        replicate: number of each code's replicate, shape ``(N,)``; −1 for one of neither group.
        weight: of each code within its replicate, shape ``(N,)``.
        ways: the observed assignment and others.

    Janssen 1997, "Studentized permutation tests for non-i.i.d. hypotheses and the generalized
    Behrens-Fisher problem".
    """
    rows = len(log_densities)
    ratio, error, p_value = (torch.empty(rows, dtype=torch.float64) for _ in range(3))
    means = Means(replicate, weight, log_densities.shape[1], ways.first.shape[1])
    for start in range(0, rows, ROWS):
        block = slice(start, start + ROWS)
        ratio_ways, error_ways = ratios(log_densities[block], ways)
        statistic = _studentised(ratio_ways, error_ways)
        p_value[block] = (statistic >= statistic[:, :1] * (1 - ROUNDING)).double().mean(1)
        ratio[block], error[block] = ratio_ways[:, 0], error_ways[:, 0]
        means.add(block, ratio_ways)
    separation = ((ways.first - ways.second) * means.result()).sum(0)
    margin = ROUNDING * separation[0].abs()
    globally = float((separation >= separation[0] - margin).double().mean())
    return Permuted(ratio, error, p_value, globally)


def _studentised(ratio: Tensor, error: Tensor) -> Tensor:
    """|λ| over its standard error; 0 where the groups are the same."""
    return torch.where(ratio == 0, 0.0, ratio.abs() / error)


def divergence(
    log_densities: Tensor, replicate: Tensor, weight: Tensor, first: Tensor, second: Tensor
) -> Estimate:
    r"""KL(q_A‖q_B) of two groups with the jackknife's standard error over replicates.

    .. math:: \sum_r a_r \frac{\sum_{n ∈ r} w_n λ(z_n)}{\sum_{n ∈ r} w_n}, \quad
        λ = \log q_A - \log q_B

    A replicate is left out of the mean over codes and of its group's density; replicates of either
    group are left out in turn (Arvesen 1969). The interval is Student's.

    Args:
        log_densities: log q_r(z_n), shape ``(N, R)``.
        replicate: number of each code's replicate, shape ``(N,)``; −1 for one of neither group.
        weight: w_n of each code, shape ``(N,)``.
        first, second: weights of the replicates, shape ``(R,)``.
    """
    without = 1 - torch.eye(len(first), dtype=torch.float64)
    ways = Assignments(*(_normalised(group, without) for group in (first, second)))
    means = Means(replicate, weight, len(first), len(first) + 1)
    for start in range(0, len(log_densities), ROWS):
        block = slice(start, start + ROWS)
        means.add(block, ratios(log_densities[block], ways)[0])
    value, *left_out = (ways.first * means.result()).sum(0).tolist()
    others = torch.tensor(left_out, dtype=torch.float64)
    in_first, in_second = first > 0, second > 0
    strata = (in_first & ~in_second, in_second & ~in_first, in_first & in_second)
    variance, freedom = 0.0, 0
    for part in (others[stratum] for stratum in strata if bool(stratum.any())):
        variance += float((len(part) - 1) / len(part) * (part - part.mean()).square().sum())
        freedom += len(part) - 1
    size = int((in_first | in_second).sum())
    estimate = Estimate(value, math.sqrt(variance), size, "data")
    margin = estimate.standard_error * float(student_t.ppf((1 + CONFIDENCE) / 2, freedom))
    return replace(estimate, ends=(value - margin, value + margin))


def _normalised(weight: Tensor, without: Tensor) -> Tensor:
    """Weights, and the same without each replicate, with totals of 1, shape ``(R, R + 1)``."""
    left = torch.cat([weight.unsqueeze(-1), weight.unsqueeze(-1) * without], 1)
    return left / left.sum(0)
