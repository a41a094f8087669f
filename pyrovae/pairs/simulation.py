"""Data drawn from the model itself, so that the true codes are known."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.data import Batch, as_batch, row_count
from pyrovae.errors import InputError
from pyrovae.mixture import families
from pyrovae.mixture.families import share
from pyrovae.pairs.discrete_sites import discrete_sites
from pyrovae.pairs.observed_data import observed_argument
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
    simulated, z, _ = _simulated(pair, as_batch(like), prior, seed)
    return simulated, z


@torch.no_grad()
def simulate_all(
    pair: Pair, like: Tensor | Batch, *, seed: int = 0
) -> tuple[Batch, Tensor, dict[str, Tensor]]:
    """As `simulate`, with what the same run of the model drew at its other discrete sites.

    Args:
        pair, like, seed: as `simulate` has them.

    Returns:
        the arguments, z, and the values at the sites by name, each ``(N, units)``; none where a
        site is drawn once for all rows.

    Raises:
        InputError: as `simulate`.
    """
    return _simulated(pair, as_batch(like), None, seed)


def _simulated(
    pair: Pair, batch: Batch, prior: dist.Distribution | None, seed: int
) -> tuple[Batch, Tensor, dict[str, Tensor]]:
    rows = row_count(batch)
    values: dict[str, Tensor] = {}
    with seeded(seed, "simulation"):
        position = observed_argument(pair, batch)
        if prior is None:
            readings = pair.model_reader.read(batch)
            z = torch.cat([torch.cat([r.code(s) for s in pair.sites], -1) for r in readings])
        else:
            z = prior.sample(torch.Size([rows])).reshape(rows, -1)
        if prior is None and not pair.traits.draws_for_all(batch):
            # In the same run: what z was drawn from, such as a discrete site, may reach x as well.
            likelihood = families.concatenate(
                [share(r.distribution(r.observed_site(pair.observed), flatten=False))
                 for r in readings]
            )  # fmt: skip
            x = likelihood.sample()
            discrete = discrete_sites(readings[0], pair.sites)
            values = {name: torch.cat([r.code(name) for r in readings]) for name in discrete}
        else:
            x = pair.decode(batch, z).sample()
    arguments = list(batch)
    arguments[position] = x.to(batch[position].dtype)
    simulated = tuple(arguments)
    _check_likelihood(pair, batch, simulated, z, x)
    return simulated, z, values


def _check_likelihood(pair: Pair, like: Batch, simulated: Batch, z: Tensor, x: Tensor) -> None:
    """Raise unless rows are scored by the likelihood that they were drawn from."""
    try:
        densities = []
        for rows in (like, simulated):
            with seeded(0, "scored twice"):  # other draws of the model are the same in both
                densities.append(pair.decode(rows, z).log_prob(x))
        first, second = densities
        same = torch.allclose(first, second, rtol=1e-5, atol=1e-5, equal_nan=True)
        reason = ""
    except ValueError as error:
        first_line = str(error).splitlines()[0].rstrip(".")  # Pyro adds the shapes of all sites
        reason, same = f", and refuses its own draws: {first_line}", False
    if not same:
        raise InputError(
            "expected p(x | z) not to depend on x itself, to simulate x and to score it; got a "
            f"model that takes something from x, such as a row's total{reason}. Give that to model "
            "and guide as an argument of its own, such as model(x, total)."
        )
