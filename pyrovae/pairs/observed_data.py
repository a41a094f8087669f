"""What a model observes: the data at its observed site, and the argument that they come in as."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.data import Batch, as_batch
from pyrovae.errors import InputError
from pyrovae.pairs.pair import Pair


def observe(pair: Pair, x: Tensor | Batch) -> tuple[str, Tensor]:
    """The observed site that is decoded: its name, and the data there, shape ``(B, ...)``.

    What a mask leaves out is NaN.
    """
    readings = pair.model_reader.read(as_batch(x))
    site = readings[0].observed_site(pair.observed)
    return site, torch.cat([reading.seen(site) for reading in readings])


def observed_argument(pair: Pair, batch: Batch) -> int:
    """The number of the argument that the model observes.

    Raises:
        InputError: if no argument, or more than one, is what the site observes as it is, or the
            model observes more than one site.
    """
    # Only the model is run: the rows need not be real data, and a guide may refuse them.
    readings = pair.model_reader.read(batch)
    reading = readings[0]
    names = [n for n in reading.observed if not isinstance(reading.nodes[n]["fn"], dist.Unit)]
    if len(names) > 1:
        raise InputError(
            f"expected one observed site, to simulate data there; got {names}. Condition the model "
            "on all others, or observe them as one site."
        )
    site = reading.observed_site(pair.observed)
    value = torch.cat([reading.value(site) for reading in readings])  # masked parts, too
    positions = [
        number
        for number, argument in enumerate(batch)
        if argument.shape == value.shape and _same(argument.to(value.dtype), value)
    ]
    if len(positions) != 1:
        shapes = [tuple(argument.shape[1:]) for argument in batch]
        raise InputError(
            f"expected one argument that the site {names[0]!r} observes as it is, to put simulated "
            f"data in its place; got {len(positions)} among arguments of shapes {shapes} for rows "
            f"of shape {tuple(value.shape[1:])}. Transform the data beforehand, not in the model."
        )
    return positions[0]


def _same(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, rtol=0.0, atol=0.0, equal_nan=True)
