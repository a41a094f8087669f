"""Where the codes of groups of rows lie apart, with errors over replicates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.display import Result, draw
from pyrovae.errors import InputError
from pyrovae.estimates import Estimate
from pyrovae.mixture import AggregatedPosterior
from pyrovae.populations.contrast import compare, divergence, permuted
from pyrovae.populations.multiple_tests import Control, check_control, q_values
from pyrovae.populations.replicates import Labels, Names, log_densities, numbered
from pyrovae.randomness import check_seed
from pyrovae.torch_modes import plain

TOO_FEW = "too few replicates to tell"


@dataclass(frozen=True, repr=False)
class GroupContrast(Result):
    """Two groups: the log ratio of their densities at every code, and which ratios are found.

    Args:
        first, second: names of the groups.
        log_ratio: log q_first(z_n) − log q_second(z_n), own component left out, shape ``(N,)``.
        standard_error: over replicates, shape ``(N,)``; infinite with one replicate in a group.
        p_value: of each code under exchangeable replicates, by permutation, shape ``(N,)``;
            ``None`` with one replicate in a group.
        q_value: the smallest false discovery rate at which a code is found, shape ``(N,)``.
        global_p_value: of all codes together, from their mean separation.
        divergence, reverse: KL(q_first‖q_second) and KL(q_second‖q_first), in nats.
        replicates: how many of them each group has.
        smallest_p_value: that there can be, from the number of permutations.
        level: the false discovery rate of `found`.
    """

    first: str
    second: str
    log_ratio: Tensor
    standard_error: Tensor
    p_value: Tensor | None
    q_value: Tensor | None
    global_p_value: float | None
    divergence: Estimate
    reverse: Estimate
    replicates: tuple[int, int]
    smallest_p_value: float
    level: float

    @property
    def found(self) -> Tensor:
        """Which codes the groups differ at, at most ``level`` of them falsely, shape ``(N,)``."""
        if self.q_value is None:
            return torch.zeros(len(self.log_ratio), dtype=torch.bool)
        return self.q_value <= self.level

    def exemplars(self, count: int = 5) -> dict[str, Tensor]:
        """Rows found where each group is denser, those that differ most beyond their error first.

        Args:
            count: the most rows of each group.

        Returns:
            row numbers by name of the group, shapes ``(≤ count,)``.
        """
        beyond = self.log_ratio / self.standard_error
        rows = {}
        for name, sign in ((self.first, 1), (self.second, -1)):
            side = (self.found & (sign * self.log_ratio > 0)).nonzero().flatten()
            rows[name] = side[(sign * beyond[side]).argsort(descending=True)[:count]]
        return rows

    def plot(self, agg: AggregatedPosterior, **options: Any) -> Any:
        """The codes in the colour of the log ratio, and their axes.

        Args:
            agg: the q_agg whose groups were compared.
            options: those of ``pyrovae.plots.group_contrast``: ``units=`` and ``ax=``.
        """
        return draw("group_contrast", self, agg, **options)

    @property
    def concerns(self) -> tuple[str, ...]:
        """What these numbers can't tell."""
        pair = f"{self.first} and {self.second}"
        if self.p_value is None:
            return (
                f"{pair} have {self.replicates[0]} and {self.replicates[1]} replicates: how much "
                "replicates of one group differ can't be known from one, so that the log ratios "
                "have no error and nothing is tested. Name donors, plates or days by replicates=.",
            )
        if self.smallest_p_value > self.level:
            return (
                f"{pair} have {self.replicates[0]} and {self.replicates[1]} replicates, which can "
                f"be exchanged in so few ways that no p-value is below {self.smallest_p_value:.2g}:"
                f" nothing can be found at a false discovery rate of {self.level:g}.",
            )
        return ()


@dataclass(frozen=True, repr=False)
class GroupComparison(Result):
    """The density of every replicate at every code, from which any two groups are compared.

    Args:
        groups: names of the G groups.
        replicates: names of the R replicates.
        log_densities: log q_r(z_n) with n's own component left out, shape ``(N, R)``.
        weights: of the replicates in each group, shape ``(R, G)``, each group with total 1.
        replicate: number of each row's replicate, shape ``(N,)``.
        level, permutations, control, seed: as given to `compare_groups`.
        row_weights: of the rows, as q_agg has them, shape ``(N,)``; ``None`` for equal ones.
    """

    groups: tuple[str, ...]
    replicates: tuple[str, ...]
    log_densities: Tensor
    weights: Tensor
    replicate: Tensor
    level: float
    permutations: int
    control: Control
    seed: int
    row_weights: Tensor | None = None

    @property
    def log_density(self) -> Tensor:
        """log q_g(z_n) of each group, own component left out, shape ``(N, G)``."""
        columns = [
            (self.log_densities[:, weight > 0] + weight[weight > 0].log()).logsumexp(1)
            for weight in self.weights.T
        ]
        return torch.stack(columns, 1)

    def contrast(self, first: str, second: str) -> GroupContrast:
        """Compare two groups.

        Raises:
            InputError: if there is no group of that name, or both are the same.
        """
        for name in (first, second):
            if name not in self.groups:
                raise InputError(f"expected one of the groups {list(self.groups)}; got {name!r}.")
        if first == second:
            raise InputError(f"expected two groups; got {first!r} twice.")
        one, other = (self.weights[:, self.groups.index(name)] for name in (first, second))
        involved = (one > 0) | (other > 0)
        number = torch.where(involved, involved.long().cumsum(0) - 1, -1)[self.replicate]
        densities, one, other = self.log_densities[:, involved], one[involved], other[involved]
        row_weights = (
            torch.ones(len(number), dtype=torch.float64)
            if self.row_weights is None
            else self.row_weights
        )
        forward = divergence(densities, number, row_weights, one, other)
        reverse = divergence(densities, number, row_weights, other, one)
        sizes = int((one > 0).sum()), int((other > 0).sum())
        ways = permuted(one, other, self.permutations, self.seed)
        result = compare(densities, number, row_weights, ways)
        tested = min(sizes) > 1
        return GroupContrast(
            first,
            second,
            result.log_ratio,
            result.standard_error if tested else torch.full_like(result.log_ratio, math.inf),
            result.p_value if tested else None,
            q_values(result.p_value, self.control) if tested else None,
            result.global_p_value if tested else None,
            forward if tested else forward.unresolve(TOO_FEW),
            reverse if tested else reverse.unresolve(TOO_FEW),
            sizes,
            ways.smallest_p_value,
            self.level,
        )


@plain()
def compare_groups(
    agg: AggregatedPosterior,
    groups: Labels | Sequence[float],
    *,
    replicates: Labels | None = None,
    at: Sequence[float] | None = None,
    bandwidth: float | None = None,
    level: float = 0.1,
    control: Control = "bh",
    permutations: int = 999,
    seed: int = 0,
) -> GroupComparison:
    r"""Where the codes of groups lie apart: the log ratio of their densities at every code.

    .. math:: λ_n = \log q_A(z_n) - \log q_B(z_n), \quad
        q_A(z) = \frac{1}{|A|} \sum_{r ∈ A} q_r(z)

    A group is the mean of its replicates' densities; z_n is the mean of n's encoding, and n's own
    component is left out of its replicate's density exactly. How the replicates of a group differ
    tells what a difference between groups is worth: each code has a standard error over replicates,
    and a p-value by permuting them between the groups. The densities of all replicates take as many
    pairs of code and component as q_agg itself does.

    Args:
        agg: q_agg of N rows; its weights count within a replicate, in densities and in means over
            codes.
        groups: a label for each row, or, with ``at``, a number such as an age.
        replicates: a label for each row: the donor, plate or day that it comes from, which has one
            group only; without them a group is one replicate, and nothing can be tested.
        at: values of the number that are compared in the place of groups: the replicates are then
            weighted by a normal kernel around each.
        bandwidth: standard deviation of that kernel.
        level: the false discovery rate of what is found.
        control: ``"bh"``, Benjamini & Hochberg 1995, for p-values that are independent or
            positively dependent, as those of codes close to each other are; ``"by"``, Benjamini &
            Yekutieli 2001, for any dependence.
        permutations: the most of them for a pair of groups; fewer where there are fewer ways.
        seed: names the random ones.

    Returns:
        a comparison; ``.contrast(a, b)`` compares two of its groups.

    Raises:
        InputError: for labels that don't fit the rows, a replicate of two groups or of one row, or
            settings out of range.

    >>> import pyro.distributions as dist
    >>> means = torch.cat([torch.randn(60, 2), torch.randn(60, 2) + 3.0])
    >>> agg = AggregatedPosterior(dist.Normal(means, torch.full_like(means, 0.3)).to_event(1))
    >>> donors = [n // 10 for n in range(120)]
    >>> comparison = compare_groups(agg, ["ill"] * 60 + ["well"] * 60, replicates=donors)
    >>> bool(comparison.contrast("ill", "well").found.any())
    True
    """
    check_control(level, control)
    check_seed(seed)
    if permutations < 1:
        raise InputError(f"expected at least one permutation; got permutations={permutations}.")
    rows = agg.size
    names = groups if replicates is None else replicates
    replicate, labels = numbered(names, rows, "groups" if replicates is None else "replicates")
    if at is None:
        group_names, weights = _by_label(groups, replicate, labels)
    else:
        group_names, weights = _by_kernel(groups, replicate, labels, at, bandwidth)
    return GroupComparison(
        group_names,
        tuple(map(str, labels)),
        log_densities(agg, replicate, len(labels)),
        weights,
        replicate,
        level,
        permutations,
        control,
        int(seed),
        agg.log_weights.double().exp().cpu(),
    )


def _by_label(groups: Labels, replicate: Tensor, labels: Names) -> tuple[tuple[str, ...], Tensor]:
    """Names of the groups, and equal weights of their replicates, shape ``(R, G)``."""
    group, names = numbered(groups, len(replicate), "groups")
    if len(names) < 2:
        raise InputError(f"expected at least two groups; got {list(names)}.")
    member = torch.zeros(len(labels), len(names), dtype=torch.float64)
    member[replicate, group] = 1.0
    if bool((member.sum(1) > 1).any()):
        r = int((member.sum(1) > 1).nonzero()[0])
        parts = [str(names[g]) for g in member[r].nonzero().flatten().tolist()]
        raise InputError(
            f"expected replicates of one group each; got {labels[r]!r} with rows of {parts}. Name "
            "a replicate by donor and group if they are to count as two."
        )
    return tuple(map(str, names)), member / member.sum(0)


def _by_kernel(
    numbers: Labels | Sequence[float],
    replicate: Tensor,
    labels: Names,
    at: Sequence[float],
    bandwidth: float | None,
) -> tuple[tuple[str, ...], Tensor]:
    """Names of the values compared, and kernel weights of the replicates, shape ``(R, G)``."""
    if bandwidth is None or not bandwidth > 0:
        raise InputError(f"expected a bandwidth above 0 with at=; got {bandwidth}.")
    if len(set(at)) < 2:
        raise InputError(f"expected at least two values to compare; got at={list(at)}.")
    value = torch.as_tensor(np.asarray(numbers, dtype=float))
    if value.shape != replicate.shape or not bool(value.isfinite().all()):
        raise InputError(
            f"expected a finite number for each of the {len(replicate)} rows with at=; got shape "
            f"{tuple(value.shape)}."
        )
    of_replicate = torch.zeros(len(labels), dtype=value.dtype)
    of_replicate[replicate] = value
    if not torch.equal(of_replicate[replicate], value):
        r = int(replicate[(of_replicate[replicate] != value).nonzero()[0]])
        raise InputError(
            f"expected one number for all rows of a replicate; got several for {labels[r]!r}."
        )
    distance = (of_replicate.unsqueeze(-1) - torch.tensor(at, dtype=value.dtype)) / bandwidth
    return tuple(f"{x:g}" for x in at), (-distance.square() / 2).softmax(0)
