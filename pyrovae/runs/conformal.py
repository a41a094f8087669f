"""How unlike the data a row is: the rank of its log p(x) among rows that the pair has not seen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.display import Result
from pyrovae.errors import InputError
from pyrovae.evidence import Evidence
from pyrovae.randomness import seeded


@dataclass(frozen=True, repr=False)
class Scores(Result):
    """log p(x) of new rows, and how rare so low a value is among rows like the held-out ones.

    Args:
        evidence: log p(x) of each row, in nats, shape ``(M,)``.
        p_value: of each row, shape ``(M,)``: if it is like the held-out rows, its p-value is
            below any a in [0, 1] with probability a. It can't be smaller than about
            1/(``calibrated_on`` + 1).
        source: the density in the prior's place: ``"prior"``, ``"q_agg"`` or ``"ex-post"``.
        calibrated_on: number of held-out rows.
    """

    evidence: Evidence
    p_value: Tensor
    source: str
    calibrated_on: int


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
