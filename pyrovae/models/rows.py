"""Data of several arguments as one tensor, so that no measure need know how many there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyrovae.batches import Batch, Data, all_rows, take_rows
from pyrovae.errors import InputError
from pyrovae.models.pair import Pair
from pyrovae.models.state import PyroFunction


def over_rows(pair: Pair, *data: Data) -> tuple[Pair, tuple[Tensor, ...]]:
    """The pair as one of a single argument, and that argument for each of several data sets.

    A pair of one argument stays as it is. One of more becomes a pair over row numbers: called with
    some of them, it calls the original with these rows of every argument.

    Args:
        pair: model and guide.
        data: data sets with the same arguments.

    Returns:
        the pair, and for each data set a tensor whose first dimension counts the rows.
    """
    batches = [all_rows(rows) for rows in data]
    counts = {len(batch) for batch in batches}
    if len(counts) > 1:
        raise InputError(
            f"expected as many arguments in each data set; got {[len(batch) for batch in batches]}."
            " Give each data set all arguments of the pair, as a tuple in their order."
        )
    if counts == {1}:
        return pair, tuple(batch[0] for batch in batches)
    whole = tuple(torch.cat(column) for column in zip(*batches, strict=True))
    numbers = torch.arange(len(whole[0]), device=whole[0].device)
    bound = replace(pair, model=_over(pair.model, whole), guide=_over(pair.guide, whole))
    return bound, numbers.split([len(batch[0]) for batch in batches])


def _over(function: PyroFunction, whole: Batch) -> Callable[[Tensor], Any]:
    def of_rows(index: Tensor) -> Any:
        return function(*take_rows(whole, index))

    return of_rows
