"""Missing cells of a table, filled with what the cells that are there say of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.data import Column, as_frame
from pyrovae.display import Result
from pyrovae.errors import InputError
from pyrovae.estimates import name_rows
from pyrovae.evidence import k_limit, proposal_for, smooth
from pyrovae.models import MixedColumns
from pyrovae.pairs import Pair, encode_rows
from pyrovae.randomness import derived_seed, seeded

if TYPE_CHECKING:
    import pandas as pd

ROWS = 64  # rows whose codes are drawn together
DRAWS = 400  # of codes for each row, by default


@dataclass(frozen=True, repr=False)
class Imputation(Result):
    r"""Missing cells under their posterior predictive distribution, given the other cells of a row.

    .. math:: p(x_\mathrm{missing} \mid x_\mathrm{there}) = \int p(x_\mathrm{missing} \mid z)
        \, p(z \mid x_\mathrm{there}) \, dz

    A number is filled by the mean, a text or truth value by the most probable one.

    Args:
        values: all rows with the missing cells filled, shape ``(M, C)``, in the data's units;
            numbers of categories where there are texts.
        obs_mask: which cells were there, shape ``(M, C)``.
        standard_error: Monte Carlo standard error, shape ``(M, C)``: of a number that was filled
            in, in its units, or of the probability of a category; 0 for a cell that was there.
        deviation: how far the true number is from the one that was filled in, as a standard
            deviation, shape ``(M, C)``; NaN for texts and truth values.
        probability: of the text or truth value that was filled in, shape ``(M, C)``; NaN for
            numbers, 1 for a cell that was there.
        pareto_k: k̂ of each row's weights, shape ``(M,)``; above ``k_limit`` neither a value
            nor its standard error can be trusted. 0 for rows without a missing cell.
        draws: of codes for each row.
        columns: what each column holds, as the fields of :class:`~pyrovae.data.Column`.
    """

    values: Tensor
    obs_mask: Tensor
    standard_error: Tensor
    deviation: Tensor
    probability: Tensor
    pareto_k: Tensor
    draws: int
    columns: tuple[dict[str, Any], ...]

    @property
    def table(self) -> pd.DataFrame:
        """The filled table, with names, categories and dates."""
        columns = [Column(**column) for column in self.columns]
        return as_frame(self.values.double().numpy(), columns)

    @property
    def cells(self) -> pd.DataFrame:
        """One line for each cell that was filled: its place, value, errors, and its row's k̂."""
        import pandas as pd

        row, column = (~self.obs_mask).nonzero().T.numpy()
        table = self.table
        names = [table.columns[place] for place in column]
        at = (row, column)
        return pd.DataFrame(
            {
                "row": row,
                "column": names,
                "value": [table[name].iloc[r] for r, name in zip(row, names, strict=True)],
                "standard_error": self.standard_error.numpy()[at],
                "deviation": self.deviation.numpy()[at],
                "probability": self.probability.numpy()[at],
                "pareto_k": self.pareto_k.numpy()[row],
            }
        )

    @property
    def k_limit(self) -> float:
        """The k̂ up to which so many draws are enough: min(1 − 1/log10 S, 0.7)."""
        return k_limit(self.draws)

    @property
    def concerns(self) -> tuple[str, ...]:
        """Sentences on which rows should not be trusted, and why."""
        bad = ~(self.pareto_k <= self.k_limit)
        if not bool(bad.any()):
            return ()
        return (
            f"Imputation: k̂ > {self.k_limit:.2g} at {name_rows(bad)}: few draws carry all "
            "weight there, and neither the values nor their errors hold. Take more draws.",
        )


@torch.no_grad()
def impute(
    pair: Pair,
    rows: Tensor,
    decode: Callable[[Tensor], dist.Distribution],
    values: Tensor,
    obs_mask: Tensor,
    columns: tuple[Column, ...],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    tick: Callable[[int], None] = lambda _: None,
) -> Imputation:
    """Fill the missing cells of some rows, by importance-weighted draws of their codes.

    Codes are drawn from a proposal that is fitted to log p(x_there, z) of each row, see
    ``evidence/refined.py``.

    Args:
        pair: model and guide, whose likelihood counts the cells that are there alone.
        rows: as the pair takes them, each with a missing cell or without, shape ``(M, ...)``.
        decode: p(x | z) of codes ``(n, D)``: :class:`~pyrovae.models.MixedColumns` in a row.
        values: the numbers in the rows, shape ``(M, C)``.
        obs_mask: which of them are there, shape ``(M, C)``.
        columns: what each column holds.
        draws: of codes for each row, at least 25.
        seed: names the draws.
        tick: called with the number of rows that are done, block by block.

    Raises:
        InputError: for fewer draws than a k̂ takes.
    """
    if draws < 25:
        raise InputError(f"expected at least 25 draws to impute by; got {draws}. Take 400, say.")
    filled = values.double().clone()
    error, deviation = torch.zeros_like(filled), torch.full_like(filled, torch.nan)
    probability = torch.where(obs_mask, 1.0, torch.nan).double()
    pareto_k = filled.new_zeros(len(filled))
    incomplete = (~obs_mask.all(1)).nonzero().squeeze(1)
    for block, numbers in enumerate(incomplete.split(ROWS)):
        part, tuning_seed = rows[numbers], derived_seed(seed, "imputation", block)
        proposal = proposal_for(pair, part, encoded=encode_rows(pair, part), seed=tuning_seed)
        with seeded(seed, "codes to impute by", block):
            u = proposal.sample(draws)
        log_weights = proposal.target.of_draws(u) - proposal.log_prob(u)
        pareto_k[numbers] = smooth(log_weights.T.double())[1]
        weights = log_weights.softmax(0)
        z = proposal.target.codes(u)[0]
        likelihood = decode(z.flatten(0, 1))
        found = _moments(likelihood, weights)
        gone = ~obs_mask[numbers]
        for target, new in zip((filled, error, deviation, probability), found, strict=True):
            target[numbers] = torch.where(gone, new, target[numbers])
        tick(len(numbers))
    plain = tuple(vars(column) for column in columns)
    return Imputation(filled, obs_mask, error, deviation, probability, pareto_k, draws, plain)


def _moments(
    likelihood: dist.Distribution, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value, standard error, deviation and probability of all cells, each ``(B, C)``.

    Args:
        likelihood: p(x | z) of S draws for each of B rows, batch shape ``(S·B,)``.
        weights: of the draws, which sum to 1 in each row, shape ``(S, B)``.
    """
    mixed = cast(MixedColumns, likelihood.base_dist)
    real, truth, several = mixed.places
    shape, columns = weights.shape, len(mixed.categories)
    value, error, deviation, probability = (
        torch.full((shape[1], columns), torch.nan, dtype=torch.float64) for _ in range(4)
    )

    def mean(parts: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted mean over draws, and its standard error."""
        w = weights.reshape(*shape, *[1] * (parts.dim() - 2))
        centre = (w * parts).sum(0)
        return centre, (w * (parts - centre)).square().sum(0).sqrt()

    if mixed.normal is not None:
        loc = mixed.normal.loc.unflatten(0, shape).double()
        scale = mixed.normal.scale.unflatten(0, shape).double()
        value[:, real], error[:, real] = mean(loc)
        spread = mean(scale.square() + (loc - value[:, real]).square())[0]
        deviation[:, real] = spread.sqrt()
    if mixed.bernoulli is not None:
        share, error[:, truth] = mean(mixed.bernoulli.probs.unflatten(0, shape).double())
        value[:, truth] = (share > 0.5).double()
        probability[:, truth] = torch.maximum(share, 1 - share)
    if mixed.categorical is not None:
        shares, errors = mean(mixed.categorical.probs.unflatten(0, shape).double())
        best = shares.argmax(-1, keepdim=True)
        value[:, several] = best.squeeze(-1).double()
        probability[:, several] = shares.gather(-1, best).squeeze(-1)
        error[:, several] = errors.gather(-1, best).squeeze(-1)
    return value, error, deviation, probability
