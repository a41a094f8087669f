"""Data of several arguments as one tensor, so that no measure has to know how many there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyrovae.data import Batch, Data, all_rows, check_arguments, row_count, row_kinds, take_rows
from pyrovae.errors import InputError
from pyrovae.pairs.pair import Pair
from pyrovae.pairs.restore import PyroFunction


def over_rows(pair: Pair, *data: Data) -> tuple[Pair, tuple[Tensor, ...]]:
    """The pair as one of a single argument, with that argument for each of several data sets.

    A pair of one argument stays as it is. A pair of more becomes one over row numbers: called with
    row numbers, it calls the original with these rows of every argument.

    Args:
        pair: model and guide.
        data: data sets with the same arguments.

    Returns:
        the pair, and a tensor for each data set whose first dimension counts the rows.

    Raises:
        InputError: for data that are refused, or have other arguments than the pair or each other.
    """
    batches = [all_rows(rows) for rows in data]
    for batch in batches:
        check_arguments(pair.model, batch, "model")
        check_arguments(pair.guide, batch, "guide")
    if {len(batch) for batch in batches} == {1}:
        return pair, tuple(batch[0] for batch in batches)
    kinds = [row_kinds(batch) for batch in batches]
    if any(kind != kinds[0] for kind in kinds):
        raise InputError(
            f"expected the same arguments in each data set, of one shape and dtype; got {kinds}. "
            "Reshape or convert them."
        )
    arguments = tuple(torch.cat(column) for column in zip(*batches, strict=True))
    numbers = torch.arange(row_count(arguments), device=arguments[0].device)
    model, guide = (_by_number(function, arguments) for function in (pair.model, pair.guide))
    by_number = replace(pair, model=model, guide=guide)
    return by_number, numbers.split([row_count(batch) for batch in batches])


def _by_number(function: PyroFunction, arguments: Batch) -> Callable[[Tensor], Any]:
    def call_with_rows(index: Tensor) -> Any:
        return function(*take_rows(arguments, index))

    return call_with_rows
