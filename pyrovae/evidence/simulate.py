"""Data of a model's own making, whose codes are known."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.batches import Batch, as_batch
from pyrovae.models.pair import Pair
from pyrovae.models.sites import Reader
from pyrovae.randomness import seeded


@torch.no_grad()
def simulate(
    pair: Pair, like: Tensor | Batch, *, prior: dist.Distribution | None = None, seed: int = 0
) -> tuple[Batch, Tensor]:
    """Draw z ~ p(z) and x ~ p(x | z), so that z is an exact draw from p(z | x).

    Args:
        pair: model and guide; one of the arguments is what the observed site takes. All others,
            such as labels, stay as they are: z and x are then drawn given them.
        like: rows, shape ``(N, ...)``, that say how many and of what shape.
        prior: p(z) in the place of the model's own.
        seed: names the draws.

    Returns:
        the arguments with x in its place, and z, shape ``(N, D)``.

    Raises:
        ValueError: if no argument, or more than one, is what the observed site takes as it is, or
            the model observes more than one site.
    """
    batch = as_batch(like)
    rows = len(batch[0])
    with seeded(seed):
        position = observed_argument(pair, batch)
        if prior is None:
            readings = Reader(pair.model, "model", pair.data_plate).read(batch)
            z = torch.cat([torch.cat([r.code(s) for s in pair.sites], -1) for r in readings])
        else:
            z = prior.sample(torch.Size([rows])).reshape(rows, -1)
        x = pair.decode(batch, z).sample()
    arguments = list(batch)
    arguments[position] = x.to(batch[position].dtype)
    return tuple(arguments), z


def observed_argument(pair: Pair, batch: Batch) -> int:
    """The number of the argument that the model observes; errors as `simulate`."""
    # Only the model is run: the rows need not be data, and a guide may refuse what they hold.
    reading = Reader(pair.model, "model", pair.data_plate).read(batch)[0]
    names = [n for n in reading.observed if not isinstance(reading.nodes[n]["fn"], dist.Unit)]
    if len(names) > 1:
        raise ValueError(
            f"expected one observed site, to simulate data there; got {names}. Condition the model "
            "on all others, or observe them as one site."
        )
    value = pair.observe(batch)
    found = [
        number
        for number, argument in enumerate(batch)
        if argument.shape == value.shape and _same(argument.to(value.dtype), value)
    ]
    if len(found) != 1:
        shapes = [tuple(argument.shape[1:]) for argument in batch]
        raise ValueError(
            f"expected one argument that the site {names[0]!r} observes as it is, to put simulated "
            f"data in its place; got {len(found)} among arguments of shapes {shapes} for rows of "
            f"shape {tuple(value.shape[1:])}. Transform the data beforehand, not in the model."
        )
    return found[0]


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
