"""Which rows are unlike the data, at a false discovery rate that holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.data import Data
from pyrovae.diagnostics import inference_gaps
from pyrovae.display import Result, draw
from pyrovae.errors import InputError
from pyrovae.estimates import Estimate
from pyrovae.evidence import log_evidence
from pyrovae.pairs import PyroFunction
from pyrovae.populations.conformal import conformal
from pyrovae.populations.multiple_tests import check_control, q_values
from pyrovae.populations.ranking import auroc
from pyrovae.randomness import check_seed, derived_seed
from pyrovae.torch_modes import plain

Score = Literal["log_p_x", "regret"]


@dataclass(frozen=True, repr=False)
class Novelty(Result):
    """How unlike the data some rows are.

    Args:
        scores: of each row, low where it is unlike the data, shape ``(M,)``.
        p_value: of each row, shape ``(M,)``: for a row that is exchangeable with those of the
            calibration it is uniform on (0, 1).
        q_value: the smallest false discovery rate at which a row is found, shape ``(M,)``.
        score: what was ranked: ``"log_p_x"``, ``"regret"`` or ``"codes"``.
        known: scores of the rows of the calibration, shape ``(n,)``.
        level: the false discovery rate of `found`.
    """

    scores: Tensor
    p_value: Tensor
    q_value: Tensor
    score: str
    known: Tensor
    level: float

    @property
    def calibrated_on(self) -> int:
        """Number of rows of the calibration."""
        return len(self.known)

    @property
    def found(self) -> Tensor:
        """Which rows are novel, on average at most ``level`` of them falsely, shape ``(M,)``."""
        return self.q_value <= self.level

    @property
    def auroc(self) -> Estimate:
        """How well the score tells the new rows, taken together, from those of the calibration.

        The probability that a row of the calibration has a higher score than a new one.
        """
        return auroc(self.known, self.scores)

    def plot(self, **options: Any) -> Any:
        """The p-values of the new rows as a histogram, and its axes.

        Args:
            options: those of ``pyrovae.plots.novel_rows``: ``ax=``.
        """
        return draw("novel_rows", self, **options)

    @property
    def concerns(self) -> tuple[str, ...]:
        """What so few rows of the calibration can't tell."""
        least = math.ceil(len(self.scores) / (self.level * (self.calibrated_on + 1)))
        if least <= 1:
            return ()
        return (
            f"p-values from {self.calibrated_on} rows of the calibration are hardly below "
            f"{1 / (self.calibrated_on + 1):.2g}: about {least} of {len(self.scores)} new rows "
            f"have to be novel for any to be found at a rate of {self.level:g}. Give more rows to "
            "calibration=, or ask about fewer.",
        )


@plain()
def novelty(
    source: dist.Distribution | tuple[PyroFunction, PyroFunction],
    new: Data,
    *,
    calibration: Data,
    score: Score = "log_p_x",
    level: float = 0.1,
    seed: int = 0,
    **of_the_score: Any,
) -> Novelty:
    r"""Which rows are novel: conformal p-values of a score, and those found among them.

    Which score sees what:

    - ``"log_p_x"``, of a pair: log p(x) by `log_evidence`. It sees rows that the model explains
      badly, and fails for rows that are simpler than the data: their log p(x) is high (Nalisnick et
      al. 2019), so that flat images pass among photographs.
    - ``"regret"``, of a pair: how much the ELBO of a row gains by improving its q(z|x), which is
      large where the encoder has not seen the like; simple rows don't pass (Xiao et al. 2020). It
      takes some hundred steps for each row.
    - codes, of a density over them such as an ex-post prior's: log q(z). It sees rows whose codes
      lie where there were none, and nothing of what the encoder leaves out. Under q_agg itself,
      codes of training rows are too likely; take held-out rows, and the ex-post prior.

    A p-value is exact for any score if the row is exchangeable with the calibration's, ties broken
    at random; a score that k̂ rejects finds less, and no more falsely. Benjamini and Hochberg's
    procedure controls the false discovery rate over many rows that share a calibration (Bates et
    al. 2023).

    Args:
        source: a pair ``(model, guide)``, or a density over codes.
        new: M rows; codes, shape ``(M, D)``, for a density.
        calibration: rows, or codes, that neither training nor any choice has seen.
        score: what is ranked, of a pair.
        level: the false discovery rate of what is found.
        seed: names all draws.
        of_the_score: keywords of `log_evidence` or `inference_gaps`, such as ``draws`` or ``site``.

    Raises:
        InputError: for an unknown score, a rate outside (0, 1), or what the score itself refuses.

    Bates et al. 2023, "Testing for outliers with conformal p-values"; Nalisnick et al. 2019, "Do
    deep generative models know what they don't know?"; Xiao et al. 2020, "Likelihood regret".

    >>> density = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    >>> far = torch.full((3, 2), 9.0)
    >>> novelty(density, far, calibration=density.sample((200,))).found
    tensor([True, True, True])
    """
    check_control(level, "bh")
    check_seed(seed)
    if isinstance(source, torch.distributions.Distribution):
        name = "codes"
        scores, known = (_log_density(source, codes) for codes in (new, calibration))
    elif score in SCORES:
        name, of_rows = score, SCORES[score]
        seeds = (derived_seed(seed, "scores of new rows"), derived_seed(seed, "calibration"))
        scores, known = (
            of_rows(*source, rows, {"seed": own} | of_the_score)
            for rows, own in zip((new, calibration), seeds, strict=True)
        )
    else:
        raise InputError(f"expected a score of {list(SCORES)}; got {score!r}.")
    return ranked(scores, known, name, level=level, seed=seed)


def ranked(scores: Tensor, known: Tensor, score: str, *, level: float, seed: int) -> Novelty:
    """The rows that are novel by scores that are at hand.

    Args:
        scores: of new rows, low where they are unlike the data, shape ``(M,)``.
        known: of the rows of the calibration, shape ``(n,)``.
        score: what was ranked.
        level, seed: as `novelty`.
    """
    check_control(level, "bh")
    p_value = conformal(scores, known, seed=seed)
    return Novelty(scores, p_value, q_values(p_value, "bh"), score, known, level)


def _log_density(density: dist.Distribution, codes: Data) -> Tensor:
    with torch.no_grad():
        return cast(Tensor, density.log_prob(codes)).double()


def _log_p_x(
    model: PyroFunction, guide: PyroFunction, rows: Data, options: dict[str, Any]
) -> Tensor:
    # a p-value is exact for any score, so that k̂ is nothing to warn of
    return log_evidence(model, guide, rows, **{"warn": False} | options).values


def _minus_regret(
    model: PyroFunction, guide: PyroFunction, rows: Data, options: dict[str, Any]
) -> Tensor:
    gaps = inference_gaps(model, guide, rows, **{"draws": 500, "progress": False} | options)
    return gaps.guide.values - gaps.family.values


SCORES: dict[str, Callable[..., Tensor]] = {"log_p_x": _log_p_x, "regret": _minus_regret}
