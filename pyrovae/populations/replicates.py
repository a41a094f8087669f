"""The density of each replicate at every code, each code's own component left out."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from pyrovae.errors import InputError
from pyrovae.mixture import AggregatedPosterior

Labels = Sequence[Hashable] | Tensor
Names = tuple[Hashable, ...]


def numbered(labels: Labels, rows: int, name: str) -> tuple[Tensor, Names]:
    """Labels of rows as numbers, shape ``(N,)``, and the different ones in sorted order.

    Args:
        labels: one for each row: a list, a tensor, an array or a pandas Series.
        rows: N.
        name: of the argument, for errors.

    Raises:
        InputError: if there are not N of them, or one is missing.
    """
    array = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if array.shape != (rows,):
        raise InputError(
            f"expected {name} to have a label for each of the {rows} rows; got {array.shape}."
        )
    missing = [n for n, label in enumerate(array.tolist()) if label is None or label != label]
    if missing:
        raise InputError(
            f"expected {name} without missing labels; got one at row {missing[0]}. Leave such rows "
            "out of the aggregated posterior: agg[mask]."
        )
    different, number = np.unique(array, return_inverse=True)
    return torch.from_numpy(number.reshape(-1)), tuple(different.tolist())


def log_densities(agg: AggregatedPosterior, replicate: Tensor, count: int) -> Tensor:
    r"""log q_r(z_n) of each replicate's mixture at each code, in float64, shape ``(N, R)``.

    .. math:: q_r(z_n) = \sum_{m ∈ r,\, m ≠ n} w_m\, q(z_n | x_m) \Big/ \sum_{m ∈ r,\, m ≠ n} w_m

    Each pair of component and code is evaluated once, however many replicates there are.

    Args:
        agg: q_agg of N rows; the code z_n is the mean of n's encoding.
        replicate: number of each row's replicate, shape ``(N,)``.
        count: R, the number of replicates.

    Raises:
        InputError: for a replicate of a single row, which has no density without it.
    """
    codes = agg.encoding.mean
    densities = torch.empty(len(codes), count, dtype=torch.float64)
    for r in range(count):
        rows = (replicate == r).nonzero().squeeze(-1)
        if len(rows) < 2:
            raise InputError(
                f"expected replicates of at least two rows; got one of {len(rows)}, row "
                f"{rows.tolist()}. Leave it out: agg[mask]."
            )
        own = rows.to(codes.device)
        part = agg[own]
        densities[:, r] = part.log_prob(codes).cpu()
        position = torch.arange(len(own), device=codes.device)
        densities[rows, r] = part.leave_one_out_log_prob(codes[own], position).cpu().double()
    return densities
