"""Data of several arguments as one tensor, so that no measure need know how many there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyrovae.data import Batch, Data, all_rows, check_arguments, take_rows
from pyrovae.errors import InputError
from pyrovae.pairs.pair import Pair
from pyrovae.pairs.restore import PyroFunction


def over_rows(pair: Pair, *data: Data) -> tuple[Pair, tuple[Tensor, ...]]:
    """The pair as one of a single argument, and that argument for each of several data sets.

    A pair of one argument stays as it is. One of more becomes a pair over row numbers: called with
    some of them, it calls the original with these rows of every argument.

    Args:
        pair: model and guide.
        data: data sets with the same arguments.

    Returns:
        the pair, and for each data set a tensor whose first dimension counts the rows.

    Raises:
        InputError: for data that are refused, or have other arguments than the pair or each other.
    """
    batches = [all_rows(rows) for rows in data]
    for batch in batches:
        check_arguments(pair.model, batch, "model")
        check_arguments(pair.guide, batch, "guide")
    if {len(batch) for batch in batches} == {1}:
        return pair, tuple(batch[0] for batch in batches)
    kinds = [[(tuple(array.shape[1:]), array.dtype) for array in batch] for batch in batches]
    if any(kind != kinds[0] for kind in kinds):
        raise InputError(
            f"expected the same arguments in each data set, of one shape and dtype; got {kinds}. "
            "Reshape or convert them."
        )
    whole = tuple(torch.cat(column) for column in zip(*batches, strict=True))
    numbers = torch.arange(len(whole[0]), device=whole[0].device)
    bound = replace(pair, model=_over(pair.model, whole), guide=_over(pair.guide, whole))
    return bound, numbers.split([len(batch[0]) for batch in batches])


def _over(function: PyroFunction, whole: Batch) -> Callable[[Tensor], Any]:
    def of_rows(index: Tensor) -> Any:
        return function(*take_rows(whole, index))

    return of_rows
