"""What x tells of z by a regression, made of simulations that no test is made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.data import Batch
from pyrovae.errors import InputError

PENALTIES = tuple(10.0**power for power in range(-6, 4))  # of the ridge, times N


@dataclass(frozen=True)
class Regression:
    """Kernel ridge regression of z on x, with a linear kernel and a Gaussian one.

    Args:
        rows: standardised x of the simulations that it was made of, shape ``(N, P)``.
        shift, scale: of x before that, shape ``(P,)``.
        width: the Gaussian kernel's, squared.
        weights: of the rows, shape ``(N, D)``.
        centre: mean of z, shape ``(D,)``.
    """

    rows: Tensor
    shift: Tensor
    scale: Tensor
    width: Tensor
    weights: Tensor
    centre: Tensor

    def predict(self, x: Batch) -> Tensor:
        """z by x, shape ``(B, D)``."""
        rows = (as_numbers(x) - self.shift) / self.scale
        return self.centre + _kernel(rows, self.rows, self.width) @ self.weights


def regress(x: Batch, z: Tensor) -> Regression:
    """A regression of z on x, of the penalty with the least error on rows left out one at a time.

    Args:
        x: rows of all arguments.
        z: codes, shape ``(N, D)``.

    Raises:
        InputError: if x has numbers that are not finite.
    """
    numbers, codes = as_numbers(x), z.double()
    if not numbers.isfinite().all():
        raise InputError(
            "expected finite numbers in x, to regress z on x; got others. Impute missing cells."
        )
    shift, scale = numbers.mean(0), numbers.std(0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    rows, centre = (numbers - shift) / scale, codes.mean(0)
    width = torch.cdist(rows, rows).square().median()
    width = torch.where(width > 0, width, torch.ones_like(width))
    values, vectors = torch.linalg.eigh(_kernel(rows, rows, width))
    rotated, candidates = vectors.T @ (codes - centre), []
    for penalty in PENALTIES:
        shrunk = 1 / (values.clamp_min(0) + penalty * len(rows))  # eigenvalues are ≥ 0 but rounded
        weights = vectors @ (shrunk.unsqueeze(-1) * rotated)
        left_out = weights / (vectors.square() @ shrunk).unsqueeze(-1)  # errors, row by row
        candidates.append((float(left_out.square().mean()), weights))
    _, weights = min(candidates, key=lambda candidate: candidate[0])
    return Regression(rows, shift, scale, width, weights, centre)


def as_numbers(x: Batch) -> Tensor:
    """All arguments of each row as one vector, shape ``(B, P)``."""
    return torch.cat([array.reshape(len(array), -1).double() for array in x], -1)


def _kernel(rows: Tensor, others: Tensor, width: Tensor) -> Tensor:
    gaussian = (-torch.cdist(rows, others).square() / width).exp()
    return rows @ others.T / rows.shape[1] + gaussian
