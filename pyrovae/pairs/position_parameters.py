"""Parameters that belong to a place in the batch, and not to the row that stands there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.data import Batch, take_rows
from pyrovae.errors import InputError
from pyrovae.pairs.reachable_modules import parameters_behind
from pyrovae.pairs.site_density import at_own_draws
from pyrovae.pairs.trace_reader import Reader, Reading

FEW = 3  # rows that show it where a function takes any number of them


def by_place(model: Reader, guide: Reader, batch: Batch) -> list[Tensor]:
    """The parameters of a pair of which each place in a batch has a part of its own.

    So it is in most guides of ``pyro.infer.autoguide``: they fit the rows that they were trained
    on, in that order, and no others. What is asked is whether the first row draws on the same
    entries of every parameter after all rows have moved on by one place. Gradients tell it, with
    the same draws for each row. The model is run at draws of the guide alone.

    Args:
        model, guide: how to run them.
        batch: rows, as many as the pair was first run with.
    """
    guide = replace(guide, whole=True)
    if guide.takes_any_number_of_rows(batch):
        index = torch.arange(FEW, device=batch[0].device) % len(batch[0])
        try:
            return _by_place(model, guide, take_rows(batch, index))
        except (ValueError, RuntimeError, IndexError, AssertionError):
            pass  # the model takes no few rows, or what is wrong is so for all too
    try:
        return _by_place(model, guide, batch)
    except (ValueError, RuntimeError, IndexError, AssertionError):
        return []  # guide and model don't fit: to be said where the one is scored by the other


@torch.enable_grad()
def _by_place(model: Reader, guide: Reader, batch: Batch) -> list[Tensor]:
    with torch.random.fork_rng():
        drawn = {draw.name: draw for draw in _draws(guide, batch, {})}
        free = {name: draw for name, draw in drawn.items() if not draw.point}
        if len(batch[0]) == 1:  # which has no other place to move to, and is all the guide takes
            return list(_entries(guide, batch, free, 0))
        if found := _moved(guide, batch, free):
            return found
        known = {name: draw.value for name, draw in drawn.items()}
        return _moved(model, batch, {d.name: d for d in _draws(model, batch, known)})


@dataclass(frozen=True)
class _Draw:
    """What was drawn at a latent site in the data plate.

    Args:
        name: of the site.
        value: one for each row, along the dimension ``axis``.
        axis: the dimension of the rows.
        point: whether it is no draw but a function of others, or can't be put there again.
    """

    name: str
    value: Tensor
    axis: int
    point: bool


def _draws(reader: Reader, batch: Batch, known: Mapping[str, Tensor]) -> list[_Draw]:
    with torch.no_grad():
        reading = reader.read(batch, values=known)[0]
    return [draw for draw in _in_plate(reading) if draw.name in reading.latent]


def _in_plate(reading: Reading) -> Iterator[_Draw]:
    for name, node in reading.nodes.items():
        fn = node["fn"]
        with suppress(InputError):  # a site outside of the plate over the data has no places
            axis = len(fn.batch_shape) + reading.dim(name)
            value = node["value"].expand(fn.batch_shape + fn.event_shape)
            yield _Draw(name, value, axis, isinstance(_base(fn), dist.Delta) or at_own_draws(fn))


def _moved(reader: Reader, batch: Batch, draws: Mapping[str, _Draw]) -> list[Tensor]:
    """Parameters of which the first row uses other entries at the second place."""
    rows = torch.arange(len(batch[0]), device=batch[0].device).roll(1)
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
    """Which entries of each parameter the row at a place depends on; none is left out."""
    placed = {name: draw.value for name, draw in draws.items()}
    reading = reader.read(batch, values=placed)[0]
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


def _base(distribution: dist.Distribution) -> dist.Distribution:
    while isinstance(distribution, torch.distributions.Independent | dist.MaskedDistribution):
        distribution = distribution.base_dist
    return distribution
