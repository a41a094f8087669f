"""The classes of a data set: which rows have which label, and where their codes lie on average."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyrovae.display import Result, by_number
from pyrovae.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class ClassMeans(Result):
    """The mean code of each class, with standard errors over data sets.

    Args:
        labels: the classes, L of them.
        mean: E[z | class], shape ``(L, D)``.
        standard_error: of each number, shape ``(L, D)``; infinite for a class of one row.
        size: rows of each class, shape ``(L,)``.
    """

    labels: tuple[Any, ...]
    mean: Tensor
    standard_error: Tensor
    size: Tensor

    def table(self) -> pd.DataFrame:
        """A row for each class: ``size``, then ``mean_d`` and ``standard_error_d`` of each unit."""
        import pandas as pd

        columns: dict[str, Any] = {"size": self.size.numpy()}
        for name, values in (("mean", self.mean), ("standard_error", self.standard_error)):
            for unit, column in enumerate(values.flatten(1).cpu().numpy().T):
                columns[f"{name}_{unit}"] = column
        return pd.DataFrame(columns, index=pd.Index(self.labels, name="label"))


def rows_by_label(labels: Iterable[Any], size: int) -> dict[Any, Tensor]:
    """The numbers of the rows of each class, in rising order where classes have one.

    Texts that are numbers come by their size, before others.

    Args:
        labels: one for each row: numbers, words, a tensor, an array, a column of a table.
        size: number of rows.

    Raises:
        InputError: unless there is one label for each row, or if some are missing.
    """
    import pandas as pd

    values = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    if not isinstance(values, list) or len(values) != size or isinstance(values[0], list):
        got = f"shape {tuple(labels.shape)}" if hasattr(labels, "shape") else f"{len(values):,}"
        raise InputError(
            f"expected one label for each of {size:,} data points; got {got}. Give the labels of "
            "the rows that were aggregated, in their order."
        )
    missing = [row for row, value in enumerate(values) if value is None or pd.isna(value)]
    if missing:
        raise InputError(
            f"expected a label for each data point; got none for {len(missing):,}, row "
            f"{missing[0]} first (counted from 0). Leave these rows out of both: "
            "agg[keep].by_label(labels[keep]), with a mask keep."
        )
    groups: dict[Any, list[int]] = {}
    for row, value in enumerate(values):
        groups.setdefault(value, []).append(row)
    try:
        order = sorted(groups, key=by_number)
    except TypeError:  # numbers and words together
        order = list(groups)
    return {label: torch.tensor(groups[label]) for label in order}


def class_mean(means: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    r"""The weighted mean of the encodings' means, and its standard error over data sets.

    .. math:: m = \sum_n w_n μ_n, \quad
              \mathrm{se}^2 = \frac{n}{n-1} \sum_n w_n^2 (μ_n - m)^2, \quad \sum_n w_n = 1

    Args:
        means: μ_n, shape ``(n, ...)``.
        weights: w_n ≥ 0, shape ``(n,)``, with any positive total.

    Returns:
        both in float64, event shape.
    """
    used = weights > 0
    share = weights[used].double() / weights[used].double().sum()
    values = means[used].double()
    mean = torch.tensordot(share, values, 1)
    n = len(values)
    if n < 2:
        return mean, torch.full_like(mean, torch.inf)
    squares = torch.tensordot(share.square(), (values - mean).square(), 1)
    return mean, (squares * n / (n - 1)).sqrt()
