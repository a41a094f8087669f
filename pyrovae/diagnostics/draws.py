"""Codes of a data set: draws z ~ q(z | x_n) that all measures share."""

from __future__ import annotations

from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.display import Result
from pyrovae.errors import InputError
from pyrovae.randomness import seeded

DRAWS = 2  # at each data point, at least: the fewest that tell the variance within it


@dataclass(frozen=True, repr=False)
class Codes(Result):
    """Draws from the encodings of some of the data points.

    Args:
        index: which data points, shape ``(m,)``, in rising order, none twice.
        z: draws, shape ``(m, S, D)``.
        log_guide: log q(z | x_n) of each draw under its own data point, shape ``(m, S)``.
        population: number N of data points they were chosen from.
        rows: number of each data point in the user's own data set, shape ``(m,)``; ``None`` if
            read from a file of version 0.1.0.
    """

    index: Tensor
    z: Tensor
    log_guide: Tensor
    population: int
    rows: Tensor | None = None


def draw_codes(
    encoding: dist.Distribution, *, size: int, rows: Tensor | None = None, seed: int = 0
) -> Codes:
    """Draw equally many codes at each of min(N, size / 2) data points, chosen without replacement.

    That is two at each, or more where there are few data points.

    Args:
        encoding: q(z | x_n), batch shape ``(N,)``, event shape ``(D,)``.
        size: least number of codes; no more are drawn than equal numbers take.
        rows: number of each data point in the user's own data set, shape ``(N,)``; by default
            0, …, N − 1.
        seed: names the choice and the draws.

    Raises:
        InputError: if ``size`` leaves fewer than two data points.
    """
    population = encoding.batch_shape[0]
    points = min(population, size // DRAWS)
    if points < 2:
        raise InputError(
            f"expected at least {2 * DRAWS} codes of 2 data points or more; got {size}."
        )
    with seeded(seed, "codes"):
        index = torch.randperm(population)[:points].sort().values
        z = encoding.sample(torch.Size([-(-size // points)]))
    log_guide = encoding.log_prob(z)
    numbers = index if rows is None else rows.to(index.device)[index]
    return Codes(index, z[:, index].movedim(0, 1), log_guide[:, index].T, population, numbers)


@dataclass(frozen=True)
class Moments:
    """Means and standard deviations of the units of q(z | x) at every data point.

    Args:
        first, second: the means, shape ``(N, D)``, twice; where they have no closed form, two
            independent estimates from draws, whose product has no bias.
        stddev: the standard deviations, shape ``(N, D)``.
    """

    first: Tensor
    second: Tensor
    stddev: Tensor

    @property
    def mean(self) -> Tensor:
        """The means, or their best estimates."""
        return (self.first + self.second) / 2


def moments(encoding: dist.Distribution, *, draws: int = 64, seed: int = 0) -> Moments:
    """Means and standard deviations of an encoding, in closed form or else from draws.

    Args:
        encoding: q(z | x_n), batch shape ``(N,)``, event shape ``(D,)``.
        draws: at each data point, if there is no closed form; an even number.
        seed: names the draws.
    """
    try:
        return Moments(encoding.mean, encoding.mean, encoding.stddev)
    except NotImplementedError:
        with seeded(seed, "moments"):
            template = encoding.sample()
            first, second, squares = (
                torch.zeros_like(template, dtype=torch.float64) for _ in range(3)
            )
            for total in (first, second):
                for _ in range(draws // 2):
                    z = encoding.sample().double()
                    total += z / (draws // 2)
                    squares += z.square()
        centred = squares - draws * ((first + second) / 2).square()
        return Moments(first, second, (centred / (draws - 1)).sqrt())
