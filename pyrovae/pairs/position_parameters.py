"""Parameters that belong to a place in the batch, not to the row that happens to be there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.data import Batch, row_count, take_rows
from pyrovae.errors import InputError
from pyrovae.pairs.reachable_modules import parameters_behind
from pyrovae.pairs.site_density import at_own_draws
from pyrovae.pairs.trace_reader import Reader, Reading, innermost

FEW = 3  # rows that are enough to tell, if a guide takes any number of them


def by_place(model: Reader, guide: Reader, batch: Batch, *, few: bool = False) -> list[Tensor]:
    """The parameters of a pair in which each place of the batch has entries of its own.

    Most guides of ``pyro.infer.autoguide`` have such parameters: they fit the rows that they were
    trained on, in that order, and no others. To tell, all rows are moved on by one place, with the
    same draws for each, and gradients show whether the first row still uses the same entries of
    every parameter. The model is run at draws of the guide only.

    Args:
        model, guide: readers of the two.
        batch: rows, as many as the pair was first run with.
        few: whether the guide is known to take any number of rows; found out if not.
    """
    guide = replace(guide, allows_joint_density=True)
    if few or guide.takes_any_number_of_rows(batch):
        index = torch.arange(FEW, device=batch[0].device) % row_count(batch)
        try:
            return _by_place(model, guide, take_rows(batch, index))
        except (ValueError, RuntimeError, IndexError, AssertionError):
            pass  # the model needs all rows, or fails for them too
    try:
        return _by_place(model, guide, batch)
    except (ValueError, RuntimeError, IndexError, AssertionError):
        return []  # guide and model don't fit, which is an error when the model scores draws


@torch.enable_grad()
def _by_place(model: Reader, guide: Reader, batch: Batch) -> list[Tensor]:
    with torch.random.fork_rng():
        draws = {draw.name: draw for draw in _draws(guide, batch, {})}
        free = {name: draw for name, draw in draws.items() if not draw.point}
        if row_count(batch) == 1:  # there is no other place to move to, and the guide takes no more
            return list(_entries(guide, batch, free, 0))
        if parameters := _moving(guide, batch, free):
            return parameters
        values = {name: draw.value for name, draw in draws.items()}
        return _moving(model, batch, {d.name: d for d in _draws(model, batch, values)})


@dataclass(frozen=True)
class _Draw:
    """The value at a site in the data plate.

    Args:
        name: of the site.
        value: one for each row, along the dimension ``axis``.
        axis: the dimension of the rows.
        point: whether it is not a free draw: a function of others, or a value whose density is
            known in the same run only.
    """

    name: str
    value: Tensor
    axis: int
    point: bool


def _draws(reader: Reader, batch: Batch, values: Mapping[str, Tensor]) -> list[_Draw]:
    with torch.no_grad():
        reading = reader.read(batch, values=values)[0]
    return [draw for draw in _in_plate(reading) if draw.name in reading.latent]


def _in_plate(reading: Reading) -> Iterator[_Draw]:
    for name, node in reading.nodes.items():
        fn = node["fn"]
        with suppress(InputError):  # a site outside the plate over the data has no places
            axis = len(fn.batch_shape) + reading.dim(name)
            value = node["value"].expand(fn.batch_shape + fn.event_shape)
            point = isinstance(innermost(fn), dist.Delta) or at_own_draws(fn)
            yield _Draw(name, value, axis, point)


def _moving(reader: Reader, batch: Batch, draws: Mapping[str, _Draw]) -> list[Tensor]:
    """Parameters of which the first row uses other entries once it stands at the second place."""
    rows = torch.arange(row_count(batch), device=batch[0].device).roll(1)
    rolled = {
        name: _Draw(name, draw.value.roll(1, draw.axis), draw.axis, draw.point)
        for name, draw in draws.items()
    }
    before = _entries(reader, batch, draws, 0)
    after = _entries(reader, take_rows(batch, rows), rolled, 1)
    return [
        parameter
        for parameter, used in before.items()
        if parameter in after and not bool((used & after[parameter]).any())
    ]


def _entries(
    reader: Reader, batch: Batch, draws: Mapping[str, _Draw], place: int
) -> dict[Tensor, Tensor]:
    """Which entries of each parameter the row at a place depends on, for those with any."""
    values = {name: draw.value for name, draw in draws.items()}
    reading = reader.read(batch, values=values)[0]
    terms = [
        reading.value(draw.name)[place].sum()
        if draw.point
        else reading.log_density(draw.name)[place]
        for draw in _in_plate(reading)
    ]
    total = sum(terms, torch.zeros(()))
    parameters = parameters_behind(total)
    if not parameters:
        return {}
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    used = {
        parameter: (gradient.to_dense() if gradient.is_sparse else gradient) != 0
        for parameter, gradient in zip(parameters, gradients, strict=True)
        if gradient is not None
    }
    return {parameter: entries for parameter, entries in used.items() if bool(entries.any())}
