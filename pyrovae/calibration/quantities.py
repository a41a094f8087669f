"""Test quantities: functions of a datum and a code, by which the true code is ranked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.calibration.references import Regression, regress
from pyrovae.data import Batch, repeat_rows, row_count
from pyrovae.errors import InputError
from pyrovae.pairs import Pair, elbo_terms, simulate
from pyrovae.randomness import seeded

GUIDE = "log q(z | x)"
RANDOM, BY_X = "TARP distance to random points", "TARP distance to points by x"
LIKELIHOOD, JOINT = "log p(x | z)", "log p(x, z)"
OWN = (GUIDE, RANDOM, BY_X, LIKELIHOOD, JOINT)

Quantity = Callable[..., Tensor]


@dataclass(frozen=True)
class References:
    """Points whose distance to codes is a test quantity.

    Args:
        points: for each of the simulations that are tested, shape ``(N, D)``, drawn from p(z).
        scale: of each unit, shape ``(D,)``.
        regression: of z on x; ``None`` where there is none, and ``refused`` says why.
        refused: why there is no regression.
    """

    points: Tensor
    scale: Tensor
    regression: Regression | None
    refused: str = ""

    def take(self, rows: slice) -> References:
        """The references of some of the simulations."""
        return replace(self, points=self.points[rows])


def make_references(pair: Pair, rows: Batch, *, seed: int) -> References:
    """References for rows, of as many further simulations, which no test is made of.

    Args:
        pair: model and guide.
        rows: rows of the shape to simulate.
        seed: names the draws.
    """
    x, points = simulate(pair, rows, seed=seed)
    deviation = points.double().std(0)
    scale = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    return References(points, scale, *regression_on(pair, x, points))


def regression_on(pair: Pair, x: Batch, z: Tensor) -> tuple[Regression | None, str]:
    """A regression of z on x, or why there is none.

    What a mask leaves out of x is simulated all the same, and tells of z what no guide is told.

    Args:
        pair: model and guide.
        x: simulated rows.
        z: their codes, shape ``(N, D)``.
    """
    with seeded(0, "masks of simulated data"):
        for reading in pair.model_reader.read(x):
            masks = [reading.present(site) for site in reading.data_sites]
            if any(mask is not None and not mask.all() for mask in masks):
                return None, "a mask leaves out a part of x, which a regression on x would see."
    try:
        return regress(x, z), ""
    except InputError as error:
        return None, str(error)


def evaluate(
    pair: Pair,
    x: Batch,
    codes: Tensor,
    encoding: dist.Distribution | None,
    references: References,
    own: Mapping[str, Quantity],
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All test quantities of the joint code, each for all codes of each row.

    The first of the codes and the others go through the same functions in the same way, so that
    under an exact guide they can be exchanged, whatever these functions do.

    Args:
        pair: model and guide.
        x: simulated rows, of number B.
        codes: shape ``(S + 1, B, D)``.
        encoding: q(z | x), batch shape ``(B,)``; ``None`` where it isn't known.
        references: what distances are measured to.
        own: the user's quantities by name.

    Returns:
        quantities by name, each ``(S + 1, B)``, and why others are left out, by name.
    """
    found: dict[str, Tensor] = {}
    refused: dict[str, str] = {}
    repeated, flat = repeat_rows(x, len(codes)), codes.flatten(0, 1)
    try:
        if encoding is not None:
            found[GUIDE] = encoding.log_prob(codes)
    except (InputError, NotImplementedError) as error:
        refused[GUIDE] = str(error)
    found[RANDOM] = _distance(codes, references.points, references)
    if references.regression is None:
        refused[BY_X] = references.refused
    else:
        found[BY_X] = _distance(codes, references.regression.predict(x), references)
    try:
        likelihood, prior = elbo_terms(pair, repeated, flat)
        found[LIKELIHOOD] = likelihood.view(codes.shape[:2])
        found[JOINT] = (likelihood + prior).view(codes.shape[:2])
    except InputError as error:
        refused |= dict.fromkeys((LIKELIHOOD, JOINT), str(error))
    for name in [name for name, values in found.items() if values.isnan().any()]:
        refused[name] = "it is not a number at some codes."
        del found[name]
    argument = repeated[0] if len(repeated) == 1 else repeated
    for name, quantity in own.items():
        found[name] = _checked(name, quantity(argument, flat), flat).view(codes.shape[:2])
    return found, refused


def check_names(own: Mapping[str, Quantity], sites: Sequence[str] = ()) -> None:
    """Raise if a quantity of the user's has the name of one of the library's, or of a site."""
    if taken := sorted(set(own) & {*OWN, *sites}):
        raise InputError(
            f"expected quantities of other names than the library's own; got {taken}. Rename them."
        )


def _distance(codes: Tensor, points: Tensor, references: References) -> Tensor:
    return ((codes - points) / references.scale).norm(dim=-1)


def _checked(name: str, values: object, codes: Tensor) -> Tensor:
    """A user's quantity, if it is one number for each code."""
    count = row_count((codes,))
    if not isinstance(values, Tensor) or values.shape != (count,):
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise InputError(
            f"expected quantities[{name!r}] to return a tensor of shape ({count},), one number "
            f"for each code; got {shape}. Sum over the other dimensions."
        )
    if values.isnan().any():
        raise InputError(
            f"expected numbers of quantities[{name!r}]; got nan. Return one at every code of the "
            "prior."
        )
    return values
