"""log p(x) of new rows and its rank among the held-out ones, as `Run.score` returns them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pyrovae.display import Result
from pyrovae.evidence import Evidence


@dataclass(frozen=True, repr=False)
class Scores(Result):
    """log p(x) of new rows, and how rare so low a value is among rows like the held-out ones.

    Args:
        evidence: log p(x) of each row, in nats, shape ``(M,)``.
        p_value: of each row, shape ``(M,)``: if it is like the held-out rows, its p-value is
            below any a in [0, 1] with probability a. A row below all held-out ones has one that is
            drawn at random between 0 and 1/(``calibrated_on`` + 1), by the seed.
        source: the density in the prior's place: ``"prior"``, ``"q_agg"`` or ``"ex-post"``.
        calibrated_on: number of held-out rows.
    """

    evidence: Evidence
    p_value: Tensor
    source: str
    calibrated_on: int
