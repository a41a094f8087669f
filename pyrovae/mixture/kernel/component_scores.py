"""Sums and largest terms over component scores of any family, without storing all pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pyrovae.display import Result
from pyrovae.errors import InputError
from pyrovae.mixture.kernel.group_sums import Sum


@dataclass(frozen=True, repr=False)
class Responsibilities(Result):
    """The k components that explain each point best.

    Args:
        index: component numbers, largest weight first, shape ``(..., k)``.
        weight: their responsibilities q(n | z), shape ``(..., k)``.
    """

    index: Tensor
    weight: Tensor


class Scores(Protocol):
    """Anything that evaluates log w_n + log q_n(z) for a range of components."""

    points: int  #: number of points to take at once

    def rows(self) -> Iterator[slice]:
        """The components in blocks."""

    def scores(self, z: Tensor, rows: slice) -> Tensor:
        """log w_n + log q_n(z) of these components, shape ``(B, n)``."""


def top_shares(components: Scores, z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k components with the largest responsibilities for every point, largest first.

    Args:
        components: the N components.
        z: points, shape ``(B, ...)``.
        k: number of components to return.

    Returns:
        component numbers and responsibilities, shape ``(B, k)``; NaN where the density is 0.
    """
    parts = []
    for part in z.split(components.points):
        index, score, total = largest_scores(components, part, k)
        parts.append((index, total.share(score)))
    index, share = (torch.cat(column) for column in zip(*parts, strict=True))
    return index, share


def largest_scores(components: Scores, z: Tensor, k: int) -> tuple[Tensor, Tensor, Sum]:
    """Numbers and scores of the k components of largest score, ``(B, k)``, and the sum over all."""
    index, value, total = None, None, _new_sum(z)
    for rows in components.rows():
        scores = components.scores(z, rows)
        total.add_scores(scores)
        best = scores.topk(min(k, scores.shape[-1]))
        number = best.indices + rows.start
        if index is None or value is None:
            index, value = number, best.values
            continue
        merged = torch.cat([value, best.values], -1)
        value, position = merged.topk(min(k, merged.shape[-1]))
        index = torch.cat([index, number], -1).gather(-1, position)
    if index is None or value is None:
        raise InputError("expected at least one component; got none.")
    return index, value, total


def total_scores(
    components: Scores, z: Tensor, exclude: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of log w_n + log q_n(z) over n, and the entropy of the responsibilities.

    Args:
        components: the N components.
        z: points, shape ``(B, ...)``.
        exclude: for each point a component to leave out or −1 for none, shape ``(B,)``.

    Returns:
        log-sum-exps and entropies, each of shape ``(B,)``.
    """
    left_out = torch.full((len(z),), -1, device=z.device) if exclude is None else exclude
    parts = zip(z.split(components.points), left_out.split(components.points), strict=True)
    total, entropy = zip(*(_total(components, *part) for part in parts), strict=True)
    return torch.cat(total), torch.cat(entropy)


def _total(components: Scores, z: Tensor, exclude: Tensor) -> tuple[Tensor, Tensor]:
    total = _new_sum(z)
    for rows in components.rows():
        number = torch.arange(rows.start, rows.stop, device=z.device)
        scores = components.scores(z, rows)
        total.add_scores(scores.masked_fill(number == exclude.unsqueeze(-1), -math.inf))
    log_sum, _, entropy = total.result()
    return log_sum, entropy


def _new_sum(z: Tensor) -> Sum:
    return Sum(len(z), 0, moments=True, device=z.device)
