"""How well scores tell two kinds of rows apart."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrovae.errors import InputError
from pyrovae.estimates import Estimate


def auroc(high: Tensor, low: Tensor) -> Estimate:
    r"""The probability that a score of one kind of rows is above one of the other, ties by half.

    .. math:: A = \tfrac1{mn} \sum_{ij} \big(1[s_i > t_j] + \tfrac12 1[s_i = t_j]\big)

    Its standard error is DeLong's, over rows of both kinds; it is not below that of one wrong pair
    of rows in place of none.

    Args:
        high: s, scores of the rows that are to be above, shape ``(m,)``.
        low: t, scores of the others, shape ``(n,)``.

    Raises:
        InputError: with fewer than two rows of a kind, or a score that is not a number.

    DeLong, DeLong & Clarke-Pearson 1988, "Comparing the areas under two or more correlated ROC
    curves".

    >>> auroc(torch.tensor([2.0, 3.0, 4.0]), torch.tensor([1.0, 2.0]))
    Estimate(0.917 ± 0.167, size=5)
    """
    m, n = len(high), len(low)
    if min(m, n) < 2:
        raise InputError(f"expected at least two rows of each kind; got {m} and {n}.")
    if bool(high.isnan().any()) or bool(low.isnan().any()):
        raise InputError("expected scores that are numbers; got NaN. Look at log p(x) of the rows.")
    ranks = [_wins(*pair) for pair in ((high, low), (low, high))]
    variance = float(ranks[0].var() / m + ranks[1].var() / n)
    value = float(ranks[0].mean())
    return Estimate(value, max(variance**0.5, 1 / (m * n)), m + n, "data")


def _wins(scores: Tensor, others: Tensor) -> Tensor:
    """The share of others that each score is above, ties by half."""
    ranked = others.sort().values
    below = torch.searchsorted(ranked, scores.contiguous())
    up_to = torch.searchsorted(ranked, scores.contiguous(), right=True)
    return (below + up_to).double() / (2 * len(others))
