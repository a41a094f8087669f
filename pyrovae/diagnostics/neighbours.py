"""How samples and data lie among each other's nearest neighbours."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyrovae.estimates import Estimate, student_quantile
from pyrovae.randomness import seeded

NEIGHBOURS = 5  # k, as Naeem et al. take it
SPLITS = 50  # random halvings behind a standard error
BLOCK_BYTES = 1 << 24  # of distances that are searched at once


class Nearest(NamedTuple):
    """The nearest of some points to each row, nearest first.

    Args:
        squared: their squared distances, shape ``(n, K)``.
        places: which they are, shape ``(n, K)``.
    """

    squared: Tensor
    places: Tensor


def squared_distances(rows: Tensor, points: Tensor) -> Tensor:
    """|x − y|² in float64, shape ``(n, m)``; exact for whole numbers, so that ties are ties."""
    rows, points = rows.double(), points.double()
    sums = rows.square().sum(1)[:, None] + points.square().sum(1)
    return sums.addmm(rows, points.mT, alpha=-2).clamp_min(0.0)  # below 0 by rounding only


def nearest(rows: Tensor, points: Tensor, *, count: int, own: bool = False) -> Nearest:
    """The ``count`` points that are nearest to each row, or all if there are fewer.

    Args:
        rows, points: features, shapes ``(n, F)`` and ``(m, F)``.
        count: K.
        own: whether row i is point i, which then does not count.
    """
    size = max(1, BLOCK_BYTES // (8 * len(points)))
    parts = []
    for start in range(0, len(rows), size):
        squared = squared_distances(rows[start : start + size], points)
        if own:
            squared.diagonal(start).fill_(math.inf)
        parts.append(squared.topk(min(count, len(points) - own), largest=False))
    return Nearest(*(torch.cat(column) for column in zip(*parts, strict=True)))


def listed(neighbours: int) -> int:
    """How many nearest points to keep, so that among them are the ``neighbours`` of any half.

    That a random half of the points holds fewer of them has a probability below 1e-12.
    """
    return 8 * neighbours + 40


def coverage_if_equal(size: int, neighbours: int) -> float:
    r"""The expected coverage if both samples come from one density, whatever it is.

    That none of the k nearest of the other rows and samples together is a sample:

    .. math:: 1 - \prod_{j=1}^{k} \frac{n - j}{2n - j}

    Args:
        size: n, the number of rows and of samples.
        neighbours: k.

    >>> round(coverage_if_equal(10_000, 5), 4)
    0.9688
    """
    return 1 - math.prod((size - j) / (2 * size - j) for j in range(1, neighbours + 1))


def neighbour_measures(
    real: Tensor, samples: Tensor, *, neighbours: int = NEIGHBOURS, seed: int = 0
) -> dict[str, Estimate]:
    r"""Precision, recall, density and coverage of samples beside as many rows of data.

    With B(x) the ball around x up to the k-th nearest of the other points of its own set, for data
    r_i and samples g_j:

    .. math::
        \text{precision} = \tfrac1n \#\{j : g_j \in \cup_i B(r_i)\}, \quad
        \text{recall} = \tfrac1n \#\{i : r_i \in \cup_j B(g_j)\}

        \text{density} = \tfrac1{kn} \#\{i, j : g_j \in B(r_i)\}, \quad
        \text{coverage} = \tfrac1n \#\{i : B(r_i) \text{ holds a sample}\}

    If both come from one density, density is 1 on average, coverage is :func:`coverage_if_equal`,
    and precision and recall are equal; ties, as between binary rows, raise them.

    Args:
        real, samples: independent rows of features, both ``(n, F)``, n > 2 k + 3.
        neighbours: k.
        seed: names the halves behind the standard errors, see :func:`halved_error`.

    Kynkäänniemi et al. 2019, arXiv:1904.06991; Naeem et al. 2020, arXiv:2002.09797.
    """
    k, n = neighbours, len(real)
    around = [nearest(x, x, count=listed(k), own=True) for x in (real, samples)]
    between = squared_distances(real, samples)

    def measure(members: Tensor) -> Tensor:
        chosen = members.nonzero().squeeze(1)
        radii = [_kth(lists, chosen, members, k) for lists in around]
        squared = between[chosen[:, None], chosen]
        inside = squared <= radii[0][:, None]
        return torch.stack(
            [
                inside.any(0).double().mean(),
                (squared <= radii[1]).any(1).double().mean(),
                inside.double().sum(1).mean() / k,
                inside.any(1).double().mean(),
            ]
        )

    values = measure(torch.ones(n, dtype=torch.bool, device=real.device))
    errors = halved_error([measure(half) - measure(rest) for half, rest in halves(n, seed, real)])
    names = ("precision", "recall", "density", "coverage")
    by_name = zip(names, values.tolist(), errors.tolist(), strict=True)
    return {
        name: Estimate(value, max(error, 1 / n), n, "data")  # as if of one sample in k balls
        if name == "density"
        else share(value, error, n)
        for name, value, error in by_name
    }


def nearer_to_training(
    samples: Tensor, train: Tensor, held_out: Tensor, *, seed: int = 0
) -> Estimate:
    """The share of samples that are nearer to a training row than to any held-out row.

    With as many rows of both it is 1/2 if the samples know nothing of the training rows in
    particular, and 1 if they copy them. A sample as near to both counts for a half.

    Args:
        samples: features, shape ``(n, F)``.
        train, held_out: features, both ``(m, F)``.
        seed: names the halves behind the standard error, see :func:`halved_error`.
    """
    sides = [nearest(samples, points, count=listed(1)) for points in (train, held_out)]

    def measure(members: Tensor, points: Tensor) -> Tensor:
        chosen = members.nonzero().squeeze(1)
        seen, unseen = (_kth(lists, chosen, points, 1) for lists in sides)
        return ((seen < unseen).double() + (seen == unseen).double() / 2).mean()

    n, m = len(samples), len(train)
    whole = [torch.ones(size, dtype=torch.bool, device=samples.device) for size in (n, m)]
    pairs = zip(halves(n, seed, samples), halves(m, seed, samples), strict=True)
    error = halved_error(
        [measure(h, of_h) - measure(rest, of_rest) for (h, rest), (of_h, of_rest) in pairs]
    )
    return share(float(measure(*whole)), float(error), n)


def _kth(lists: Nearest, rows: Tensor, members: Tensor, k: int) -> Tensor:
    """Squared distances of some rows to the k-th nearest of the points that are members."""
    kept = members[lists.places[rows]]
    place = ((kept.cumsum(1) == k) & kept).byte().argmax(1, keepdim=True)
    return lists.squared[rows].gather(1, place).squeeze(1)


def halves(size: int, seed: int, like: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Random halvings of a set as masks, both halves of one size: an odd one is in neither."""
    half, pairs = size // 2, []
    with seeded(seed, "halves of neighbours", size):
        for _ in range(SPLITS):
            order = torch.randperm(size)
            masks = torch.zeros(2, size, dtype=torch.bool)
            masks[0, order[:half]] = masks[1, order[half : 2 * half]] = True
            pairs.append(tuple(masks.to(like.device)))
    return pairs


def halved_error(differences: list[Tensor]) -> Tensor:
    r"""The standard error of a measure from its differences between the halves of all its sets.

    Two halves of independent rows are independent, so that half the mean square of their difference
    is exactly the variance of the measure on half of the rows, whatever it does with them; and with
    n times the variance the same for all n, as in the limit, half of that is the variance on all:

    .. math:: se^2 = \tfrac14 \overline{(t_1 - t_2)^2}

    A bootstrap would not do: a row drawn twice is its own nearest neighbour (Abadie & Imbens 2008).

    Args:
        differences: one for each halving, each of the shape of the measure.
    """
    return torch.stack(differences).square().mean(0).sqrt() / 2


def share(value: float, error: float, size: int) -> Estimate:
    """A share with its 95 % interval, which stays within 0 and 1 (Wilson's).

    Args:
        value: the share.
        error: its standard error; taken as that of independent cases if it is smaller.
        size: number n of cases.
    """
    cautious = (size * value + 1) / (size + 2)  # so that a share of 0 or 1 has an error too
    error = max(error, math.sqrt(cautious * (1 - cautious) / size))
    cases = cautious * (1 - cautious) / error**2
    excess = student_quantile(SPLITS) ** 2 / cases
    middle = (value + excess / 2) / (1 + excess)
    margin = math.sqrt(excess * value * (1 - value) + excess**2 / 4) / (1 + excess)
    ends = (max(middle - margin, 0.0), min(middle + margin, 1.0))  # outside by rounding only
    return Estimate(value, error, size, "data", ends=ends)
