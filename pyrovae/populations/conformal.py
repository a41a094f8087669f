"""The rank of a score among those of rows that nothing has been fitted to, as a p-value."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrovae.errors import InputError
from pyrovae.randomness import seeded


def conformal(scores: Tensor, held_out: Tensor, *, seed: int = 0) -> Tensor:
    r"""The smoothed conformal p-value of each score: how rare it is to be so low.

    .. math:: p = \frac{\#\{i : s_i < s\} + u (1 + \#\{i : s_i = s\})}{n + 1}, \quad u \sim U(0, 1)

    For a score that is exchangeable with the held-out ones it is uniform on (0, 1), with ties too.

    Args:
        scores: shape ``(M,)``; low is novel.
        held_out: s_i, shape ``(n,)``, of rows that neither training nor any choice has seen.
        seed: names u, one for each score.

    Raises:
        InputError: for a score that is not a number, which has no rank.

    Vovk, Gammerman & Shafer 2005, "Algorithmic learning in a random world".
    """
    if bool(scores.isnan().any()) or bool(held_out.isnan().any()):
        raise InputError("expected scores that are numbers; got NaN. Look at log p(x) of the rows.")
    ranked = held_out.sort().values
    below = torch.searchsorted(ranked, scores.contiguous())
    equal = torch.searchsorted(ranked, scores.contiguous(), right=True) - below
    with seeded(seed, "ties of scores"):
        share = torch.rand(len(scores), dtype=torch.float64)
    return (below + share * (1 + equal)) / (len(ranked) + 1)
