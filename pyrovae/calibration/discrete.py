"""Test quantities of discrete sites beside the code, and what ranks of them can tell."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyrovae.data import Batch, repeat_rows
from pyrovae.errors import InputError
from pyrovae.pairs import DiscreteSites


def with_discrete(
    sites: DiscreteSites, x: Batch, codes: Tensor, values: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The discrete numbers themselves, and the densities of code and discrete sites u together.

    Args:
        sites: the pair's discrete sites.
        x: simulated rows, of number B.
        codes: shape ``(S + 1, B, D)``.
        values: of the discrete sites, each ``(S + 1, B, units)``.

    Returns:
        quantities by name, each ``(S + 1, B)``, and why others are left out, by name.
    """
    found = dict(zip(sites.labels, sites.as_numbers(values).unbind(-1), strict=True))
    refused: dict[str, str] = {}
    repeated, flat = repeat_rows(x, len(codes)), codes.flatten(0, 1)
    given = {name: value.flatten(0, 1) for name, value in values.items()}
    together = ", ".join(("z", *sites.names))
    by_guide, by_model = f"log q({together} | x)", f"log p(x, {together})"
    for name, density in ((by_guide, sites.log_guide), (by_model, sites.log_joint)):
        try:
            numbers = density(repeated, flat, given).view(codes.shape[:2])
        except (InputError, NotImplementedError) as error:
            refused[name] = str(error)
            continue
        if numbers.isnan().any():
            refused[name] = "it is not a number at some codes."
        else:
            found[name] = numbers
    return found, refused


def differences(drawn: Tensor) -> tuple[Tensor, Tensor]:
    """How often two of the guide's draws differ, at the same x and at two of different x.

    Args:
        drawn: S draws at each of N rows, shape ``(S, N, K)``.

    Returns:
        for each row, the mean over all others at the same x, and over all at other x, ``(N, K)``.
    """
    columns = [_differences(column) for column in drawn.unbind(-1)]
    within, between = (torch.stack(part, -1).cpu() for part in zip(*columns, strict=True))
    return within, between


def _differences(drawn: Tensor) -> tuple[Tensor, Tensor]:
    """The same of one unit, draws of shape ``(S, N)``."""
    draws, rows = drawn.shape
    within = _differing(drawn.T).mean(1)
    among_all = _differing(drawn.T.reshape(1, -1)).view(rows, draws).mean(1)
    others = draws * (rows - 1)
    return within, ((others + draws - 1) * among_all - (draws - 1) * within) / others


def _differing(values: Tensor) -> Tensor:
    """The share of the other values in its row that differ from each, shape ``(B, S)``."""
    values = values.contiguous()
    ordered = values.sort(-1).values
    above, below = (torch.searchsorted(ordered, values, right=right) for right in (True, False))
    return 1 - (above - below - 1) / (values.shape[-1] - 1)
