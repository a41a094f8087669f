"""Data drawn from the model itself, so that the true codes are known."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.data import Batch, as_batch, row_count
from pyrovae.errors import InputError
from pyrovae.pairs.pair import Pair
from pyrovae.randomness import seeded


@torch.no_grad()
def simulate(
    pair: Pair, like: Tensor | Batch, *, prior: dist.Distribution | None = None, seed: int = 0
) -> tuple[Batch, Tensor]:
    """Draw z ~ p(z) and x ~ p(x | z), so that z is an exact draw from p(z | x).

    Args:
        pair: model and guide; one of the arguments is what the observed site observes. All others,
            such as labels, stay as they are: z and x are then drawn given them.
        like: rows, shape ``(N, ...)``, whose number and shape the draws have.
        prior: p(z) in the place of the model's own.
        seed: names the draws.

    Returns:
        the arguments with the drawn x in place of the data, and z, shape ``(N, D)``.

    Raises:
        InputError: if no argument, or more than one, is what the site observes as it is, the
            model observes more than one site, or p(x | z) depends on x itself, such as by a row's
            total, which differs in the simulated rows.
    """
    batch = as_batch(like)
    rows = row_count(batch)
    with seeded(seed, "simulation"):
        position = observed_argument(pair, batch)
        if prior is None:
            readings = pair.model_reader.read(batch)
            z = torch.cat([torch.cat([r.code(s) for s in pair.sites], -1) for r in readings])
        else:
            z = prior.sample(torch.Size([rows])).reshape(rows, -1)
        x = pair.decode(batch, z).sample()
    arguments = list(batch)
    arguments[position] = x.to(batch[position].dtype)
    simulated = tuple(arguments)
    _check_likelihood(pair, batch, simulated, z, x)
    return simulated, z


def _check_likelihood(pair: Pair, like: Batch, simulated: Batch, z: Tensor, x: Tensor) -> None:
    """Raise unless rows are scored by the likelihood that they were drawn from."""
    try:
        densities = []
        for rows in (like, simulated):
            with seeded(0, "scored twice"):  # other draws of the model are the same in both
                densities.append(pair.decode(rows, z).log_prob(x))
        reason, same = "", _same(*densities, tolerance=1e-5)
    except ValueError as error:
        first_line = str(error).splitlines()[0].rstrip(".")  # Pyro adds the shapes of all sites
        reason, same = f", and refuses its own draws: {first_line}", False
    if not same:
        raise InputError(
            "expected p(x | z) not to depend on x itself, to simulate x and to score it; got a "
            f"model that takes something from x, such as a row's total{reason}. Give that to model "
            "and guide as an argument of its own, such as model(x, total)."
        )


def observed_argument(pair: Pair, batch: Batch) -> int:
    """The number of the argument that the model observes; raises as `simulate`."""
    # Only the model is run: the rows need not be real data, and a guide may refuse them.
    reading = pair.model_reader.read(batch)[0]
    names = [n for n in reading.observed if not isinstance(reading.nodes[n]["fn"], dist.Unit)]
    if len(names) > 1:
        raise InputError(
            f"expected one observed site, to simulate data there; got {names}. Condition the model "
            "on all others, or observe them as one site."
        )
    _, value = pair.observe(batch)
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


def _same(first: Tensor, second: Tensor, *, tolerance: float = 0.0) -> bool:
    return torch.allclose(first, second, rtol=tolerance, atol=tolerance, equal_nan=True)
